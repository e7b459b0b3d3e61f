"""The hub answers as the real one does: through the stock client, and byte for byte where the client hides it."""

import hashlib
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from localcluster import hub
from tests.listening import listening

LARGE = b"0123456789abcdef" * (hub.LFS_BYTES // 16 + 1)


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    files = {
        "org/model/config.json": b"{}",
        "org/model/weights.safetensors": LARGE,
        "org/model/.cache/secret": b"hidden",
        "closed/model/config.json": b"{}",
        "closed/model/.gated": b"hf_good\n",
        "datasets/org/rows/train/part.jsonl": b'{"a": 1}\n',
    }
    for name, content in files.items():
        path = tmp_path / "hub" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "outside").write_text("not served")
    monkeypatch.setattr(hub.Handler, "root", tmp_path / "hub", raising=False)
    monkeypatch.setattr(hub.Handler, "log_message", lambda *_: None)
    with listening(hub.Handler) as port:
        yield f"127.0.0.1:{port}"


def get(address: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection(address, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), body


def test_a_large_file_is_named_by_its_sha256_and_comes_whole_or_in_parts(address: str) -> None:
    path = "/org/model/resolve/main/weights.safetensors"
    status, headers, body = get(address, path)
    assert (status, body) == (200, LARGE)
    assert headers["X-Linked-Etag"] == f'"{hashlib.sha256(LARGE).hexdigest()}"'
    status, headers, body = get(address, path, Range=f"bytes={len(LARGE) - 5}-")
    assert (status, body) == (206, LARGE[-5:])
    assert headers["Content-Range"] == f"bytes {len(LARGE) - 5}-{len(LARGE) - 1}/{len(LARGE)}"
    assert get(address, path, Range=f"bytes={len(LARGE)}-")[0] == 416


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/models/org/nothing", 404, "RepoNotFound"),
        ("/org/nothing/resolve/main/config.json", 404, "RepoNotFound"),
        ("/org/model/resolve/v2/config.json", 404, "RevisionNotFound"),
        ("/org/model/resolve/main/absent.json", 404, "EntryNotFound"),
        ("/org/model/resolve/main/.cache/secret", 404, "EntryNotFound"),
        ("/org/model/resolve/main/..%2F..%2F..%2Foutside", 404, "EntryNotFound"),
        ("/closed/model/resolve/main/config.json", 403, "GatedRepo"),
    ],
)
def test_refusals_carry_the_code_that_the_client_reads(address: str, path: str, status: int, code: str) -> None:
    answered, headers, _ = get(address, path)
    assert (answered, headers["X-Error-Code"]) == (status, code)


def test_a_gated_repository_lets_its_own_tokens_in_and_no_others(address: str) -> None:
    path = "/closed/model/resolve/main/config.json"
    assert get(address, path, Authorization="Bearer hf_good")[0] == 200
    status, headers, _ = get(address, path, Authorization="Bearer hf_bad")
    assert (status, headers["X-Error-Message"]) == (401, "Invalid credentials in Authorization header")


def test_the_commit_changes_when_a_file_does(address: str, tmp_path: Path) -> None:
    before = get(address, "/org/model/resolve/main/config.json")[1]["X-Repo-Commit"]
    assert get(address, f"/org/model/resolve/{before}/config.json")[0] == 200
    (tmp_path / "hub/org/model/config.json").write_text('{"hidden_size": 64}')
    assert get(address, "/org/model/resolve/main/config.json")[1]["X-Repo-Commit"] != before
    assert get(address, f"/org/model/resolve/{before}/config.json")[0] == 404


def test_the_stock_client_downloads_a_snapshot(address: str, tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    api = huggingface_hub.HfApi(endpoint=f"http://{address}", token=False)
    model = Path(api.snapshot_download("org/model", cache_dir=tmp_path / "cache"))
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "weights.safetensors"]
    assert (model / "weights.safetensors").read_bytes() == LARGE
    rows = Path(api.snapshot_download("org/rows", repo_type="dataset", cache_dir=tmp_path / "cache"))
    assert (rows / "train/part.jsonl").read_bytes() == b'{"a": 1}\n'
