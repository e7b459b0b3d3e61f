"""Where the Triton kernels of this package are taken."""

from torch import Tensor


def on_gpu(x: Tensor) -> bool:
    """Whether a tensor's kernels are Triton's, which compute the same as plain torch does elsewhere."""
    return x.is_cuda
