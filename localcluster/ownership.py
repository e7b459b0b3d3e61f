"""Which directory is ours to fill and to delete, and who may do so now."""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from localcluster.errors import NotOurs

STAMP = ".finetune-localcluster"
LEAVING = ".finetune-localcluster.leaving"  # there while what the directory holds is deleted


def claim(directory: Path) -> None:
    """Make `directory` ours; raises if somebody else's files are in it, for it will be deleted some day."""
    directory.mkdir(parents=True, exist_ok=True)
    stamp = directory / STAMP
    if (directory / LEAVING).exists():
        _empty(directory)  # a deletion was cut off: half of an image store must not be taken for one
    if stamp.exists():
        return
    if any(entry.name != f"{STAMP}.partial" for entry in directory.iterdir()):
        raise NotOurs(f"{directory} holds files of somebody else: set LOCALCLUSTER_DIR to an empty directory")
    partial = directory / f"{STAMP}.partial"
    partial.write_text(uuid.uuid4().hex)
    partial.rename(stamp)


def identity(directory: Path) -> str:
    """What tells the cluster in `directory` from every other one, also from one at the same path in another root."""
    return (directory / STAMP).read_text()


def remove(directory: Path) -> None:
    """Delete `directory` if it is ours; one that is not there is no error."""
    if not directory.exists():
        return
    if any(directory.iterdir()) and not (directory / STAMP).exists():
        raise NotOurs(f"{directory} was not made by the local cluster, so it is not deleted")
    if mounted := list(mounts_below(directory)):
        raise NotOurs(f"{mounted[0]} is still mounted, so {directory} is not deleted")
    _empty(directory)
    directory.rmdir()


def _empty(directory: Path) -> None:
    leaving, stamp = directory / LEAVING, directory / STAMP
    leaving.touch()
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry not in (leaving, stamp):
            entry.unlink()
    leaving.unlink()
    stamp.unlink(missing_ok=True)  # last: a deletion that was cut off can be taken up again


def mounts_below(directory: Path) -> Iterator[Path]:
    """Mount points inside `directory`, the innermost first."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        point = Path(line.split()[4].encode().decode("unicode_escape"))
        if directory in point.parents:
            yield point


@contextlib.contextmanager
def exclusively(directory: Path) -> Iterator[None]:
    """Hold `directory` against another `up` or `down`; waits for its turn."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if directory.exists() and directory.stat().st_ino == os.fstat(handle).st_ino:
                yield
                return  # else the one before us deleted it: lock the new one
        finally:
            os.close(handle)
