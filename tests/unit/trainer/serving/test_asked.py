"""A Job that ends once somebody waits at a gateway, or once nobody has asked for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.listening import Quiet, listening

from finetune_trainer.contract.gateway import PATH, GatewayState, Look, Until, is_so
from finetune_trainer.contract.pod import ENV_TERMINATION_LOG
from finetune_trainer.contract.reports import Termination
from finetune_trainer.serving import asked


def state(held: int = 0, running: int = 0, idle: float = 0.0) -> GatewayState:
    return GatewayState(held=held, running=running, idle_seconds=idle)


def look(until: Until, port: int = 1) -> Look:
    return Look(host="127.0.0.1", port=port, until=until, idle_seconds=60)


@pytest.mark.parametrize(
    ("until", "found", "so"),
    [
        (Until.ASKED, [], False),
        (Until.ASKED, [state()], False),
        (Until.ASKED, [state(running=1)], False),  # it is answered already
        (Until.ASKED, [state(), state(held=1, running=1)], True),
        (Until.ASKED, [None, state(held=1, running=1)], True),
        (Until.IDLE, [], False),
        (Until.IDLE, [state(idle=60)], True),
        (Until.IDLE, [state(idle=59.9)], False),
        (Until.IDLE, [state(running=1, idle=60)], False),
        (Until.IDLE, [state(idle=90), state(idle=10)], False),
        (Until.IDLE, [state(idle=90), None], False),  # who knows whom it answers
    ],
)
def test_what_is_waited_for(until: Until, found: list[GatewayState | None], so: bool) -> None:
    assert is_so(found, look(until)) is so


@contextmanager
def gateway(*told: GatewayState | None) -> Iterator[int]:
    """A gateway that says these things one after the other; its port."""
    left = list(told)

    class Handler(Quiet):
        def do_GET(self) -> None:
            one = left.pop(0)
            known = one is not None and self.path == PATH
            self.answer(200 if known else 500, one.model_dump_json(by_alias=True).encode() if one is not None else b"")

    with listening(Handler) as port:
        yield port


def test_it_asks_until_somebody_waits(capsys: pytest.CaptureFixture[str]) -> None:
    pauses: list[float] = []
    with gateway(state(), None, state(), state(held=2, running=2)) as port:
        assert asked.wait(look(Until.ASKED, port), pauses.append) == Termination()
    assert pauses == [asked.PERIOD_SECONDS] * 3
    assert capsys.readouterr().out.splitlines() == [f"{n} of 1 gateways answer" for n in (1, 0, 1)]


def test_a_name_without_a_pod_is_asked_again() -> None:
    pauses: list[float] = []

    def enough(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    nobody = look(Until.IDLE).model_copy(update={"host": "no-such-name.invalid"})
    with pytest.raises(KeyboardInterrupt):
        asked.wait(nobody, enough)


def test_the_program_ends_when_it_is_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_TERMINATION_LOG, str(tmp_path / "termination"))
    with gateway(state(idle=61)) as port:
        assert asked.main(["--look", look(Until.IDLE, port).model_dump_json(by_alias=True)]) == 0
