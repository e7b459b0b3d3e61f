"""The commands. Each reads its file, says what is wrong with it in sentences, and exits with a status that scripts can use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from finetune_operator.cli import cluster_commands, local, model_config, pythons, show
from finetune_operator.cli import estimate as estimates
from finetune_operator.cli.document import Document, FileError, read_document
from finetune_operator.cli.render import children, manifests
from finetune_operator.cli.words import warning
from finetune_operator.cli.workdir import Given, Workdir, prepare_workdir
from finetune_operator.finetunejob.runs import current_run
from finetune_operator.finetunejob.unused import unused
from finetune_operator.meta import quantity_of

FAILED, BAD_FILE = 1, 2

app = typer.Typer(
    help="Fine-tune, prove and serve language models: in a cluster, or the file of `kubectl apply` on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
File = Annotated[Path, typer.Argument(help="YAML file with one FineTuneJob and the ConfigMaps that it reads.")]
Claim = Annotated[list[str] | None, typer.Option(help="NAME=DIRECTORY: the folder that stands for a claim of the file.")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Use no GPU, whatever spec.parallelism says.")]


app.add_typer(cluster_commands.app)


@app.command()
def run(
    file: File,
    local_: Annotated[bool, typer.Option("--local", help="Run the steps as processes on this machine.")] = False,
    workdir: Annotated[
        Path | None, typer.Option(help="Where data and results go; what is there is reused. Default: .finetune/<job>.")
    ] = None,
    claim: Claim = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=DIRECTORY: the folder that stands for a Secret, a file for each key. Default: the environment."
        ),
    ] = None,
    python: Annotated[
        list[str] | None,
        typer.Option(help="quantizer=PROGRAM, evaluator=PROGRAM: the Python that stands for that image of a cluster."),
    ] = None,
    cpu: Cpu = False,
) -> None:
    """Run a FineTuneJob. Exit status 0: all steps done and the gates passed; 1: not; 2: the file can't be used."""
    console, errors = Console(), Console(stderr=True)
    if not local_:
        errors.print(f"this command runs jobs on this machine: add --local; in a cluster: kubectl apply -f {file}")
        raise typer.Exit(BAD_FILE)
    try:
        document = read_document(file, cpu=cpu)
        config, _ = current_run(document.job)
        root = workdir or Path(".finetune") / document.job.metadata.name
        given = Given(_folders("--claim", claim), _folders("--secret", secret), pythons.given(python or []))
        folders = prepare_workdir(document, config, root, given)
    except FileError as error:
        raise typer.Exit(_refuse(errors, error)) from None
    raise typer.Exit(_run(console, errors, document, folders, file))


@app.command()
def render(file: File, cpu: Cpu = False) -> None:
    """Print what the operator would create for a FineTuneJob, without a cluster."""
    try:
        document = read_document(file, cpu=cpu)
    except FileError as error:
        raise typer.Exit(_refuse(Console(stderr=True), error)) from None
    for remark in unused(document.job.spec):
        Console(stderr=True).print(warning(remark), soft_wrap=True, highlight=False, markup=False)
    print(manifests(children(document.job)), end="")


@app.command()
def estimate(
    file: File,
    gpu: Annotated[
        list[str] | None, typer.Option(help="Memory of one GPU, such as 24Gi; several may be named. Default: the file's.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The base model's config.json. Default: its hub's, or that in the folder of its claim.")
    ] = None,
    parameters: Annotated[
        float | None, typer.Option(help="How many parameters it has, in billions. Default: as its hub or config.json says.")
    ] = None,
    row_tokens: Annotated[int | None, typer.Option(help="Tokens of the longest row. Default: spec.training.maxLength.")] = None,
    claim: Claim = None,
) -> None:
    """Say which methods fit a GPU, and with which settings, before anything is applied. Exit status 1: the file's does not."""
    try:
        document = read_document(file)
        run, _ = current_run(document.job)
        wanted = gpu or [m for m in (document.job.spec.parallelism.gpu.memory,) if m] or list(estimates.USUAL_GPUS)
        if wrong := [size for size in wanted if not quantity_of(size)]:
            raise FileError(f"--gpu {wrong[0]} is no amount of memory; write it as 24Gi")
        folders, billions = _folders("--claim", claim), None if parameters is None else round(parameters * 1e9)
        distillation = run.config.training.distillation
        teacher = model_config.shape(distillation.teacher, folders) if distillation else None
        model = model_config.shape(run.config.model, folders, config, billions)
    except FileError as error:
        raise typer.Exit(_refuse(Console(stderr=True), error)) from None
    subject = estimates.Subject(run.config, model, teacher, row_tokens)
    found = list(estimates.answers(subject, wanted))
    Console().print(estimates.table(subject, found))
    own = [answer for answer in found if answer.method is run.config.training.method]
    raise typer.Exit(FAILED if own and all(answer.problem for answer in own) else 0)


@app.command()
def report(
    file: File,
    workdir: Annotated[Path | None, typer.Option(help="Where `run --local` worked. Default: .finetune/<job>.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: report.html in that folder.")] = None,
) -> None:
    """Write a page that tells of a run on this machine: scores, curve, answers, rows, proofs, lineage. It needs no network."""
    errors = Console(stderr=True)
    try:
        root = workdir or Path(".finetune") / read_document(file).job.metadata.name
        if not (root / "run.json").is_file():
            raise FileError(f"{root} holds no run; finetune run --local {file} makes one")
    except FileError as error:
        raise typer.Exit(_refuse(errors, error)) from None
    page = (output or root / "report.html").resolve()
    if (problem := local.write_report(Workdir(root.resolve()), page)) is not None:
        errors.print(problem, soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(FAILED)
    print(page)


def _run(console: Console, errors: Console, document: Document, workdir: Workdir, file: Path) -> int:
    try:
        if console.is_terminal:
            live = show.LiveBars(console)
            with live.bars:
                ending = local.run_locally(document, workdir, live.watcher())
        else:
            ending = local.run_locally(document, workdir, show.Lines(console).watcher())
    except local.StepStopped as stop:
        errors.print(f"{stop.step} failed: {stop.reason}: {stop.message}", soft_wrap=True, highlight=False, markup=False)
        errors.print(f"log: {stop.log}", soft_wrap=True, highlight=False)
        return FAILED
    except local.Interrupted as stop:
        errors.print(f"stopped by {stop}; the same command goes on from the last checkpoint")
        return stop.exit_status
    show.show_result(console, ending, workdir, file)
    return 0 if ending.passed else FAILED


def _folders(option: str, given: list[str] | None) -> dict[str, Path]:
    """Folders by the name of what they stand for."""
    if wrong := [g for g in given or () if "=" not in g]:
        raise FileError(f"{option} {wrong[0]} has no directory; write NAME=DIRECTORY")
    return {name: Path(folder).expanduser() for name, _, folder in (g.partition("=") for g in given or ())}


def _refuse(errors: Console, error: FileError) -> int:
    for problem in error.problems:
        errors.print(problem, soft_wrap=True, highlight=False, markup=False)
    return BAD_FILE
