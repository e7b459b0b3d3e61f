"""Modules that are trained whole beside the adapters: they learn, are resumed, merged and judged as the adapters are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.trainer.entries import prepare
from tests.trainer.export.test_merge import TRAINING, divergence_from_trained, merged_folder
from tests.trainer.ranks import test_distributed
from tests.trainer.training.test_preference import PREFERENCES
from tests.trainer.training.test_train import LORA, checkpoints, committed, preempted, trained

from finetune_trainer.contract import pod
from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Method, Recomputing, Training
from finetune_trainer.failures import StepFailed
from finetune_trainer.model import adapters, loading, saved_modules
from finetune_trainer.model.compute import Compute
from finetune_trainer.speed.fused_lora import fuse
from finetune_trainer.training.moved import check_trained, trace

MakeRun = Callable[..., RunConfig]
CPU = Compute("cpu", torch.float32)
BOTH = {"modulesToSave": ["embed_tokens", "lm_head"]}
ROW = torch.tensor([[4, 5, 6]])
PREFIX = "base_model.model."


@pytest.fixture(autouse=True)
def _grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pod.ENV_GRACE_SECONDS, "120")


@pytest.fixture
def run_of(tmp_path: Path, make_run: MakeRun, untied_model: Path) -> MakeRun:
    """A make_run of the model pvc://models/tiny or pvc://models/untied."""
    (tmp_path / "mounts/claims/models/untied").symlink_to(untied_model)

    def build(base: str, **fields: Any) -> RunConfig:
        return make_run(model={"uri": f"pvc://models/{base}"}, **fields)

    return build


def adapted(folder: Path, lora: dict[str, Any], method: Method = Method.LORA, compute: Compute = CPU) -> Any:
    training = Training.model_validate(LORA | {"method": method, "lora": lora})
    return adapters.add_adapters(loading.load_base(folder, method, compute), training)


def whole(network: Any) -> dict[str, torch.nn.Parameter]:
    """What is trained and no adapter."""
    return {n: p for n, p in network.named_parameters() if p.requires_grad and "lora_" not in n}


# ── What is trained ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("names", [["embed_tokens"], ["lm_head"], ["model.embed_tokens", "lm_head"]], ids=" ".join)
def test_pain_13_a_tied_model_trains_one_tensor_whichever_is_named(tiny_model: Path, names: list[str]) -> None:
    network = adapted(tiny_model, {"modulesToSave": names})
    assert list(whole(network)) == [f"{PREFIX}model.embed_tokens.modules_to_save.default.weight"]
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("names", "count"), [(["embed_tokens"], 1), (["lm_head"], 1), (["embed_tokens", "lm_head"], 2), (["norm"], 1)], ids=str
)
def test_an_untied_model_trains_what_is_named_and_nothing_else(untied_model: Path, names: list[str], count: int) -> None:
    found = whole(adapted(untied_model, {"modulesToSave": names}))
    assert sorted({path.split(".")[-4] for path in found}) == sorted(names)
    assert len(found) == count, "PEFT alone takes norm for input_layernorm, too"


@pytest.mark.parametrize(
    ("method", "lora", "message"),
    [
        (Method.LORA, {"modulesToSave": ["lm_haed"]}, r"modulesToSave: lm_haed not in this model.*'embed_tokens'.*'lm_head'"),
        (Method.LORA, {"modulesToSave": ["norm", "mlp"]}, r"modulesToSave: mlp not in this model"),
        (Method.QLORA, {"modulesToSave": ["q_proj"]}, r"modulesToSave: q_proj not in this model, or quantized"),
        (Method.LORA, {"modulesToSave": ["q_proj"], "targets": ["q_proj", "v_proj"]}, r"both take the weights of q_proj"),
        (Method.LORA, {"modulesToSave": ["embed_tokens"], "targets": ["lm_head"]}, r"both take the weights of lm_head"),
    ],
)
def test_what_can_not_be_trained_whole_is_refused(tiny_model: Path, method: Method, lora: Any, message: str) -> None:
    with pytest.raises(StepFailed, match=message) as refused:
        adapted(tiny_model, lora, method)
    assert refused.value.exit_code is ExitCode.BAD_CONFIG


def test_an_embedding_of_another_name_stays_tied_as_well(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = GPTNeoXConfig(**shape, vocab_size=99, tie_word_embeddings=True)
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    network = adapted(tmp_path, {"modulesToSave": ["embed_in"]})
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert len(whole(network)) == 1


@pytest.mark.parametrize("method", [Method.LORA, Method.QLORA])
def test_copies_begin_as_the_model_does_and_answer_in_its_type(tiny_model: Path, method: Method) -> None:
    """TRL rounds what QLoRA trains to BF16 first; an embedding in float32 would make all hidden states float32."""
    network = adapted(tiny_model, BOTH, method, Compute("cpu", torch.bfloat16))
    original = network.get_input_embeddings().original_module.weight
    (copy,) = whole(network).values()
    copy.data.fill_(1)
    saved_modules.begin_in_float32(network)
    assert copy.dtype is torch.float32
    assert torch.equal(copy, original.float())
    assert network.get_output_embeddings().weight is copy
    answers = set[torch.dtype]()
    for module in (network.get_input_embeddings(), *network.get_base_model().model.layers, network.get_output_embeddings()):
        module.register_forward_hook(lambda _, __, answer: answers.add(answer.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(input_ids=ROW, labels=ROW).loss.backward()
    assert answers == {torch.bfloat16}
    assert copy.grad is not None
    assert (copy.grad.dtype, bool(copy.grad.abs().sum() > 0)) == (torch.float32, True)


def test_adapters_switched_off_give_the_base_model(tiny_model: Path) -> None:
    """The reference of DPO and KTO."""
    network = adapted(tiny_model, BOTH)
    with torch.no_grad():
        before = network(input_ids=ROW).logits
        for weight in whole(network).values():
            weight.mul_(2)
        with network.disable_adapter():
            assert torch.equal(network(input_ids=ROW).logits, before)
        assert not torch.allclose(network(input_ids=ROW).logits, before)


def test_the_fused_path_leaves_them_alone(tiny_model: Path) -> None:
    assert fuse(adapted(tiny_model, BOTH)) == 14
    network = adapted(tiny_model, {"modulesToSave": ["k_proj"]})
    expected = network(input_ids=ROW).logits
    assert fuse(network) == 8  # q, k and v read one input: all three or none
    torch.testing.assert_close(network(input_ids=ROW).logits, expected)


# ── Trained, resumed, merged ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("base", "method", "precision", "names"),
    [
        ("tiny", "LoRA", "FP32", ["embed_tokens"]),
        ("tiny", "QLoRA", "FP32", ["lm_head"]),
        ("tiny", "QLoRA", "BF16", ["embed_tokens", "lm_head"]),
        ("untied", "LoRA", "FP32", ["lm_head"]),
        ("untied", "LoRA", "BF16", ["embed_tokens", "norm"]),
        ("untied", "QLoRA", "FP32", ["embed_tokens", "lm_head"]),
    ],
)
def test_pain_13_merged_answers_as_the_trained_model(
    run_of: MakeRun, tmp_path: Path, base: str, method: str, precision: str, names: list[str]
) -> None:
    training = TRAINING | {"method": method, "precision": precision, "lora": {"modulesToSave": names}, "learningRate": 3e-3}
    run = run_of(base, training=training)
    folder = merged_folder(run, tmp_path)
    assert 0 <= divergence_from_trained(run, tmp_path, folder) <= 1e-4
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is (base == "tiny")

    adapter, before = committed(run, tmp_path), load_file(tmp_path / f"mounts/claims/models/{base}/model.safetensors")
    written, saved = load_file(folder / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    assert ("lm_head.weight" in written) == (base == "untied")
    moved = {name for name in before if "proj" not in name and not torch.equal(written[name], before[name].bfloat16())}
    asked = {"embed_tokens"} if base == "tiny" else set(names)
    assert {name.split(".")[-2] for name in moved} == asked
    for name in moved:
        assert saved[PREFIX + name].dtype is torch.float32
        assert torch.equal(written[name], saved[PREFIX + name].bfloat16())
    assert f"on all-linear; {', '.join(names)} whole" in (folder / "README.md").read_text()
    assert "serve the merged model" in (adapter / "README.md").read_text()


@pytest.mark.parametrize("base", ["tiny", "untied"])
def test_pain_20_resumed_run_equals_the_unbroken_one(run_of: MakeRun, tmp_path: Path, base: str) -> None:
    settings = LORA | {"maxSteps": 5, "lora": BOTH | {"dropout": 0.1}}
    unbroken_run = run_of(base, training=settings, store={"uri": "pvc://store/unbroken"})
    prepare(unbroken_run, tmp_path)
    _, unbroken = trained(unbroken_run, tmp_path)
    run = unbroken_run.model_copy(update={"store": StoreConfig(uri="pvc://store/broken")})
    prepare(run, tmp_path)
    before = preempted(run, tmp_path, after=2)
    assert checkpoints(run, tmp_path) == [2]
    _, after = trained(run, tmp_path)
    assert before.by_step | after.by_step == unbroken.by_step
    weights = [(committed(r, tmp_path) / "adapter_model.safetensors").read_bytes() for r in (run, unbroken_run)]
    assert weights[0] == weights[1]


def test_a_copy_that_did_not_train_is_refused(untied_model: Path) -> None:
    network = adapted(untied_model, BOTH)
    before = trace(network)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and "embed_tokens" not in name:
            parameter.data.flatten()[::64] += 1e-3
    with pytest.raises(StepFailed, match=r"weights did not train: 1 tensors, such as .*embed_tokens\.modules_to_save"):
        check_trained(before, network, steps=2)
    network.get_input_embeddings().weight.data[7, 7] += 1e-5  # one number of one row
    check_trained(before, network, steps=2)


@pytest.mark.parametrize("objective", ["DPO", "KTO", "ORPO"])
def test_pairs_are_learned_against_the_base_model(make_run: MakeRun, tmp_path: Path, objective: str) -> None:
    run = make_run(training=LORA | {"objective": objective, "lora": BOTH, "maxSteps": 3, "learningRate": 1e-3})
    prepare(run, tmp_path, train=PREFERENCES, test=PREFERENCES, format="Preference")
    _, losses = trained(run, tmp_path)
    if objective != "ORPO":
        assert losses.by_step[1] == pytest.approx({"DPO": 0.693147, "KTO": 0.5}[objective], abs=1e-5)
    assert losses.by_step[3] < losses.by_step[1]
    assert f"{PREFIX}lm_head.weight" in load_file(committed(run, tmp_path) / "adapter_model.safetensors")


def test_a_students_output_layer_learns_from_its_teacher(run_of: MakeRun, tmp_path: Path) -> None:
    distillation = {"objective": "Distillation", "distillation": {"teacher": {"uri": "pvc://models/tiny"}, "alpha": 1}}
    lora = {"lora": {"modulesToSave": ["lm_head"]}}
    settings = LORA | distillation | lora | {"maxSteps": 3, "learningRate": 1e-4}
    run = run_of("untied", training=settings)
    prepare(run, tmp_path)
    _, losses = trained(run, tmp_path)
    assert losses.by_step[3] < losses.by_step[1]


def test_noise_goes_with_them_and_recomputation_changes_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    found = []
    recomputing: tuple[Recomputing, ...] = ("Off", "Selective", "Full")
    for recompute in recomputing:
        settings = LORA | {"lora": BOTH, "maxSteps": 3, "learningRate": 1e-3, "neftuneNoiseAlpha": 5}
        run = make_run(training=settings, store={"uri": f"pvc://store/{recompute}"})
        prepare(run, tmp_path, gradient_checkpointing=recompute)
        found.append(trained(run, tmp_path)[1].by_step)
    assert found[0].keys() == {1, 2, 3}
    assert found[1] == found[0]
    assert found[2] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.slow
def test_two_ranks_train_them_as_one_does(make_run: MakeRun, tmp_path: Path) -> None:
    settings = {"lora": BOTH, "learningRate": 1e-3}
    one = test_distributed.run_of(make_run, tmp_path, "one", settings)
    expected = test_distributed.alone(one, tmp_path)
    two = test_distributed.run_of(make_run, tmp_path, "two", settings, nodes=2)
    pods = test_distributed.Pods(two, tmp_path)
    found = pods.losses()
    assert [status for status, _ in pods.ends()] == [0, 0]
    assert found[5] == pytest.approx(expected[4], rel=2e-3)
    ours, theirs = (test_distributed.weights(run, tmp_path)[f"{PREFIX}lm_head.weight"] for run in (two, one))
    assert float((ours - theirs).abs().max()) < 2e-3
