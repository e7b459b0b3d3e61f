"""Rows and store in buckets of two accounts of a real S3 server: two Secrets with the same keys, each where it is meant."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from localcluster import settings, toolchain
from tests.trainer.conftest import versitygw
from tests.trainer.entries import context

from finetune_trainer.__main__ import main
from finetune_trainer.contract import pod
from finetune_trainer.contract.artifacts import Publish
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.pod import Owner, secret_folder
from finetune_trainer.contract.reports import Termination
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.sources.fetch import fetch
from finetune_trainer.sources.source import Source
from finetune_trainer.stages import publish

STORE = "artifacts"  # as versitygw makes it
ROWS = "".join(json.dumps({"prompt": f"What is number {n}?", "completion": f"It is {n}."}) + "\n" for n in range(40))


READER, WRITER = (
    {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": f"{name}-secret"} for name in ("reader", "writer")
)  # what the Secrets hold


@contextmanager
def two_accounts(root: Path, accounts: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Endpoint of an S3 server with two accounts, of which each may touch its own bucket alone."""
    with versitygw(root, "--iam-dir", str(accounts), host=host) as address:
        (root / "rows").mkdir()
        owners = {"rows": READER, STORE: WRITER}
        for bucket, keys in owners.items():
            name, secret = keys.values()
            administrate(address, f"create-user --access {name} --secret {secret} --role user")
            administrate(address, f"change-bucket-owner --bucket {bucket} --owner {name}")
        (root / "rows" / "rows.jsonl").write_text(ROWS)
        yield f"http://{address}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its endpoint, and the folder with its objects."""
    root = tmp_path_factory.mktemp("accounts")
    with two_accounts(root, tmp_path_factory.mktemp("iam")) as endpoint:
        yield endpoint, root


def administrate(address: str, what: str) -> None:
    command = f"{toolchain.binary(settings.read().cache, 'versitygw')} admin --access key --secret secret"
    subprocess.run([*command.split(), "--endpoint-url", f"http://{address}", *what.split()], check=True, capture_output=True)


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pod's mounts; its environment has no credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    paths = {pod.ENV_RUN_FILE: "run.json", pod.ENV_SCRATCH: "scratch", pod.ENV_TERMINATION_LOG: "termination"}
    for variable, path in (paths | {pod.ENV_MOUNTS: "mounts"}).items():
        monkeypatch.setenv(variable, str(tmp_path / path))
    return tmp_path / "mounts"


def mount(mounts: Path, owner: Owner, keys: dict[str, str]) -> None:
    """A Secret as the kubelet lays it out: files, and a hidden folder that they lead into."""
    folder = Path(secret_folder(str(mounts), owner))
    (folder / "..data").mkdir(parents=True, exist_ok=True)
    for name, value in keys.items():
        (folder / name).write_text(f"{value}\n")


def prepare(run: RunConfig, tmp_path: Path) -> tuple[int, str]:
    """Exit status and reason of the step."""
    (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True))
    (tmp_path / "termination").write_text("")
    code = main(["prepare"])
    failure = Termination.model_validate_json((tmp_path / "termination").read_text()).failure
    return code, failure.reason if failure else ""


def of_two_accounts(make_run: Callable[..., RunConfig], endpoint: str, name: str) -> RunConfig:
    """A run whose rows lie with the reader, and whose store lies with the writer."""
    rows = {"uri": "s3://rows/rows.jsonl", "secretRef": {"name": "rows"}}
    return make_run(dataset=rows, store={"uri": f"s3://{STORE}/{name}", "endpoint": endpoint})


def test_rows_are_read_by_one_account_and_the_store_is_written_by_another(
    make_run: Callable[..., RunConfig], server: tuple[str, Path], mounts: Path, tmp_path: Path
) -> None:
    endpoint, objects = server
    mount(mounts, Owner.DATASET, READER)
    mount(mounts, Owner.STORE, WRITER)
    assert prepare(of_two_accounts(make_run, endpoint, "job"), tmp_path) == (0, "")
    assert sorted(path.name for path in (objects / STORE / "job").iterdir()) == ["data", "findings", "model", "run"]
    assert [path.name for path in (objects / "rows").iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("wrong", "keys", "reason"),
    [(Owner.DATASET, WRITER, "DatasetAccessDenied"), (Owner.STORE, READER, "StoreAccessDenied")],
    ids=("dataset", "store"),
)
def test_the_other_accounts_keys_open_nothing(
    make_run: Callable[..., RunConfig], server: tuple[str, Path], mounts: Path, tmp_path: Path,
    wrong: Owner, keys: dict[str, str], reason: str,
) -> None:  # fmt: skip
    mount(mounts, Owner.DATASET, READER)
    mount(mounts, Owner.STORE, WRITER)
    mount(mounts, wrong, keys)
    assert prepare(of_two_accounts(make_run, server[0], "refused"), tmp_path) == (ExitCode.SOURCE_DENIED, reason)


def test_a_place_to_publish_to_has_an_account_of_its_own_or_the_stores(
    make_run: Callable[..., RunConfig], server: tuple[str, Path], mounts: Path, tmp_path: Path
) -> None:
    endpoint, objects = server
    own, shared = Publish(uri="s3://rows/published"), Publish(uri=f"s3://{STORE}/published")
    mount(mounts, Owner.STORE, WRITER)
    run = make_run(store={"uri": f"s3://{STORE}/job", "endpoint": endpoint}, publish=(own, shared))
    at = context(run, "publish-0", tmp_path)
    publish.open_place(at, shared).overwrite("a", b"by the store's account")
    with pytest.raises(StepFailed, match="was refused"):
        publish.open_place(at, own).overwrite("a", b"")
    mount(mounts, Owner.PUBLISH, READER)
    publish.open_place(at, own).overwrite("a", b"by its own")
    written = [(objects / bucket / "published" / "a").read_bytes() for bucket in (STORE, "rows")]
    assert written == [b"by the store's account", b"by its own"]
    (objects / "rows" / "published" / "a").unlink()
    (objects / "rows" / "published").rmdir()


def test_a_secret_may_name_the_server_that_its_keys_are_for(server: tuple[str, Path], mounts: Path, tmp_path: Path) -> None:
    mount(mounts, Owner.DATASET, READER | {"AWS_ENDPOINT_URL": server[0], "AWS_REGION": "us-east-1", "AWS_PROFILE": "unknown"})
    source = Source("s3://rows/rows.jsonl", "Dataset", "spec.dataset.uri", ("*",))
    fetched = fetch(source, tmp_path / "rows", str(mounts), endpoint="http://127.0.0.1:1", region="elsewhere")
    assert (fetched.folder / "rows.jsonl").read_text() == ROWS
