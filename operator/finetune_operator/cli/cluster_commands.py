"""The commands that look at a cluster, or change something in it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from finetune_operator.cli import changes, chat, checkup, doctor, following, logs, reach, status
from finetune_operator.cli.reach import Reach
from finetune_operator.errors import ClusterError, NotPossible
from finetune_operator.meta import Object

NOT_POSSIBLE = 2

app = typer.Typer()
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Default: the namespace of the context.")]
Context = Annotated[str | None, typer.Option(help="A context of the kubeconfig. Default: the current one.")]
Name = Annotated[str, typer.Argument(help="A FineTuneJob or ModelServe: NAME, ftj/NAME or mserve/NAME.")]
Job = Annotated[str, typer.Argument(help="A FineTuneJob.")]
Serve = Annotated[str, typer.Argument(help="A ModelServe.")]


@app.command("status")
def show(
    name: Annotated[str | None, typer.Argument(help="NAME, ftj/NAME or mserve/NAME. Default: a list of all jobs.")] = None,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Show how a job or a served model stands. Exit status 0: it has what was asked for, or goes on; 1: it has failed."""

    async def work(cluster: Reach) -> int:
        if name is None:
            Console().print(status.listed(await cluster.list("FineTuneJob")))
            return 0
        body = await reach.named(cluster, name)
        Console().print(status.shown(body, datetime.now(UTC)))
        return status.exit_status(body) or 0

    in_cluster(context, namespace, work)


@app.command()
def watch(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Follow a job or a rollout, live, until it has ended. Exit status as that of `status`."""

    async def work(cluster: Reach) -> int:
        return await following.until_it_stands(cluster, await reach.named(cluster, name), Console())

    in_cluster(context, namespace, work)


@app.command("logs")
def print_logs(
    name: Job,
    step: Annotated[str | None, typer.Option(help="This step alone: train, evaluate, quantize-q4, …")] = None,
    attempt: Annotated[int | None, typer.Option(help="This attempt alone.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until the job has ended.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Reports of progress as the pods print them.")] = False,
    store: Annotated[
        Path | None, typer.Option(help="A folder with what the job's artifact store has, to read instead.")
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Print what a job's pods have printed, step by step and attempt by attempt; of pods that are gone, what the store has."""

    async def work(cluster: Reach) -> int:
        job, asked = await reach.named(cluster, name, "FineTuneJob"), logs.Asked(step, attempt)
        printing = following.Printing(cluster, print, raw, store)
        if follow:
            return await printing.until_the_end(job, asked)
        await printing.all_there_is(job, asked)
        return 0

    in_cluster(context, namespace, work)


@app.command("doctor")
def examine(namespace: Namespace = None, context: Context = None) -> None:
    """Tell what of the cluster is in the way of fine-tuning and serving, and what to do. Exit status 1: there is a fault."""

    async def work(cluster: Reach) -> int:
        return checkup.told(doctor.examine(await checkup.read_facts(cluster)), Console())

    in_cluster(context, namespace, work)


@app.command("chat")
def talk(
    name: Name,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this alone. Default: each line of input.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 512,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Talk with a served model, through a port that kubectl forwards. An end of input ends it."""

    async def work(cluster: Reach) -> int:
        serve = await reach.served(cluster, name)
        model, key = chat.model_of(serve), await reach.api_key(cluster, serve)
        before = [{"role": "system", "content": system}] if system else []
        with chat.forwarded(serve, context) as port:
            conversation = chat.Chat(f"http://127.0.0.1:{port}/v1", model, key, max_tokens, _piece, before)
            for question in [message] if message is not None else _questions():
                conversation.ask(question)
        return 0

    in_cluster(context, namespace, work)


def _piece(text: str) -> None:
    print(text, end="", flush=True)


def _questions() -> Iterator[str]:
    """The lines that come in, as long as some do; on a terminal behind a prompt."""
    console = Console()
    while True:
        try:
            line = console.input("> " if console.is_terminal else "")
        except EOFError:
            return
        if line.strip():
            yield line


@app.command()
def promote(
    name: Serve,
    step: Annotated[bool, typer.Option("--step", help="Go on with the next step of spec.rollout.canary alone.")] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Let the revision that has passed its gate, and waits or has a share, take the traffic."""
    _change(name, "ModelServe", partial(changes.promotion, step=step), namespace, context)


@app.command()
def rollback(name: Serve, namespace: Namespace = None, context: Context = None) -> None:
    """Leave the live revision for the one before it."""
    _change(name, "ModelServe", changes.rollback, namespace, context)


@app.command()
def cancel(
    name: Job,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the job; results in its store stay.")] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Stop a job: it saves a checkpoint and gives its GPUs back, and can go on later."""
    if not delete:
        _change(name, "FineTuneJob", changes.cancellation, namespace, context)

    async def work(cluster: Reach) -> int:
        job = await reach.named(cluster, name, "FineTuneJob")
        await cluster.delete(job)
        print(f"FineTuneJob {job['metadata']['name']} deleted; its store stays, and a job of the same inputs finds it")
        return 0

    in_cluster(context, namespace, work)


def _change(
    name: str, kind: str, decide: Callable[[Object], changes.Change], namespace: str | None, context: str | None
) -> None:
    async def work(cluster: Reach) -> int:
        body = await reach.named(cluster, name, kind)
        change = decide(body)
        await cluster.change(body, change.patch)
        print(f"{kind} {body['metadata']['name']}: {change.told}")
        return 0

    in_cluster(context, namespace, work)


def in_cluster(context: str | None, namespace: str | None, work: Callable[[Reach], Awaitable[int]]) -> None:
    """Do it there, and end with its exit status; what can't be done is one sentence, and status 2."""

    async def connected() -> int:
        cluster = await reach.connect(context, namespace)
        try:
            return await work(cluster)
        finally:
            await cluster.close()

    try:
        code = asyncio.run(connected())
    except (ClusterError, NotPossible) as error:
        Console(stderr=True).print(str(error), soft_wrap=True, highlight=False, markup=False)
        code = NOT_POSSIBLE
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)
