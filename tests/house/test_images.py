"""The images' build: a tag changes with all that the image holds, and torch is one layer for all that need it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from localcluster import debian, images, settings
from localcluster.errors import BuildFailed

ROOT = Path(__file__).parents[2]
BUILT = [image for image in images.IMAGES.values() if image.dockerfile]


def _stages(dockerfile: str) -> dict[str, str]:
    """Name of each stage → its instructions; stages without a name are called ''."""
    text = re.sub(r"^#.*\n", "", (ROOT / dockerfile).read_text(), flags=re.MULTILINE)
    parts = re.split(r"^FROM (?:\S+)(?: AS (\S+))?\n", text, flags=re.MULTILINE)
    return {name or "": body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("image", BUILT, ids=lambda image: image.name)
def test_all_that_is_copied_counts_for_the_tag(image: images.Image) -> None:
    bodies = _stages(image.dockerfile)
    wanted = {image.target or list(bodies)[-1], "torch", "compile", "serve"}  # its own stage, and those that it can stand on
    copies = [
        source
        for stage in wanted
        for line in re.findall(r"^COPY (?!--from)(.+)$", bodies.get(stage, ""), re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert copies
    assert set(copies) == set(image.sources)


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


def test_benchmarks_add_to_the_trainer_and_change_nothing_in_it() -> None:
    def pins(lock: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / f"requirements/{lock}.txt").read_text(), re.MULTILINE))

    trainer, benchmarks = pins("trainer"), pins("benchmarks")
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


def test_an_image_that_only_others_need_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(debian, "ensure_tools", lambda: None)
    monkeypatch.setattr(images, "_ensure", lambda _chosen, _storage, image: asked.append(image.name))
    monkeypatch.setattr(images, "_is_in_registry", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = settings.read()
    chosen.cache.mkdir()
    assert list(images.ensure(chosen, ["llamacpp-build"])) == asked == ["llamacpp-build"]
    with pytest.raises(BuildFailed, match="there is no image 'lamacpp'"):
        images.ensure(chosen, ["lamacpp"])
