"""kubectl as a program: what the demo and the end-to-end tests know of a cluster, they know as any user would."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster import settings

Object = dict[str, Any]


class KubectlFailed(Exception):
    """What kubectl said."""


@dataclass(frozen=True)
class Kubectl:
    """One cluster. Without `kubeconfig` it is the one of the current context."""

    program: str
    kubeconfig: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The environment of other programs that talk to the same cluster, such as helm."""
        return settings.of_child({"KUBECONFIG": str(self.kubeconfig)} if self.kubeconfig else {})

    def __call__(self, *arguments: str, input: str | None = None) -> str:
        """Standard output of `kubectl ARGUMENTS`. Raises KubectlFailed with its standard error."""
        command = [self.program, *arguments]
        done = subprocess.run(command, env=self.environment, input=input, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KubectlFailed(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, kind: str, name: str, namespace: str) -> Object | None:
        """One object, None where there is none."""
        text = self("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def items(self, kind: str, namespace: str, selector: str = "") -> list[Object]:
        """The objects of a kind that a label selector picks, all by default."""
        listed = json.loads(self("get", kind, "-n", namespace, "-l", selector, "-o", "json"))
        return list(listed["items"])

    def apply(self, body: Object) -> None:
        self("apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(body))

    @contextmanager
    def watch(self, kind: str, name: str, namespace: str, seconds: int) -> Iterator[Iterator[Object]]:
        """Each version of one object, the present one first, for at most `seconds`; nothing is polled."""
        command = [self.program, "get", kind, name, "-n", namespace, "-o", "json", "--watch", f"--request-timeout={seconds}s"]
        with subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                yield _objects(process)
            finally:
                process.terminate()

    @contextmanager
    def forward(self, service: str, namespace: str, port: int) -> Iterator[int]:
        """A free local port that leads to a Service's port while the block runs."""
        command = [self.program, "port-forward", f"service/{service}", "-n", namespace, f":{port}"]
        with subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                assert process.stdout is not None
                first = process.stdout.readline()
                found = re.search(r"127\.0\.0\.1:(\d+)", first)
                if found is None:
                    raise KubectlFailed(f"{' '.join(command)}: {first.strip()}")
                yield int(found[1])
            finally:
                process.terminate()


def _objects(process: subprocess.Popen[str]) -> Iterator[Object]:
    """The JSON objects of a stream, each as soon as it is whole: kubectl ends each with a line that is `}` alone."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.rstrip("\n") == "}":
            yield json.loads("".join(lines))
            lines.clear()
