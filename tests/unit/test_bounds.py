"""Whatever goes into a status, the API server takes what comes out of the writer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.modelserve import ModelServe
from finetune_operator.bounds import bounded, status_schema

KINDS = (FineTuneJob, ModelServe)
HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=50),
    st.sampled_from(["Running", "True", "x" * 5000, "é" * 2000, "\ud800", "NotAnEnum", "", "a\nb\x00"]),
)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of the schema's shape that keep none of its bounds."""
    match schema.get("type"):
        case "object" if "properties" in schema:
            return st.one_of(HOSTILE, fields(schema))
        case "object":
            return st.one_of(
                HOSTILE, st.dictionaries(st.text(max_size=5), values(schema.get("additionalProperties", {})), max_size=5)
            )
        case "array":
            return st.one_of(HOSTILE, st.lists(values(schema["items"]), max_size=3))
    return HOSTILE


def fields(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={k: values(s) for k, s in schema["properties"].items()})


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@settings(deadline=None)
@given(data=st.data())
def test_the_schema_takes_whatever_comes_out(kind: type, data: st.DataObject) -> None:
    schema = status_schema(kind)
    status = data.draw(
        values(schema) | st.fixed_dictionaries({}, optional={k: values(s) for k, s in schema["properties"].items()})
    )
    told = bounded(status if isinstance(status, dict) else {}, schema)
    Draft202012Validator(schema).validate(json.loads(json.dumps(told, allow_nan=False)))
    assert bounded(told, schema) == told


def test_a_long_message_is_cut_and_a_full_list_too() -> None:
    schema = status_schema(FineTuneJob)
    condition = {"type": "Ready", "status": "False", "reason": "Refused", "message": "m" * 5000}
    told = bounded({"conditions": [condition], "published": [f"pvc://c/{n}" for n in range(500)]}, schema)
    assert told["conditions"][0]["message"].endswith("…")
    assert (
        len(told["conditions"][0]["message"])
        == schema["properties"]["conditions"]["items"]["properties"]["message"]["maxLength"]
    )
    assert len(told["published"]) == schema["properties"]["published"]["maxItems"]


def test_what_only_a_newer_release_knows_is_left_out_and_the_rest_stays() -> None:
    steps = [{"name": "prepare", "state": "Succeeded"}, {"name": "train", "state": "Paused", "attempt": 2}]
    told = bounded({"steps": steps, "colour": "blue"}, status_schema(FineTuneJob))
    assert told == {"steps": [steps[0], {"name": "train", "attempt": 2}]}


def test_two_items_of_one_key_become_the_last_one() -> None:
    told = bounded({"steps": [{"name": "train", "attempt": 1}, {"name": "train", "attempt": 2}]}, status_schema(FineTuneJob))
    assert told == {"steps": [{"name": "train", "attempt": 2}]}
