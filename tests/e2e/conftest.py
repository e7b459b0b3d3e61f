"""The local cluster with the operator in it, and a namespace for each scenario."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from demo.installation import QUICKSTART_IMAGES, Installation, install_locally, namespace
from demo.kubectl import Object
from localcluster import settings, smollm2
from tests.e2e import jobs
from tests.e2e.space import Space
from tests.trainer.conftest import save_tiny_llama


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "core: part of `make test`; the others run in `make test-all`")
    config.addinivalue_line("markers", "space(name): the namespace that tests share")
    config.addinivalue_line("markers", "images(*names): images that a scenario needs beside the quickstart's")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A scenario that failed shows what its namespace looks like."""
    report = yield
    space = getattr(item, "funcargs", {}).get("space")
    if report.when == "call" and report.failed and isinstance(space, Space):
        report.sections.append(("the namespace", space.diagnosis()))
    return report


@pytest.fixture(scope="session")
def installation(request: pytest.FixtureRequest) -> Installation:
    """Everything that runs; skips where it can't, which CI counts as a failure."""
    if os.geteuid() != 0:
        message = "containers need root: run as root"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    wanted = {n for item in request.session.items for mark in item.iter_markers("images") for n in mark.args}
    made = install_locally([*QUICKSTART_IMAGES, *sorted(wanted)])
    make_tiny_models(settings.read().hub_directory)
    return made


def make_tiny_models(hub: Path) -> None:
    """The models of the scenarios' jobs, in the local hub."""
    from transformers import AutoTokenizer

    if not (hub / jobs.TINY).exists():
        save_tiny_llama(hub / jobs.TINY, AutoTokenizer.from_pretrained(hub / smollm2.REPOSITORY))
    if not (hub / jobs.GATED).exists():
        (hub / jobs.GATED).mkdir(parents=True)
        for file in (hub / jobs.TINY).iterdir():
            (hub / jobs.GATED / file.name).hardlink_to(file)
        (hub / jobs.GATED / ".gated").write_text("a-token-that-nobody-has\n")


@pytest.fixture(scope="session")
def make_space(installation: Installation) -> Iterator[Callable[[str], Space]]:
    """Makes namespaces with the quickstart's facts in them; takes them away at the end."""
    made: list[str] = []

    def make(name: str) -> Space:
        if name not in made:
            installation.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait")
            namespace(installation.kubectl, name)
            made.append(name)
        space = Space(installation.kubectl, name, installation.operator_image)
        space.apply(jobs.quickstart("ConfigMap"))
        return space

    yield make
    for name in made:
        installation.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


@pytest.fixture
def small_job(space: Space) -> Object:
    """The job that many scenarios serve, once it has succeeded; it is applied where it is not there, or was changed."""
    space.apply(jobs.SMALL)
    return space.succeeded(jobs.SMALL["metadata"]["name"])


@pytest.fixture
def space(request: pytest.FixtureRequest, make_space: Callable[[str], Space]) -> Space:
    """A namespace named after the test; tests with the mark `space` share one."""
    mark = request.node.get_closest_marker("space")
    return make_space(mark.args[0] if mark else request.node.name.removeprefix("test_").replace("_", "-")[:40])
