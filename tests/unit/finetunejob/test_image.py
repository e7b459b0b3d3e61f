"""Which image a step runs in, and what is refused where none can run it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.builders import make_job
from tests.story import SETTINGS, Story

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.finetunejob import image
from finetune_operator.finetunejob.runs import current_run

ARTIFACTS = [
    {"name": "q4", "format": "GGUF", "quantization": "Q4_K_M"},
    {"name": "fp8", "format": "CompressedTensors", "quantization": "FP8"},
    {"name": "nf4", "format": "BitsAndBytes", "quantization": "NF4"},
]
WITH_VLLM = replace(SETTINGS, trainer_image="trainer", quantizer_image="quantizer", evaluator_image="evaluator")


def images(engine: str, gpus: int, evaluator: str = "evaluator") -> dict[str, str]:
    body = make_job(artifacts=ARTIFACTS, parallelism={"gpusPerNode": gpus}, evaluation={"engine": engine})
    run, _ = current_run(FineTuneJob.model_validate(body))
    settings = replace(WITH_VLLM, evaluator_image=evaluator)
    found = {step.name: image.default_image(run, step, settings) for step in run.steps}
    return {name: which for name, which in found.items() if which != "trainer"}


@pytest.mark.parametrize(
    ("engine", "gpus", "evaluator", "by_vllm"),
    [
        ("Auto", 1, "evaluator", True),
        ("VLLM", 0, "evaluator", True),
        ("Auto", 0, "evaluator", False),  # transformers answers, which the trainer's image has
        ("Transformers", 1, "evaluator", False),
        ("Auto", 1, "", False),
    ],
)
def test_steps_whose_libraries_clash_get_images_of_their_own(engine: str, gpus: int, evaluator: str, by_vllm: bool) -> None:
    found = images(engine, gpus, evaluator)
    assert found == {"quantize-fp8": "quantizer"} | ({"evaluate": "evaluator"} if by_vllm else {})


@pytest.mark.parametrize(
    ("spec", "settings", "refused"),
    [
        ({"evaluation": {"engine": "VLLM"}}, SETTINGS, True),
        ({"evaluation": {"engine": "VLLM"}}, WITH_VLLM, False),
        ({"evaluation": {"engine": "VLLM"}, "stages": {"evaluate": {"image": "mine"}}}, SETTINGS, False),
        ({"evaluation": {"engine": "Auto"}}, SETTINGS, False),
    ],
)
def test_vllm_without_an_image_is_told_before_anything_is_trained(spec: dict[str, Any], settings: Any, refused: bool) -> None:
    story = Story(make_job(**spec), settings=settings)
    started = story.passes(1)
    assert ("job prepare" in started) is not refused
    if refused:
        stalled = next(c for c in story.job["status"]["conditions"] if c["type"] == "Stalled")
        assert stalled["reason"] == "InvalidSpec"
        assert (
            "spec.evaluation.engine VLLM needs an image that has vLLM; name it in spec.stages.evaluate.image"
            in stalled["message"]
        )


def test_on_cpus_only_a_step_that_asks_vllm_gets_shared_memory() -> None:
    def mounted(engine: str) -> list[str]:
        story = Story(make_job(evaluation={"engine": engine}), settings=WITH_VLLM)
        story.to_the_end()
        pods = {j["metadata"]["labels"]["finetune.dev/step"]: j["spec"]["template"]["spec"] for j in story.space.jobs.values()}
        return [name for name, pod in pods.items() if any(v["name"] == "shm" for v in pod["volumes"])]

    assert mounted("VLLM") == ["evaluate"]
    assert mounted("Transformers") == []
