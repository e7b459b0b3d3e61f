"""What we lock and ship: each package's licence, each image's bill, and the workflows that release them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from localcluster import images, settings
from supply import audit, licences, locks

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
COMMANDS = ("make", ".ci/run", "apt-get", "cosign")


@pytest.fixture(scope="module")
def tools() -> Path:
    """The folder of the programs that requirements/supply.txt locks."""
    folder = settings.read().cache / "supply"
    subprocess.run(["sh", str(ROOT / "requirements/image-venv.sh"), str(folder), "supply"], check=True)
    return folder / "bin"


def test_every_locked_package_has_a_licence_that_may_be_passed_on() -> None:
    """The page is as `make licences` writes it; a package that is installed here is read again."""
    text, locked, said = licences.PAGE.read_text(), locks.locked(), licences.rules()
    verdicts = licences.judged(locked, locks.installed(locks.folders()), licences.of_page(text), said)
    assert verdicts.problems == []
    assert licences.page(locked, verdicts, said) == text, "make licences"


def test_every_answer_says_why() -> None:
    assert [name for name, answer in licences.rules().answers.items() if len(answer.reason) < 20] == []
    assert [name for name, reason in audit.answered().items() if len(reason) < 20] == []


def test_an_image_has_a_bill_of_what_lies_in_it(tools: Path, tmp_path: Path) -> None:
    site = tmp_path / "opt/venv/lib/python3.11/site-packages"
    for name, said in (("kopf", "License-Expression: MIT"), ("odd", "License: whatever")):
        (site / f"{name}-1.2.dist-info").mkdir(parents=True)
        (site / f"{name}-1.2.dist-info/METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.2\n{said}\n")
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(
        "Package: libgomp1\nStatus: install ok installed\nArchitecture: amd64\nSource: gcc-12\nVersion: 12.2.0-14\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n"
    )
    (tmp_path / "opt/llama.cpp").mkdir(parents=True)
    (tmp_path / "opt/llama.cpp/LICENSE").write_text("MIT")
    program = "import sys, pathlib; from supply.sbom import bill; print(bill(*sys.argv[1:4], pathlib.Path(sys.argv[4])))"
    command = [str(tools / "python"), "-c", program, "finetune/some", "0.1", f"sha256:{'0' * 64}", str(tmp_path)]
    told = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert told["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": "0" * 64}]
    parts = {part["name"]: part for part in told["components"]}
    assert set(parts) == {"kopf", "odd", "libgomp1", "llama.cpp"}
    assert parts["kopf"]["licenses"] == [{"license": {"id": "MIT"}}]
    assert parts["kopf"]["purl"] == "pkg:pypi/kopf@1.2"
    assert parts["libgomp1"]["purl"] == "pkg:deb/debian/libgomp1@12.2.0-14?arch=amd64"


def _steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_what_is_here_with_actions_that_nobody_can_exchange(workflow: Path) -> None:
    """It adds nothing to .ci/run and the Makefile but the machine, and signatures."""
    text, steps = workflow.read_text(), _steps(workflow)
    pinned = re.compile(r"[\w/.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert [action for action in re.findall(r"uses: (.+)", text) if not pinned.match(action)] == []
    commands = [step["run"].split() for step in steps if "run" in step]
    ours = [[word for word in command if word not in ("sudo", "-E")] for command in commands]
    assert [" ".join(command) for command in ours if command[0] not in COMMANDS] == []
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for command in ours if command[0] == "make" for word in command[1:] if "=" not in word} <= targets


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_the_rights_that_it_needs_and_no_text_of_others_in_its_commands(workflow: Path) -> None:
    read = yaml.safe_load(workflow.read_text())
    assert read["permissions"] in ({}, {"contents": "read"})
    for job in read["jobs"].values():
        rights, used = job.get("permissions", read["permissions"]), json.dumps(job["steps"])
        assert rights["contents"] == "read"
        assert ("packages" in rights) == ("docker/login-action" in used)
        assert ("id-token" in rights) == ("cosign sign" in used)
        assert ("attestations" in rights) == ("actions/attest@" in used)
        assert [step["run"] for step in job["steps"] if "${{" in step.get("run", "")] == [], "put it into env"
        assert all(not s["with"]["persist-credentials"] for s in job["steps"] if "actions/checkout" in s.get("uses", ""))
        assert "timeout-minutes" in job


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_as_the_forge_reads_it_and_nothing_is_wrong_with_it(workflow: Path, tools: Path) -> None:
    schema = [str(tools / "check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(workflow)]
    done = subprocess.run(schema, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    audited = [str(tools / "zizmor"), "--offline", "--no-progress", "--persona=regular", str(workflow)]
    done = subprocess.run(audited, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_release_has_every_image_and_chart_signed_and_attested() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert jobs["image"]["strategy"]["matrix"]["image"] == images.NAMES
    assert sorted(jobs["charts"]["strategy"]["matrix"]["chart"]) == sorted(path.name for path in (ROOT / "charts").iterdir())
    for name, attested in (("image", 2), ("charts", 1)):
        used = [step.get("uses", step.get("run", "")) for step in jobs[name]["steps"]]
        assert [use.startswith("cosign sign --yes") for use in used].count(True) == 1
        assert [use.startswith("actions/attest@") for use in used].count(True) == attested
