"""The keeper of a pod's adapters makes up the difference between what is wanted and what the engine has, and tells of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.vllm_contract import Engine, serving

from finetune_trainer.contract import pipeline, pod
from finetune_trainer.contract.fields import Model
from finetune_trainer.contract.reports import ArtifactFacts, Manifest, ModelFacts, StepResult
from finetune_trainer.contract.served_adapters import PodAdapters, WantedAdapter, WantedAdapters
from finetune_trainer.serving.adapter_files import Base, Place
from finetune_trainer.serving.adapters import AGAIN_SECONDS, KEPT_SECONDS, SETTLE_SECONDS, Keeper
from finetune_trainer.serving.lora_api import LoraApi
from finetune_trainer.store.files import FILES, describe, files_json, folder_digest

DRAIN = 30.0
SIZE = 8  # of the base model's layers
Q = "model.layers.0.self_attn.q_proj"


def safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    """A file with tensors of zeros of these shapes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def sealed(folder: Path) -> str:
    """Write the folder's files.json; its digest."""
    files = describe(folder)
    (folder / FILES).write_bytes(files_json(files))
    return folder_digest(files)


def adapter(folder: Path, rank: int = 4, size: int = SIZE, module: str = Q, **settings: Any) -> str:
    """An adapter of PEFT; its digest."""
    folder.mkdir(parents=True)
    told = {
        "peft_type": "LORA",
        "r": rank,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "pvc://models/base",
        **settings,
    }
    (folder / "adapter_config.json").write_text(json.dumps(told))
    pair = {f"base_model.model.{module}.lora_A.weight": [rank, size], f"base_model.model.{module}.lora_B.weight": [SIZE, rank]}
    safetensors(folder / "adapter_model.safetensors", pair)
    return sealed(folder)


@dataclass
class Scene:
    """A pod: its engine, its keeper, and the claim `models` with the base model."""

    root: Path
    engine: Engine
    keeper: Keeper
    now: float = 1000.0
    wanted: list[WantedAdapter] = field(default_factory=list)

    @property
    def claim(self) -> Path:
        return self.root / "mounts/claims/models"

    def ask(self, name: str, digest: str, *, path: str = "", serves: bool = False, trial: str = "t") -> str:
        """Want one more adapter; what the engine calls it."""
        one = WantedAdapter(name=name, digest=digest, uri=f"pvc://models/{path or name}", serves=serves, trial=trial)
        self.wanted = [*(w for w in self.wanted if w.engine_name != one.engine_name), one]
        self.write()
        return one.engine_name

    def leave(self, name: str) -> None:
        self.wanted = [w for w in self.wanted if w.engine_name != name]
        self.write()

    def write(self) -> None:
        found = WantedAdapters(version=str(len(self.wanted)), adapters=tuple(self.wanted))
        self.keeper.wanted.write_text(found.model_dump_json(by_alias=True))

    def later(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.keeper.step(self.now)

    @property
    def state(self) -> PodAdapters:
        return PodAdapters.model_validate_json((self.keeper.folder / "state.json").read_text())

    @property
    def names(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.keeper.folder / "names.json").read_text())
        return found

    def reason(self, name: str) -> str | None:
        return next(a.reason for a in self.state.adapters if a.engine_name == name)

    def message(self, name: str) -> str:
        return str(next(a.message for a in self.state.adapters if a.engine_name == name))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv(pod.ENV_MOUNTS, str(tmp_path / "mounts"))
    base = tmp_path / "mounts/claims/models/base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    safetensors(base / "model.safetensors", {f"{Q}.weight": [SIZE, SIZE]})
    sealed(base)
    folder = tmp_path / "adapters"
    folder.mkdir()
    engine = Engine()
    with serving(engine) as url:
        keeper = Keeper(tmp_path / "wanted.json", folder, LoraApi(url), Base(base, 16), Place(), DRAIN)
        made = Scene(tmp_path, engine, keeper)
        made.write()
        yield made


def test_what_is_wanted_is_loaded_and_what_serves_has_its_name(scene: Scene) -> None:
    tried = scene.ask("legal", adapter(scene.claim / "legal"))
    serves = scene.ask("tickets", adapter(scene.claim / "tickets", rank=8), serves=True)
    scene.later()
    assert sorted(scene.engine.loaded) == sorted([tried, serves])
    assert scene.names == {"tickets": serves}
    assert all(a.loaded for a in scene.state.adapters)
    assert scene.state.settled
    folder = Path(scene.engine.loaded[serves])
    assert folder.is_relative_to(scene.keeper.folder), "what lies on the claim may be changed there"


def test_the_next_one_takes_the_name_and_the_one_before_goes_when_its_answers_have_had_their_time(scene: Scene) -> None:
    first = scene.ask("tickets", adapter(scene.claim / "one"), path="one", serves=True)
    scene.later()
    second = scene.ask("tickets", adapter(scene.claim / "two", rank=8), path="two")
    scene.later()
    assert scene.names == {"tickets": first}
    scene.leave(first)
    scene.ask("tickets", scene.wanted[0].digest, path="two", serves=True)
    scene.later()
    assert scene.names == {"tickets": second}
    assert scene.engine.unloads == []
    scene.later(DRAIN - 2)
    assert scene.engine.unloads == []
    scene.later(3)
    assert scene.engine.unloads == [first]
    folders = {path.name for path in scene.keeper.folder.iterdir() if path.is_dir()}
    assert len(folders) == 2, "an answer that outlasts it is read from there"
    scene.later(KEPT_SECONDS)
    assert len([path for path in scene.keeper.folder.iterdir() if path.is_dir()]) == 1


def test_an_engine_that_was_started_anew_gets_its_adapters_again(scene: Scene) -> None:
    name = scene.ask("tickets", adapter(scene.claim / "tickets"), serves=True)
    scene.later()
    scene.engine.away = True
    scene.later()
    assert (scene.names, scene.state.settled) == ({}, False)
    scene.engine.restart()
    scene.engine.away = False
    scene.later()
    assert (scene.engine.loads, scene.names, scene.state.settled) == ([name, name], {"tickets": name}, True)


def test_a_keeper_that_was_started_anew_takes_over_what_is_loaded(scene: Scene) -> None:
    name = scene.ask("tickets", adapter(scene.claim / "tickets"), serves=True)
    left = scene.ask("legal", adapter(scene.claim / "legal", rank=8))
    scene.later()
    scene.leave(left)
    before = scene.keeper
    scene.keeper = Keeper(before.wanted, before.folder, before.engine, before.base, before.place, DRAIN)
    scene.later()
    assert (scene.engine.loads, scene.engine.unloads, scene.names) == ([left, name], [], {"tickets": name}) or (
        sorted(scene.engine.loads) == sorted([left, name]) and scene.engine.unloads == []
    )
    scene.later(DRAIN + 1)
    assert (scene.engine.unloads, list(scene.engine.loaded)) == ([left], [name])


def test_a_file_that_is_away_or_cut_takes_nothing_out(scene: Scene) -> None:
    name = scene.ask("tickets", adapter(scene.claim / "tickets"), serves=True)
    scene.later()
    for text in ("", '{"version": "2", "adap'):
        scene.keeper.wanted.write_text(text)
        scene.later(DRAIN + 1)
    scene.keeper.wanted.unlink()
    scene.later(DRAIN + 1)
    assert scene.names == {"tickets": name}
    assert scene.engine.unloads == []


def replaced(claim: Path) -> str:
    digest = adapter(claim / "bad", rank=8)
    (claim / "bad/adapter_config.json").write_text("{}")
    return digest


def unsealed(claim: Path) -> str:
    adapter(claim / "bad")
    (claim / "bad" / FILES).unlink()
    return "sha256:" + "0" * 64


def without_weights(claim: Path) -> str:
    adapter(claim / "bad")
    (claim / "bad/adapter_model.safetensors").unlink()
    return sealed(claim / "bad")


def with_template(claim: Path) -> str:
    adapter(claim / "bad")
    (claim / "bad/chat_template.jinja").write_text("{{ messages }}!")
    return sealed(claim / "bad")


@pytest.mark.parametrize(
    ("make", "reason", "said"),
    [
        (with_template, "AdapterUnsupported", "another chat template"),
        (lambda claim: adapter(claim / "bad", rank=32), "AdapterUnsupported", "rank is 32, and there is room for 16"),
        (lambda claim: adapter(claim / "bad", rank_pattern={"q": 64}), "AdapterUnsupported", "rank is 64"),
        (lambda claim: adapter(claim / "bad", use_dora=True), "AdapterUnsupported", "DoRA"),
        (lambda claim: adapter(claim / "bad", modules_to_save=["lm_head"]), "AdapterUnsupported", "lm_head"),
        (lambda claim: adapter(claim / "bad", bias="all"), "AdapterUnsupported", "biases"),
        (lambda claim: adapter(claim / "bad", target_parameters=["experts.down_proj"]), "AdapterUnsupported", "experts"),
        (lambda claim: adapter(claim / "bad", peft_type="IA3"), "AdapterUnsupported", "IA3"),
        (lambda claim: adapter(claim / "bad", size=16), "AdapterOfAnotherBase", "of 16 numbers, and the base model's has 8"),
        (lambda claim: adapter(claim / "bad", module="model.layers.9.mlp"), "AdapterOfAnotherBase", "model.layers.9.mlp"),
        (without_weights, "AdapterUnsupported", "no adapter of PEFT"),
        (replaced, "ModelDamaged", "is not what was made"),
        (unsealed, "ModelDamaged", "has no files.json"),
        (lambda _: "sha256:" + "0" * 64, "AdapterNotFound", "there is no folder pvc://models/bad"),
    ],
)
def test_a_bad_one_never_reaches_the_engine_and_is_refused_alone(scene: Scene, make: Any, reason: str, said: str) -> None:
    good = scene.ask("tickets", adapter(scene.claim / "tickets"), serves=True)
    bad = scene.ask("bad", make(scene.claim))
    scene.later()
    scene.later(AGAIN_SECONDS + 1)
    assert (scene.engine.loads, scene.names, scene.state.settled) == ([good], {"tickets": good}, True)
    assert scene.reason(bad) == reason
    assert said in scene.message(bad)


def test_the_engines_own_words_are_told(scene: Scene) -> None:
    name = scene.ask("legal", adapter(scene.claim / "legal"))
    scene.engine.refuses[name] = "No available memory"
    scene.later()
    assert (scene.reason(name), "No available memory" in scene.message(name)) == ("AdapterRefused", True)
    del scene.engine.refuses[name]
    scene.later(AGAIN_SECONDS + 1)
    assert scene.engine.loads == [], "it is refused for good"
    scene.ask("legal", scene.wanted[0].digest, trial="another")
    scene.later()
    assert scene.engine.loads == [name], "another trial is another try"


def test_one_that_serves_and_can_not_be_had_holds_up_a_new_pod_for_a_while_only(scene: Scene) -> None:
    name = scene.ask("tickets", adapter(scene.claim / "tickets"), serves=True)
    (scene.claim / "tickets").rename(scene.claim / "away")
    missing = scene.ask("other", "sha256:" + "0" * 64, serves=True)
    scene.later()
    assert scene.state.settled, "what is refused for good holds up nothing"
    assert scene.names == {}
    (scene.claim / "away").rename(scene.claim / "tickets")
    scene.later(AGAIN_SECONDS * 31)
    assert scene.names == {"tickets": name}
    assert not any(a.loaded for a in scene.state.adapters if a.engine_name == missing)


def test_a_pod_waits_for_an_adapter_that_may_come(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.ask("tickets", adapter(scene.claim / "tickets"), serves=True)
    monkeypatch.setattr(LoraApi, "load", _times_out)
    scene.later()
    assert not scene.state.settled
    scene.later(SETTLE_SECONDS - 2)
    assert not scene.state.settled
    scene.later(3)
    assert scene.state.settled


def _times_out(*_: Any) -> None:
    raise TimeoutError("the disk does not answer")


def test_the_engine_is_asked_with_its_key(scene: Scene) -> None:
    scene.engine.api_key = "s3cret"
    name = scene.ask("tickets", adapter(scene.claim / "tickets"), serves=True)
    scene.later()
    assert (scene.names, scene.state.settled) == ({}, False)
    scene.keeper.engine = LoraApi(scene.keeper.engine.url, "s3cret")
    scene.later()
    assert scene.names == {"tickets": name}
    assert "s3cret" not in repr(scene.keeper)


# ── The base that it was trained over ─────────────────────────────────────────────────────────────────────────────────


def of_store(scene: Scene, base_digest: str, fingerprint: str = "f" * 20) -> str:
    """An adapter in an artifact store that knows what it was trained over; its digest."""
    digest = adapter(scene.claim / f"store/train/{fingerprint}/1-a")
    entry = scene.claim / "store/model" / pipeline.model_fingerprint(Model(uri="pvc://models/base"))
    entry.mkdir(parents=True)
    facts = ModelFacts(revision="r", digest=base_digest, parameters=1, architecture="x", bytes=1)
    made = ArtifactFacts(name="x", format="x", path="", digest="", bytes=0)
    result = StepResult(step="prepare", fingerprint=entry.name, model=facts, artifact=made)
    manifest = Manifest(step="prepare", fingerprint=entry.name, prefix="p", files=(), inputs={}, versions={}, result=result)
    (entry / "manifest.json").write_text(manifest.model_dump_json(by_alias=True))
    return digest


def test_an_adapter_of_another_base_is_refused_by_its_store(scene: Scene) -> None:
    name = scene.ask("tickets", of_store(scene, "sha256:" + "9" * 64), path=f"store/train/{'f' * 20}/1-a")
    scene.later()
    assert scene.reason(name) == "AdapterOfAnotherBase"
    assert "it was trained over pvc://models/base (sha256:9999" in scene.message(name)


def test_the_same_chat_template_is_the_same_wherever_it_is_written(scene: Scene) -> None:
    (scene.claim / "base/tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}!"}))
    digest = with_template(scene.claim)
    assert scene.engine.loads == []
    name = scene.ask("bad", digest)
    scene.later()
    assert scene.engine.loads == [name]


def test_an_adapter_of_this_base_is_taken(scene: Scene) -> None:
    mine = scene.keeper.base.digest()
    assert mine is not None
    name = scene.ask("tickets", of_store(scene, mine), path=f"store/train/{'f' * 20}/1-a")
    scene.later()
    assert scene.engine.loads == [name]
