"""What the operator's process holds of FineTuneJobs that have long ended: the program itself, at a server that lists them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from tests.integration.conftest import ROOT
from tests.listening import Quiet, listening
from tests.story import as_restored, succeeded
from tests.waiting import wait_until

from finetune_operator.meta import API_VERSION, Object
from finetune_operator.reconcile import pruned
from finetune_operator.resources import RESOURCES

JOBS = 1000
BYTES_A_JOB = 25_000  # with what a start takes whatever the number
RESYNCS = 2  # the second begins when the passes that the first asked for can be over
SPEC = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}, "parallelism": {"gpusPerNode": 0}}
KINDS = {resource.plural: kind for kind, resource in RESOURCES.items()}
VERSION = "1000000"  # of every list


class Server(Quiet):
    """An API server where nothing happens. It takes no writes."""

    objects: ClassVar[dict[str, list[Object]]] = {}
    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        plural, asked = path.rpartition("/")[2], dict(parse_qsl(query))
        if "watch" in asked:
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            threading.Event().wait()  # it is never told of anything
        elif plural in KINDS:
            self._list(plural, asked)
        else:
            self._json(discovery(path))

    def _list(self, plural: str, asked: dict[str, str]) -> None:
        names_alone = "PartialObjectMetadataList" in self.headers["Accept"]
        begin, all_ = int(asked.get("continue", 0)), self.objects.get(plural, [])
        end = begin + int(asked.get("limit", len(all_)))
        items = [{"metadata": body["metadata"]} if names_alone else body for body in all_[begin:end]]
        going_on = {"continue": str(end)} if end < len(all_) else {}
        self._json({"kind": f"{KINDS[plural]}List", "items": items, "metadata": {"resourceVersion": VERSION, **going_on}})
        self.asked[f"versions of {plural}" if names_alone else plural] += not going_on

    def _json(self, found: Object) -> None:
        self.answer(200, json.dumps(found).encode(), Content_Type="application/json")


def discovery(path: str) -> Object:
    """What the API server serves, as far as Kopf looks for it."""
    if path == "/api":
        return {"versions": ["v1"]}
    if path == "/apis":
        version = {"groupVersion": API_VERSION, "version": API_VERSION.partition("/")[2]}
        return {"groups": [{"name": API_VERSION.partition("/")[0], "versions": [version], "preferredVersion": version}]}
    kinds = {"namespaces": "Namespace"} if path == "/api/v1" else {"finetunejobs": "FineTuneJob", "modelserves": "ModelServe"}
    every: Object = {"namespaced": path != "/api/v1", "verbs": ["list", "watch", "patch"]}
    return {"resources": [{"name": name, "kind": kind, "singularName": "", **every} for name, kind in kinds.items()]}


def finished(count: int) -> dict[str, list[Object]]:
    """So many FineTuneJobs that have succeeded, and their ConfigMaps, as the API server has them."""
    pattern, numbers = succeeded(SPEC), itertools.count(1)
    jobs, config_maps = [], []
    for number in range(count):
        made = {**{k: pattern[k] for k in ("apiVersion", "kind", "spec")}, "metadata": meta(f"done-{number}", next(numbers))}
        status, config_map = as_restored(pattern, made)
        jobs.append(owned({**made, "status": pruned(json.loads(json.dumps(status)))}))
        own = meta(config_map["metadata"]["name"], next(numbers))
        config_maps.append(owned({**config_map, "metadata": {**config_map["metadata"], **own}}))
    return {"finetunejobs": jobs, "configmaps": config_maps}


def meta(name: str, number: int) -> Object:
    uid = f"11111111-2222-3333-4444-{number:012}"
    return {"name": name, "namespace": "done", "uid": uid, "generation": 1, "resourceVersion": str(number)}


def owned(body: Object) -> Object:
    """The object with its managed fields, which are about as long as the object."""
    fields = {f"f:{k}": named(v) for k, v in body.items() if k in ("spec", "status", "data")}
    manager = {"manager": "us", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": fields}
    return {**body, "metadata": {**body["metadata"], "managedFields": [manager]}}


def named(value: Any) -> Object:
    return {f"f:{k}": named(v) for k, v in value.items()} if isinstance(value, dict) else {}


@contextmanager
def running(directory: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The operator at a server that listens there."""
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    cluster, user = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}, {"name": "u", "user": {"token": "t"}}
    config = {"current-context": "c", "contexts": [context], "clusters": [cluster], "users": [user]}
    (directory / "kubeconfig").write_text(json.dumps(config))
    settings = {"HTTP_PORT": "0", "LEADER_ELECTION": "false", "RESYNC_SECONDS": "4"}
    environment = {k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ} | {
        "KUBECONFIG": str(directory / "kubeconfig"),
        "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
        "MALLOC_ARENA_MAX": "2",  # as in the chart
        **{f"FINETUNE_{name}": value for name, value in settings.items()},
    }
    process = subprocess.Popen([sys.executable, "-m", "finetune_operator"], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def most_resident(directory: Path, listed: dict[str, list[Object]]) -> int:
    """Bytes that the operator held at most: it started, Kopf told of each object, and all were looked for anew."""
    asked = Counter[str]()
    server = type("Listing", (Server,), {"objects": listed, "asked": asked})
    with listening(server) as port, running(directory, port) as process:
        wait_until("Kopf has listed", lambda: asked["modelserves"] > 1 and asked["finetunejobs"] > 1, 120)
        wait_until("it has looked for all anew", lambda: asked["versions of modelserves"] >= RESYNCS, 120)
        assert process.poll() is None
        status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def test_a_job_that_has_ended_takes_little_memory(tmp_path: Path) -> None:
    alone, beside = most_resident(tmp_path, {}), most_resident(tmp_path, finished(JOBS))
    print(f"{alone / 1e6:.0f} MB without jobs, {beside / 1e6:.0f} MB beside {JOBS} that have ended")
    assert (beside - alone) / JOBS <= BYTES_A_JOB
