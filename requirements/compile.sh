#!/bin/sh
# Lock the dependencies of every image and of development: exact versions with hashes, Linux on x86-64, Python 3.11 and later.
# UPGRADE=1 takes the newest versions that fit; otherwise what is locked stays unless pyproject.toml or an .in file forbids it.
set -eu
cd "$(dirname "$0")/.."
PATH="$(dirname "$(sh requirements/uv.sh)"):$PATH"
lock() { # lock OUTPUT INPUT... [OPTIONS]
    output="requirements/$1.txt"; shift
    [ -z "${UPGRADE:-}" ] || rm -f "$output"
    uv pip compile --quiet --generate-hashes --no-annotate --no-header --no-emit-index-url --python-version 3.11 \
        --python-platform x86_64-manylinux_2_36 --output-file "$output" "$@"
}
# For people's own machines, whatever they are: what krew's plugin fetches.
lock_for_all() { # lock_for_all OUTPUT INPUT... [OPTIONS]
    output="requirements/$1.txt"; shift
    [ -z "${UPGRADE:-}" ] || rm -f "$output"
    uv pip compile --quiet --generate-hashes --no-annotate --no-header --no-emit-index-url --python-version 3.11 --universal \
        --output-file "$output" "$@"
}
lock uv requirements/uv.in
lock torch requirements/torch.in
lock operator pyproject.toml --extra operator --extra tracing
lock_for_all cli pyproject.toml --extra cli
lock trainer pyproject.toml requirements/trainer.in --extra trainer --extra tracing --constraints requirements/torch.txt
lock benchmarks pyproject.toml --extra benchmarks --constraints requirements/trainer.txt --overrides requirements/benchmarks-overrides.in
lock quantizer requirements/quantizer.in --constraints requirements/torch.txt
lock serve-vllm requirements/serve-vllm.in --overrides requirements/serve-vllm-overrides.in --constraints requirements/torch.txt
lock evaluator requirements/evaluator.in --no-deps --constraints requirements/trainer.txt
lock site requirements/site.in
lock supply requirements/supply.in
lock llamacpp requirements/llamacpp.in --no-deps
lock llamacpp-build requirements/llamacpp-build.in
lock dev pyproject.toml requirements/trainer.in --extra operator --extra trainer --extra tracing --extra cli --extra benchmarks --extra dev --constraints requirements/trainer.txt --overrides requirements/benchmarks-overrides.in
