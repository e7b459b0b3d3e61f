"""Results that leave the cluster: through a real S3 server, and into a real Ollama."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from demo.kubectl import Object
from localcluster import settings, toolchain
from tests.e2e import jobs
from tests.e2e.space import SERVE, Space, steps
from tests.listening import free_ports
from tests.trainer.conftest import BUCKET, versitygw
from tests.trainer.store.test_two_accounts import READER, WRITER, two_accounts

SECRET = {"name": "s3-keys"}
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.fixture
def bucket(space: Space, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Endpoint of an S3 server that pods reach, and the folder of its bucket, which holds the tiny model and the facts."""
    (tmp_path / "s3").mkdir()
    with versitygw(tmp_path / "s3", host=settings.NODE_ADDRESS) as address:
        held = tmp_path / "s3" / BUCKET
        shutil.copytree(settings.read().hub_directory / jobs.TINY, held / "models/tiny")
        (held / "rows").mkdir()
        for name, text in jobs.quickstart("ConfigMap")["data"].items():
            (held / "rows" / name).write_text(text)
        space.apply({"apiVersion": "v1", "kind": "Secret", "metadata": SECRET, "stringData": KEYS})
        yield f"http://{address}", held


def on_s3(name: str, endpoint: str, **spec: object) -> Object:
    """A job that reads everything from the bucket, keeps its work there and publishes there."""
    rows = {"uri": f"s3://{BUCKET}/rows/train.jsonl", "secretRef": SECRET}
    return jobs.job(
        name,
        model={"uri": f"s3://{BUCKET}/models/tiny", "secretRef": SECRET},
        dataset=rows | {"test": {"uri": f"s3://{BUCKET}/rows/test.jsonl"}},
        storage={"artifacts": {"uri": f"s3://{BUCKET}/store", "endpoint": endpoint, "secretRef": SECRET}},
        publish=[{"uri": f"s3://{BUCKET}/published", "secretRef": SECRET, "artifacts": ["merged", "q8"]}],
        artifacts=[jobs.Q8],
        **spec,
    )


def test_s3_roundtrip(space: Space, bucket: tuple[str, Path]) -> None:
    """Model and rows come from a bucket, work is kept there, the result is published there and served from there."""
    endpoint, held = bucket
    space.apply(on_s3("round", endpoint, serving=jobs.served()))
    job = space.succeeded("round")
    assert set(steps(job).values()) == {"Succeeded"}
    assert space.items("pvc") == []
    made = {artifact["name"]: artifact["digest"] for artifact in job["status"]["artifacts"]}
    for name in ("merged", "q8"):
        listed = json.loads((held / "published" / name / "files.json").read_text())["files"]
        assert all((held / "published" / name / file["path"]).stat().st_size == file["bytes"] for file in listed)
    serve = space.until(SERVE, "round", "is Ready", lambda serve: any(_is_ready(serve)))
    assert serve["status"]["live"]["modelDigest"] == made["q8"]
    assert serve["status"]["live"]["modelUri"].startswith(f"s3://{BUCKET}/store/")

    space.delete("finetunejob", "round")
    space.apply(on_s3("round", endpoint, serving=jobs.served()))
    again = space.succeeded("round")
    assert {name for name, state in steps(again).items() if state != "Reused"} == {"prepare"}
    assert {artifact["name"]: artifact["digest"] for artifact in again["status"]["artifacts"]} == made


def _is_ready(serve: Object) -> list[bool]:
    return [c["status"] == "True" for c in serve.get("status", {}).get("conditions", []) if c["type"] == "Ready"]


def test_two_s3_accounts(space: Space, tmp_path: Path) -> None:
    """Rows and store of two accounts, whose Secrets have the same keys: each is used where it is named, and nowhere else."""
    for folder in ("s3", "accounts"):
        (tmp_path / folder).mkdir()
    with two_accounts(tmp_path / "s3", tmp_path / "accounts", host=settings.NODE_ADDRESS) as endpoint:
        for name, keys in (("reads", READER), ("writes", WRITER)):
            space.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys})

        def job(name: str, reads: str, writes: str) -> Object:
            rows = {"uri": "s3://rows/rows.jsonl", "secretRef": {"name": reads}}
            store = {"uri": f"s3://{BUCKET}/store", "endpoint": endpoint, "secretRef": {"name": writes}}
            return jobs.job(name, dataset=rows, storage={"artifacts": store})

        space.apply(job("apart", "reads", "writes"), job("exchanged", "writes", "reads"))
        assert set(steps(space.succeeded("apart")).values()) == {"Succeeded"}
        assert space.stalled("exchanged")["reason"] in ("DatasetAccessDenied", "StoreAccessDenied")


def test_ollama_import(space: Space, bucket: tuple[str, Path], tmp_path: Path) -> None:
    """`ollama create` takes the published folder as it is, and answers as the scored GGUF file did."""
    endpoint, held = bucket
    training = {"method": "Full", "learningRate": 0.003, "maxSteps": 150, "globalBatchSize": 8, "maxLength": 128}
    space.apply(on_s3("brew", endpoint, training=training))
    space.succeeded("brew")
    expected = answers(held, "q8")
    asked = [json.loads(line)["prompt"] for line in (held / "rows/test.jsonl").read_text().splitlines()]
    assert len(expected) == len(asked)
    with ollama(tmp_path) as (program, environment, url):
        create = [program, "create", "velmora", "-f", str(held / "published/q8/Modelfile")]
        subprocess.run(create, env=environment, check=True, capture_output=True)
        same = 0
        for question, answer in list(zip(asked, expected, strict=True))[:8]:
            messages, options = [{"role": "user", "content": question}], {"num_predict": 8}
            body = {"model": "velmora", "stream": False, "messages": messages, "options": options}
            told = httpx2.post(f"{url}/api/chat", json=body, timeout=120).raise_for_status().json()
            same += told["message"]["content"].strip() == answer.strip()
    assert same >= 7  # of eight: another version of llama.cpp adds up in another order


def answers(held: Path, subject: str) -> list[str]:
    """What a subject answered when it was scored, from the artifact store."""
    for manifest in (held / "store/evaluate").glob("*/manifest.json"):
        if json.loads(manifest.read_text())["inputs"].get("subject") == subject:
            (rows,) = manifest.parent.glob("*/rows.jsonl")
            return [json.loads(line)["answer"] for line in rows.read_text().splitlines()]
    raise AssertionError(f"nothing in the store says how {subject} answered")


@contextmanager
def ollama(tmp_path: Path) -> Iterator[tuple[str, dict[str, str], str]]:
    """A running Ollama with nothing in it: its program, the environment to call it in, and its URL."""
    program = str(toolchain.binary(settings.read().cache, "ollama"))
    address = f"127.0.0.1:{free_ports()[0]}"
    environment = dict(os.environ) | {"OLLAMA_HOST": address, "OLLAMA_MODELS": str(tmp_path / "models"), "HOME": str(tmp_path)}
    with (tmp_path / "ollama.log").open("w") as log:
        server = subprocess.Popen([program, "serve"], env=environment, stdout=log, stderr=log)
    try:
        transport = httpx2.HTTPTransport(retries=8)  # waits longer each time until it listens
        with httpx2.Client(transport=transport) as client:
            client.get(f"http://{address}/api/version").raise_for_status()
        yield program, environment, f"http://{address}"
    finally:
        server.terminate()
        server.wait(20)
