#!/bin/sh
# The krew plugin of this version in a folder: its archive, and the manifest that names where it will lie.
#   sh krew/archive.sh FOLDER URL        the URL of the archive once it is published; HOMEPAGE is the project's page
set -eu
cd "$(dirname "$0")/.."
folder=$1 url=$2
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
archive=$folder/kubectl-finetune.tar.gz
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
mkdir -p "$folder" "$built/packages/finetune_trainer"
cp krew/kubectl-finetune krew/kubectl_complete-finetune requirements/cli.txt LICENSE "$built"
chmod 755 "$built/kubectl-finetune" "$built/kubectl_complete-finetune"
cp -r operator/finetune_operator "$built/packages"
cp -r trainer_image/finetune_trainer "$built/packages"
find "$built" -name __pycache__ -prune -exec rm -r {} +
tar --create --gzip --sort=name --mtime=@0 --owner=0 --group=0 --file "$archive" --directory "$built" .
sum=$(sha256sum "$archive" | cut -d ' ' -f 1)
sed -e "s|@VERSION@|v$version|" -e "s|@URL@|$url|" -e "s|@SHA256@|$sum|" -e "s|@HOMEPAGE@|${HOMEPAGE:-$url}|" \
    krew/finetune.yaml.in > "$folder/finetune.yaml"
