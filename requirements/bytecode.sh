#!/bin/sh
# Inside an image: compile the Python files of a folder to bytecode, which is the same each time.
#   bytecode.sh FOLDER [find's conditions]
# Unchecked: the bytecode counts whatever the time of its source, which the image's build sets anew. In parts of fixed size, each by
# a process of its own with a fixed seed of hashes, since what a process compiled before shows in what marshal writes.
set -eu
export PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1
find "$@" -name '*.py' -type f -print0 | LC_ALL=C sort -z \
    | xargs -0 -r -n 200 -P "$(nproc)" python3 -m compileall -q -f --invalidation-mode unchecked-hash
