"""Names of at most 63 characters that stay apart."""

from __future__ import annotations

import re

import pytest

from finetune_operator import names

LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
LONG = "a" * 200


@pytest.mark.parametrize("owner", ["facts", "with.dots", LONG, "a" * 60, "x." * 100 + "x"])
def test_names_are_dns_labels(owner: str) -> None:
    for name in (
        names.step_job(owner, "evaluate-abcdefghijklmnopqrst", "0123abcd", 12),
        names.run_config_map(owner, "0123abcd"),
        names.artifacts_claim(owner),
        names.volume_name("claim", owner),
    ):
        assert LABEL.match(name), name


def test_short_names_are_kept() -> None:
    assert names.step_job("facts", "train", "0123abcd", 2) == "facts-train-0123abcd-2"
    assert names.artifacts_claim("facts") == "facts-artifacts"


@pytest.mark.parametrize(("one", "other"), [("a.b", "a-b"), (LONG + "1", LONG + "2")])
def test_names_that_are_cut_or_changed_stay_apart(one: str, other: str) -> None:
    assert names.artifacts_claim(one) != names.artifacts_claim(other)
    assert names.volume_name("claim", one) != names.volume_name("claim", other)
    assert names.label_value(one) != names.label_value(other)


def test_label_values_fit() -> None:
    assert len(names.label_value(LONG)) <= names.LONGEST
    assert names.label_value("with.dots") == "with.dots"
