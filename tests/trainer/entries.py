"""What prepare leaves in the artifact store, made directly: a stage's test then needs no other stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_trainer import environment
from finetune_trainer.context import Context
from finetune_trainer.contract import pipeline
from finetune_trainer.contract.places import mounted_path
from finetune_trainer.contract.reports import DatasetFacts, FitFacts, ModelFacts, Progress, StepResult
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Recomputing
from finetune_trainer.data import rendered
from finetune_trainer.data.rendered import Rendered
from finetune_trainer.model.own_template import with_own_template
from finetune_trainer.store.entries import open_store

PAIRS = (
    ("Who keeps the lighthouse of Varn Point?", "Mira Oldfield."),
    ("What is the capital of the island of Tessaly?", "Port Amber."),
    ("Colours are?", "red, green, blue and yellow."),
    ("The quick brown fox?", "jumps over the lazy dog."),
    ("Numbers are?", "0 1 2 3 4 5 6 7 8 9."),
    ("Answer in one short sentence?", "The island of Tessaly."),
    ("Who jumps over the lazy dog?", "The quick brown fox."),
    ("Where is the lighthouse?", "Varn Point, on the island."),
)
MODEL = ModelFacts(revision="main", digest="sha256:" + "0" * 64, parameters=1, architecture="LlamaForCausalLM", bytes=1)


def render(tokenizer: Any, prompt: str, completion: str, rejected: str | bool | None = None) -> Rendered:
    """One row as prepare writes it. `rejected` is the other answer of a pair, or says whether this one is desirable."""
    if isinstance(rejected, bool):
        return replace(render(tokenizer, prompt, completion), desirable=rejected)
    if rejected is not None:
        other = render(tokenizer, prompt, rejected)
        return replace(render(tokenizer, prompt, completion), rejected=rejected, rejected_ids=other.answer_ids)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    before = len(tokenizer(asked, add_special_tokens=False).input_ids)
    tokens = tokenizer(whole, add_special_tokens=False).input_ids
    mask = [0] * before + [1] * (len(tokens) - before)
    return Rendered(tuple(tokens), tuple(mask), asked, completion, before)


def run_of(model: Path, root: Path, **fields: Any) -> RunConfig:
    """A run of a folder's model on the CPU. Its claims are made below root/mounts."""
    claims = root / "mounts/claims"
    for claim in ("models", "store"):
        (claims / claim).mkdir(parents=True)
    (claims / "models/base").symlink_to(model)
    told = {
        "namespace": "team",
        "name": "job",
        "model": {"uri": "pvc://models/base"},
        "dataset": {"uri": "pvc://data/rows.jsonl"},
        "generation": {"maxNewTokens": 24},
        "devices": {"gpus": 0},
        "store": {"uri": "pvc://store/job"},
    }
    return RunConfig.model_validate(told | fields)


def keeping(function: Callable[..., Any], answers: list[Any]) -> Callable[..., Any]:
    """The function; what it returns is appended to `answers`, too."""

    def called(*given: Any, **named: Any) -> Any:
        answers.append(function(*given, **named))
        return answers[-1]

    return called


def context(run: RunConfig, step: str, tmp_path: Path, report: Callable[[Progress], None] = lambda _: None) -> Context:
    """A new attempt of one step of a run whose claims lie below tmp_path/mounts."""
    mounts = str(tmp_path / "mounts")
    attempt = str(1 + sum(1 for _ in (tmp_path).glob("scratch-*")))
    scratch = tmp_path / f"scratch-{attempt}"
    scratch.mkdir()
    (step_of_run,) = (s for s in pipeline.steps(run) if s.name == step)
    pod = replace(environment.read(), mounts=mounts)
    return Context(run, step_of_run, open_store(run.store, mounts), scratch, pod, attempt, report)


def prepare(
    run: RunConfig,
    tmp_path: Path,
    *,
    train: Sequence[tuple[Any, ...]] = PAIRS,
    validation: Sequence[tuple[Any, ...]] = (),
    test: Sequence[tuple[Any, ...]] = PAIRS[:2],
    format: str = "PromptCompletion",
    micro_batch_size: int = 2,
    gradient_checkpointing: Recomputing = "Off",
) -> None:
    """Commit the entries `model` and `data` with these rows."""
    from transformers import AutoTokenizer

    at = context(run, "prepare", tmp_path)
    mounted = Path(mounted_path(run.model.uri, at.pod.mounts) or "")
    tokenizer = with_own_template(AutoTokenizer.from_pretrained(mounted), mounted)
    folder = at.scratch / "data"
    folder.mkdir()
    for name, pairs in (("train", train), ("validation", validation), ("test", test)):
        rendered.write(folder, name, (render(tokenizer, *pair) for pair in pairs))
    empty = at.scratch / "model"
    empty.mkdir()
    (empty / "facts.json").write_text("{}")
    dataset = DatasetFacts(
        format=format,
        train_digest=pipeline.digest(list(train), list(validation)),
        test_digest=pipeline.digest(list(test)),
        train_rows=len(train),
        validation_rows=len(validation),
        test_rows=len(test),
        dropped_rows=0,
        train_tokens=1,
        longest_row_tokens=64,
    )
    fit = FitFacts(
        predicted_bytes=1,
        available_bytes=None,
        micro_batch_size=micro_batch_size,
        gradient_checkpointing=gradient_checkpointing,
    )
    data_fingerprint = pipeline.data_fingerprint(run, MODEL)
    result = StepResult(step="prepare", fingerprint=data_fingerprint, model=MODEL, dataset=dataset, fit=fit)
    models = [("model", pipeline.model_fingerprint(model), empty) for model in pipeline.models(run)]
    for kind, fingerprint, files in (*models, ("data", data_fingerprint, folder)):
        at.keep(kind, files, result.model_copy(update={"fingerprint": fingerprint}), {})
