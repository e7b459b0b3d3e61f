"""The gate's Job of a revision, and what it asks, as manifests."""

from __future__ import annotations

import json
from collections.abc import Sequence

from finetune_operator import credentials, pod_fields, pod_security
from finetune_operator.api.modelserve import ModelServe
from finetune_operator.api.rollout import Judge, Prompt
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.meta import Object
from finetune_operator.modelserve.gating import gate_job
from finetune_operator.modelserve.objects import owned, revision_labels, revision_name, service_url
from finetune_operator.modelserve.plan import Target, asked_rows, asks_speed
from finetune_operator.modelserve.pod import api_key, mounted_claim, served_name
from finetune_operator.names import LABEL_GATE, LABEL_REVISION, object_name, serve_labels, short_hash
from finetune_operator.settings import Settings
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.held_out import Live
from finetune_trainer.contract.judging import Judging
from finetune_trainer.contract.places import claim_of
from finetune_trainer.contract.pod import ENV_API_KEY, ENV_JUDGE_KEY, Owner

GREETING = Prompt(prompt="Hello! Who are you?")
GATE_FOLDER = "/etc/finetune"
HOSTNAME = "kubernetes.io/hostname"
GATE_REQUESTS, GATE_LIMITS = {"cpu": "100m", "memory": "128Mi"}, {"cpu": "1", "memory": "512Mi"}
GATE_RETRIES = 2  # for pods that were lost; a wrong answer is final
GATE_MARGIN_SECONDS = 300  # to schedule the gate's pod and pull its image
RUBRIC_FOLDER = "/etc/finetune-rubric"
FINAL = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [int(ExitCode.VERIFICATION_FAILED)]}}
LOST = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def gate_prompts(serve: ModelServe, asked: Sequence[Prompt]) -> Object:
    """A gate's prompts, under a name that is their hash, so that they never change under a running gate."""
    body = _prompts(asked)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": owned(serve, prompts_name(serve, asked), {}),
        "immutable": True,
        "data": {"prompts.json": body},
    }


def gate(serve: ModelServe, target: Target, settings: Settings, *, live: str | None = None, again: int = 0) -> Object:
    """The Job that asks a candidate its prompts, and compares it with the live revision. A lost pod is replaced, a wrong
    answer is not asked again.
    """
    asked, compared = serve.spec.rollout.gate, compared_with(serve, target.model, live)
    rounds = 1 + asks_speed(asked) + (asked_rows(serve, target.model) is not None)
    rounds += 0 if compared is None else 1 + (compared.judge is not None)
    seconds = rounds * asked.timeout_seconds + GATE_MARGIN_SECONDS
    labels = {**serve_labels(serve.metadata.name), LABEL_GATE: target.revision}
    metadata = owned(serve, gate_job(serve, target.revision, target.trial, again), {LABEL_REVISION: target.revision})
    template = _gate_pod(serve, target, settings, compared, labels)
    return asking_job(metadata, template, GATE_RETRIES, seconds * (GATE_RETRIES + 1), FINAL, LOST)


def compared_with(serve: ModelServe, model: ResolvedModel, live: str | None) -> Live | None:
    """The live revision, where the gate is to ask it as well."""
    wanted = serve.spec.rollout.gate
    if live is None or not wanted.compares or model.evaluation is None:
        return None
    return Live(
        revision=live,
        url=service_url(serve, revision_name(serve, live)),
        rows=model.evaluation,
        held_out=wanted.held_out,
        judge=wanted.judge and Judging(**wanted.judge.model_dump(include=set(Judging.model_fields))),
    )


def _gate_pod(serve: ModelServe, target: Target, settings: Settings, compared: Live | None, labels: dict[str, str]) -> Object:
    wanted, asked = serve.spec.rollout.gate, asked_rows(serve, target.model)
    template = asking_pod(serve, settings, "ask", _command(serve, target, compared, asked), labels)
    pod = template["spec"]
    (container,) = pod["containers"]
    container["volumeMounts"].insert(0, {"name": "prompts", "mountPath": GATE_FOLDER, "readOnly": True})
    pod["volumes"].insert(0, {"name": "prompts", "configMap": {"name": prompts_name(serve, wanted.prompts)}})
    if compared is not None and wanted.judge is not None:
        _add_judge(pod, wanted.judge)
    if target.model.evaluation is not None and (asked is not None or compared is not None):
        add_rows(pod, serve, target.revision, target.model, target.model.evaluation)
    return template


def _command(serve: ModelServe, target: Target, compared: Live | None, asked: str | None) -> list[str]:
    wanted, url = serve.spec.rollout.gate, service_url(serve, revision_name(serve, target.revision))
    command = ["python", "-m", "finetune_trainer.serving.ask", "--url", url, "--model", served_name(serve)]
    command += ["--prompts", f"{GATE_FOLDER}/prompts.json", "--max-tokens", str(wanted.max_tokens)]
    command += ["--timeout", str(wanted.timeout_seconds)]
    if wanted.min_tokens_per_second is not None:
        command += ["--min-tokens-per-second", f"{wanted.min_tokens_per_second:g}"]
    if wanted.max_first_token_milliseconds is not None:
        command += ["--max-first-token-milliseconds", str(wanted.max_first_token_milliseconds)]
    if asked is not None:
        command += ["--rows", asked, "--count", str(wanted.test_rows.count), "--min-equal", f"{wanted.test_rows.min_equal:g}"]
    if compared is not None:
        command += ["--live", compared.model_dump_json(by_alias=True)]
    return command


def asking_job(metadata: Object, template: Object, retries: int, seconds: int | None, *rules: Object) -> Object:
    """The Job of such a pod, which may take so many seconds with its retries, if not any; `rules` say what a failure means."""
    spec = {
        "backoffLimit": retries,
        **({} if seconds is None else {"activeDeadlineSeconds": seconds}),
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": list(rules)},
        "template": template,
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def asking_pod(serve: ModelServe, settings: Settings, name: str, command: list[str], labels: dict[str, str]) -> Object:
    """The template of a small pod that asks the engines something, with their API key where there is one."""
    container: Object = {
        "name": name,
        "image": settings.operator_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": command,
        "resources": {"requests": GATE_REQUESTS, "limits": GATE_LIMITS},
        "env": [{"name": "HOME", "value": "/tmp"}],
        "securityContext": pod_security.container(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security.pod(),
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    common = pod_fields.spec_fields(serve.spec.pod_template, {})
    pod |= {name: value for name, value in common.items() if name not in pod_fields.OF_SERVING_ALONE}
    pod |= pod_fields.pull_secrets(serve.spec.pod_template, settings)
    if serve.spec.auth is not None:
        container["env"].append(api_key(serve.spec.auth.secret_ref, ENV_API_KEY))
    return {"metadata": pod_fields.metadata(serve.spec.pod_template, labels), "spec": pod}


def _add_judge(pod: Object, judge: Judge) -> None:
    """The judge's key, and the rubric."""
    (container,) = pod["containers"]
    if judge.secret_ref is not None:
        container["env"].append(api_key(judge.secret_ref, ENV_JUDGE_KEY))
    if judge.rubric is not None:
        container["command"] += ["--rubric", f"{RUBRIC_FOLDER}/{judge.rubric.key}"]
        container["volumeMounts"].append({"name": "rubric", "mountPath": RUBRIC_FOLDER, "readOnly": True})
        pod["volumes"].append({"name": "rubric", "configMap": {"name": judge.rubric.name}})


def add_rows(pod: Object, serve: ModelServe, revision: str, model: ResolvedModel, rows: str) -> None:
    """What the pod of a gate needs to read the test rows of an evaluation."""
    (container,) = pod["containers"]
    for option, value in (("endpoint", model.endpoint), ("region", model.region)):
        if value is not None:
            container["command"] += [f"--{option}", value]
    secrets = {} if model.secret is None else {Owner.STORE: model.secret}
    container["volumeMounts"] += credentials.mounts(secrets)
    pod["volumes"] += credentials.volumes(secrets)
    if (claim := claim_of(rows)) is not None:
        volume, mount = mounted_claim(claim)
        pod["volumes"].append(volume)
        container["volumeMounts"].append(mount)
        # A ReadWriteOnce claim can be mounted where the engine has it and nowhere else, whatever that node's taints.
        beside = {"labelSelector": {"matchLabels": revision_labels(serve, revision)}, "topologyKey": HOSTNAME}
        pod["affinity"] = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [beside]}}
        pod["tolerations"] = [*pod.get("tolerations", ()), {"operator": "Exists", "effect": "NoSchedule"}]


def _prompts(asked: Sequence[Prompt]) -> str:
    prompts = asked or [GREETING]
    return json.dumps([p.model_dump(exclude_none=True) for p in prompts], ensure_ascii=False, indent=1)


def prompts_name(serve: ModelServe, asked: Sequence[Prompt]) -> str:
    return object_name(serve.metadata.name, "gate", short_hash(_prompts(asked)))
