"""Adapters of PEFT in a real vLLM on CPUs, started as the operator starts it, behind its front and beside its keeper.

What each answers is held against transformers and PEFT. All of it is one story, as an engine takes a minute to start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.listening import free_ports
from tests.trainer.pods import python_of
from tests.waiting import wait_until, within

from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.modelserve.engines import ENGINES, EngineType
from finetune_operator.modelserve.engines.engine import MODEL
from finetune_trainer.contract.pod import ENV_MOUNTS
from finetune_trainer.contract.served_adapters import PATH, PodAdapters, WantedAdapter, WantedAdapters, engine_name
from finetune_trainer.store.files import FILES, describe, files_json, folder_digest

pytestmark = pytest.mark.slow

SPEC: dict[str, Any] = {
    "model": {"uri": "pvc://models/base"},
    "engine": {"type": "VLLM", "maxModelLength": 256, "args": ["--dtype", "float32", "--max-num-seqs", "4"]},
    "parallelism": {"gpus": False},
    "drain": {"seconds": 2},
    "lora": {"maxRank": 16, "maxActive": 2},
}
PROMPT = list(range(40, 90))  # token ids: longer than a block of the prefix cache
TOKENS, LONG = 16, 150
START_SECONDS = 600  # of an engine, on a busy machine
SOON = 120


def make_adapter(base: Path, folder: Path, seed: int, rank: int = 8) -> tuple[str, str]:
    """A random adapter over the base model, and its digest; what both answer, greedily, to PROMPT, by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"])
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    network.save_pretrained(folder)
    files = describe(folder)
    (folder / FILES).write_bytes(files_json(files))
    ids = network.eval().generate(torch.tensor([PROMPT]), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    answer = AutoTokenizer.from_pretrained(base).decode(ids[0, len(PROMPT) :], skip_special_tokens=True)
    return folder_digest(files), str(answer)


@dataclass
class Pod:
    """The processes of a pod: an engine, which can be started anew, its keeper and its front."""

    root: Path
    base: Path
    vllm: Path
    engine_port: int = field(default_factory=lambda: free_ports()[0])
    front_port: int = field(default_factory=lambda: free_ports()[0])
    engine: subprocess.Popen[bytes] | None = None
    wanted: list[WantedAdapter] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.front_port}"

    def start_engine(self) -> None:
        """Start it as the pod's container is started, but for the model's place and the port."""
        start = ENGINES[EngineType.VLLM].launch(ModelServeSpec.model_validate(SPEC), "base", self.engine_port)
        args = [str(self.base) if arg == MODEL else arg for arg in start.args]
        with (self.root / "engine.log").open("ab") as log:
            command = [str(self.vllm), *start.command[1:], *args]
            self.engine = subprocess.Popen(command, env=os.environ | start.env, stdout=log, stderr=log, start_new_session=True)

    def end_engine(self) -> None:
        assert self.engine is not None
        os.killpg(self.engine.pid, 9)
        self.engine.wait(30)

    @contextmanager
    def program(self, name: str, *options: str) -> Iterator[None]:
        """One of the pod's own programs."""
        with (self.root / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", f"finetune_trainer.serving.{name}", *options]
            environment = os.environ | {ENV_MOUNTS: str(self.root / "mounts"), "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        yield
        process.terminate()
        process.wait(30)

    def want(self, *adapters: WantedAdapter) -> None:
        """What the ConfigMap says, put in its place as a kubelet does."""
        self.wanted = list(adapters)
        version = str(time.monotonic())
        text = WantedAdapters(version=version, adapters=adapters).model_dump_json(by_alias=True)
        (self.root / "next.json").write_text(text)
        (self.root / "next.json").rename(self.root / "wanted.json")

    def state(self) -> PodAdapters:
        return PodAdapters.model_validate(self.get(PATH))

    def loaded(self) -> set[str]:
        return {a.engine_name for a in self.state().adapters if a.loaded}

    def names(self) -> list[str]:
        return [card["id"] for card in self.get("/v1/models")["data"]]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return json.load(response)

    def open(self, model: str, **more: Any) -> Any:
        body = {"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, **more}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode(), headers)
        return urllib.request.urlopen(request, timeout=120)

    def ask(self, model: str, **more: Any) -> tuple[str, str]:
        """The answer, and who has given it."""
        with self.open(model, **more) as response:
            found = json.load(response)
        return str(found["choices"][0]["text"]), str(found["model"])

    def is_ready(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
        except OSError:
            return False
        return True


@pytest.fixture
def pod(tmp_path: Path, tiny_model: Path) -> Iterator[Pod]:
    vllm = python_of("evaluator", "serve-vllm", "evaluator").with_name("vllm")
    (tmp_path / "mounts/claims").mkdir(parents=True)
    (tmp_path / "mounts/claims/models").mkdir()
    (tmp_path / "adapters").mkdir()
    made = Pod(tmp_path, tiny_model, vllm)
    made.want()
    engine = f"http://127.0.0.1:{made.engine_port}"
    keeper = ("--wanted", str(tmp_path / "wanted.json"), "--folder", str(tmp_path / "adapters"), "--engine", engine)
    front = ("--port", str(made.front_port), "--engine", engine, "--drain", "1", "--adapters", str(tmp_path / "adapters"))
    made.start_engine()
    with ExitStack() as processes:
        processes.callback(made.end_engine)
        processes.enter_context(
            made.program("adapters", *keeper, "--base", str(tiny_model), "--max-rank", "16", "--drain", "2")
        )
        processes.enter_context(made.program("front", *front))
        assert made.engine is not None
        assert within(START_SECONDS, made.is_ready, 1.0), (tmp_path / "engine.log").read_text()[-3000:]
        yield made
    print((tmp_path / "adapters.log").read_text())


@dataclass
class Callers:
    """Two who ask without a pause: the base model, and an adapter by its name."""

    pod: Pod
    wrong: list[str] = field(default_factory=list)
    answers: dict[str, set[str]] = field(default_factory=dict)  # by who has given them
    ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def asking(self, *models: str) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask, args=(model,)) for model in models]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.ended.set()
            for thread in threads:
                thread.join()

    def _ask(self, model: str) -> None:
        while not self.ended.is_set():
            try:
                text, by = self.pod.ask(model)
                self.answers.setdefault(by, set()).add(text)
            except OSError as error:
                self.wrong.append(f"{model}: {error}")


def test_adapters_come_follow_each_other_and_go_in_an_engine_that_runs(pod: Pod, tiny_model: Path, tmp_path: Path) -> None:
    claim = tmp_path / "mounts/claims/models"
    (first, says_first), (second, says_second) = (make_adapter(tiny_model, claim / str(seed), seed) for seed in (1, 2))
    wide, _ = make_adapter(tiny_model, claim / "wide", 3, rank=32)
    base, _ = pod.ask("base")
    assert len({base, says_first, says_second}) == 3, "each says something of its own"

    def adapter(digest: str, path: str, *, serves: bool, trial: str = "t") -> WantedAdapter:
        return WantedAdapter(name="tickets", digest=digest, uri=f"pvc://models/{path}", serves=serves, trial=trial)

    one, two = engine_name("tickets", first), engine_name("tickets", second)
    begun = time.monotonic()
    pod.want(adapter(first, "1", serves=True))
    wait_until("it is loaded", lambda: pod.names() == ["base", "tickets"], SOON)
    print(f"loaded {time.monotonic() - begun:.1f} s after it was wanted")
    assert pod.ask("tickets") == (says_first, one)
    unbroken, _ = pod.ask("tickets", max_tokens=LONG)

    callers = Callers(pod)
    with callers.asking("base", "tickets"):
        pod.want(adapter(first, "1", serves=True), adapter(second, "2", serves=False), adapter(wide, "wide", serves=False))
        wait_until("the next one is loaded beside it", lambda: pod.loaded() == {one, two}, SOON)
        (refused,) = [a for a in pod.state().adapters if a.engine_name == engine_name("tickets", wide)]
        assert (refused.reason, "its rank is 32" in str(refused.message)) == ("AdapterUnsupported", True)
        assert pod.ask(two) == (says_second, two), "it can be tried before its name leads to it"
        assert pod.ask("tickets") == (says_first, one)

        with pod.open("tickets", max_tokens=LONG, stream=True) as stream:
            pieces = [stream.readline()]
            pod.want(adapter(second, "2", serves=True))
            wait_until("the name leads to the next one", lambda: pod.ask("tickets") == (says_second, two), SOON)
            pieces += list(stream)
        assert text_of(pieces) == unbroken, "what was begun ends with the adapter that it began with"
        wait_until("the one before is taken out", lambda: pod.loaded() == {two} and one not in pod.names(), SOON)
        assert pod.ask("tickets") == (says_second, two), "nothing of the one before is left in a cache"
    assert callers.wrong == []
    assert callers.answers == {"base": {base}, one: {says_first}, two: {says_second}}

    pod.end_engine()
    wait_until("its front says so", lambda: not pod.is_ready(), SOON)
    pod.start_engine()
    assert within(START_SECONDS, pod.is_ready, 1.0)
    assert pod.ask("tickets") == (says_second, two), "a pod is ready no sooner than its adapters"

    pod.want()
    wait_until("the name leads nowhere", lambda: pod.names() == ["base"], SOON)
    for model in ("tickets", two):
        with pytest.raises(urllib.error.HTTPError) as unknown:
            pod.ask(model)
        assert unknown.value.code == 404
    assert pod.ask("base")[0] == base


def text_of(pieces: list[bytes]) -> str:
    told = [json.loads(p.removeprefix(b"data: ")) for p in pieces if p.startswith(b"data: {")]
    return "".join(str(piece["choices"][0]["text"]) for piece in told)
