"""What operator and pods have agreed on, as files to be read in review: each field of what they give each other, and each name,
number and table that both go by.

A job runs for days, so its pods may be of another release than the operator that reads them, and a store is read for years: a
field that goes, a bound, a default or a name that changes is seen here, also where no CRD shows it.

tests/golden/contract/fields.yaml, constants.yaml      (pytest --golden-update writes them)
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from pydantic_core import to_jsonable_python

from finetune_trainer import contract
from finetune_trainer.contract.reasons import Reason

GOLDEN = Path(__file__).parents[3] / "golden" / "contract"
MODULES = [importlib.import_module(m.name) for m in pkgutil.walk_packages(contract.__path__, f"{contract.__name__}.")]
IN_WORDS = ("title", "description")


def test_each_field_is_as_it_was_reviewed(golden: Callable[[Path, str], None]) -> None:
    models = [model for module in MODULES for model in _classes(module) if issubclass(model, BaseModel) and model.model_fields]
    assert len(models) > 40
    told = models_json_schema([(model, "validation") for model in models])[1]["$defs"]
    for model in models:
        for field in model.model_fields.values():
            if field.default_factory is not None:
                told[model.__name__]["properties"][field.alias]["default"] = field.get_default(call_default_factory=True)
    golden(GOLDEN / "fields.yaml", _as_yaml(_without_words(told)))


def test_each_constant_is_as_it_was_reviewed(golden: Callable[[Path, str], None]) -> None:
    told = {module.__name__.removeprefix(f"{contract.__name__}."): _constants(module) for module in MODULES}
    del told["combinations"]  # whose rows stand in the CRD
    golden(GOLDEN / "constants.yaml", _as_yaml({name: said for name, said in told.items() if said}))


def _classes(module: ModuleType) -> list[type]:
    return [value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__]


def _constants(module: ModuleType) -> dict[str, Any]:
    """What stands in capitals at the top of a module, and the values of its enumerations."""
    said = {name: _plain(vars(module)[name]) for name in _assigned(module) if name.isupper() and not name.startswith("_")}
    for enum in _classes(module):
        if issubclass(enum, StrEnum | IntEnum) and not issubclass(enum, Reason):  # docs/reasons.md has those
            said[enum.__name__] = {member.name: member.value for member in enum}
    return said


def _assigned(module: ModuleType) -> Iterator[str]:
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value if isinstance(value, str | int) else value.name
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {_plain(key): _plain(of) for key, of in value.items()}
    if isinstance(value, tuple | frozenset):
        return [_plain(of) for of in (sorted(value) if isinstance(value, frozenset) else value)]
    return to_jsonable_python(value, fallback=str)


def _without_words(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: _without_words(of) for key, of in schema.items() if key not in IN_WORDS or not isinstance(of, str)}
    return [_without_words(of) for of in schema] if isinstance(schema, list) else schema


def _as_yaml(said: Any) -> str:
    return yaml.safe_dump(to_jsonable_python(said), default_flow_style=None, width=10_000)
