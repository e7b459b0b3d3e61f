"""What the model libraries must be told before they are first imported: no network, no chatter, few threads.

A stage that calls `quieten` reads from disk only; prepare, which fetches, doesn't call it.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import warnings
from pathlib import Path

from finetune_trainer import environment

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "USE_HUB_KERNELS": "0",  # else transformers and bitsandbytes ask the hub for compiled kernels
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # most bars of llm-compressor have no other switch
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # rows of many lengths fragment the allocator otherwise
}
CHATTY = (
    "bitsandbytes",
    "kernels",
    "accelerate",
    "trl",
    "datasets",
    "DeepSpeed",
    "peft",
    "torch.distributed",
    "llmcompressor",
    "compressed_tensors",
    "lm_eval",
)

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "<quota µs or max> <period µs>"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")  # cgroup v1: µs, -1 for no limit
CPU_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def quieten() -> None:
    """Set the libraries' environment, silence their loggers and bars, and use as many threads as the pod may run."""
    environment.offer(OFFLINE)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Deprecations inside pinned libraries are nothing that a user can act on; the tests' own filter shows them to us.
    warnings.simplefilter("ignore")
    import torch
    import transformers

    if importlib.util.find_spec("datasets"):  # the evaluator's image has none
        import datasets

        datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads())


def threads() -> int:
    """CPUs that this process may use: $OMP_NUM_THREADS, else the cgroup's limit rounded up, else every CPU it may run on.

    torch counts the node's CPUs; under a limit of 2 on a node of 64, its 64 threads would throttle each other.
    """
    asked = environment.asked_threads()
    if asked is not None:
        return asked
    available = len(os.sched_getaffinity(0))
    limit = cpu_limit()
    return available if limit is None else max(1, min(available, math.ceil(limit)))


def cpu_limit() -> float | None:
    """The cgroup's CPU limit in CPUs, None for no limit."""
    if CPU_MAX.is_file():
        quota, _, period = CPU_MAX.read_text().strip().partition(" ")
    elif CPU_QUOTA.is_file():
        quota, period = CPU_QUOTA.read_text().strip(), CPU_PERIOD.read_text().strip()
    else:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period or 100_000)
