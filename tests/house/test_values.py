"""Engines, artifact formats and objectives are values: the modules, images and pages that each needs are there, too."""

from __future__ import annotations

import ast
import re
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from finetune_operator.modelserve.engines import ENGINES, EngineType
from finetune_operator.settings import Settings
from finetune_trainer.contract.formats import FORMATS, SAFETENSORS, ArtifactFormat, Format, Quantization
from finetune_trainer.contract.objectives import OBJECTIVES, Learning, Objective

ROOT = Path(__file__).parents[2]
EXPORT = ROOT / "trainer_image/finetune_trainer/export"
DOCUMENTED = (ROOT / "docs/artifacts.md").read_text()


def defined(module: str, folder: Path = EXPORT) -> set[str]:
    """Names at the top of a module, which may need more to be imported than this environment has."""
    body = ast.parse((folder / f"{module}.py").read_text()).body
    names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    names |= {alias.asname or alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}
    names |= {node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    return names | {t.id for node in body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)}


def test_there_is_a_value_for_each() -> None:
    assert set(FORMATS) == set(ArtifactFormat)
    assert set(ENGINES) == set(EngineType)
    assert set(OBJECTIVES) == set(Objective)
    listed = list(chain.from_iterable(format.quantizations for format in FORMATS.values()))
    assert sorted(listed) == sorted(get_args(Quantization)), "each quantization is of one format"


@pytest.mark.parametrize(("name", "format"), FORMATS.items())
def test_a_format_is_made_served_and_documented(name: ArtifactFormat, format: Format) -> None:
    assert {"make", "prove", "LIMITS"} <= defined(format.made_by)
    assert "check" in defined(format.checked_by)
    assert set(re.findall(r"\w+", format.named)) - {"or"} == set(format.quantizations)
    rows = [line for line in DOCUMENTED.splitlines() if line.startswith(f"| `{name}` |")]
    assert rows
    assert [q for q in format.quantizations if not any(f"`{q}`" in row for row in rows)] == []
    assert any(name in engine.formats for engine in ENGINES.values())


@pytest.mark.parametrize(("name", "learning"), OBJECTIVES.items())
def test_an_objective_is_trained_and_documented(name: Objective, learning: Learning) -> None:
    assert {"config", "make_loop", "read"} <= defined(learning.trained_by, EXPORT.parent / "training")
    assert f"\n| {name} |" in (ROOT / "docs/objectives.md").read_text()


@pytest.mark.parametrize("name", EngineType)
def test_an_engine_has_an_image_that_the_chart_sets(name: EngineType) -> None:
    engine = ENGINES[name]
    assert (engine.best or SAFETENSORS) in engine.formats, "None is the merged model"
    assert set(engine.on_gpus_only) < set(engine.formats) <= {SAFETENSORS, *ArtifactFormat}
    images = yaml.safe_load((ROOT / "charts/finetune-operator/values.yaml").read_text())["images"]
    fields: dict[str, Any] = {f"{image}_image": f"the chart's {image}" for image in images}
    set_by_chart = Settings(**fields)
    assert engine.image(set_by_chart).startswith("the chart's ")
