#!/bin/sh
# The quantizer image's Python environment on this machine, for tests: the folder $1, with hashes checked.
# Done again only when the lock file changed. After requirements/venv.sh, whose uv and downloads it uses.
set -eu
folder="$1"
cd "$(dirname "$0")/.."
key=$(sha256sum < requirements/quantizer.txt | cut -c1-16)
if [ -e "$folder/.complete-$key" ]; then exit 0; fi
uv="${XDG_CACHE_HOME:-$HOME/.cache}/finetune-operator/uv-$(sha256sum requirements/uv.txt | cut -c1-16)/bin/uv"
[ -x "$folder/bin/python" ] || "$uv" venv --quiet --python "$(command -v python3)" "$folder"
"$uv" pip sync --quiet --python "$folder/bin/python" --system-certs --require-hashes requirements/quantizer.txt
rm -f "$folder"/.complete-*
touch "$folder/.complete-$key"
