"""Whether two models read the same tokens."""

from __future__ import annotations

import json
from pathlib import Path

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.data.rendering import load_tokenizer
from finetune_trainer.failures import StepFailed


def check_vocabulary(student: Path, teacher: Path) -> None:
    """A distillation compares predictions token by token: raises StepFailed VocabulariesDiffer where they are not the same."""
    sizes, vocabularies = [], []
    for folder in (student, teacher):
        config = json.loads((folder / "config.json").read_bytes())
        sizes.append(config.get("text_config", config).get("vocab_size"))
        vocabularies.append(load_tokenizer(folder).get_vocab())
    ours, theirs = vocabularies
    if sizes[0] == sizes[1] and ours == theirs:
        return
    other = sum(theirs.get(token) != number for token, number in ours.items())
    raise StepFailed(
        StepReason.VocabulariesDiffer,
        f"spec.training.distillation.teacher has another vocabulary than spec.model ({sizes[1]} entries against {sizes[0]},"
        f" {other} of its tokens differ): take a teacher of the same family and size of vocabulary",
    )
