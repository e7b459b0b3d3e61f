"""FineTuneJobs of seconds: a random two-layer model with SmolLM2's tokenizer, from the local hub, on the quickstart's facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from demo.kubectl import Object

ROOT = Path(__file__).parents[2]
TINY = "finetune-test/tiny"
GATED = "finetune-test/gated"
Q4 = {"name": "q4", "format": "GGUF", "quantization": "Q4_K_M"}
Q8 = {"name": "q8", "format": "GGUF", "quantization": "Q8_0"}


def job(name: str, **spec: Any) -> Object:
    """A FineTuneJob on the tiny model; keywords take the place of parts of its spec."""
    defaults = {
        "model": {"uri": f"hf://{TINY}"},
        "dataset": {"uri": "configmap://velmora/train.jsonl", "test": {"uri": "configmap://velmora/test.jsonl"}},
        "training": {"method": "Full", "learningRate": 0.001, "maxSteps": 20, "globalBatchSize": 8, "maxLength": 128},
        "parallelism": {"gpusPerNode": 0},
        "evaluation": {"maxNewTokens": 8},
    }
    metadata = {"name": name}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": defaults | spec}


def served(**fields: Any) -> Object:
    """spec.serving: the GGUF artifact behind llama.cpp, small enough for any machine."""
    template = {
        "engine": {"type": "LlamaCpp", "maxModelLength": 512},
        "parallelism": {"gpus": False},
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
        "drain": {"seconds": 1},
    }
    return {"template": template, **fields}


def quickstart(kind: str) -> Object:
    """The example's FineTuneJob, or its ConfigMap."""
    bodies = yaml.safe_load_all((ROOT / "examples/quickstart.yaml").read_text())
    return next(body for body in bodies if body["kind"] == kind)


def rows(name: str, *values: dict[str, Any]) -> Object:
    """A ConfigMap with these rows under the key rows.jsonl."""
    text = "".join(json.dumps(value) + "\n" for value in values)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"rows.jsonl": text}}


SMALL = job("small", artifacts=[Q8], serving=served())  # scenarios of the space e2e-finished share its artifacts
