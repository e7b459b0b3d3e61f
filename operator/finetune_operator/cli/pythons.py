"""The Python that each step runs under: this one, or one that stands for an image whose libraries clash with the trainer's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_operator.cli.document import FileError
from finetune_operator.finetunejob.image import asks_vllm, default_image
from finetune_operator.finetunejob.runs import Run
from finetune_operator.settings import Settings
from finetune_trainer.contract.evaluation import AnswerEngine
from finetune_trainer.contract.pipeline import Step

IMAGES = ("quantizer", "evaluator")


@dataclass(frozen=True)
class Pythons:
    """Programs by the image for which each stands; empty: this Python."""

    quantizer: str = ""
    evaluator: str = ""

    def of(self, run: Run, step: Step) -> str:
        """The program, chosen as the operator chooses an image."""
        own = sys.executable
        settings = Settings(trainer_image=own, quantizer_image=self.quantizer or own, evaluator_image=self.evaluator)
        return default_image(run, step, settings)


def given(options: Sequence[str]) -> Pythons:
    """The programs that IMAGE=PROGRAM names. Raises FileError."""
    programs = {image: program for image, _, program in (option.partition("=") for option in options)}
    for image, program in programs.items():
        if image not in IMAGES or not program:
            raise FileError(f"--python {image}={program}: write IMAGE=PROGRAM, and of the images {' or '.join(IMAGES)}")
    return Pythons(**programs)


def check(run: Run, pythons: Pythons) -> None:
    """Raises FileError where a step's Python lacks what the step's image would have: told before anything is trained."""
    for step in run.steps:
        artifact = next((a for a in run.config.artifacts if step.name == f"quantize-{a.name}"), None)
        python = pythons.of(run, step)
        if artifact and artifact.of_format.image == "quantizer" and not _has(python, "llmcompressor"):
            raise FileError(
                f"spec.artifacts {artifact.name}: {artifact.format} needs llm-compressor, which {python} lacks; add --python"
                " quantizer=PROGRAM, a Python with requirements/quantizer.txt, or take the artifact out"
            )
        if asks_vllm(run, step) and run.config.generation.engine is AnswerEngine.VLLM and not _has(python, "vllm"):
            raise FileError(
                f"spec.evaluation.engine VLLM needs vLLM, which {python} lacks; add --python evaluator=PROGRAM, a Python with"
                " vLLM and requirements/evaluator.txt, or set the engine to Auto"
            )


def _has(python: str, package: str) -> bool:
    """Whether this interpreter finds the package. Raises FileError where it is no Python."""
    looked = f"import importlib.util as u, sys; sys.exit(3 * (u.find_spec({package!r}) is None))"
    try:
        code = subprocess.run([python, "-c", looked], capture_output=True, check=False).returncode
    except OSError as error:
        raise FileError(f"--python: {python} can't be started: {error.strerror}") from None
    if code not in (0, 3):
        raise FileError(f"--python: {python} is no Python")
    return code == 0
