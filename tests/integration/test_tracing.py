"""Traces as OpenTelemetry's own collector gets them by OTLP over HTTP, of a real operator and a step as its pod runs it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster import settings, toolchain
from tests.integration.conftest import FINETUNE, Operator, World
from tests.integration.test_operator import jobs
from tests.waiting import wait_for_server, wait_until

from finetune_trainer.contract import pod

NAME = "traced"


@dataclass(frozen=True)
class Collector:
    """A running collector."""

    endpoint: str
    file: Path

    def spans(self) -> dict[str, dict[str, Any]]:
        """What it has got so far, by name; of several with one name the first."""
        found: dict[str, dict[str, Any]] = {}
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            for of_resource in json.loads(line)["resourceSpans"]:
                for span in (span for scope in of_resource["scopeSpans"] for span in scope["spans"]):
                    told = {
                        a["key"]: a["value"]["stringValue"]
                        for a in of_resource["resource"]["attributes"]
                        if "stringValue" in a["value"]
                    }
                    found.setdefault(span["name"], span | {"service": told["service.name"]})
        return found


@contextmanager
def collecting(folder: Path) -> Iterator[Collector]:
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
    config, file = folder / "collector.yaml", folder / "spans.jsonl"
    service = {
        "telemetry": {"metrics": {"level": "none"}},
        "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}},
    }
    receivers = {"otlp": {"protocols": {"http": {"endpoint": address}}}}
    exporters = {"file": {"path": str(file), "flush_interval": "200ms"}}
    config.write_text(json.dumps({"receivers": receivers, "exporters": exporters, "service": service}))
    program = str(toolchain.binary(settings.read().cache, "collector"))
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([program, f"--config={config}"], stdout=log, stderr=log) as process,
    ):
        try:
            wait_for_server(process, address)
            yield Collector(f"http://{address}", file)
        finally:
            process.terminate()


def test_a_collector_gets_one_trace_from_the_first_pass_to_the_step(
    world: World, operators: Callable[..., Operator], tmp_path: Path
) -> None:
    space = world.namespace(NAME)
    path = f"{FINETUNE}/namespaces/{space}/finetunejobs/{NAME}"
    body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": NAME}}
    spec = {"model": {"uri": "pvc://models/none"}, "dataset": {"uri": "pvc://rows/none.jsonl"}}
    for claim in ("models", "rows"):
        asked = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        made = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}, "spec": asked}
        world.api.apply(f"/api/v1/namespaces/{space}/persistentvolumeclaims/{claim}", made)
    with collecting(tmp_path) as collector:
        told = {"FINETUNE_NAMESPACE": space, "FINETUNE_OTLP_ENDPOINT": collector.endpoint}
        operator = operators("-m", "finetune_operator", **told).start()
        world.api.apply(path, body | {"spec": spec})
        (job,) = wait_until("the operator makes a Job", lambda: jobs(world, space))
        status = as_its_pod(world, job, tmp_path)
        assert status != 0, "there is no such model"
        name = job["metadata"]["name"]
        chain = [f"FineTuneJob {NAME}", "reconcile", f"create Job {name}", "prepare"]
        wait_until("all have come", lambda: set(chain) <= set(collector.spans()), 30)
        assert operator.stop() == 0
        spans = collector.spans()
    assert {span["traceId"] for span in spans.values()} == {spans["prepare"]["traceId"]}
    assert spans["reconcile"]["parentSpanId"] == spans[chain[0]]["spanId"]
    assert spans["prepare"]["parentSpanId"] == spans[f"create Job {name}"]["spanId"]
    assert spans["prepare"]["status"]["code"] == 2
    assert "StepFailed" in spans["prepare"]["status"]["message"]
    assert [spans[name]["service"] for name in chain] == ["finetune-operator"] * 3 + ["finetune-trainer"]
    lines = [json.loads(line) for line in operator.log.splitlines() if line.startswith("{")]
    traced = {line["trace_id"] for line in lines if line.get("key") == f"FineTuneJob/{space}/{NAME}"}
    assert traced == {spans["prepare"]["traceId"]}
    assert operator.refusals() == []


def as_its_pod(world: World, job: dict[str, Any], folder: Path) -> int:
    """Run the step of a Job with the environment of its pod, but for the places; returns its exit status."""
    template = job["spec"]["template"]["spec"]
    (container,) = template["containers"]
    (mounted,) = [v["configMap"]["name"] for v in template["volumes"] if "configMap" in v]
    (text,) = world.read(f"/api/v1/namespaces/{job['metadata']['namespace']}/configmaps/{mounted}")["data"].values()
    (folder / "run.json").write_text(text)
    told = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    assert pod.ENV_TRACEPARENT in told
    places = {
        pod.ENV_RUN_FILE: "run.json",
        pod.ENV_MOUNTS: "mounts",
        pod.ENV_SCRATCH: "scratch",
        pod.ENV_TERMINATION_LOG: "end",
    }
    told |= {name: str(folder / place) for name, place in places.items()}
    told |= {
        pod.ENV_METRICS_PORT: "",
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PATH": os.environ["PATH"],
    }
    return subprocess.run([sys.executable, *container["command"][1:]], env=told, check=False, timeout=120).returncode
