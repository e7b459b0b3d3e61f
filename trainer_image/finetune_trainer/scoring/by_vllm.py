"""Scores of a folder of safetensors whose answers vLLM writes, as it will when it serves; the loss is transformers' own.

The engine is a process of its own, and gone before the loss is computed: two copies of a model need not fit.
"""

from __future__ import annotations

import gc
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from finetune_trainer import environment
from finetune_trainer.contract import served_rows
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Check
from finetune_trainer.data.rendered import Rendered
from finetune_trainer.export.proof import FixedRow, check_tokens
from finetune_trainer.failures import StepFailed, first_line
from finetune_trainer.libraries import threads
from finetune_trainer.model.compute import Compute
from finetune_trainer.scoring.by_transformers import TransformersScorer, answer_text
from finetune_trainer.scoring.scores import Answer

# Read by vLLM when it is imported, here and in its own processes.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would inherit this process's GPU context and threads
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # greedy answers sample nothing; FlashInfer may be absent, and compiles its sampler
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; its default on CPUs is half of the node's memory
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # it would take every core of the node, whatever the pod's limit
    "USER": "finetune",  # torch asks for the user's name, and the image need not know the pod's uid
}
FREE_SHARE = 0.9  # of the GPU memory that is free when the engine starts


class VllmScorer:
    """Scores one folder that vLLM can serve: plain weights, compressed-tensors, bitsandbytes (on GPUs)."""

    checks: tuple[Check, ...] = ()
    alone: tuple[str, ...] = ()
    model: Any = None

    def __init__(self, folder: Path, tokenizer: Any, end_tokens: tuple[int, ...], new_tokens: int, compute: Compute) -> None:
        self._folder, self._compute = folder, compute
        self.tokenizer, self._end_tokens, self._new_tokens = tokenizer, end_tokens, new_tokens

    def score(self, rows: Sequence[Rendered], alone: int = 0) -> Iterator[Answer]:
        """One Answer for each row, in the rows' order; every row needs a prompt.

        Raises StepFailed EngineFailed where vLLM can't load or ask the model, VerificationFailed where it reads other tokens.
        """
        answers = self._answers(rows, alone)
        judge = TransformersScorer(self._folder, self.tokenizer, self._end_tokens, self._new_tokens, self._compute)
        self.model = judge.model  # benchmark tasks are scored on it
        yield from judge.judge(rows, answers)

    def _answers(self, rows: Sequence[Rendered], alone: int) -> list[str]:
        engine = self._engine(as_served=alone > 0)
        try:
            own = engine.get_tokenizer()
            self.checks = check_tokens(
                [FixedRow(row.asked_ids, (), row.prompt, True) for row in rows],
                self.tokenizer,
                "vLLM's tokenizer",
                lambda text: own(text, add_special_tokens=False).input_ids,
            )
            beginning = served_rows.length(self._new_tokens)
            self.alone = tuple(self._alone(engine, row, beginning) for row in rows[:alone])
            return self._generated(engine, rows, self._new_tokens)
        finally:
            engine.llm_engine.engine_core.shutdown()

    def _engine(self, *, as_served: bool = False) -> Any:
        """vLLM with the model loaded. It is asked for a few hundred answers: compiling would take longer than they do. But what
        is compiled rounds otherwise, in FP8 so much that another word wins, and a server's is, on GPUs: what a gate will be
        answered comes from an engine that is compiled as well.
        """
        environment.offer(ENVIRONMENT | {"OMP_NUM_THREADS": str(threads())})
        from vllm import LLM

        try:
            return LLM(
                str(self._folder),
                dtype=str(self._compute.dtype).removeprefix("torch."),
                max_model_len=-1,  # the model's own limit, or less where the memory holds no sequence as long
                gpu_memory_utilization=_utilization(self._compute),
                enforce_eager=not as_served or self._compute.device == "cpu",
                generation_config="vllm",  # none of the folder's own sampling: greedy
                seed=0,
            )
        except Exception as error:  # whatever stands in its way: its own classes differ between versions
            raise _failed("load the model", error) from error

    def _alone(self, engine: Any, row: Rendered, new_tokens: int) -> str:
        """The answer to one row as a gate asks it: by itself, and with nothing of it found in the prefix cache."""
        (answer,) = self._generated(engine, [row], new_tokens, cache_salt=secrets.token_hex(8))
        return answer

    def _generated(self, engine: Any, rows: Sequence[Rendered], new_tokens: int, **more: str) -> list[str]:
        """Answers to rows that are in the engine's steps together. `more` goes with each prompt."""
        prompts = [{"prompt_token_ids": list(row.asked_ids), **more} for row in rows]
        try:
            found = engine.generate(prompts, self._greedy(new_tokens), use_tqdm=False)
        except Exception as error:  # on CPUs some kernels turn out to be missing only now
            raise _failed("answer", error) from error
        return [answer_text(self.tokenizer, list(one.outputs[0].token_ids), self._end_tokens) for one in found]

    def _greedy(self, new_tokens: int) -> Any:
        """Greedy search as transformers does it: only the end tokens that we name end an answer."""
        from vllm import SamplingParams

        ends = list(self._end_tokens)
        return SamplingParams(temperature=0.0, max_tokens=new_tokens, stop_token_ids=ends, ignore_eos=True, detokenize=False)


def _failed(what: str, error: Exception) -> StepFailed:
    remedy = "see the pod's log, or set spec.evaluation.engine to Transformers"
    return StepFailed(StepReason.EngineFailed, f"vLLM can't {what} ({first_line(error, 160)}): {remedy}")


def _utilization(compute: Compute) -> float:
    """Share of a GPU's memory that the engine may take: what this process holds of it (its context) is not to be had."""
    if compute.device != "cuda":
        return FREE_SHARE
    gc.collect()
    torch.cuda.empty_cache()  # the model that was judged before
    free, total = torch.cuda.mem_get_info()
    return FREE_SHARE * free / total
