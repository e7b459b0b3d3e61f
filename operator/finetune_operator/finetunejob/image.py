"""Which of the project's images a step runs in, where the spec names none."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_operator.api.finetunejob import FineTuneJobSpec
from finetune_operator.finetunejob.runs import Run
from finetune_operator.settings import Settings
from finetune_trainer.contract.evaluation import AnswerEngine
from finetune_trainer.contract.pipeline import Step


def default_image(run: Run, step: Step, settings: Settings) -> str:
    """The trainer's, but for two steps whose libraries clash with its own.

    llm-compressor makes CompressedTensors in the quantizer's image. vLLM writes answers in the evaluator's, where there is
    one; on CPUs only when it is asked for, as Auto takes transformers there, which the trainer's image has.
    """
    images = {a.name: a.of_format.image for a in run.config.artifacts}
    if step.stage == "quantize" and images.get(step.artifact or "") == "quantizer":
        return settings.quantizer_image
    return settings.evaluator_image if asks_vllm(run, step) and settings.evaluator_image else settings.trainer_image


def asks_vllm(run: Run, step: Step) -> bool:
    """Whether vLLM answers in a step, if its image has one. llama.cpp answers for GGUF artifacts."""
    engine = run.config.generation.engine
    asked = engine is AnswerEngine.VLLM or (engine is AnswerEngine.AUTO and step.needs_gpu)
    return asked and step.stage == "evaluate" and step.artifact is None


def problems(spec: FineTuneJobSpec, settings: Settings) -> Iterator[str]:
    """What no image that is known here could run: told before anything is trained."""
    if spec.evaluation.engine is AnswerEngine.VLLM and not (spec.stages.evaluate.image or settings.evaluator_image):
        yield (
            "spec.evaluation.engine VLLM needs an image that has vLLM; name it in spec.stages.evaluate.image or in the chart's"
            " images.evaluator, or set the engine to Auto"
        )
