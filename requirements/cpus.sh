#!/bin/sh
# Inside an image for CPUs alone: take away of /opt/venv what torch loads on GPUs only, a fifth of what its packages weigh. Torch
# itself goes on: it is linked with the other libraries of CUDA, so those stay.
set -eu
cd /opt/venv/lib/python3*/site-packages
rm -f nvidia/cudnn/lib/libcudnn_*.so* nvidia/cu*/lib/libcusolver*.so* nvidia/cu*/lib/libnvrtc*.alt.so* nvidia/cu*/lib/libnvperf_*.so \
    nvidia/nvshmem/lib/*.bc triton/backends/nvidia/bin/*
