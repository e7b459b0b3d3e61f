"""Evaluate: score each subject on the test rows, and keep the scores under the subject's own fingerprint.

The base's scores depend on base, rows, generation settings and the engine that answered: another job with the same four
finds them. `rows.jsonl` beside them holds every answer, and `asked.jsonl` the first few rows with the token ids that they were
asked for with, each answered once more by itself: what a served model is asked again. Status and logs hold none. `tasks.json`
is what lm-eval says of each task.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_trainer.context import Context
from finetune_trainer.contract import held_out, served_rows
from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.evaluation import LLAMA_CPP, AnswerEngine
from finetune_trainer.contract.pipeline import BASE, EVALUATE, MERGE, MERGED, answered, subjects, tasks_for
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Scores, StepResult
from finetune_trainer.contract.served_rows import AskedRow
from finetune_trainer.data import rendered
from finetune_trainer.data.rendered import TEST, Rendered
from finetune_trainer.failures import StepFailed
from finetune_trainer.libraries import quieten
from finetune_trainer.scoring import scores, task_files, task_scores
from finetune_trainer.scoring.scorer import Scorer
from finetune_trainer.scoring.task_scores import TaskScores


def run(context: Context) -> StepResult:
    """Score what isn't scored yet and commit. Raises StepFailed NoTestRows when there is nothing to score on."""
    done = context.committed()
    if done is not None:
        return done
    quieten()
    rows = _rows(context)
    engine = engine_for(context, rows)
    made = tuple(_scored(context, subject, rows, engine) for subject in subjects(context.run, context.step))
    folder = context.scratch / "output"
    folder.mkdir()
    (folder / "scores.json").write_text(json.dumps([s.model_dump(mode="json", by_alias=True) for s in made], indent=1))
    result = StepResult(step=context.step.name, fingerprint=context.inputs.fingerprint(context.step.name), scores=made)
    return context.commit(folder, result, {s.subject: _fingerprint(context, s.subject, engine) for s in made})


def _rows(context: Context) -> list[Rendered]:
    """The first rows of the test split, as many as generation.samples says, tokens and mask as they were rendered."""
    _, folder = context.inputs.data()
    rows = rendered.read(folder, TEST, context.run.generation.samples)
    if not rows:
        raise StepFailed(StepReason.NoTestRows, "dataset.test left no rows to score on: give it a larger fraction or a uri")
    return rows


def engine_for(context: Context, rows: Sequence[Rendered]) -> str:
    """What writes the answers. Plain text is asked nothing, and its loss is transformers' whatever the engine.

    Raises StepFailed ToolMissing where vLLM is asked for and isn't there.
    """
    if (alone := _scored_by(context)) is not None:
        return alone
    asked, there = context.run.generation.engine, importlib.util.find_spec("vllm") is not None
    if asked is AnswerEngine.TRANSFORMERS or not _generated(rows):
        return AnswerEngine.TRANSFORMERS
    if asked is AnswerEngine.VLLM and not there:
        raise StepFailed(
            StepReason.ToolMissing,
            "spec.evaluation.engine VLLM needs an image that has vLLM, and this one has none: name one in"
            " spec.stages.evaluate.image or in the chart's images.evaluator, or set the engine to Auto",
        )
    return AnswerEngine.VLLM if there and (asked is AnswerEngine.VLLM or context.step.needs_gpu) else AnswerEngine.TRANSFORMERS


def _scored_by(context: Context) -> str | None:
    """The engine that scores this step's own artifact, where it has one."""
    return next((a.of_format.scored_by for a in context.run.artifacts if a.name == context.step.artifact), None)


def _generated(rows: Sequence[Rendered]) -> bool:
    return all(row.prompt for row in rows)


def _fingerprint(context: Context, subject: str, engine: str) -> str:
    return answered(context.inputs.fingerprint(f"evaluate/{subject}"), engine)


def _scored(context: Context, subject: str, rows: Sequence[Rendered], engine: str) -> Scores:
    """Scores of one subject, from the store where they are there."""
    fingerprint = _fingerprint(context, subject, engine)
    earlier = context.store.read(EVALUATE, fingerprint)
    if earlier is not None:
        return earlier.result.scores[0]
    context.progress(f"scoring {subject}", 0, len(rows))
    answers: list[scores.Answer] = []
    scorer = _scorer(context, subject, rows, engine)
    generated = _generated(rows)
    is_served = generated and subject != BASE
    for answer in scorer.score(rows, served_rows.ROWS if is_served else 0):
        answers.append(answer)
        context.progress(f"scoring {subject}", len(answers), len(rows))
    labelled = context.inputs.data()[0].format is DatasetFormat.CLASSIFICATION
    values = scores.values(answers, generated=generated, labelled=labelled)
    folder = context.scratch / "scores" / subject
    _write(folder, rows, answers, generated)
    if is_served:
        _write_asked(context, folder, rows, scorer.alone)
    made = Scores(
        subject=subject,
        samples=len(rows),
        engine=engine if generated else None,
        values=dict(values),
        answers=fingerprint if is_served else None,
    )
    if tasks_for(context.run, subject):
        told = _task_scores(context, subject, scorer)
        (folder / "tasks.json").write_text(json.dumps(told.record, indent=1, default=str))
        made = made.model_copy(update={"values": made.values | told.values, "lower_is_better": told.lower_is_better or None})
    result = StepResult(step=context.step.name, fingerprint=fingerprint, scores=(made,))
    kept = context.keep(EVALUATE, folder, result, {"subject": subject, "engine": engine}, scorer.checks)
    return kept.result.scores[0]


def _task_scores(context: Context, subject: str, scorer: Scorer) -> TaskScores:
    """The tasks' scores of the model of transformers that the scorer holds once it has scored."""
    tasks = tasks_for(context.run, subject)
    loaded = task_scores.load(tasks, task_files.kept(context.inputs.tasks()), context.scratch / "task-rows")

    def report(task: str) -> None:
        context.progress(f"scoring {subject} on {task}")

    held: Any = scorer  # tasks_for names no subject that llama.cpp scores
    return task_scores.score(held.model, held.tokenizer, loaded, tasks, report)


def _scorer(context: Context, subject: str, rows: Sequence[Rendered], engine: str) -> Scorer:
    """llama.cpp for GGUF files, vLLM or transformers for all else; all see the token ids of the base's tokenizer."""
    from finetune_trainer.model.compute import compute_for
    from finetune_trainer.model.loading import end_tokens, load_tokenizer

    _, base = context.inputs.model()
    tokenizer = load_tokenizer(base)
    new_tokens = context.run.generation.max_new_tokens
    if engine == LLAMA_CPP:
        from finetune_trainer.scoring.by_llamacpp import LlamaCppScorer

        _, folder = context.inputs.output(f"quantize-{subject}")
        (file,) = folder.glob("*.gguf")
        return LlamaCppScorer(file, tokenizer, end_tokens(tokenizer, base), new_tokens, rows)
    compute = compute_for(context.run.training.precision, context.run.devices)
    folder = base if subject == BASE else _folder(context, subject)
    if engine == AnswerEngine.VLLM:
        from finetune_trainer.scoring.by_vllm import VllmScorer

        return VllmScorer(folder, tokenizer, end_tokens(tokenizer, base), new_tokens, compute)
    from finetune_trainer.scoring.by_transformers import TransformersScorer

    return TransformersScorer(folder, tokenizer, end_tokens(tokenizer, base), new_tokens, compute)


def _folder(context: Context, subject: str) -> Path:
    _, folder = context.inputs.output(MERGE if subject == MERGED else f"quantize-{subject}")
    return folder


def _write(folder: Path, rows: Sequence[Rendered], answers: Sequence[scores.Answer], generated: bool) -> None:
    """rows.jsonl: prompt, reference, answer and the row's own scores."""
    folder.mkdir(parents=True)
    with (folder / held_out.FILE).open("w") as out:
        for row, answer in zip(rows, answers, strict=True):
            line: dict[str, str | float] = {
                "prompt": row.prompt,
                "reference": answer.reference,
                "answer": answer.answer,
                **{str(metric): value for metric, value in scores.of_row(answer, generated=generated).items()},
                "lossSum": answer.loss_sum,
                "entropySum": answer.entropy_sum,
                "tokens": answer.tokens,
            }
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_asked(context: Context, folder: Path, rows: Sequence[Rendered], answers: Sequence[str]) -> None:
    """asked.jsonl: the first rows, as a served model will be asked them, and what each was answered by itself."""
    from finetune_trainer.model.loading import load_tokenizer

    tokenizer = load_tokenizer(context.inputs.model_without_weights())
    special, longest = not tokenizer.chat_template, served_rows.length(context.run.generation.max_new_tokens)
    with (folder / served_rows.FILE).open("w") as out:
        for number, (row, answer) in enumerate(zip(rows, answers, strict=False), 1):
            asked = AskedRow(
                row=number,
                prompt=row.prompt,
                special_tokens=special,
                prompt_ids=tuple(tokenizer(row.prompt, add_special_tokens=special).input_ids),
                asked_ids=row.asked_ids,
                max_tokens=longest,
                answer=answer,
            )
            out.write(asked.model_dump_json(by_alias=True) + "\n")
