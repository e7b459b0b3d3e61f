"""What a pod ends with: each reason has one exit code, so that the two can't disagree."""

from __future__ import annotations

from enum import auto

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reasons import Reason

# What pods of earlier releases report, and what it is called now.
RETIRED = {
    "BadConfig": "InvalidSpec",
    "EngineMissing": "ToolMissing",
    "InvalidUri": "InvalidSpec",
    "RunConfigUnreadable": "RunConfigInvalid",
    "TasksNeedLmEval": "ToolMissing",
    "Unexpected": "UnexpectedError",
}


def ends(exit_code: ExitCode, text: str) -> tuple[auto, ExitCode, str]:
    """One row of the table below."""
    return auto(), exit_code, text


class StepReason(Reason):
    """Why a pod's program stopped."""

    exit_code: ExitCode

    def __new__(cls, name: str, exit_code: ExitCode, text: str) -> StepReason:
        member = str.__new__(cls, name)
        member._value_, member.exit_code, member.text = name, exit_code, text
        return member

    # ── The spec, and the image that runs it ──────────────────────────────────────────────────────────────────────────
    InvalidSpec = ends(ExitCode.BAD_CONFIG, "the configuration can't be run; correct the spec")
    RunConfigInvalid = ends(
        ExitCode.BAD_CONFIG, "the pod can't read the run's configuration; give the operator and the trainer's image one version"
    )
    StepUnknown = ends(ExitCode.BAD_CONFIG, "the run has no such step; give the operator and the trainer's image one version")
    ToolMissing = ends(
        ExitCode.BAD_CONFIG,
        "the image lacks a program or package that the step needs; set spec.stages.<stage>.image to one that has it",
    )
    # ── Sources ───────────────────────────────────────────────────────────────────────────────────────────────────────
    SourceUnavailable = ends(
        ExitCode.SOURCE_UNAVAILABLE, "the source of the model or dataset did not answer; see whether the pods may reach it"
    )
    SourceNotFound = ends(ExitCode.SOURCE_NOT_FOUND, "the model or dataset does not exist; correct its uri")
    SourceDenied = ends(ExitCode.SOURCE_DENIED, "the model or dataset was denied; set secretRef to a Secret that may read it")
    ModelNotFound = ends(ExitCode.SOURCE_NOT_FOUND, "nothing lies where spec.model (or the teacher) points; correct its uri")
    ModelAccessDenied = ends(
        ExitCode.SOURCE_DENIED, "the source refuses the model; set secretRef beside its uri to a Secret that may read it"
    )
    ModelChanged = ends(
        ExitCode.SOURCE_NOT_FOUND,
        "the model's files are no longer those that this job began with; put them back, or give the new ones another uri",
    )
    DatasetNotFound = ends(ExitCode.SOURCE_NOT_FOUND, "nothing lies where spec.dataset points; correct its uri")
    DatasetAccessDenied = ends(
        ExitCode.SOURCE_DENIED, "the source refuses the rows; set spec.dataset.secretRef to a Secret that may read them"
    )
    DatasetDigestMismatch = ends(
        ExitCode.BAD_DATA, "the file has another digest than the uri's #sha256=; correct the file or the digest"
    )
    TaskFilesNotFound = ends(ExitCode.SOURCE_NOT_FOUND, "nothing lies where spec.evaluation.taskFiles points; correct its uri")
    TaskFilesAccessDenied = ends(
        ExitCode.SOURCE_DENIED, "the source refuses the task files; let the Secret of spec.dataset.secretRef read them"
    )
    # ── The artifact store ────────────────────────────────────────────────────────────────────────────────────────────
    StoreUnavailable = ends(
        ExitCode.STORE_UNAVAILABLE, "the artifact store did not answer, or is full; see spec.storage.artifacts"
    )
    StoreNotFound = ends(ExitCode.BAD_CONFIG, "the bucket of the artifact store does not exist; make it, or correct its uri")
    StoreAccessDenied = ends(
        ExitCode.SOURCE_DENIED, "the artifact store refuses the keys; correct the Secret of spec.storage.artifacts.secretRef"
    )
    StoreNotTrusted = ends(
        ExitCode.BAD_CONFIG, "nobody trusted has signed the store's certificate; name its authority in caSecretRef"
    )
    InputMissing = ends(
        ExitCode.STORE_UNAVAILABLE, "what an earlier step made is no longer whole in the artifact store; it is looked for again"
    )
    EntryIncomplete = ends(
        ExitCode.STORE_UNAVAILABLE, "an entry of the artifact store lacks facts; remove that folder, so that it is made again"
    )
    ArtifactDamaged = ends(
        ExitCode.STORE_UNAVAILABLE, "a file came from the artifact store with another digest; it is fetched again"
    )
    CheckpointDamaged = ends(ExitCode.STORE_UNAVAILABLE, "a checkpoint is not whole; training goes on from the one before it")
    CheckpointsDiffer = ends(
        ExitCode.STORE_UNAVAILABLE, "the nodes of an attempt read different checkpoints; the next attempt reads them again"
    )
    # ── The base model ────────────────────────────────────────────────────────────────────────────────────────────────
    ModelUnsupported = ends(ExitCode.BAD_CONFIG, "this is no model that can be trained here; name a decoder-only transformer")
    ModelWithoutSafetensors = ends(
        ExitCode.BAD_CONFIG, "the model has no safetensors; convert it, or set spec.model.weights: Pickle"
    )
    ModelDamaged = ends(
        ExitCode.BAD_CONFIG, "the model's files are cut short, or lack weights that its config.json asks for; upload it again"
    )
    PickleRefused = ends(
        ExitCode.BAD_CONFIG, "a pickle holds more than plain tensors, and its code is never run; convert it to safetensors"
    )
    PicklesNotNeeded = ends(ExitCode.BAD_CONFIG, "the model has safetensors as well; remove spec.model.weights: Pickle")
    TokenizerUnsupported = ends(ExitCode.BAD_CONFIG, "the model's tokenizer can't be used; put its tokenizer.json beside it")
    VocabulariesDiffer = ends(
        ExitCode.BAD_CONFIG, "teacher and student have different vocabularies; take two models of one family"
    )
    ModelNotConvertible = ends(
        ExitCode.BAD_CONFIG, "an artifact can't be made of this model; remove it, take another format, or take another model"
    )
    # ── The chat template ─────────────────────────────────────────────────────────────────────────────────────────────
    ChatTemplateMissing = ends(
        ExitCode.BAD_DATA, "the model has no chat template, and the rows are conversations; name one in spec.model.chatTemplate"
    )
    ChatTemplateNotFound = ends(ExitCode.BAD_CONFIG, "the ConfigMap lacks the template's key; correct spec.model.chatTemplate")
    ChatTemplateInvalid = ends(ExitCode.BAD_CONFIG, "the template of spec.model.chatTemplate can't be rendered; correct it")
    ChatTemplateChanged = ends(
        ExitCode.BAD_CONFIG, "the template is not the one that results were made with; put it back, or give the new one a name"
    )
    ChatTemplateRefused = ends(
        ExitCode.BAD_DATA, "the model's chat template refuses a row; correct the row, or name another template"
    )
    # ── Rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    InvalidDataset = ends(ExitCode.BAD_DATA, "the dataset can't be used; correct it or spec.dataset")
    DatasetUnreadable = ends(ExitCode.BAD_DATA, "a file of the dataset can't be read as what its name says; correct the file")
    DatasetSubsetUnknown = ends(ExitCode.BAD_DATA, "the dataset has several subsets, or not this one; set spec.dataset.subset")
    DatasetSplitUnknown = ends(ExitCode.BAD_DATA, "the dataset lacks this split; name one of those that the message lists")
    DatasetColumnsUnknown = ends(
        ExitCode.BAD_DATA, "no format fits the rows' columns; say in spec.dataset.columns which column is which"
    )
    DatasetRowInvalid = ends(ExitCode.BAD_DATA, "a row is not as its format wants it; correct the row that the message names")
    DatasetRowsTooLong = ends(
        ExitCode.BAD_DATA, "too many rows are longer than spec.training.maxLength; raise it, or dataset.maxDroppedFraction"
    )
    DatasetRowsDropped = ends(
        ExitCode.BAD_DATA, "more rows would be left out than spec.dataset.maxDroppedFraction allows; correct them, or raise it"
    )
    DatasetEmpty = ends(
        ExitCode.BAD_DATA, "no rows are left to train on; see what spec.dataset takes, and what test takes away"
    )
    DatasetOneSided = ends(
        ExitCode.BAD_DATA, "all rows are marked alike, so that there is nothing to tell apart; add the others"
    )
    DatasetLabelUnknown = ends(ExitCode.BAD_DATA, "a row has a label that is not known; add it to spec.dataset.labels, or rows")
    DatasetLabelsUnused = ends(ExitCode.BAD_DATA, "spec.dataset.labels is for rows of format Classification; remove it")
    NothingToLearn = ends(ExitCode.BAD_DATA, "the chat template leaves no token of a row's answer; correct the row or template")
    ObjectiveNeedsPreferences = ends(
        ExitCode.BAD_DATA, "the objective learns from preferences, and the rows are none; take other rows, or objective SFT"
    )
    ObjectiveNeedsOtherRows = ends(
        ExitCode.BAD_DATA, "the objective can't learn from rows with answers to be avoided; take DPO, ORPO or KTO"
    )
    RowsChanged = ends(
        ExitCode.BAD_DATA, "the rows are no longer those that results were made of; put them back, or give new ones another uri"
    )
    NoTestRows = ends(ExitCode.BAD_DATA, "there are no rows to score on; give spec.dataset.test a larger fraction, or a uri")
    # ── Memory and training ───────────────────────────────────────────────────────────────────────────────────────────
    DoesNotFit = ends(
        ExitCode.DOES_NOT_FIT,
        "there is less memory than is needed: to train, use QLoRA, lower spec.training.maxLength or take a larger GPU; to"
        " serve, lower spec.engine.maxModelLength or give more",
    )
    OutOfGpuMemory = ends(
        ExitCode.OUT_OF_GPU_MEMORY,
        "the GPU's memory is too small; lower spec.training.microBatchSize or maxLength, or take a larger GPU",
    )
    OutOfMemory = ends(
        ExitCode.OUT_OF_MEMORY, "the container used more memory than its limit; raise resources.limits.memory of that stage"
    )
    Killed = ends(ExitCode.OUT_OF_MEMORY, "the program was killed by the system")
    ScratchFull = ends(ExitCode.UNEXPECTED, "the scratch disk is full; raise spec.storage.scratch.size")
    NonFiniteLoss = ends(
        ExitCode.NON_FINITE_LOSS, "the loss became infinite or NaN; lower spec.training.learningRate or use BF16"
    )
    Hang = ends(ExitCode.HANG, "no step ended for a long time")
    LostRank = ends(ExitCode.LOST_RANK, "another rank of the attempt was lost")
    WorldIncomplete = ends(ExitCode.WORLD_INCOMPLETE, "not all pods of the attempt came together")
    NotSharded = ends(ExitCode.WORLD_INCOMPLETE, "the model was not shared out among the GPUs, so nothing was trained")
    LauncherFailed = ends(ExitCode.UNEXPECTED, "torchrun or Ray ended before any rank did; see the pod's log")
    Preempted = ends(ExitCode.PREEMPTED, "the pod was asked to stop and saved a checkpoint")
    Terminated = ends(ExitCode.TERMINATED, "the pod was asked to stop")
    UnexpectedError = ends(ExitCode.UNEXPECTED, "the program ended with an error; see the pod's log")
    # ── Artifacts, scores and what is published ───────────────────────────────────────────────────────────────────────
    VerificationFailed = ends(
        ExitCode.VERIFICATION_FAILED, "the result does not agree with what it was made from; see the pod's log"
    )
    ConversionFailed = ends(
        ExitCode.VERIFICATION_FAILED, "the model can't be brought into this format; take another format or quantization"
    )
    EngineFailed = ends(
        ExitCode.UNEXPECTED, "vLLM can't load the model or answer; see the log, or set spec.evaluation.engine: Transformers"
    )
    TaskNotFound = ends(ExitCode.BAD_DATA, "no task file defines this task; put it at spec.evaluation.taskFiles, or rename it")
    TaskFileMissing = ends(ExitCode.BAD_DATA, "a task names a file that is not beside it; put it there")
    TaskRefused = ends(
        ExitCode.BAD_DATA, "a task file asks for what is not allowed or can't be read; correct it as the message says"
    )
    TaskUnusable = ends(ExitCode.BAD_DATA, "lm-eval can't run this task; correct its file as the message says")
    TasksChanged = ends(
        ExitCode.BAD_DATA,
        "the task files are no longer those that scores were made of; put them back, or name the new ones anew",
    )
    TaskScoreUnknown = ends(
        ExitCode.BAD_DATA, "a gate names a score that its task does not have; take one that the message lists"
    )
    TooManyScores = ends(ExitCode.BAD_DATA, "the tasks have more scores than a pod can report; name fewer tasks or metrics")
    PublishDenied = ends(ExitCode.SOURCE_DENIED, "the hub does not let us write there; set secretRef of that publish target")
    PublishRefused = ends(ExitCode.BAD_CONFIG, "the hub refuses this repository; correct spec.publish[].uri or private")
    PublishDamaged = ends(ExitCode.STORE_UNAVAILABLE, "what was published reads back wrong; it is copied again")
    # ── Serving ───────────────────────────────────────────────────────────────────────────────────────────────────────
    NotAModel = ends(ExitCode.BAD_DATA, "the folder holds no model that the engine serves; correct spec.model.uri")
    ModelNotServed = ends(ExitCode.VERIFICATION_FAILED, "the engine serves another model than spec.servedName; see its log")
    AdapterNotFound = ends(ExitCode.SOURCE_NOT_FOUND, "nothing lies where an adapter's uri points; correct it")
    AdapterUnsupported = ends(
        ExitCode.BAD_CONFIG, "the engine can't serve this as an adapter; give it room, or serve the merged model"
    )
    AdapterOfAnotherBase = ends(ExitCode.BAD_CONFIG, "the adapter was trained over another model than the one that serves")
    AdapterRefused = ends(
        ExitCode.VERIFICATION_FAILED, "the engine does not load the adapter; the message has the engine's own words"
    )
    AdapterNotLoaded = ends(
        ExitCode.SOURCE_UNAVAILABLE, "not every pod has loaded the adapter in time; it is waited for, and asked again"
    )
    EngineUnavailable = ends(ExitCode.SOURCE_UNAVAILABLE, "the engine can't be reached, or is too busy; it is asked again")
    GateFailed = ends(
        ExitCode.VERIFICATION_FAILED,
        "a gate was not passed, so nothing was published or served; change the training or the gate",
    )
    TooSlow = ends(
        ExitCode.VERIFICATION_FAILED,
        "a served model answers more slowly than spec.rollout.gate asks for; give it more, or ask for less",
    )
    WorseThanLive = ends(
        ExitCode.VERIFICATION_FAILED,
        "a new revision answers worse than the live one by more than spec.rollout.gate allows; the message has both scores",
    )
    TooManyErrors = ends(
        ExitCode.VERIFICATION_FAILED,
        "a revision failed at too many requests within its rollback window; the revision before serves again",
    )
    SlowedDown = ends(
        ExitCode.VERIFICATION_FAILED,
        "a revision answers its traffic much more slowly than the one before, which serves again; give it more",
    )
    JudgeUnavailable = ends(ExitCode.SOURCE_UNAVAILABLE, "the judge of spec.rollout.gate does not answer; it is asked again")
    JudgeRefused = ends(
        ExitCode.SOURCE_DENIED, "the judge's server refuses the key or has no such model; correct spec.rollout.gate.judge"
    )
    TooFewVerdicts = ends(
        ExitCode.BAD_DATA, "the judge gave too few verdicts; let it be asked more, or take one that says A, B or tie"
    )
    TooFewRows = ends(
        ExitCode.BAD_DATA,
        "too few test rows were answered by both revisions for a verdict; ask more, give them more time, or lower minRows",
    )
    GateTimeout = ends(
        ExitCode.VERIFICATION_FAILED,
        "the prompts were not all answered in time; raise spec.rollout.gate.timeoutSeconds or lower maxTokens",
    )
    RowsNotFound = ends(
        ExitCode.SOURCE_NOT_FOUND,
        "the evaluation kept no rows to ask again; run the job again, or set gate.testRows.count to 0",
    )
    RowsAccessDenied = ends(ExitCode.SOURCE_DENIED, "the rows to ask again are refused; let the Secret of the model read them")
    RowsDamaged = ends(
        ExitCode.VERIFICATION_FAILED, "the rows to ask again can't be read; remove their folder, and run the job again"
    )
