"""The operator's settings: read from the environment once, at start-up, and frozen. The chart sets each of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pydantic import ValidationError

from finetune_operator.platforms import Platform

NOTHING_SAID = Platform()
STANDARD = {"otlp_endpoint": "OTEL_EXPORTER_OTLP_ENDPOINT"}  # names by which others know a setting, where ours says nothing


@dataclass(frozen=True)
class Settings:
    """Each field is read from FINETUNE_<NAME> in upper case; an empty value is the default."""

    trainer_image: str = "finetune/trainer:latest"
    quantizer_image: str = "finetune/quantizer:latest"
    evaluator_image: str = ""  # evaluates with vLLM; empty: the trainer's image, without
    operator_image: str = "finetune/operator:latest"  # runs the model loader and the serving gate too
    vllm_image: str = "vllm/vllm-openai:latest"
    llamacpp_image: str = "ghcr.io/ggml-org/llama.cpp:server"
    ollama_image: str = "ollama/ollama:0.6.5"
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: str = ""  # names with commas between, of Secrets in the namespaces of the pods
    hub_endpoint: str = ""  # HF_ENDPOINT of the pods; empty is the public hub
    rollouts_at_once: int = 1  # ModelServes that load what only a changed default asks for; 0: all at once
    later_stages_priority_class: str = ""  # Kueue's, of the queued stages of a job after its first; empty: the queue's own
    network_policies: bool = True  # around the pods of each ModelServe
    monitoring_namespace: str = ""  # whose pods may read the engines' metrics
    namespace: str = ""  # watch this namespace only; empty watches all
    own_namespace: str = "finetune-system"  # where the Lease lives
    lease: str = "finetune-operator"  # its name: each release has its own
    identity: str = "local"  # of this replica in the Lease: the pod's name
    grace_seconds: int = 120  # what a train pod gets to save a checkpoint
    progress_seconds: float = 5.0  # how often a running pod's log tail is read
    resync_seconds: float = 300.0
    ended_seconds: float = 300.0  # how long the Job and pods of a step stay after its end, for `kubectl logs`
    workers: int = 8
    http_port: int = 8080  # /healthz, /readyz, /metrics
    log_level: str = "info"
    otlp_endpoint: str = ""  # of a collector of traces, as http://collector:4318; empty: none are made
    leader_election: bool = True
    platform: Platform = NOTHING_SAID  # in JSON: what the chart's `profiles` and `allowed` say

    def under_profile(self, name: str | None) -> Settings:
        """The settings with the images of a profile in place of the operator's; its own for a name that is unknown."""
        profile = self.platform.profiles.get(name or "")
        images = profile.images.model_dump(exclude_none=True) if profile else {}
        return replace(self, **{f"{image}_image": value for image, value in images.items()})

    @property
    def pull_secrets(self) -> list[str]:
        return [name for name in self.image_pull_secrets.split(",") if name]


SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/token"


def has_service_account(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the API server is reached with the pod's own credentials: there are some, and no $KUBECONFIG names others."""
    return "KUBECONFIG" not in environment and os.path.exists(SERVICE_ACCOUNT)


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment. Raises ValueError, naming the variable, where a value can't be read."""
    values: dict[str, object] = {}
    for f in fields(Settings):
        text = environment.get(variable := f"FINETUNE_{f.name.upper()}", "") or environment.get(STANDARD.get(f.name, ""), "")
        if not text:
            continue
        kind: Any = type(f.default)
        try:
            values[f.name] = _read(kind, text)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise ValueError(f"{variable}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from None
        except ValueError:
            raise ValueError(f"{variable}={text!r} is not a {kind.__name__}") from None
    return Settings(**values)  # type: ignore[arg-type]


def _read(kind: Any, text: str) -> object:
    if kind is Platform:
        return Platform.model_validate_json(text)
    return text.lower() in ("1", "true", "yes") if kind is bool else kind(text)
