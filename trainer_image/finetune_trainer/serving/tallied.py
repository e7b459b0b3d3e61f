"""What a front counts of the answers of an engine that counts nothing, under the names that vLLM has for it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Timed:
    """The tokens of one stream."""

    tally: Tally
    last: float | None = None

    def came(self, tokens: int) -> None:
        """So many tokens came now; the first of a stream has none before it."""
        now = time.monotonic()
        if tokens and self.last is not None:
            self.tally.tokens += tokens
            self.tally.token_seconds += now - self.last
        if tokens:
            self.last = now


@dataclass
class Tally:
    running: int = 0
    tokens: int = 0  # of streams, but for the first of each
    token_seconds: float = 0.0
    requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def timed(self) -> Timed:
        """A stream that begins."""
        return Timed(self)

    def answered(self, path: str, method: str, status: int | None) -> None:
        """An answer was given; one whose caller had gone counts as none."""
        if status is not None:
            self.requests[path, method, f"{status // 100}xx"] += 1

    def text(self, prefix: str, at_once: int) -> str:
        """All of it as Prometheus reads it; more requests than are answered at once wait."""
        lines = ["# TYPE http_requests_total counter"]
        for (path, method, status), number in sorted(self.requests.items()):
            lines.append(f'http_requests_total{{handler="{path}",method="{method}",status="{status}"}} {number}')
        for name, value in (("running", min(self.running, at_once)), ("waiting", max(self.running - at_once, 0))):
            lines += [f"# TYPE {prefix}:num_requests_{name} gauge", f"{prefix}:num_requests_{name} {value}"]
        latency = f"{prefix}:inter_token_latency_seconds"
        lines += [f"# TYPE {latency} summary", f"{latency}_count {self.tokens}", f"{latency}_sum {self.token_seconds:.6f}"]
        return "\n".join(lines) + "\n"
