"""Processes and directories are ended and deleted only if they are the cluster's."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from localcluster import ownership, processes
from localcluster.errors import NotOurs, ProcessFailed
from localcluster.processes import Process


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    ownership.claim(tmp_path / "cluster")
    yield tmp_path / "cluster"
    assert processes._children == {}, "a child that has ended is a zombie until somebody asks how"


def start_sleeper(directory: Path) -> Process:
    """A process whose environment can be read: for a moment after exec the kernel shows none."""
    sleeper = Process(directory, "sleeper", ["sleep", "60"])
    assert sleeper.ensure()
    sleeper.wait(lambda: bool(processes.strays(directory)))
    return sleeper


def test_a_process_is_started_once_found_again_and_ended(directory: Path) -> None:
    sleeper = start_sleeper(directory)
    pid = processes.pid_of(directory, "sleeper")
    assert not sleeper.ensure()
    assert processes.strays(directory) == [pid]
    processes.stop(directory, "sleeper")
    assert processes.pid_of(directory, "sleeper") is None
    assert processes.strays(directory) == []


def test_a_changed_configuration_restarts_it(directory: Path) -> None:
    file = directory / "settings"
    file.write_text("a")
    sleeper = Process(directory, "sleeper", ["sleep", "60"], configuration=(file,))
    assert sleeper.ensure()
    before = processes.pid_of(directory, "sleeper")
    file.write_text("b")
    assert sleeper.ensure()
    assert processes.pid_of(directory, "sleeper") != before
    processes.stop(directory, "sleeper")


def test_a_pid_that_belongs_to_somebody_else_by_now_is_left_alone(directory: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        record = {"pid": other.pid, "start_time": 1, "command": ["sleep", "60"]}
        (directory / "run").mkdir()
        (directory / "run/sleeper.json").write_text(json.dumps(record))
        processes.stop(directory, "sleeper")
        assert other.poll() is None
        other.kill()


def test_a_lost_record_loses_no_process(directory: Path) -> None:
    start_sleeper(directory)
    (directory / "run/sleeper.json").unlink()
    (pid,) = processes.strays(directory)
    assert processes.leads_session(pid)
    processes.end([pid])
    assert processes.strays(directory) == []


def test_a_program_that_ends_shows_the_end_of_its_log(directory: Path) -> None:
    broken = Process(directory, "broken", ["sh", "-c", "echo no such disk; exit 1"])
    broken.ensure()
    with pytest.raises(ProcessFailed, match="no such disk"):
        broken.wait(lambda: False, seconds=10)


def test_a_directory_with_files_of_others_is_neither_used_nor_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(NotOurs, match="LOCALCLUSTER_DIR"):
        ownership.claim(tmp_path)
    with pytest.raises(NotOurs):
        ownership.remove(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_our_own_directory_goes_with_all_in_it(directory: Path) -> None:
    (directory / "volumes/data").mkdir(parents=True)
    (directory / "volumes/data/file").touch()
    ownership.remove(directory)
    assert not directory.exists()


def test_a_deletion_that_was_cut_off_is_ended_before_the_directory_is_filled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "cluster"
    ownership.claim(directory)
    before = ownership.identity(directory)
    for name in ("images", "names"):
        (directory / name / "half").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ownership.remove(directory)
    ownership.claim(directory)
    assert [entry.name for entry in directory.iterdir()] == [ownership.STAMP]
    assert ownership.identity(directory) != before


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt
