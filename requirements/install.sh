#!/bin/sh
# Inside an image: install a lock file of this folder into /opt/venv, with hashes checked. uv does it and does not stay in the layer.
#   install.sh LOCK [uv's options]
# Compiled to bytecode now, because pods have a read-only root.
set -eu
lock="$1"; shift
[ -d /opt/venv ] || python3 -m venv --without-pip /opt/venv
python3 -m venv /tmp/uv
PIP_CERT=/etc/ssl/certs/ca-certificates.crt /tmp/uv/bin/pip install --quiet --no-cache-dir --require-hashes -r /requirements/uv.txt
/tmp/uv/bin/uv pip install --python /opt/venv/bin/python --no-cache --system-certs --require-hashes --compile-bytecode "$@" \
    --requirements "/requirements/$lock.txt"
rm -rf /tmp/uv
