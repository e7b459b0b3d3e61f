"""What the operator says itself, of a FineTuneJob and of a ModelServe."""

from __future__ import annotations

from finetune_trainer.contract.reasons import Reason, means


class OperatorReason(Reason):
    """Reason of a condition, of an event, or of a failed attempt whose pod can't tell."""

    # ── A job at work ─────────────────────────────────────────────────────────────────────────────────────────────────
    Preparing = means("model and data are fetched and checked, and the memory is estimated")
    Training = means("the train step starts or runs")
    Merging = means("the adapter is merged into the base model")
    Quantizing = means("an artifact of spec.artifacts is made and proven")
    Evaluating = means("the models are scored on the test rows")
    Publishing = means("artifacts are copied to spec.publish")
    Cleaning = means("what earlier runs made is removed, as spec.storage.artifacts.keepRuns says")
    Serving = means("a job waits for the ModelServe that it hands its result to; a ModelServe with this reason serves")
    Stopping = means("pods that still run must end before the next step starts")
    Suspended = means("spec.suspend is true; set it to false to go on")
    PodNotCreated = means("a step's Job has no pod; a quota or an admission webhook may refuse it: see `kubectl describe job`")
    Queued = means("the step's Job waits until Kueue's queue admits it")
    QueueNotFound = means(
        "the LocalQueue of Kueue that the spec or its profile names does not exist; create it, or correct the field"
    )
    KueueNotFound = means("the step's Job waits in a queue of Kueue, which the cluster lacks; install it, or remove the field")
    JobSuspended = means("somebody else suspended the step's Job, and it goes on when they resume it")
    ManagedElsewhere = means("spec.managedBy names another controller, which runs the job and tells of it in the status")
    Held = means("the annotation finetune.dev/hold is true; remove it to go on")
    Succeeded = means("the model is trained, has passed its gates and, where spec.serving is set, serves")
    # ── A job that waits for a person ─────────────────────────────────────────────────────────────────────────────────
    ClaimNotFound = means("a PersistentVolumeClaim that the spec names does not exist; create it, or correct the field")
    ClaimNotShared = means("one node at a time can mount the claim, and several must; take one with access mode ReadWriteMany")
    ConfigMapNotFound = means("a ConfigMap that the spec names does not exist; create it, or correct the field")
    ConfigMapKeyNotFound = means("the ConfigMap lacks the key that the spec names; add it, or correct the field")
    SecretNotFound = means("a Secret that the spec names does not exist; create it, or correct the field")
    SecretKeyNotFound = means("the Secret lacks a key that its source needs; add the key that the message names")
    ServingRefused = means("the ModelServe does not take the result; its own reason is in the message")
    Refused = means(
        "the API server refuses what the operator must write: a quota, a policy or its Role; the message says which"
    )
    OperatorFault = means("the operator failed at this object and tries again; see the operator's log")
    # ── An attempt whose pod can't tell ───────────────────────────────────────────────────────────────────────────────
    PodDeleted = means("the pod was deleted before it ended; the step starts again")
    NodeLost = means("the pod's node answers no more; the step starts again on another")
    PodLost = means("the pod vanished without an exit code; the step starts again")
    JobDeleted = means("the Job was deleted from outside; the step starts again")
    PendingDeadlineExceeded = means(
        "no pod started within spec.pendingDeadlineSeconds; raise it, or see what the pod waits for"
    )
    DeadlineExceeded = means("the job has taken longer than spec.activeDeadlineSeconds; raise it")
    BudgetExhausted = means(
        "the job has used the GPU-hours of spec.budget.gpuHours, or the next minutes would pass them; raise it"
    )
    ResultLost = means("the step's report could not be read; prepare looks for its result")
    # ── The condition Fits ────────────────────────────────────────────────────────────────────────────────────────────
    EnoughMemory = means("training is estimated to fit into the memory of its device")
    MemoryUnknown = means("nobody said how much memory there is; set spec.parallelism.gpu.memory to have it checked")
    # ── A ModelServe's model ──────────────────────────────────────────────────────────────────────────────────────────
    WaitingForJob = means("the FineTuneJob of spec.model.jobRef has not succeeded yet")
    JobNotFound = means("there is no such FineTuneJob in this namespace; create it, or correct spec.model.jobRef.name")
    JobFailed = means("the FineTuneJob made nothing to serve; its own reason is in the message")
    ArtifactNotFound = means("the FineTuneJob has no such artifact; correct spec.model.jobRef.artifact, or add it to the job")
    EngineMismatch = means("the engine does not serve artifacts of this format; change the engine or the artifact")
    EvaluationNotFound = means("spec.rollout.gate asks test rows, and the model has no evaluation; have it scored, or ask none")
    NotOffered = means("the spec asks for a profile, image or service account that is not offered; take one that is named")
    NameTaken = means("a Service of this name belongs to somebody else; delete it, or rename the ModelServe")
    AdapterOutOfReach = means("pods have no way to where an adapter lies; name its claim in spec.lora.claims")
    # ── A revision on its way ─────────────────────────────────────────────────────────────────────────────────────────
    Loading = means("a revision's pods start and load the model")
    Gating = means("a revision is asked the prompts of spec.rollout.gate")
    Scaling = means("the live revision has fewer pods than are asked for; more are on their way")
    ScaledToZero = means("there are no pods: spec.replicas is 0, or nobody has asked for spec.autoscaling.idleSeconds")
    GateNotAsked = means("the gate's Job came to no verdict, since its pod or the engine was taken away; it is asked again")
    NotReadyInTime = means("the pods take longer than was reckoned; `kubectl describe pod` says what is missing")
    StartupTimeout = means("the engine did not answer in time; raise spec.rollout.startupTimeoutSeconds, or see its log")
    Unschedulable = means("no node takes the pod; the scheduler's text says what is missing")
    FailedCreate = means("no pod could be created: Pod Security or a webhook is in the way; the message has its words")
    QuotaExceeded = means("a ResourceQuota takes no such pod; set the resources that it asks for, free some, or have it raised")
    LimitRangeExceeded = means("a LimitRange of the namespace bounds what a container may ask for; set resources within it")
    ContainerCreating = means("the pod's volumes or image take long; `kubectl describe pod` says which")
    CrashLoopBackOff = means("a container ends again and again; see the log that the message names")
    Recreating = means("the live revision is stopped to make room for the new one; nothing answers until that takes over")
    AwaitingPromotion = means(
        "a revision has passed its gate and spec.rollout.promotion is Manual; the annotation finetune.dev/promote lets it serve"
    )
    Canary = means("a revision that has passed its gate takes a share of the traffic, step by step, before it takes all")
    AwaitingTurn = means(
        "a default image or pull policy changed, and other ModelServes load it first; the live revision serves on until then"
    )
    Pinned = means("the revision that somebody pinned, or rolled back to, serves; the spec may ask for another")
    RevisionNotFound = means("the revision that is pinned or gone back to is not remembered; name one of status.history")
    EngineRestarted = means("an engine ended within the rollback window; the revision before serves again: see the message")
    ProbesFailed = means("pods failed their readiness probe within the rollback window; the revision before serves again")
    # ── The condition AdaptersReady ───────────────────────────────────────────────────────────────────────────────────
    AdaptersLive = means("each name of spec.adapters leads to the adapter that is asked for")
    AdaptersOnTheirWay = means("an adapter waits, is loaded or is asked what its gate says; status.adapters tells of each")
    # ── The condition Available ───────────────────────────────────────────────────────────────────────────────────────
    Answering = means("pods of the live revision answer")
    Holding = means("no pod is there, as nobody asked for a while; a request starts one, and is held until it answers")
    NoPods = means("no pod of the live revision is available")
    NothingLive = means("no revision has passed its gate yet")
    # ── Events ────────────────────────────────────────────────────────────────────────────────────────────────────────
    StepStarted = means("a step's Job was created; it names the step that has succeeded just before")
    StepSucceeded = means("a step has ended, its result is kept, and no other step was started at once")
    StepReused = means("a step's output was in the artifact store already")
    RevisionLoading = means("a new revision is started")
    RevisionRefused = means("a revision failed to load or did not pass its gate; the live one goes on serving")
    RevisionRolledBack = means("a revision proved bad within its rollback window; the one before serves again")
    AdapterPromoting = means("an adapter has passed its gate, and pods are told to lead its name to it")
    AdapterLive = means("an adapter has passed its gate, and its name leads to it in every pod")
    AdapterDegraded = means("an adapter has passed its gate, and not every pod leads its name to it now; the message says why")
    AdapterNotServed = means("an adapter can't be served as asked for; the one before of its name goes on, if there is one")
    RevisionLive = means("the Service selects this revision now")
