"""Foreign text within bounds: what is too deep, too large or no JSON never reaches a loop that serves others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_operator.decoding import DEEPEST, UNREADABLE, decode_line, decode_objects

NAMES = {"metadata": {"name": "facts", "annotations": {"a": 'quoted " and \\ [{', "b": "[[[["}}}


def nested(levels: int) -> str:
    """JSON of so many mappings and lists in each other."""
    return '{"a":[' * (levels // 2) + "1" + "]}" * (levels // 2)


def body(template: str) -> str:
    spec = f'{{"model": {{"uri": "hf://a/b"}}, "serving": {{"list": [1, 2], "template": {template}}}}}'
    mirror = f'{{"managedFields": [{{"fieldsV1": {template}}}], {json.dumps(NAMES["metadata"])[1:]}'
    return f'{{"kind": "FineTuneJob", "spec": {spec}, "metadata": {mirror}, "status": {{"stage": "x"}}}}'


def depth(value: Any) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return 1 + max(map(depth, inner), default=0) if isinstance(value, dict | list) else 0


@pytest.mark.parametrize("levels", [DEEPEST + 10, 400, 1500, 10_000])
@pytest.mark.parametrize("place", ["alone", "in a list", "in a watch's event"])
def test_what_is_too_deep_is_cut_out_of_its_object_alone(levels: int, place: str) -> None:
    one, good = body(nested(levels)), body("{}")
    match place:
        case "alone":
            found = decode_objects(one)
        case "in a list":
            answer = decode_objects(f'{{"kind": "FineTuneJobList", "items": [{good}, {one}, {good}]}}'.encode())
            before, found, after = answer["items"]
            assert before == after == json.loads(good)
        case _:
            found = decode_objects(f'{{"type": "MODIFIED", "object": {one}}}')["object"]
    assert found[UNREADABLE] == f"spec.serving.template has more than {DEEPEST} levels of nesting; make it flatter"
    assert found["metadata"].items() >= NAMES["metadata"].items()
    assert found["spec"]["model"] == {"uri": "hf://a/b"}
    assert found["spec"]["serving"]["list"] == [1, 2]
    assert found["status"] == {"stage": "x"}
    assert depth(found) <= DEEPEST + 3


@pytest.mark.parametrize("text", [body("{}"), body(nested(40)), "[]", '"text"', "{}"])
def test_what_is_within_bounds_is_read_as_it_is(text: str) -> None:
    assert decode_objects(text) == json.loads(text)


@pytest.mark.parametrize("text", ["", "no json", '{"a":', "[" * 5000, '{"a":' * 5000])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        decode_objects(text)


def test_a_small_flat_line_is_read() -> None:
    assert decode_line('{"kind": "progress", "step": 3, "loss": -2.5e-1}') == {"kind": "progress", "step": 3, "loss": -0.25}


@pytest.mark.parametrize(
    "line",
    [
        '{"a":' + nested(1500) + "}",
        '{"a":' + nested(6) + "}",
        '{"a": "' + "x" * 20_000 + '"}',
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": -Infinity}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a": 99999999999999999}',
        "[1]",
        '{"a": ',
        "Loading weights",
    ],
)
def test_any_other_line_is_none(line: str) -> None:
    assert decode_line(line) is None
