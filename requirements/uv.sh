#!/bin/sh
# Print where uv is, of the version that uv.txt locks; it is fetched where the cache lacks it.
set -eu
cd "$(dirname "$0")"
uv="${XDG_CACHE_HOME:-$HOME/.cache}/finetune-operator/uv-$(sha256sum uv.txt | cut -c1-16)"
if [ ! -x "$uv/bin/uv" ]; then
    python3 -m venv "$uv"
    "$uv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r uv.txt
fi
echo "$uv/bin/uv"
