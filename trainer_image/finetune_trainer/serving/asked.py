"""Wait until somebody asks a model that sleeps, or until nobody has asked one for a while: a Job of the operator's image.

    python -m finetune_trainer.serving.asked --look JSON

The gateway before the model is asked each second, by the addresses that one name stands for. That this program ends is what
the operator hears. A gateway that does not answer is asked again: it is no news, and neither ends it.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator

from finetune_trainer.contract.gateway import PATH, GatewayState, Look, is_so
from finetune_trainer.contract.reports import Termination
from finetune_trainer.termination import finish

PERIOD_SECONDS = 1.0
TIMEOUT_SECONDS = 3.0


def main(arguments: list[str] | None = None) -> int:
    """Wait as the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.serving.asked", description=__doc__.splitlines()[0])
    parser.add_argument("--look", type=Look.model_validate_json, required=True, help="at whom, and until when: JSON")
    wanted: Look = parser.parse_args(arguments).look
    return finish(lambda: wait(wanted))


def wait(look: Look, pause: Callable[[float], None] = time.sleep) -> Termination:
    """Look again and again until it is so."""
    told = ""
    while True:
        found = list(_states(look))
        before, told = told, f"{sum(state is not None for state in found)} of {len(found)} gateways answer"
        if told != before:
            print(told, flush=True)
        if is_so(found, look):
            return Termination()
        pause(PERIOD_SECONDS)


def _states(look: Look) -> Iterator[GatewayState | None]:
    try:
        found = socket.getaddrinfo(look.host, look.port, type=socket.SOCK_STREAM)
    except OSError:  # a name without a pod has no address
        return
    for address in sorted({str(info[4][0]) for info in found}):
        shown = f"[{address}]" if ":" in address else address
        try:
            with urllib.request.urlopen(f"http://{shown}:{look.port}{PATH}", timeout=TIMEOUT_SECONDS) as response:
                yield GatewayState.model_validate(json.load(response))
        except (OSError, ValueError):
            yield None


if __name__ == "__main__":
    sys.exit(main())
