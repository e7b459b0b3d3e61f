"""Licences as metadata says them and as they are allowed, holes as pip-audit tells of them, and what a tag must agree with."""

from __future__ import annotations

from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from localcluster import builder, debian, settings
from localcluster.errors import BuildFailed
from supply import audit, licences, locks, release
from supply.audit import Hole
from supply.licences import Answer, Rules
from supply.locks import Pin

WORDS = {"mit license": "MIT", "bsd license": "BSD-3-Clause", "apache 2.0": "Apache-2.0"}
ALLOWED = frozenset({"MIT", "Apache-2.0", "BSD-3-Clause", "Apache-2.0 WITH LLVM-exception"})


def metadata(*classifiers: str, **fields: str) -> Message:
    message = Message()
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    for classifier in classifiers:
        message["Classifier"] = f"License :: OSI Approved :: {classifier}"
    return message


@pytest.mark.parametrize(
    ("said", "licence"),
    [
        (metadata(License_Expression="mit OR apache-2.0"), "MIT OR Apache-2.0"),
        (metadata("BSD License", License="MIT"), "MIT"),
        (metadata("MIT License", "BSD License"), "BSD-3-Clause AND MIT"),
        (metadata("MIT License", License="see LICENSE"), "MIT"),
        (metadata(License="Apache 2.0\n\nlong text"), "Apache-2.0"),
        (metadata("MIT License", "Some Licence of Ours"), ""),
        (metadata(License="UNKNOWN"), ""),
        (metadata(), ""),
    ],
)
def test_a_licence_is_what_the_metadata_says_most_exactly(said: Message, licence: str) -> None:
    assert licences.expression(said, WORDS) == licence


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only AND MIT", False),
        ("MIT AND (GPL-2.0-only OR BSD-3-Clause)", True),
        ("MIT OR GPL-2.0-only AND GPL-3.0-only", True),
        ("(MIT OR GPL-2.0-only) AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("", False),
        ("MIT MIT", False),
        ("(MIT", False),
    ],
)
def test_an_expression_is_met_by_one_side_of_or_and_both_of_and(licence: str, allowed: bool) -> None:
    assert licences.is_allowed(licence, ALLOWED) is allowed


def judge(known: dict[Pin, Message], page: dict[Pin, str], **answers: Answer) -> licences.Verdicts:
    said = Rules(ALLOWED, WORDS, {name.replace("_", "-"): answer for name, answer in answers.items()})
    return licences.judged({Pin("some-package", "1.0"): ["operator"]}, known, page, said)


SOME = Pin("some-package", "1.0")


def test_what_is_not_allowed_or_not_known_is_named_with_its_lock_and_a_remedy() -> None:
    (problem,) = judge({SOME: metadata(License_Expression="GPL-3.0-only")}, {}).problems
    assert problem.startswith("some-package 1.0 (operator): GPL-3.0-only is not allowed; take another package, or say")
    (problem,) = judge({SOME: metadata()}, {}).problems
    assert "its metadata names no licence; answer it in licences.toml" in problem
    (problem,) = judge({}, {}).problems
    assert "it is not installed here and licences.md lacks it" in problem


def test_an_answer_counts_where_it_is_needed_and_is_refused_where_nobody_asks() -> None:
    said = Answer("GPL-3.0-only", "a program of its own that is only run")
    verdicts = judge({SOME: metadata(License_Expression="GPL-3.0-only")}, {}, **{"some_*": said})
    assert (verdicts.problems, verdicts.licences[SOME]) == ([], "GPL-3.0-only")
    assert judge({SOME: metadata(License="MIT")}, {}, some_package=said).problems == [
        "licences.toml answers some-package, which nobody asks"
    ]


def test_the_page_counts_for_what_is_not_installed_here_in_that_version_alone() -> None:
    assert judge({}, {SOME: "MIT"}).problems == []
    assert judge({}, {Pin("some-package", "0.9"): "MIT"}).problems != []
    here = judge({SOME: metadata(License="Apache 2.0")}, {SOME: "MIT"})
    assert here.licences[SOME] == "Apache-2.0", "what is here counts more"
    said = Answer("GPL-3.0-only", "a program of its own that is only run")
    assert judge({}, {SOME: "GPL-3.0-only"}, some_package=said).problems == [], "the page has it from the answer"


def test_a_page_is_read_as_it_was_written() -> None:
    locked, said = {SOME: ["cli", "operator"]}, Rules(ALLOWED, WORDS, {})
    verdicts = licences.judged(locked, {SOME: metadata(License_Expression="MIT OR Apache-2.0")}, {}, said)
    assert licences.of_page(licences.page(locked, verdicts, said)) == {SOME: "MIT OR Apache-2.0"}


def test_pins_are_read_whatever_stands_behind_them(tmp_path: Path) -> None:
    lock = tmp_path / "a.txt"
    lock.write_text("Ray[train]==2.60.0 \\\n    --hash=sha256:0\nnumpy==2.1 ; python_full_version < '3.12' \\\nnumpy==2.4 \\\n")
    assert locks.pins(lock) == [Pin("numpy", "2.1"), Pin("numpy", "2.4"), Pin("ray", "2.60.0")]


TOLD: dict[str, list[dict[str, Any]]] = {
    "dependencies": [
        {"name": "a", "version": "1", "vulns": []},
        {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.1"]}]},
        {"name": "c", "version": "3", "vulns": [{"id": "GHSA-2", "aliases": [], "fix_versions": []}]},
    ]
}


def test_a_hole_is_mended_or_answered_by_any_of_its_names() -> None:
    holes = audit.read("operator", TOLD)
    assert [hole.names for hole in holes] == [("PYSEC-1", "CVE-1"), ("GHSA-2",)]
    first, second = audit.problems(holes, {})
    assert first.startswith("operator.txt: b 2 has PYSEC-1, CVE-1; raise it to 2.1, or say in audit.toml")
    assert "no version is without it" in second
    assert audit.problems(holes, {"CVE-1": "never called", "GHSA-2": "only in tests"}) == []


def test_packages_that_nobody_was_asked_about_are_not_taken_for_whole() -> None:
    """pip-audit ends with 0 and "No known vulnerabilities found" where its service knew none of the packages."""
    told = {"dependencies": [*TOLD["dependencies"], {"name": "d", "skip_reason": "Dependency not found on PyPI"}]}
    with pytest.raises(audit.Unreachable, match=r"1 of the 4 packages of operator\.txt: Dependency not found on PyPI"):
        audit.read("operator", told)


def test_an_answer_to_a_hole_that_is_gone_is_refused() -> None:
    hole = Hole("operator", "b", "2", ("PYSEC-1",), ())
    assert audit.problems([hole], {"PYSEC-1": "x", "CVE-9": "y"}) == ["audit.toml answers CVE-9, which no lock has"]


def test_a_tag_is_of_the_projects_version_and_in_the_changelog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"the tag is v9\.9\.9, but pyproject\.toml has version"):
        release.check("v9.9.9")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    with pytest.raises(BuildFailed, match=r"CHANGELOG\.md has no heading \[1\.2\.3\]"):
        release.check("v1.2.3")
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.3] - 2026-12-01\n")
    release.check("v1.2.3")


def test_a_released_image_is_built_from_published_ones_and_what_is_ours_is_built_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built: list[tuple[str, dict[str, str]]] = []
    pulled: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(debian, "ensure_tools", lambda: [])
    monkeypatch.setattr(builder, "pull", lambda _storage, reference: pulled.append(reference))
    monkeypatch.setattr(builder, "build", lambda _storage, name, recipe: built.append((name, dict(recipe.arguments))))
    monkeypatch.setattr(builder, "publish", lambda _storage, _reference: "sha256:1")
    settings.read().cache.mkdir()
    version = release.version()
    assert release.image("trainer", "ghcr.io/us", "python@sha256:2") == (f"ghcr.io/us/trainer:{version}", "sha256:1")
    packages, llamacpp, trainer = (f"ghcr.io/us/{name}:{version}" for name in ("trainer-packages", "llamacpp-build", "trainer"))
    assert built == [
        (packages, {"DEVICE": "cuda", "BASE_IMAGE": "python@sha256:2"}),
        (llamacpp, {"BASE_IMAGE": "python@sha256:2"}),
        (trainer, {"BASE_IMAGE": "python@sha256:2", "PACKAGES_IMAGE": packages, "LLAMACPP_IMAGE": llamacpp}),
    ]
    assert set(pulled) == {"python@sha256:2"}
    built.clear()
    release.image("evaluator", "ghcr.io/us")
    assert [arguments for _, arguments in built] == [{"BASE_IMAGE": release.PYTHON, "VLLM_IMAGE": release.VLLM}]
    built.clear()
    release.image("serve-ollama", "ghcr.io/us")
    assert [arguments for _, arguments in built] == [{"BASE_IMAGE": release.PYTHON, "OLLAMA_IMAGE": release.OLLAMA}]
    with pytest.raises(BuildFailed, match="there is no image 'opertor'"):
        release.image("opertor", "ghcr.io/us")


def test_only_a_registry_of_this_machine_may_speak_without_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(builder, "_run", lambda _storage, command, _log, _report=None: asked.append(command))
    storage = builder.Storage(tmp_path)
    builder.push(storage, "localhost:5000/a:1")
    builder.push(storage, "ghcr.io/us/a:1")
    assert ["--tls-verify=false" in command for command in asked] == [True, False]
    assert "--tls-verify=true" in asked[1]
