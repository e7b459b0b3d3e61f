"""Quantize: make one artifact of the merged model, and prove that it answers as the merged model does.

Which module of export/ makes it, contract/formats says.
"""

from __future__ import annotations

import importlib

from finetune_trainer.context import Context
from finetune_trainer.contract.pipeline import MERGE, TRAIN
from finetune_trainer.contract.reports import ArtifactFacts, StepResult
from finetune_trainer.libraries import quieten


def run(context: Context) -> StepResult:
    """Make, prove and commit the step's artifact. Raises StepFailed ConversionFailed or VerificationFailed."""
    done = context.committed()
    if done is not None:
        return done
    quieten()
    from finetune_trainer.export import card

    artifact = next(a for a in context.run.artifacts if a.name == context.step.artifact)
    merged, merged_folder = context.inputs.output(MERGE)
    trained = context.store.read(TRAIN, context.inputs.fingerprint(TRAIN))
    folder = context.scratch / "output"
    folder.mkdir()
    made_by = importlib.import_module(f"finetune_trainer.export.{artifact.of_format.made_by}")
    notes = made_by.make(context, artifact, merged_folder, folder)
    checks = made_by.prove(context, artifact, merged_folder, folder)
    for check in checks:
        print(f"{check.name} {check.value:.3g}, limit {check.limit:.3g}", flush=True)
    card.copy_licences(merged_folder, folder)
    if trained is not None and trained.result.train is not None:
        card.write(folder, context, trained.result.train, artifact)
    made = ArtifactFacts.made(artifact.name, artifact.format, artifact.quantization)
    result = StepResult(step=context.step.name, fingerprint=context.inputs.fingerprint(context.step.name), artifact=made)
    return context.commit(folder, result, {MERGE: merged.fingerprint} | notes, checks)
