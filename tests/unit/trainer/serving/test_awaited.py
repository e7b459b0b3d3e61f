"""A gate waits until each pod has an adapter: what they say decides, and what is away for a moment does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.listening import Quiet, listening

from finetune_trainer.contract.reports import Termination
from finetune_trainer.contract.served_adapters import PATH, Awaited, LoadedAdapter, PodAdapters
from finetune_trainer.failures import StepFailed
from finetune_trainer.serving import ask
from finetune_trainer.serving.awaited import await_adapter

NAME = "tickets@12345678"
HERE = LoadedAdapter(engine_name=NAME, trial="t", loaded=True)


@contextmanager
def pod(*told: LoadedAdapter | None) -> Iterator[int]:
    """A pod that says these things one after the other, the last one again and again; its port."""
    left = list(told)

    class Handler(Quiet):
        def do_GET(self) -> None:
            one = left.pop(0) if len(left) > 1 else left[0]
            state = PodAdapters(version="1", adapters=() if one is None else (one,))
            self.answer(200, state.model_dump_json(by_alias=True).encode() if self.path == PATH else b"{}")

    with listening(Handler) as port:
        yield port


def awaited(port: int, seconds: int = 60, **fields: Any) -> Awaited:
    return Awaited(host="127.0.0.1", port=port, engine_name=NAME, trial="t", seconds=seconds, **fields)


def test_a_pod_that_is_told_later_is_waited_for() -> None:
    pauses: list[float] = []
    of_another_trial = HERE.model_copy(update={"trial": "before", "reason": "AdapterRefused", "loaded": False})
    loading = HERE.model_copy(update={"loaded": False, "message": "the disk does not answer"})
    with pod(None, of_another_trial, loading, HERE) as port:
        assert await_adapter(awaited(port), pauses.append) is None
    assert len(pauses) == 3


def test_a_pod_that_refuses_it_decides_at_once() -> None:
    refused = LoadedAdapter(engine_name=NAME, trial="t", reason="AdapterUnsupported", message="its rank is 64")
    with pod(refused) as port:
        found = await_adapter(awaited(port), lambda _: None)
    assert found is not None
    assert (found.reason, found.message) == ("AdapterUnsupported", "its rank is 64")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (None, "1 of 1 pods have not loaded it after 0 s: it was not told of the adapter yet"),
        (HERE.model_copy(update={"loaded": False, "message": "the disk does not answer"}), "the disk does not answer"),
    ],
)
def test_what_takes_too_long_is_no_verdict(told: LoadedAdapter | None, said: str) -> None:
    with pod(told) as port, pytest.raises(StepFailed, match=said) as late:
        await_adapter(awaited(port, seconds=0), lambda _: None)
    assert late.value.reason == "AdapterNotLoaded"


def test_without_a_ready_pod_there_is_no_verdict() -> None:
    nobody = awaited(1, seconds=0).model_copy(update={"host": "no-such-name.invalid"})
    with pytest.raises(StepFailed, match="no pod is ready"):
        await_adapter(nobody, lambda _: None)


@pytest.mark.parametrize(("seconds", "pauses"), [(60, 2), (0, 0)])
def test_as_many_pods_are_waited_for_as_were_ready_and_those_that_are_left_decide(
    monkeypatch: pytest.MonkeyPatch, seconds: int, pauses: int
) -> None:
    looked: list[int] = []

    def addresses(*_: object, **__: object) -> list[tuple[object, ...]]:
        looked.append(1)
        return [(0, 0, 0, "", (f"127.0.0.{n}", 0)) for n in range(1, 2 + (len(looked) > 2))]

    monkeypatch.setattr("socket.getaddrinfo", addresses)
    monkeypatch.setattr("finetune_trainer.serving.awaited._of_pod", lambda *_: HERE)
    assert await_adapter(awaited(1, seconds=seconds, pods=2), lambda _: None) is None
    assert len(looked) == 1 + pauses


def test_what_is_to_serve_is_asked_nothing_once_its_name_leads_to_it(tmp_path: Any) -> None:
    serving, pauses = HERE.model_copy(update={"serves": True}), list[float]()
    with pod(HERE, serving) as port:
        assert await_adapter(awaited(port, serves=True), pauses.append) is None
        (tmp_path / "prompts.json").write_text("[]")
        options = ["--url", "http://127.0.0.1:1/v1", "--model", NAME, "--prompts", str(tmp_path / "prompts.json")]
        told = awaited(port, serves=True).model_dump_json(by_alias=True)
        parsed = ask.parser().parse_args([*options, "--awaited", told])
        assert ask.passed(parsed) == Termination()
    assert len(pauses) == 1
