#!/bin/sh
# Compile llama.cpp into the folder $1, as serving_images/llamacpp/Dockerfile does, on a machine with g++ and python3.
set -eu
target="$1"
root="$(cd "$(dirname "$0")/.." && pwd)"
locks="$root/requirements"
command -v g++ > /dev/null || { echo "g++ is missing: install it, for example with apt-get install g++" >&2; exit 1; }
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
PATH="$work/venv/bin:$PATH"
cd "$work"
pip install --quiet --disable-pip-version-check --require-hashes -r "$locks/llamacpp-build.txt"
pip download --quiet --no-deps --no-build-isolation --no-binary=:all: --require-hashes -r "$locks/llamacpp.txt"
tar --extract --strip-components=1 --file llama_cpp_python-*.tar.gz
cmake -S vendor/llama.cpp -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    "-DCMAKE_PROJECT_llama.cpp_INCLUDE=$root/serving_images/llamacpp/together.cmake" \
    -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON '-DCMAKE_INSTALL_RPATH=$ORIGIN/../lib:$ORIGIN' > cmake.log || { cat cmake.log >&2; exit 1; }
cmake --build build --target llama-server llama-quantize llama-imatrix >&2
mkdir -p "$target/bin" "$target/lib"
cp build/bin/llama-server build/bin/llama-quantize build/bin/llama-imatrix "$target/bin/"
cp -P build/bin/*.so* "$target/lib/"
cp -r vendor/llama.cpp/LICENSE vendor/llama.cpp/convert_hf_to_gguf.py vendor/llama.cpp/conversion vendor/llama.cpp/gguf-py "$target/"
pip install --quiet --no-deps --no-build-isolation --target "$target/python" \
    --config-settings=cmake.define.LLAMA_BUILD=OFF --config-settings=cmake.define.LLAVA_BUILD=OFF .
