"""The two kinds of value that the contract is made of: what each takes, and that neither changes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_trainer.contract.fields import Report, Strict


class Written(Strict):
    number: int = 0
    share: float | None = None
    truth: bool = False
    bits: int | bool = 0
    size: int | str = 0


class Told(Report):
    long_name: int = 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", 2),
        ("share", 2),
        ("share", 0.5),
        ("share", None),
        ("truth", True),
        ("bits", 2),
        ("bits", True),
        ("size", 2),
        ("size", "2Gi"),
    ],
)
def test_a_value_of_its_type_is_taken_as_it_is(field: str, value: Any) -> None:
    assert getattr(Written.model_validate({field: value}), field) == value


NUMBER, TRUTH = "number_type", "truth_type"


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("number", "2", NUMBER),
        ("number", True, NUMBER),
        ("share", "0.5", NUMBER),
        ("share", False, NUMBER),
        ("bits", "2", NUMBER),
        ("size", True, NUMBER),
        ("truth", 1, TRUTH),
        ("truth", 1.0, TRUTH),
        ("truth", "true", TRUTH),
        ("bits", 1.0, TRUTH),
        ("share", float("inf"), "finite_number"),
        ("share", float("nan"), "finite_number"),
    ],
)
def test_a_value_of_another_type_is_refused_and_wording_knows_the_error_by_its_kind(field: str, value: Any, kind: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Written.model_validate({field: value})
    assert [error["type"] for error in refused.value.errors()] == [kind]


def test_a_report_is_read_by_either_name_passes_over_what_it_does_not_know_and_never_changes() -> None:
    by_alias = Told.model_validate({"longName": 2, "newerField": 1})
    assert by_alias == Told(long_name=2)
    assert by_alias.model_dump(by_alias=True) == {"longName": 2}
    with pytest.raises(ValidationError):
        by_alias.long_name = 3  # type: ignore[misc]
