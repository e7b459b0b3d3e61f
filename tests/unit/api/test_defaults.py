"""What a spec leaves out is one value for all specs: a pass compares with it, and to make it anew was a quarter of the pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel

from finetune_operator.api.finetunejob import FineTuneJobSpec
from finetune_operator.api.modelserve import ModelServeSpec
from finetune_trainer.contract.run import RunConfig


def parts(kind: object) -> Iterator[type[BaseModel]]:
    """A type's models, at any depth."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from parts(field.annotation)
    for inner in get_args(kind):
        yield from parts(inner)


@pytest.mark.parametrize("kind", [FineTuneJobSpec, ModelServeSpec, RunConfig])
def test_the_default_of_a_part_is_made_once_and_frozen(kind: type[BaseModel]) -> None:
    defaults = [
        (f"{model.__name__}.{name}", *(field.get_default(call_default_factory=True, validated_data={}) for _ in range(2)))
        for model in dict.fromkeys(parts(kind))
        for name, field in model.model_fields.items()
        if field.default_factory is not None
    ]
    of_models = [(name, one, other) for name, one, other in defaults if isinstance(one, BaseModel)]
    assert of_models
    assert [name for name, one, other in of_models if one is not other] == []
    assert [name for name, one, _ in of_models if not one.model_config.get("frozen")] == []
