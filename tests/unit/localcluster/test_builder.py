"""What is asked of buildah, with a program in its place that notes its arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
from localcluster import builder, settings
from localcluster.errors import BuildFailed


def test_no_container_of_a_build_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of one that failed either: its layers would stay mounted."""
    program, calls = tmp_path / "bin/buildah", tmp_path / "calls"
    program.parent.mkdir()
    (tmp_path / "storage" / "root").mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nshift 6\necho "$@" >> {calls}\n[ "$1" != build ] || {{ echo no such file; exit 1; }}\n')
    program.chmod(0o755)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    with pytest.raises(BuildFailed, match="no such file"), builder.alone(storage := builder.Storage(tmp_path / "storage")):
        builder.build(storage, "registry/image:tag", builder.Recipe(Path("Dockerfile"), tmp_path))
    first, last = calls.read_text().splitlines()
    assert first.startswith("build --layers")
    assert f"--timestamp {settings.EPOCH} --identity-label=false" in first, "the time of a build is no part of what is built"
    assert last == "rm --all"
