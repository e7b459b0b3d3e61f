"""Which cluster the demo takes, and what it asks Docker, kind and kubectl for: programs in their place note it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from demo import installation, kind, ways
from demo.console import DemoFailed
from demo.ways import Way
from localcluster.images import IMAGES


@pytest.mark.parametrize(
    ("wanted", "has_docker", "is_root", "way"),
    [
        ("", True, False, Way.KIND),
        ("", True, True, Way.KIND),
        ("", False, True, Way.LOCAL),
        ("", False, False, Way.PROCESSES),
        ("local", True, True, Way.LOCAL),
        ("current", False, False, Way.CURRENT),
        ("none", True, True, Way.PROCESSES),
    ],
)
def test_the_demo_takes_what_was_asked_for_or_the_fastest_there_is(
    wanted: str, has_docker: bool, is_root: bool, way: Way
) -> None:
    assert ways.choose(wanted, has_docker, is_root) is way


@pytest.mark.parametrize(
    ("wanted", "said"), [("kind", "docker info"), ("local", "needs root"), ("minikube", "current, kind, local, none")]
)
def test_a_cluster_that_cannot_be_had_is_refused_with_the_remedy(wanted: str, said: str) -> None:
    with pytest.raises(DemoFailed, match=said):
        ways.choose(wanted, False, False)


def test_each_way_is_explained() -> None:
    assert set(ways.WHY) == set(Way)


@pytest.mark.parametrize(("seconds", "words"), [(5, "about 1 minute"), (420, "about 7 minutes")])
def test_a_guess_is_in_minutes(seconds: float, words: str) -> None:
    assert ways.in_minutes(seconds) == words


def test_an_overlay_sets_the_images_and_the_hub_by_name() -> None:
    named = {"operator": "here/operator:1", "trainer": "here/trainer:2"}
    overlay = installation.customized("../install", named, "http://hub")
    assert overlay["resources"] == ["../install"]
    (container,) = json.loads(overlay["patches"][0]["patch"])["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "here/operator:1"
    base = next(b for b in yaml.safe_load_all((kind.ROOT / "install/install.yaml").read_text()) if b["kind"] == "Deployment")
    known = {variable["name"] for variable in base["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert {variable["name"] for variable in container["env"]} < known, "a variable that the operator doesn't read"


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Docker has no image, kind no cluster; both note what they are asked."""
    for name, script in {
        "docker": '[ "$1" != image ] || exit 1',
        "kind": 'case "$*" in "get kubeconfig"*) echo "apiVersion: v1";; "get clusters") echo another;; esac',
    }.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "{name} $@" >> {tmp_path}/calls\n{script}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return tmp_path / "calls"


def test_docker_builds_what_the_quickstart_runs_each_after_what_it_is_made_of(calls: Path) -> None:
    references = kind.build(installation.QUICKSTART_IMAGES)
    built = [line for line in calls.read_text().splitlines() if line.startswith("docker build")]
    order = [next(name for name in IMAGES if f"finetune.local/{name}:" in line.partition("--file")[0]) for line in built]
    assert set(order) == {"llamacpp-build", "operator", "serve-llamacpp", "trainer", "trainer-packages"}
    assert order.index("llamacpp-build") < order.index("serve-llamacpp")
    assert order.index("llamacpp-build") < order.index("trainer")
    trainer = built[order.index("trainer")]
    assert f"LLAMACPP_IMAGE={kind.reference(IMAGES['llamacpp-build'])}" in trainer
    assert "BASE_IMAGE" not in "".join(built), "the base is Docker's own Python image"
    assert set(references) == set(installation.QUICKSTART_IMAGES)


def test_what_is_public_is_left_to_docker(calls: Path) -> None:
    kind.build(["serve-ollama"])
    (built,) = [line for line in calls.read_text().splitlines() if line.startswith("docker build")]
    assert "serving_images/ollama/Dockerfile" in built
    assert "OLLAMA_IMAGE" not in built, "Ollama's own, as the Dockerfile says"


def test_kind_makes_its_cluster_once_and_gets_every_image(calls: Path, tmp_path: Path) -> None:
    kubeconfig = kind.start(tmp_path / "cache")
    assert kubeconfig.read_text() == "apiVersion: v1\n"
    assert kubeconfig.stat().st_mode & 0o077 == 0, "it holds a key"
    kind.load({"operator": "finetune.local/operator:1", "trainer": "finetune.local/trainer:2"})
    assert "kind create cluster --name finetune-demo --wait 120s" in calls.read_text()
    assert "kind load docker-image --name finetune-demo finetune.local/operator:1 finetune.local/trainer:2" in calls.read_text()


def test_what_docker_says_of_a_failed_build_is_told(calls: Path) -> None:
    (calls.parent / "bin/docker").write_text('#!/bin/sh\n[ "$1" != image ] || exit 1\necho "no space left on device"; exit 1\n')
    with pytest.raises(DemoFailed, match="no space left on device"):
        kind.build(["operator"])
