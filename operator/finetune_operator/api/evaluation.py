"""How a FineTuneJob's result is judged, and the gates that it must pass."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from finetune_trainer.contract.evaluation import AnswerEngine
from finetune_trainer.contract.fields import Strict
from finetune_trainer.contract.metrics import SCORE
from finetune_trainer.contract.tasks import Task, TaskFiles


class GateAction(StrEnum):
    BLOCK = "Block"
    WARN = "Warn"


class Gate(Strict):
    name: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    """Name of the gate, as status shows it."""
    metric: str = Field(min_length=1, max_length=200, pattern=SCORE)
    """Score that is judged, on the held-out test rows: loss, perplexity, exactMatch, rouge1, rouge2, rougeL, entropy; for
    rows of format Classification accuracy and macroF1 as well, of format Preference preferenceAccuracy. Less is better for
    loss, perplexity and entropy. Or <task>/<metric>, for a task of evaluation.tasks; lm-eval knows what is better."""
    artifact: str = Field("merged", min_length=1, max_length=20)
    """Which artifact is judged: merged, or a name from spec.artifacts."""
    min: float | None = None
    """The score must be at least this."""
    max: float | None = None
    """The score must be at most this."""
    min_improvement_over_base: float | None = None
    """The score must be better than the base model's by at least this much."""
    max_regression_from_merged: float | None = Field(None, ge=0)
    """The score may be worse than the merged model's by at most this much: what quantization may cost."""
    action: GateAction = GateAction.BLOCK
    """Block: nothing is published or served when the gate fails. Warn: the verdict is only shown."""


class Evaluation(Strict):
    engine: AnswerEngine = AnswerEngine.AUTO
    """What writes the answers that are scored: VLLM, as it will when it serves them, or Transformers. Auto: VLLM where the
    evaluate pod has a GPU and its image has vLLM (the chart's images.evaluator, or spec.stages.evaluate.image), else
    Transformers. status.scores[].engine tells which it was. GGUF artifacts are answered by llama.cpp in any case."""
    samples: int = Field(200, ge=1, le=100000)
    """At most this many test rows are scored."""
    max_new_tokens: int = Field(128, ge=1, le=32768)
    """Longest generated answer, in tokens. Answers are greedy, so that scores can be repeated."""
    tasks: list[Task] = Field(default_factory=list, max_length=10)
    """Benchmarks of lm-evaluation-harness to score base, merged model and safetensors artifacts on as well. The images of
    stages prepare and evaluate must have lm-eval."""
    task_files: TaskFiles | None = None
    """Where the files of these tasks lie."""
    gates: list[Gate] = Field(default_factory=list, max_length=20)
    """What must hold before anything is published or served. Unset: the merged model's loss must not be above the
    base's."""
