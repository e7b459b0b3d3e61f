"""spec.dataset as people write it in YAML."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from finetune_trainer.contract.dataset import Dataset


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("{0: bad, 1: good}", {"0": "bad", "1": "good"}),
        ("{true: spam, false: ham}", {"true": "spam", "false": "ham"}),
        ("{1.0: one, 2: 2, 0.5: 1.5}", {"1": "one", "2": "2", "0.5": "1.5"}),
        ('{"0": "no", "1": "yes"}', {"0": "no", "1": "yes"}),
    ],
)
def test_labels_as_yaml_has_them(written: str, read: dict[str, str]) -> None:
    assert Dataset.model_validate({"uri": "pvc://data", "labels": yaml.safe_load(written)}).labels == read


@pytest.mark.parametrize("written", ["{null: bad}", "{0: null}", '{0: ""}', '{"": bad}', '{0: " "}', '{" ": bad}'])
def test_labels_or_words_that_are_empty_are_refused_with_what_to_write(written: str) -> None:
    with pytest.raises(ValidationError, match=r"is empty, or null to YAML; write both as text"):
        Dataset.model_validate({"uri": "pvc://data", "labels": yaml.safe_load(written)})


def test_labels_that_are_no_mapping_are_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"(?s)labels.*valid dictionary"):
        Dataset.model_validate({"uri": "pvc://data", "labels": ["bad", "good"]})


def test_words_that_yaml_reads_as_booleans_are_refused_with_the_quotes_to_write() -> None:
    with pytest.raises(
        ValidationError, match=r'the word of 0 is a boolean to YAML.*write it in quotes: \{"0": "no", "1": "yes"\}'
    ):
        Dataset.model_validate({"uri": "pvc://data", "labels": yaml.safe_load("{0: no, 1: yes}")})
