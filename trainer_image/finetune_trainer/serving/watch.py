"""Watch what the engines of a revision count while its rollback window is open: a Job of the operator's image.

    python -m finetune_trainer.serving.watch --watch JSON

Every few seconds /metrics of each ready pod is read, by the addresses that one name stands for. Where too much goes wrong
within five minutes (contract/traffic.py), the program ends at once with ExitCode VERIFICATION_FAILED and the numbers;
otherwise it ends with the window. A pod that does not answer counts nothing: probes and restarts tell of it.
"""

from __future__ import annotations

import argparse
import re
import socket
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from finetune_trainer import environment
from finetune_trainer.contract import traffic
from finetune_trainer.contract.reports import Failure, Termination
from finetune_trainer.contract.traffic import Counted, Counters, Series, Traffic, Watch
from finetune_trainer.termination import finish

PERIOD_SECONDS = 5.0
SPAN_SECONDS = 300.0
TIMEOUT_SECONDS = 3.0


def main(arguments: list[str] | None = None) -> int:
    """Watch as the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.serving.watch", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--watch", type=Watch.model_validate_json, required=True, help="whom, for how long, what is borne: JSON"
    )
    wanted: Watch = parser.parse_args(arguments).watch
    return finish(lambda: watch(wanted, environment.access().served_api_key))


def watch(wanted: Watch, api_key: str | None, pause: Callable[[float], None] = time.sleep) -> Termination:
    """Read the counters until something is wrong or the time is over."""
    end = time.monotonic() + wanted.seconds
    pods, samples = Pods(wanted.host, wanted.port, wanted.counters, api_key), deque([(time.monotonic(), Counted())])
    before = Counted()
    if wanted.before is not None:
        before = sum((c for _, c in read(wanted.before, wanted.port, wanted.counters, api_key)), Counted())
    while True:
        samples.append((time.monotonic(), pods.grown()))
        while len(samples) > 2 and samples[1][0] <= samples[-1][0] - SPAN_SECONDS:
            samples.popleft()
        found = traffic.told(samples[-1][1].since(samples[0][1]), before, wanted.bounds)
        wrong = traffic.fault(found, wanted.bounds)
        if wrong is not None or time.monotonic() >= end:
            print(_line(found), flush=True)
            failure = None if wrong is None else Failure(reason=wrong[0], message=wrong[1])
            return Termination(failure=failure, traffic=found)
        pause(min(PERIOD_SECONDS, max(0.0, end - time.monotonic())))


@dataclass
class Pods:
    """The pods behind a name, and how far their counters have grown since each was first seen."""

    host: str
    port: int
    counters: Counters
    api_key: str | None = field(repr=False)
    _last: dict[str, Counted] = field(default_factory=dict)
    _grown: Counted = field(default_factory=Counted)

    def grown(self) -> Counted:
        """The growth of all of them, until now."""
        for address, counted in read(self.host, self.port, self.counters, self.api_key):
            self._grown += counted.since(self._last.get(address, counted))
            self._last[address] = counted
        return self._grown


def read(host: str, port: int, counters: Counters, api_key: str | None) -> Iterator[tuple[str, Counted]]:
    """The counters of each pod that answers, by its address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:  # a name without a ready pod has no address
        return
    for address in sorted({str(info[4][0]) for info in found}):
        shown = f"[{address}]" if ":" in address else address
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        request = urllib.request.Request(f"http://{shown}:{port}/metrics", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                yield address, counted(response.read().decode(), counters)
        except (OSError, ValueError) as error:
            print(f"{address} tells no metrics: {type(error).__name__}", flush=True)


def counted(text: str, counters: Counters) -> Counted:
    """The counters in a text of Prometheus' format. Raises ValueError where it is none."""
    from prometheus_client.parser import text_string_to_metric_families

    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]

    def total(series: Series | None) -> float:
        if series is None:
            return 0.0
        return sum(
            s.value
            for s in samples
            if s.name == series.name and all(re.fullmatch(v, s.labels.get(k, "")) for k, v in series.labels.items())
        )

    return Counted(**{name: total(getattr(counters, name)) for name in Counters.model_fields})


def _line(found: Traffic) -> str:
    return f"{found.errors} errors in {found.requests} requests, {found.tokens} tokens, {found.token_milliseconds} ms each"


if __name__ == "__main__":
    sys.exit(main())
