"""Tries mutants: each in a fork of one pytest process that has everything imported and collected.

A mutant in a function's body replaces the code of the live function, and the tests that run its lines are asked: those that
killed others of this function, then the golden files, then those that name it or have its module's name, and of these what
killed others of its module.
One that runs at import (a field, a table, a default) is put in its module's place, the fork imports anew what each file
needs, and the nearest files are asked. Either has a few seconds: hundreds of tests run most lines, so what the nearest let
pass counts as if it had survived.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import coverage
import pytest
from tests.mutants.operators import Function, Mutant

CRDS, FIELDS = "tests/house/test_generated.py", "tests/unit/trainer/contract/test_agreed.py"  # they hold all fields
GOLDEN = ("test_golden.py", "test_pod_template.py", "test_objects.py")  # of a package: all that it makes, to the last letter
SUITE = (CRDS, "tests/house/test_values.py", "tests/unit")
# That a test fails is all that counts: pytest would compare long texts for seconds to say in what they differ.
SILENT = ("--assert=plain", "--tb=native")
OPTIONS = ("-p", "no:cacheprovider", "-p", "no:xdist", "-x", "--ignore=tests/unit/localcluster", *SILENT)
OURS = {"finetune_operator", "finetune_trainer", "tests", "demo", "localcluster", "supply"}
ONCE = "finetune_operator.metrics"  # Prometheus's registry takes no name twice
ASKED_SECONDS = 6.0  # of CPU, that tests are asked of a mutant; by then the nearest have all been
CPU_SECONDS, WALL_SECONDS = 30, 600  # a mutant that takes more loops, or waits for what never comes
KILLED, SURVIVED, NOT_RUN, ENDLESS = "killed", "survived", "not run", "endless"


@dataclass
class Learnt:
    """What the tests do without a mutant: the tests that run each line of each module, the lines that its import runs, and
    each test's seconds."""

    tests: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    imports: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Suite:
    """A plugin of pytest that collects as ever, and then does `work` in place of running the tests."""

    def __init__(self, work: Callable[[Suite], None], kept: Path) -> None:
        self.work, self.kept, self.learnt = work, kept, Learnt()
        self.items: list[pytest.Item] = []
        self.killer: Path | None = None
        self.functions: dict[tuple[str, str, int], list[FunctionType]] = defaultdict(list)
        self.caches: list[functools._lru_cache_wrapper[object]] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.killers: dict[object, Counter[str]] = defaultdict(Counter)  # of a function's mutants, and of a module's
        self.trying: dict[int, tuple[Mutant, Path]] = {}  # by process, with the file in which it names its killer

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = session.items
        for found in gc.get_objects():
            if isinstance(found, FunctionType):
                code = found.__code__
                self.functions[code.co_filename, code.co_qualname, code.co_firstlineno].append(found)
            elif isinstance(found, functools._lru_cache_wrapper):
                self.caches.append(found)
        gc.collect()
        gc.freeze()  # so that forks share what is there
        self.work(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            if self.killer:
                self.killer.write_text(report.nodeid)
            print(report.nodeid, report.longreprtext, file=sys.stderr, flush=True)
            os._exit(1)

    def learn(self, modules: Sequence[Path]) -> None:
        """Reads what was learnt of the very same files before, or runs all tests; AssertionError where one fails."""
        kept = self.kept
        out = kept / f"learnt-{digest(Path(), 'operator', 'trainer_image', 'tests')}.json"
        if not out.exists():
            log, found = kept / "learn.log", kept / "learn.json"
            log.unlink(missing_ok=True)
            for child in [_forked(part, modules, found, said=log) for part in (self._tests, self._imports, self._anew)]:
                assert os.waitpid(child, 0)[1] == 0, f"the tests fail without a mutant: {log}"
            parts = [json.loads(found.with_suffix(suffix).read_text()) for suffix in (".tests", ".imports")]
            out.write_text(json.dumps(parts[0] | parts[1]))
        self.learnt = Learnt(**json.loads(out.read_text()))

    def _tests(self, modules: Sequence[Path], out: Path) -> None:
        with _measured(modules) as lines:
            self._run(self.items, lambda item: lines.switch_context(item.nodeid))
        tests = {str(path): lines.get_data().contexts_by_lineno(str(path)) for path in modules}
        out.with_suffix(".tests").write_text(json.dumps({"tests": tests, "seconds": self.seconds}))

    def _imports(self, modules: Sequence[Path], out: Path) -> None:
        _forget_ours()
        with _measured(modules) as lines:
            assert pytest.main([*SUITE, *OPTIONS, "--collect-only"]) == 0
        imports = {str(path): lines.get_data().lines(str(path)) or [] for path in modules}
        out.with_suffix(".imports").write_text(json.dumps({"imports": imports}))

    def _anew(self, *_: object) -> None:
        """What a fork that imports anew finds without a mutant."""
        _forget_ours()
        assert pytest.main([*SUITE, *OPTIONS]) == 0

    def start(self, mutant: Mutant) -> bool:
        """Begins to try it in a process of its own; False where nothing runs its lines."""
        path = str(mutant.path)
        tests = {test for line in mutant.statement for test in self.learnt.tests[path].get(str(line), ()) if test}
        imported = mutant.function is None or not set(mutant.statement).isdisjoint(self.learnt.imports[path])
        if not tests and not imported:
            return False
        items = [item for item in self.items if mutant.function and item.nodeid in tests]
        items.sort(key=lambda item: self._rank(mutant, item))
        files = self._near(mutant.path) if imported else []
        killer = self.kept / f"killer-{mutant.path.stem}-{mutant.number}"
        self.trying[_forked(self._try, mutant, items, files, killer)] = mutant, killer
        return True

    def ended(self) -> tuple[Mutant, str]:
        """Waits for one of those that are tried; with its outcome."""
        child, status = os.wait()
        mutant, killer = self.trying.pop(child)
        if killer.exists():
            for where in (mutant.path, (mutant.path, mutant.function)):
                self.killers[where][killer.read_text()] += 1
            killer.unlink()
        code = os.waitstatus_to_exitcode(status)
        return mutant, SURVIVED if code == 0 else KILLED if code > 0 else ENDLESS  # a signal ended what took too long

    def _try(self, mutant: Mutant, items: Sequence[pytest.Item], files: Sequence[str], killer: Path) -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS,) * 2)
        signal.alarm(WALL_SECONDS)
        self.killer = killer
        until = time.process_time() + ASKED_SECONDS
        if items:
            self._replace(mutant)
            self._run(items, lambda _: _end_after(until))
        if files:
            _forget_ours()
            sys.meta_path.insert(0, _Finder(mutant))
            for file in files:
                if pytest.main([file, *OPTIONS], plugins=[_Killer(killer)]) != 0:
                    os._exit(1)

    def _rank(self, mutant: Mutant, item: pytest.Item) -> tuple[float, ...]:
        own, others = (self.killers[where][item.nodeid] for where in ((mutant.path, mutant.function), mutant.path))
        file, name = _file(item.nodeid), (mutant.function or ("",))[0].rpartition(".")[2]
        near = Path(file).name == f"test_{mutant.path.stem}.py" or _names(file, name)
        far = 0 if _is_golden(file, mutant.path) else 1 if near else 2 if _names(file, mutant.path.stem) else 3
        return -own, far, -others, self.learnt.seconds.get(item.nodeid, 0)

    def _run(self, items: Sequence[pytest.Item], before: Callable[[pytest.Item], object] = id) -> None:
        for item, following in zip(items, [*items[1:], None], strict=True):
            before(item)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    def _replace(self, mutant: Mutant) -> None:
        assert mutant.function
        (code,) = _codes(compile(mutant.tree(), str(mutant.path), "exec"), mutant.function)
        for function in self.functions[str(mutant.path), *mutant.function]:
            function.__code__ = code
        for cache in self.caches:
            cache.cache_clear()

    def _near(self, path: Path) -> list[str]:
        """The test files to ask of a module: those that hold all fields, or all that its package makes; of the others those
        that killed most of its mutants, then those that name it and run most of its lines, for as long as ASKED_SECONDS say."""
        runs, seconds = Counter[str](), defaultdict[str, float](float)
        for tests in self.learnt.tests[str(path)].values():
            runs.update({_file(test) for test in tests if test})
        for test, took in self.learnt.seconds.items():
            seconds[_file(test)] += took
        kills = Counter(_file(test) for test in self.killers[path].elements())
        near = [FIELDS] if "contract" in path.parts else []
        near += [CRDS] if {"contract", "api", "engines"} & set(path.parts) else []
        near += sorted(file for file in seconds if _is_golden(file, path))
        left = ASKED_SECONDS
        for file in sorted(seconds, key=lambda file: (-kills[file], not _names(file, path.stem), -runs[file], file)):
            if file not in near and seconds[file] <= left:
                near.append(file)
                left -= seconds[file]
        return sorted(near, key=lambda file: -kills[file])


def _end_after(until: float) -> None:
    if time.process_time() > until:
        os._exit(0)


@functools.cache
def _is_golden(file: str, module: Path) -> bool:
    if "contract" in module.parts:
        return file == FIELDS
    return Path(file).name in GOLDEN and Path(file).parent.name in module.parts


@functools.cache
def _names(file: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", Path(file).read_text()) is not None


def _file(test: str) -> str:
    return test.partition("::")[0]


class _Killer:
    """A plugin that writes down which test failed."""

    def __init__(self, named_in: Path) -> None:
        self.named_in = named_in

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.named_in.write_text(report.nodeid)


class _Finder:
    """Finds the mutant in the place of its module."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        file = str(self.mutant.path)
        if not file.removesuffix(".py").removesuffix("/__init__").endswith("/" + name.replace(".", "/")):
            return None
        return spec_from_file_location(name, file, loader=_Loader(name, file, self.mutant))


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, mutant: Mutant) -> None:
        super().__init__(name, path)
        self.mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.mutant.tree(), str(self.mutant.path), "exec")


def _codes(code: CodeType, wanted: Function) -> list[CodeType]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    found = [constant for constant in inner if (constant.co_qualname, constant.co_firstlineno) == wanted]
    return found or [code for constant in inner for code in _codes(constant, wanted)]


def _forked(do: Callable[..., None], *arguments: object, said: Path = Path(os.devnull)) -> int:
    if child := os.fork():
        return child
    out = os.open(said, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for stream in (0, 1, 2):
        os.dup2(out, stream)
    try:
        do(*arguments)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


@contextlib.contextmanager
def _measured(modules: Iterable[Path]) -> Iterator[coverage.Coverage]:
    lines = coverage.Coverage(data_file=None, config_file=False, include=[str(path) for path in modules])
    lines.start()
    yield lines
    lines.stop()


def _forget_ours() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS and name != ONCE]:
        del sys.modules[name]


def digest(root: Path, *folders: str) -> str:
    """A hash of all Python files there."""
    files = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    return hashlib.sha256(b"\0".join(str(path).encode() + b"\0" + path.read_bytes() for path in files)).hexdigest()[:16]
