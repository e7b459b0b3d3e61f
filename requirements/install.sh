#!/bin/sh
# Inside an image: install a lock file of this folder into /opt/venv, with hashes checked. uv does it and does not stay in the layer.
#   install.sh LOCK [uv's options]
# Compiled to bytecode now, because pods have a read-only root: the files of this layer, not those of the layers below.
set -eu
export PYTHONDONTWRITEBYTECODE=1
lock="$1"; shift
before=$(mktemp)
[ -d /opt/venv ] || python3 -m venv --without-pip /opt/venv
python3 -m venv /tmp/uv
PIP_CERT=/etc/ssl/certs/ca-certificates.crt /tmp/uv/bin/pip install --quiet --no-compile --no-cache-dir --require-hashes -r /requirements/uv.txt
/tmp/uv/bin/uv pip install --python /opt/venv/bin/python --no-cache --system-certs --require-hashes "$@" \
    --requirements "/requirements/$lock.txt"
/requirements/bytecode.sh /opt/venv -cnewer "$before" || echo "what could not be compiled stays as it is: no program imports it"
rm -rf /tmp/uv "$before"
