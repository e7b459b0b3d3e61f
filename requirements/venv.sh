#!/bin/sh
# The environment for development, tests and `finetune`: .venv, filled from requirements/dev.txt with hashes checked.
# What the machine lacks is installed (apt-get, as root) or named. Done again only when a lock file changed.
set -eu
cd "$(dirname "$0")/.."
key=$(cat requirements/dev.txt requirements/uv.txt requirements/venv.sh | sha256sum | cut -c1-16)
if [ -e ".venv/.complete-$key" ]; then exit 0; fi
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "python3 is $(python3 --version 2>&1 | cut -d' ' -f2), but 3.11 or later is needed: use Debian 12 or Ubuntu 24.04, or later" >&2
    exit 1
fi
missing=""
python3 -c 'import venv, ensurepip' 2> /dev/null || missing="$missing python3-venv"
command -v git > /dev/null || missing="$missing git"
command -v curl > /dev/null || missing="$missing curl"
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        echo "missing:$missing; install them, for example: sudo apt-get install$missing" >&2
        exit 1
    fi
    echo "installing$missing (apt-get)"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing > /dev/null
fi
uv=$(sh requirements/uv.sh)
echo "filling .venv (about 3 GB, of which torch is most; a minute once they are in uv's cache)"
rm -f .venv/.complete-*
[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$(command -v python3)" .venv
"$uv" pip sync --quiet --python .venv/bin/python --system-certs --require-hashes requirements/dev.txt
# The two packages as they lie here, and the command `finetune`.
site=$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')
printf '%s\n%s\n' "$PWD/operator" "$PWD/trainer_image" > "$site/finetune-operator.pth"
printf '#!/bin/sh\nexec "%s/.venv/bin/python" -m finetune_operator.cli "$@"\n' "$PWD" > .venv/bin/finetune
chmod +x .venv/bin/finetune
touch ".venv/.complete-$key"
