"""What surely does not fit the memory it is given is refused before pods are made, with what would fit."""

from __future__ import annotations

from typing import Any

import pytest
from tests.serving import Stage, make_finished_job, make_serve

from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.meta import Object
from finetune_operator.modelserve.engines import ENGINES
from finetune_operator.modelserve.fit import misfit

GIB = 1 << 30
# Of Mistral 7B's size: 128 KiB of each token.
SEVEN = ResolvedModel(
    source="job/facts/merged",
    uri="pvc://c/m",
    bytes=14 * GIB,
    parameters=7 * GIB,
    cached_numbers=65536,
    context_tokens=32768,
)
CPUS: dict[str, Any] = {"parallelism": {"gpus": False}}


def gpus(memory: str | None, count: int = 1) -> dict[str, Any]:
    return {"parallelism": {"tensor": count, "gpu": {"memory": memory} if memory else {}}}


def limit(memory: str) -> dict[str, Any]:
    return CPUS | {"resources": {"limits": {"memory": memory}}}


def said(engine: str, where: dict[str, Any], context: int | None = None, model: ResolvedModel = SEVEN, **more: Any) -> str:
    """What is said of this model there; empty where nothing is."""
    fields = {"model": {"uri": "pvc://c/m"}, "engine": {"type": engine, "maxModelLength": context, **more}, **where}
    return misfit(ModelServeSpec.model_validate(fields), model) or ""


@pytest.mark.parametrize(
    ("engine", "where", "context", "fits"),
    [
        # 92 of 100 parts of a GPU, 14 GiB of weights and 1 of vLLM's own
        ("VLLM", gpus("24Gi"), 32768, True),  # 22.08 - 15 - 4
        ("VLLM", gpus("24Gi"), 57984, True),
        ("VLLM", gpus("24Gi"), 58112, False),
        ("VLLM", gpus("20Gi"), None, False),  # the model's own context, 4 GiB
        ("VLLM", gpus("16Gi"), 16, False),  # not even its weights
        ("VLLM", gpus("16Gi", 2), 32768, True),
        ("VLLM", gpus(None), 10**7, True),  # nobody says how much there is
        ("VLLM", CPUS, 8192, True),  # 1 GiB on CPUs, whatever the limit
        ("VLLM", CPUS, 8208, False),
        ("VLLM", limit("15Gi"), 8192, False),
        # four contexts side by side where one is asked for, and one where none is
        ("LlamaCpp", limit("18Gi"), 7808, True),
        ("LlamaCpp", limit("18Gi"), 8192, False),
        ("LlamaCpp", limit("18Gi"), None, False),
        ("LlamaCpp", limit("19Gi"), None, True),
        ("LlamaCpp", gpus("8Gi"), 10**7, True),  # what does not fit there stays in the node's memory
        ("LlamaCpp", CPUS, 10**7, True),
        # it takes what is asked, as it is asked
        ("Transformers", limit("16Gi"), None, True),
        ("Transformers", limit("16Gi"), 32768, False),
        ("Transformers", gpus("24Gi"), 32768, True),
        ("Transformers", gpus("14Gi"), None, False),
    ],
)
def test_weights_and_context_are_held_against_what_there_is(
    engine: str, where: dict[str, Any], context: int | None, fits: bool
) -> None:
    assert (said(engine, where, context) == "") is fits


@pytest.mark.parametrize(
    ("engine", "where"),
    [("VLLM", gpus("17Gi")), ("VLLM", CPUS), ("LlamaCpp", limit("15Gi")), ("Transformers", limit("15Gi"))],
)
def test_the_context_that_it_names_fits_and_no_longer_one(engine: str, where: dict[str, Any]) -> None:
    text = said(engine, where, 10**6)
    longest = int(text.partition("set spec.engine.maxModelLength to ")[2].split()[0])
    assert longest % 16 == 0
    assert said(engine, where, longest) == ""
    assert said(engine, where, longest + 16) != ""


@pytest.mark.parametrize(
    ("engine", "where", "context", "remedy"),
    [
        ("VLLM", gpus("15Gi"), 16, "take a larger GPU, or more by spec.parallelism.tensor, or serve a smaller artifact"),
        ("Transformers", gpus("10Gi"), 16, "; take a larger GPU, or serve a smaller artifact"),
        ("LlamaCpp", limit("10Gi"), 16, "raise spec.resources.limits.memory, or serve a smaller artifact"),
        ("LlamaCpp", limit("14401Mi"), 16, "raise spec.resources.limits.memory, or serve a smaller artifact"),
        ("VLLM", CPUS, 10**6, "to 8192 at most, or raise VLLM_CPU_KVCACHE_SPACE in spec.engine.env"),
    ],
)
def test_it_says_what_to_change(engine: str, where: dict[str, Any], context: int, remedy: str) -> None:
    assert said(engine, where, context).endswith(remedy)


@pytest.mark.parametrize(
    "unknown",
    [{"bytes": None}, {"cached_numbers": None}, {"cached_numbers": None, "parameters": None}, {"context_tokens": None}],
)
def test_nothing_is_said_of_what_is_not_known(unknown: dict[str, None]) -> None:
    model, context = SEVEN.model_copy(update=unknown), None if "context_tokens" in unknown else 10**6
    assert said("VLLM", gpus("17Gi"), context, model) == ""


def test_weights_of_32_bits_are_loaded_as_16() -> None:
    assert said("VLLM", gpus("24Gi"), 1024, SEVEN.model_copy(update={"bytes": 28 * GIB})) == ""


@pytest.mark.parametrize("engine", [name for name, engine in ENGINES.items() if engine.memory])
def test_nothing_is_said_where_the_engine_is_told_otherwise(engine: str) -> None:
    memory = ENGINES[engine].memory  # type: ignore[index]
    assert memory is not None
    assert said(engine, limit("1Gi"), 10**6)
    for name in memory.said_by:
        more: dict[str, Any] = {"args": [f"{name}=1"]} if name.startswith("-") else {"env": [{"name": name, "value": "1"}]}
        assert said(engine, limit("1Gi"), 10**6, **more) == "", name


# ── What follows from it ──────────────────────────────────────────────────────────────────────────────────────────────


def of_a_job(memory: str, **facts: int) -> Stage:
    """A ModelServe of a job's GGUF file of 100 MB, whose model takes a MiB of each token."""
    stage = Stage(make_serve(model={"jobRef": {"name": "facts", "artifact": "q4"}}))
    stage.put({"kind": "PersistentVolumeClaim", "metadata": {"name": "facts-artifacts"}})
    known: Object = {"revision": "r", "digest": "sha256:d", "parameters": 10**8, "architecture": "Llama", "bytes": 2 * 10**8}
    stage.put(make_finished_job(model={**known, "cachedNumbers": 2**19, "contextTokens": 512, **facts}))
    stage.edit(resources={"limits": {"memory": memory}})
    return stage


def test_no_pod_is_made_of_what_does_not_fit_and_it_goes_on_once_it_does() -> None:
    stage = of_a_job("512Mi")
    stage.settle()
    assert stage.of("Deployment") == []
    conditions = stage.conditions()
    assert (conditions["Ready"], conditions["Stalled"]) == (("False", "DoesNotFit"), ("True", "DoesNotFit"))
    assert stage.message().startswith("job/facts/q4 does not fit with a context of 512 tokens (the model's own, ")
    stage.edit(engine={"type": "LlamaCpp", "maxModelLength": 64})
    stage.roll_out()
    assert "Stalled" not in stage.conditions()


def test_what_serves_goes_on_beside_what_does_not_fit() -> None:
    stage = of_a_job("2Gi")
    live = stage.roll_out()
    stage.edit(engine={"type": "LlamaCpp", "maxModelLength": 4096})
    stage.settle()
    assert (stage.live(), stage.revisions()) == (live, {live})
    assert stage.conditions()["Stalled"] == ("True", "DoesNotFit")
    assert stage.conditions()["Available"][0] == "True"


def test_what_has_pods_tells_by_itself_whether_it_fits() -> None:
    stage = of_a_job("2Gi")
    live = stage.roll_out()
    job = stage.objects["FineTuneJob", "facts"]
    job["status"]["model"]["contextTokens"] = 10**6
    stage.settle()
    assert stage.conditions()["Ready"] == ("True", "Serving")
    del stage.objects["Deployment", f"facts-{live}"]  # as somebody may do: it is made again
    stage.step()
    assert (stage.revisions(), "Stalled" in stage.conditions()) == ({live}, False)


def test_what_loads_already_is_left_to_its_pods() -> None:
    stage = of_a_job("2Gi")
    stage.step()
    stage.objects["FineTuneJob", "facts"]["status"]["model"]["contextTokens"] = 10**6
    stage.settle()
    assert stage.conditions()["Ready"] == ("False", "Loading")
