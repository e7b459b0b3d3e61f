"""A FineTuneJob's spec as the RunConfig that its pods get, in a cluster and with `finetune run --local` alike."""

from __future__ import annotations

from finetune_operator.api.evaluation import Evaluation
from finetune_operator.api.finetunejob import FineTuneJob, FineTuneJobSpec
from finetune_operator.api.finetunejob_status import Resolved
from finetune_operator.meta import quantity_value
from finetune_operator.names import artifacts_claim
from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.devices import Devices
from finetune_trainer.contract.evaluation import Generation
from finetune_trainer.contract.places import PVC
from finetune_trainer.contract.reports import FitFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.tasks import Tasks
from finetune_trainer.contract.training import Training


def run_config(job: FineTuneJob) -> RunConfig:
    """All that one run needs. Defaults that depend on other fields are filled in, so fingerprints see values."""
    config = asked(job)
    return config.model_copy(update={"training": _training(config.training)})


def asked(job: FineTuneJob) -> RunConfig:
    """What the spec says of a run; choices that it leaves open are open here."""
    spec = job.spec
    return RunConfig(
        namespace=job.metadata.namespace,
        name=job.metadata.name,
        model=spec.model,
        dataset=spec.dataset,
        training=spec.training,
        devices=devices(spec),
        merge_base=spec.merge.base,
        artifacts=tuple(spec.artifacts),
        generation=Generation(
            engine=spec.evaluation.engine,
            samples=spec.evaluation.samples,
            max_new_tokens=spec.evaluation.max_new_tokens,
        ),
        tasks=_tasks(spec.evaluation),
        publish=tuple(spec.publish),
        keep_runs=spec.storage.artifacts.keep_runs,
        store=_store(job.metadata.name, spec),
    )


def devices(spec: FineTuneJobSpec) -> Devices:
    """What the train pods will hold."""
    gpus = spec.parallelism.gpus_per_node
    memory = spec.parallelism.gpu.memory if gpus else spec.stages.train.resources.limits.get("memory")
    return Devices(
        gpus=gpus,
        memory_bytes=None if memory is None else int(quantity_value(memory)),
        nodes=spec.parallelism.num_nodes,
        strategy=spec.parallelism.strategy,
        launcher=spec.parallelism.launcher,
    )


def resolved(run: RunConfig, fit: FitFacts | None, smaller: int | None, serving_artifact: str | None) -> Resolved:
    """What the job's status shows of the choices that its spec left open. The fit is known once prepare has run;
    `smaller` is the micro-batch that the GPU's memory held, where it did not hold the fit's.
    """
    return Resolved(
        micro_batch_size=smaller or (fit.micro_batch_size if fit else run.training.micro_batch_size),
        gradient_checkpointing=fit.gradient_checkpointing if fit else None,
        strategy=fit.strategy if fit else None,
        learning_rate=run.training.learning_rate,
        epochs=run.training.epochs,
        store=run.store.uri,
        serving_artifact=serving_artifact,
    )


def _training(training: Training) -> Training:
    chosen: dict[str, object] = {}
    if training.learning_rate is None:
        chosen["learning_rate"] = training.peak_rate
    if training.epochs is None and training.max_steps is None:
        chosen["epochs"] = training.passes
    return training.model_copy(update=chosen)


def _tasks(evaluation: Evaluation) -> Tasks | None:
    if evaluation.task_files is None:
        return None
    judged = dict.fromkeys(gate.metric for gate in evaluation.gates if "/" in gate.metric)
    return Tasks(named=tuple(evaluation.tasks), files=evaluation.task_files, judged=tuple(judged))


def _store(name: str, spec: FineTuneJobSpec) -> StoreConfig:
    store = spec.storage.artifacts
    uri = store.uri or f"{PVC.prefix}{artifacts_claim(name)}/{name}"
    return StoreConfig(uri=uri.rstrip("/"), endpoint=store.endpoint, region=store.region)
