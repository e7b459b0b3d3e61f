"""How an evaluation gets the answers that it scores."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from finetune_trainer.contract.fields import Strict


class AnswerEngine(StrEnum):
    """What spec.evaluation.engine takes."""

    AUTO = "Auto"
    VLLM = "VLLM"
    TRANSFORMERS = "Transformers"


LLAMA_CPP = "LlamaCpp"  # answers for GGUF files, whatever was asked for


class Generation(Strict):
    """How answers are made when an artifact is scored: greedy, so that a score can be repeated."""

    engine: AnswerEngine = AnswerEngine.AUTO
    samples: int = Field(200, ge=1, le=100000)
    max_new_tokens: int = Field(128, ge=1, le=32768)
