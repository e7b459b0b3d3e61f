"""The images' build: a tag changes with all that the image holds, and torch is one layer for all that need it."""

import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from localcluster import builder, debian, images, settings, toolchain
from localcluster.errors import BuildFailed
from packaging.requirements import Requirement
from supply import release

from finetune_operator import pod_security
from finetune_operator.settings import Settings

ROOT = Path(__file__).parents[2]
BUILT = [image for image in images.IMAGES.values() if image.dockerfile]


def _stages(dockerfile: str) -> dict[str, str]:
    """Name of each stage → its instructions; stages without a name are called ''."""
    return {name: body for name, (_, body) in _parsed(dockerfile).items()}


def _parsed(dockerfile: str) -> dict[str, tuple[str, str]]:
    """Name of each stage → what it stands on by default, and its instructions."""
    text = re.sub(r"^#.*\n", "", (ROOT / dockerfile).read_text(), flags=re.MULTILINE)
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    parts = re.split(r"^FROM (\S+)(?: AS (\S+))?\n", text, flags=re.MULTILINE)[1:]
    bases = [re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], base) for base in parts[::3]]
    return {name or "": (base, body.strip()) for base, name, body in zip(bases, parts[1::3], parts[2::3], strict=True)}


def _below(dockerfile: str, stage: str) -> set[str]:
    """The stage, and all those of the same file that it is made of by default."""
    stages, found, ahead = _parsed(dockerfile), set[str](), [stage]
    while ahead:
        name = ahead.pop()
        if name in stages and name not in found:
            found.add(name)
            base, body = stages[name]
            ahead += [base, *re.findall(r"^COPY --from=(\S+)", body, re.MULTILINE)]
    return found


@pytest.mark.parametrize("image", BUILT, ids=lambda image: image.name)
def test_all_that_is_copied_counts_for_the_tag(image: images.Image) -> None:
    bodies = _stages(image.dockerfile)
    copies = [
        source
        for stage in _below(image.dockerfile, image.target or list(bodies)[-1])
        for line in re.findall(r"^COPY (?!--from)(.+)$", bodies[stage], re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert copies
    assert set(copies) == set(image.sources)


@pytest.mark.parametrize("image", BUILT, ids=lambda image: image.name)
def test_no_image_runs_as_root(image: images.Image) -> None:
    stages = _parsed(image.dockerfile)
    name = image.target or list(stages)[-1]
    if not image.value:
        return  # it is what others are made of, and never run
    base, body = stages[name]
    assert "scratch" not in base
    users = re.findall(r"^USER (\S+)", body, re.MULTILINE)
    assert users, f"{name} of {image.dockerfile} runs as the user of {base}"
    assert users[-1] == f"{pod_security.USER}:{pod_security.USER}"


@pytest.mark.parametrize("image", BUILT, ids=lambda image: image.name)
def test_nothing_in_an_image_tells_when_it_was_built(image: images.Image) -> None:
    """Packages and bytecode come by the scripts that leave no times behind."""
    bodies = _stages(image.dockerfile)
    for stage in _below(image.dockerfile, image.target or list(bodies)[-1]):
        assert re.findall(r"apt-get|compileall|--compile-bytecode", bodies[stage]) == []


def test_bytecode_is_the_same_each_time_and_counts_whatever_the_time_of_its_source(tmp_path: Path) -> None:
    source, known = tmp_path / "code/a.py", tmp_path / "code/known.py"
    source.parent.mkdir()
    source.write_text("WORDS = {'words', 'whose', 'order', 'is', 'random'}\ndef f(): return x in {'a', 'b', 'c', 'd'}\n")
    known.write_text("WORDS = 1\n")
    script = ["sh", str(ROOT / "requirements/bytecode.sh"), str(source.parent)]

    def made(seed: str, time: int) -> bytes:
        os.utime(source, (time, time))
        subprocess.run(script, env=os.environ | {"PYTHONHASHSEED": seed}, check=True)
        (compiled,) = (source.parent / "__pycache__").glob("a.*.pyc")
        return compiled.read_bytes()

    first = made("1", 1_000_000_000)
    assert made("2", 1_700_000_000) == first
    assert first[4:8] == b"\x01\0\0\0", "PEP 552: a hash that is not checked"
    source.write_text("WORDS = 'read again'\n")
    program = "import sys; sys.path.insert(0, sys.argv[1]); import a; print(type(a.WORDS).__name__)"
    told = subprocess.run([sys.executable, "-c", program, str(source.parent)], check=True, capture_output=True, text=True)
    assert told.stdout == "set\n"
    (before,) = (source.parent / "__pycache__").glob("known.*.pyc")
    before.write_bytes(b"of a layer below")
    stamp = tmp_path / "stamp"
    stamp.touch()
    source.write_text("WORDS = 2\n")
    subprocess.run([*script, "-cnewer", str(stamp)], check=True)
    assert before.read_bytes() == b"of a layer below", "what lies in a layer below is not copied into this one"
    assert made("3", 1) != first


def test_torch_is_one_layer() -> None:
    trainer, vllm = "trainer_image/Dockerfile", "serving_images/vllm/Dockerfile"
    assert _stages(trainer)["torch"] == _stages(vllm)["torch"]


def _pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / f"requirements/{lock}.txt").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", ["trainer", "quantizer", "serve-vllm"])
def test_later_layers_leave_torch_as_it_is(name: str) -> None:
    shared = _pins("torch")
    assert "torch" in shared
    assert {package: version for package, version in _pins(name).items() if package in shared} == shared


def test_the_evaluator_adds_to_vllm_what_the_trainer_scores_with() -> None:
    added = _pins("evaluator")
    assert set(added) & set(_pins("serve-vllm")) == set(), "what vLLM brings stays as it is"
    assert {package: version for package, version in _pins("trainer").items() if package in added} == added


def test_what_transformers_serve_needs_is_in_its_image() -> None:
    wanted = [Requirement(text) for text in metadata.requires("transformers") or ()]
    serving = {one.name: one.specifier for one in wanted if one.marker and one.marker.evaluate({"extra": "serving"})}
    pins = _pins("serve-vllm")
    assert [name for name, versions in serving.items() if name not in pins or pins[name] not in versions] == []
    assert "accelerate" in serving


def test_benchmarks_add_to_the_trainer_and_change_nothing_in_it() -> None:
    trainer, benchmarks = _pins("trainer"), _pins("benchmarks")
    assert "lm-eval" in benchmarks.keys() - trainer.keys()
    assert {package: version for package, version in benchmarks.items() if package in trainer} == {
        package: version for package, version in trainer.items() if package in benchmarks
    }


def test_locks_name_no_index_and_hash_everything() -> None:
    for lock in sorted((ROOT / "requirements").glob("*.txt")):
        text = lock.read_text()
        assert "://" not in text, f"{lock.name} names an address"
        assert re.findall(r"^[a-z0-9-]+==\S+(?!.*\\$)", text, re.MULTILINE) == [], f"{lock.name} has a line without hashes"


def test_a_tag_changes_with_a_source_and_with_an_image_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"Dockerfile": "FROM x", "code/a.py": "1", "code/a.pyc": "1"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    below = images.Image("below", "Dockerfile")
    image = images.Image("above", "Dockerfile", ("code",), parents={"BASE_IMAGE": "below"})
    monkeypatch.setattr(images, "ROOT", tmp_path)
    monkeypatch.setattr(images, "IMAGES", {"below": below, "above": image})
    before = images.key(image)
    (tmp_path / "code/a.pyc").write_text("2")
    assert images.key(image) == before
    (tmp_path / "code/a.py").write_text("2")
    changed = images.key(image)
    assert changed != before
    monkeypatch.setitem(images.IMAGES, "below", replace(below, target="other"))
    assert images.key(image) != changed


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Settings:
    """A cache and a registry that are empty; nothing is installed on this machine."""
    monkeypatch.setattr(debian, "ensure_tools", lambda: None)
    monkeypatch.setattr(builder, "forget_others", lambda *_: None)
    monkeypatch.setattr(images, "_is_in_registry", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = settings.read()
    found.cache.mkdir()
    return found


def test_an_image_that_only_others_need_can_be_asked_for(chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(images, "_make", lambda _chosen, image, _report: made.append(image.name))
    assert list(images.ensure(chosen, ["llamacpp-build"])) == ["llamacpp-build"]
    assert made == ["base", "llamacpp-build"]
    with pytest.raises(BuildFailed, match="there is no image 'lamacpp'"):
        images.ensure(chosen, ["lamacpp"])


def test_of_what_the_registry_has_only_that_is_taken_which_others_are_built_from(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"base", "llamacpp-build", "serve-llamacpp"}
    monkeypatch.setattr(images, "_is_in_registry", lambda _chosen, image: image.name in there)
    made = {task.name: set(task.needs) for task in images.tasks(chosen, ["operator", "serve-llamacpp", "trainer"])}
    assert set(made) == {"operator", "trainer", "trainer-packages", "base", "llamacpp-build"}
    assert {"base", "llamacpp-build", "trainer-packages"} <= made["trainer"]


def test_a_program_is_built_before_the_image_that_holds_it(chosen: settings.Settings) -> None:
    tasks = {task.name: set(task.needs) for task in images.tasks(chosen, ["serve-ollama"])}
    assert _before(tasks, "serve-ollama") == {"base", "ollama-build", "ollama"}
    toolchain.built_at(chosen.cache, toolchain.PROGRAMS["ollama"]).parent.mkdir(parents=True)
    toolchain.built_at(chosen.cache, toolchain.PROGRAMS["ollama"]).touch()
    assert {task.name for task in images.tasks(chosen, ["serve-ollama"])} == {"base", "ollama-build", "serve-ollama"}


def test_the_image_of_a_program_has_it_where_the_published_one_does(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program := toolchain.built_at(chosen.cache, toolchain.PROGRAMS["ollama"])).parent.mkdir(parents=True)
    program.write_text("the program")

    def build(_storage: builder.Storage, name: str, recipe: builder.Recipe) -> None:
        assert name == "x/ollama-build:1"
        for source, target in re.findall(r"^COPY (\S+) (\S+)", recipe.dockerfile.read_text(), re.MULTILINE):
            copied[target] = (recipe.context / source).read_text()

    copied: dict[str, str] = {}
    monkeypatch.setattr(builder, "build", build)
    images.build(chosen, images.IMAGES["ollama-build"], "x/ollama-build:1")
    assert copied == {"/usr/bin/ollama": "the program", "/usr/lib/ollama/": ""}
    taken = re.findall(
        r"^COPY --from=program (\S+?)(?:-\*)? ", _stages("serving_images/ollama/Dockerfile")["serve"], re.MULTILINE
    )
    assert taken == ["/usr/lib/ollama/libggml", "/usr/bin/ollama"]
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.39"))
    with pytest.raises(BuildFailed, match=r"this machine's glibc 2\.39, and the images have 2\.36"):
        images.build(chosen, images.IMAGES["ollama-build"], "x/ollama-build:1")


def test_ollama_is_of_one_version() -> None:
    version = toolchain.PROGRAMS["ollama"].version.removeprefix("v")
    assert f"ARG OLLAMA_IMAGE=ollama/ollama:{version}\n" in (ROOT / "serving_images/ollama/Dockerfile").read_text()
    assert f"docker.io/{Settings().ollama_image}" == release.OLLAMA == f"docker.io/ollama/ollama:{version}"
    assert f"Tried with {version}" in (ROOT / "docs/serving.md").read_text()


def test_torch_is_laid_once_and_the_others_wait_for_it(chosen: settings.Settings) -> None:
    tasks = {task.name: set(task.needs) for task in images.tasks(chosen, images.NAMES)}
    with_torch = [i.name for i in BUILT if i.name in tasks and i.target and "torch" in _below(i.dockerfile, i.target)]
    assert len(with_torch) >= 4
    assert [name for name in with_torch if "trainer-packages" not in _before(tasks, name) | {name}] == []


def _before(tasks: dict[str, set[str]], name: str) -> set[str]:
    """Everything that is done before the task begins."""
    needs = tasks[name] & set(tasks)
    return needs.union(*(_before(tasks, need) for need in needs))
