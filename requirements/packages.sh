#!/bin/sh
# Inside an image: install Debian packages where they are missing, and take away what an installation writes down of itself: logs,
# lists, caches with times in them.
#   packages.sh PACKAGE…
set -eu
if dpkg --status "$@" > /dev/null 2>&1; then exit 0; fi
apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/log/*
