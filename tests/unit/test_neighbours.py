"""The field that an unknown one stands for, named in the sentence that refuses it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.modelserve import ModelServe, ModelServeSpec
from finetune_operator.neighbours import CHOSEN_BY_ITSELF, MEANT_OTHERWISE, OTHERS_NAMES
from finetune_operator.sentences import sentences

JOB = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}}
PLACED = (
    ("training.numTrainEpochs", "spec.training.epochs"),
    ("training.num_train_epochs", "spec.training.epochs"),
    ("training.lora_r", "spec.training.lora.rank"),
    ("training.lora.r", "spec.training.lora.rank"),
    ("training.lora.target_modules", "spec.training.lora.targets"),
    ("training.lora.lora_dropout", "spec.training.lora.dropout"),
    ("training.learning_rate", "spec.training.learningRate"),
    ("training.learnigRate", "spec.training.learningRate"),
    ("training.evalSteps", "spec.training.evaluateEverySteps"),
    ("training.numNodes", "spec.parallelism.numNodes"),
    ("training.columns", "spec.dataset.columns"),
    ("base_model", "spec.model.uri"),
    ("epochs", "spec.training.epochs"),
    ("lora", "spec.training.lora"),
    ("gates", "spec.evaluation.gates"),
    ("datset", "spec.dataset"),
    ("nodeSelector", "spec.podTemplate.nodeSelector or spec.stages.<stage>.nodeSelector"),
    ("sequence_len", "spec.training.maxLength"),
)


def said(model: type[BaseModel], path: str, good: Mapping[str, Any]) -> str:
    spec = dict(good)
    *folders, name = path.split(".")
    node = spec
    for folder in folders:
        node[folder] = node = {}
    node[name] = 1
    with pytest.raises(ValidationError) as error:
        model.model_validate({"metadata": {"name": "a", "namespace": "b"}, "spec": spec}, by_name=False)
    (sentence,) = sentences(error.value, model, "")
    return sentence


@pytest.mark.parametrize(("written", "field"), PLACED)
def test_an_unknown_field_names_its_likely_neighbour(written: str, field: str) -> None:
    assert said(FineTuneJob, written, JOB) == f"spec.{written} is not a field; write {field}"


@pytest.mark.parametrize(("field", "names"), OTHERS_NAMES.items())
def test_each_name_of_another_tool_leads_to_a_field(field: str, names: str) -> None:
    for name in names.split():
        sentence = said(FineTuneJob, f"training.{name}", JOB)
        assert sentence.partition("; write ")[2].split(" ")[0] == field, sentence
        assert sentence.partition(" (")[2].removesuffix(")") == MEANT_OTHERWISE.get(name, ""), sentence


def test_a_name_of_another_tool_is_told_once() -> None:
    counted = Counter(name for names in (*OTHERS_NAMES.values(), CHOSEN_BY_ITSELF) for name in names.split())
    assert [name for name, times in counted.items() if times > 1] == []
    assert set(MEANT_OTHERWISE) <= set(counted)


def test_what_is_done_by_itself_is_to_be_removed() -> None:
    sentence = "spec.training.flash_attention is not a field; remove it: that is chosen or done by itself"
    assert said(FineTuneJob, "training.flash_attention", JOB) == sentence


@pytest.mark.parametrize("name", ["zzz", "uri", "name"])
def test_a_name_that_could_be_anything_is_not_guessed_at(name: str) -> None:
    assert said(FineTuneJob, f"training.{name}", JOB) == f"spec.training.{name} is not a field; remove it or correct its name"


def test_a_modelserve_has_neighbours_too() -> None:
    good = {"model": {"uri": "pvc://a/b"}, "engine": {"type": "VLLM"}}
    assert said(ModelServe, "replica", good) == "spec.replica is not a field; write spec.replicas"


def test_a_template_names_its_neighbour_where_it_lies() -> None:
    template = {"model": {"uri": "pvc://a/b"}, "engine": {"type": "VLLM"}, "served_name": "x"}
    with pytest.raises(ValidationError) as error:
        ModelServeSpec.model_validate(template, by_name=False)
    assert sentences(error.value, ModelServeSpec, "spec.serving.template") == [
        "spec.serving.template.served_name is not a field; write spec.serving.template.servedName"
    ]
