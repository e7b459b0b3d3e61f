"""Reports of dropped and changed rows: within what a pod can say, and read though an older release wrote them."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_trainer.contract.pod import TERMINATION_LIMIT
from finetune_trainer.contract.reasons.remarks import RemarkReason
from finetune_trainer.contract.reports import DatasetFacts, FitFacts, ModelFacts, Remark, StepResult, Termination
from finetune_trainer.data.dataset import NAME_SHOWN, NAMES_SHOWN
from finetune_trainer.data.ledger import DROPPED, Cause, Note, counted, told
from finetune_trainer.termination import message

DIGEST = "sha256:" + "0" * 64
FACTS = DatasetFacts(
    format="UnpairedPreference",
    train_digest=DIGEST,
    test_digest=DIGEST,
    train_rows=10**9,
    validation_rows=10**9,
    test_rows=10**9,
    dropped_rows=10**9,
    train_tokens=10**12,
    longest_row_tokens=10**6,
)


def reasons(warnings: Sequence[Remark]) -> list[str]:
    return [warning.reason for warning in warnings]


def test_every_cause_with_its_longest_example_fits_into_a_termination_message() -> None:
    notes = [Note(cause, "folder/" * 20 + "train-00000-of-00001.jsonl line 1234567") for cause in Cause]
    names = tuple("n" * NAME_SHOWN for _ in range(NAMES_SHOWN + 1))
    facts = FACTS.model_copy(
        update={
            "dropped": counted(notes, dropped=True),
            "changed": counted(notes, dropped=False),
            "unused_columns": names,
            "unread_files": names,
            "tasks_digest": DIGEST,
        }
    )
    assert facts.dropped is not None
    assert facts.dropped[0].example.endswith(".jsonl line 1234567")
    assert len(facts.dropped) + len(facts.changed or ()) == len(Cause)
    model = ModelFacts(revision="r" * 64, digest=DIGEST, parameters=10**12, architecture="A" * 40, bytes=10**13)
    model = model.model_copy(update={"teacher_digest": DIGEST, "plain_attention_tokens": 10**6})
    fit = FitFacts(
        predicted_bytes=10**12, micro_batch_size=64, gradient_checkpointing="Full", terms={f"term {n}": 1 for n in range(9)}
    )
    apart = (RemarkReason.FieldUnused, RemarkReason.LowLearningRate)  # the operator's, and what no rate is beside too high
    warnings = tuple(Remark(reason=reason, message="m" * 250) for reason in RemarkReason if reason not in apart)
    result = StepResult(step="prepare", fingerprint="f" * 20, model=model, dataset=facts, fit=fit, warnings=warnings)
    text = message(Termination(result=result))
    assert len(text.encode()) <= TERMINATION_LIMIT
    read = Termination.model_validate_json(text).result
    assert read is not None
    told = read.warnings or ()
    assert (read.dataset, reasons(told)) == (facts, reasons(warnings)[: len(told)]), "the last ones are lost first"
    result = result.model_copy(update={"dataset": FACTS})
    read = Termination.model_validate_json(message(Termination(result=result))).result
    assert read is not None
    assert read.dataset == FACTS
    assert reasons(read.warnings or ()) == reasons(warnings), "all are told, if not to their ends"
    few = result.model_copy(update={"warnings": warnings[:8]})
    assert Termination.model_validate_json(message(Termination(result=few))).result == few


def test_every_cause_of_a_dropped_row_is_told_in_words() -> None:
    (count,) = counted([Note(Cause.NO_ANSWER, "a.jsonl line 3"), Note(Cause.NO_ANSWER, "a.jsonl line 5")], dropped=True)
    assert told([count]) == "2 NoAnswer (a.jsonl line 3 has an empty answer, or none)"
    assert {*DROPPED} < {*Cause}


def test_a_report_without_causes_is_read() -> None:
    older = FACTS.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    assert DatasetFacts.model_validate(older) == FACTS
