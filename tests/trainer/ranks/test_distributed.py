"""Several processes that train one model, started as the pods of an Indexed Job are, on the CPU with gloo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from tests.trainer.entries import context, prepare
from tests.trainer.speed.test_acceleration import IDS, SHAPE, adapted, loss_and_gradients
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_trainer.contract import pod
from finetune_trainer.contract.devices import Devices
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reports import Termination
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.ranks import distributed
from finetune_trainer.speed.fused_lora import fuse
from finetune_trainer.stages import train
from finetune_trainer.training import checkpoint, head

MakeRun = Callable[..., RunConfig]
TRAINING = {
    "method": "LoRA",
    "precision": "FP32",
    "globalBatchSize": 4,
    "microBatchSize": 1,
    "maxLength": 128,
    "learningRate": 1e-2,
    "maxSteps": 5,
}


class Pods:
    """The pods of one attempt: each its own scratch and termination message, all the same claims."""

    def __init__(self, run: RunConfig, tmp_path: Path, attempt: int = 1) -> None:
        (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            master = f"127.0.0.1:{free.getsockname()[1]}"
        self.folders = [tmp_path / f"pod-{attempt}-{node}" for node in range(run.devices.nodes)]
        self.processes = []
        for node, folder in enumerate(self.folders):
            folder.mkdir()
            environment = os.environ | {
                pod.ENV_RUN_FILE: str(tmp_path / "run.json"),
                pod.ENV_MOUNTS: str(tmp_path / "mounts"),
                pod.ENV_SCRATCH: str(folder / "scratch"),
                pod.ENV_TERMINATION_LOG: str(folder / "termination"),
                pod.ENV_ATTEMPT: str(attempt),
                pod.ENV_GRACE_SECONDS: "60",
                pod.ENV_NODE_RANK: str(node),
                pod.ENV_MASTER: master,
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            }
            command = [sys.executable, "-m", "finetune_trainer", "train"]
            self.processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))

    def losses(self, until: int = 10**9) -> dict[int, float]:
        """Losses that the first pod reports, which doesn't tell every step, up to a step."""
        stdout = self.processes[0].stdout
        assert stdout is not None
        found: dict[int, float] = {}
        for line in stdout:
            reading = json.loads(line) if line.startswith('{"kind":"progress"') else {}
            if "loss" in reading:
                found[reading["step"]] = reading["loss"]
                if reading["step"] >= until:
                    break
        return found

    def ends(self) -> list[tuple[int, Termination]]:
        """Exit status and report of each pod, once all have ended; a killed one has no report."""
        for process in self.processes:
            process.communicate(timeout=120)
        written = [folder / "termination" for folder in self.folders]
        reports = [Termination.model_validate_json(path.read_text()) if path.is_file() else Termination() for path in written]
        return [(p.returncode, r) for p, r in zip(self.processes, reports, strict=True)]

    def terminate(self, node: int) -> None:
        """What the kubelet does to a pod that is deleted."""
        self.processes[node].terminate()

    def kill(self, node: int) -> None:
        """What becomes of a pod whose machine stops."""
        launcher = psutil.Process(self.processes[node].pid)
        for process in (*launcher.children(recursive=True), launcher):
            process.kill()


def run_of(make_run: MakeRun, tmp_path: Path, store: str, training: dict[str, Any], **devices: Any) -> RunConfig:
    run = make_run(training=TRAINING | training, store={"uri": f"pvc://store/{store}"}, devices={"gpus": 0} | devices)
    prepare(run, tmp_path)
    return run


def alone(run: RunConfig, tmp_path: Path) -> list[float]:
    """Losses of the same run by one process, micro batches accumulated."""
    losses: list[float] = []
    train.run(context(run, "train", tmp_path, lambda r: None if r.loss is None else losses.append(r.loss)))
    return losses


def weights(run: RunConfig, tmp_path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    (file,) = context(run, "merge", tmp_path).inputs.output("train")[1].glob("*model.safetensors")
    return load_file(file)


SHARED_OUT = [("FSDP", "LoRA", "Full"), ("ZeRO3", "LoRA", "Full")]  # what libraries do here only in the right order of calls
OTHERS = [
    ("DDP", "LoRA", "Off"),
    ("DDP", "QLoRA", "Full"),
    ("FSDP", "Full", "Selective"),
    ("ZeRO2", "QLoRA", "Selective"),
    ("ZeRO3", "Full", "Selective"),
]


@pytest.mark.parametrize(
    ("strategy", "method", "checkpointing"),
    [*SHARED_OUT, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)],
)
def test_two_ranks_train_as_one_does(make_run: MakeRun, tmp_path: Path, strategy: str, method: str, checkpointing: str) -> None:
    """The global batch is kept: losses and weights agree but for the order of additions."""
    rate = {"method": method, "learningRate": 1e-3 if method == "Full" else 1e-2, "gradientCheckpointing": checkpointing}
    one = run_of(make_run, tmp_path, "one", rate)
    expected = alone(one, tmp_path)
    two = run_of(make_run, tmp_path, "two", rate, nodes=2, strategy=strategy)
    pods = Pods(two, tmp_path)
    found = pods.losses()
    (status, report), (other_status, other_report) = pods.ends()
    assert (status, other_status) == (0, 0)
    assert report.result is not None
    assert report.result.train is not None
    assert report.result.train.world_size == 2
    assert other_report.result is None
    assert report.result.train.steps == 5
    assert found[5] == pytest.approx(expected[4], rel=2e-3)
    ours, theirs = weights(two, tmp_path), weights(one, tmp_path)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == theirs[name].dtype for name in ours)
    worst = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert worst < 0.02


@pytest.mark.slow
def test_ray_starts_the_same_ranks(make_run: MakeRun, tmp_path: Path) -> None:
    """A Ray cluster of the job's own pods trains as one process does; one report, and nothing of Ray is left."""
    one = run_of(make_run, tmp_path, "one", {})
    expected = alone(one, tmp_path)
    run = run_of(make_run, tmp_path, "ray", {}, nodes=2, launcher="Ray")
    pods = Pods(run, tmp_path)
    found = pods.losses()
    (status, report), (other_status, other_report) = pods.ends()
    assert (status, other_status) == (0, 0)
    assert found[5] == pytest.approx(expected[4], rel=2e-3)
    assert report.result is not None
    assert report.result.train is not None
    assert report.result.train.world_size == 2
    assert other_report.result is None
    assert not [p for p in psutil.Process().children(recursive=True) if "ray" in p.name()]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["FSDP", "ZeRO2", "ZeRO3"])
def test_sharded_training_goes_on_where_it_was_told_to_stop(make_run: MakeRun, tmp_path: Path, strategy: str) -> None:
    """FSDP's checkpoints are gathered and shared out again, of ZeRO's each rank writes a share; a process alone can't use
    them, and starts anew."""
    training = {"method": "Full", "learningRate": 1e-3, "maxSteps": 30, "checkpoint": {"everySteps": 1}}
    run = run_of(make_run, tmp_path, "sharded", training, nodes=2, strategy=strategy)
    told = Pods(run, tmp_path)
    told.losses(until=2)
    told.terminate(0)
    assert [status for status, _ in told.ends()] == [ExitCode.PREEMPTED] * 2
    (step, *_) = checkpoints(run, tmp_path)

    at = context(run, "train", tmp_path)
    assert checkpoint.restore(at.store, at.inputs.fingerprint("train"), at.scratch) is None

    again = Pods(run, tmp_path, attempt=2)
    losses = again.losses()
    ((status, report), _) = again.ends()
    assert status == 0
    assert report.result is not None
    assert report.result.train is not None
    assert report.result.train.resumed_from_step == step
    unbroken = run_of(make_run, tmp_path, "unbroken", training)
    assert losses[30] == pytest.approx(alone(unbroken, tmp_path)[29], rel=2e-2)


@pytest.mark.slow
def test_a_lost_rank_ends_all_and_the_next_attempt_goes_on(make_run: MakeRun, tmp_path: Path) -> None:
    """One pod is told to go, then one is killed: bit for bit the unbroken run, with dropout on each rank."""
    training = {"maxSteps": 30, "globalBatchSize": 8, "lora": {"dropout": 0.1}, "checkpoint": {"everySteps": 1}}
    unbroken_run = run_of(make_run, tmp_path, "unbroken", training, nodes=2)
    pods = Pods(unbroken_run, tmp_path)
    unbroken = pods.losses()
    assert [status for status, _ in pods.ends()] == [0, 0]

    run = run_of(make_run, tmp_path, "broken", training, nodes=2)
    told = Pods(run, tmp_path, attempt=2)
    losses = told.losses(until=2)
    told.terminate(1)
    assert [status for status, _ in told.ends()] == [ExitCode.PREEMPTED] * 2
    (step, *_) = checkpoints(run, tmp_path)
    assert step >= 2

    killed = Pods(run, tmp_path, attempt=3)
    losses |= killed.losses(until=step + 1)
    killed.kill(1)
    (status, report), (killed_status, _) = killed.ends()
    assert (status, killed_status) == (ExitCode.LOST_RANK, -signal.SIGKILL)
    assert report.failure is not None
    assert report.failure.reason == "LostRank"

    last = Pods(run, tmp_path, attempt=4)
    losses |= last.losses()
    ((status, report), _) = last.ends()
    assert status == 0
    assert report.result is not None
    assert report.result.train is not None
    assert report.result.train.resumed_from_step > step
    assert losses[30] == unbroken[30]
    ours, theirs = weights(run, tmp_path), weights(unbroken_run, tmp_path)
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def checkpoints(run: RunConfig, tmp_path: Path) -> list[int]:
    at = context(run, "train", tmp_path)
    return at.store.checkpoints(at.inputs.fingerprint("train"))


def test_ranks_get_the_gradients_of_the_fused_path(tmp_path: Path) -> None:
    """DDP averages what its hooks see; a gradient that went round them would end the second step with an error."""
    network = adapted(LlamaForCausalLM(LlamaConfig(**SHAPE)))
    expected_loss, expected = loss_and_gradients(network)
    fuse(network)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(network)
        for _ in range(2):
            loss, found = loss_and_gradients(wrapped)
    finally:
        dist.destroy_process_group()
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert found.keys() == {f"module.{name}" for name in expected}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[f"module.{name}"], gradient, rtol=1e-4, atol=1e-6)


def test_ranks_get_the_gradients_of_tokens_that_are_counted_beforehand(tmp_path: Path) -> None:
    """The same: DDP must see the pass that answers with their log probabilities."""
    network = LlamaForCausalLM(LlamaConfig(**SHAPE))
    line = {"input_ids": IDS[:1], "labels": IDS[:1]}
    counted = torch.tensor([0, 3, 7])
    (-head.log_probabilities(network, line, counted).sum()).backward()
    expected = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    head.answer_counted(network, network)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(network)
        for _ in range(2):
            network.zero_grad()
            (-wrapped(**line, counted=counted).sum()).backward()
        assert wrapped(**line).logits.shape[:2] == IDS[:1].shape, "told nothing of it, it answers as before"
    finally:
        dist.destroy_process_group()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_fewer_processes_than_asked_for_train_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(StepFailed, match=r"1 processes were started where spec\.parallelism asks for 2") as refused:
        distributed.join(Devices(nodes=2))
    assert refused.value.exit_code is ExitCode.WORLD_INCOMPLETE
