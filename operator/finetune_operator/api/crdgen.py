"""The two CRDs, made from the types: `python -m finetune_operator.api.crdgen DIRECTORY…` writes both into each directory.

    the types (pydantic) ─ json schema ─► inlined, OpenAPI v3.0 ─► bounds, list keys ─► rules/ (CEL) ─► the definition

Defaults of the spec are in the schema, so that the API server writes them into stored objects: an upgrade of the
operator changes no job. The status has none but observedGeneration -1, which says "not seen yet" to kstatus, Flux and
kubectl wait.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, NoDefault
from pydantic_core import core_schema

from finetune_operator.api.finetunejob import FineTuneJobSpec
from finetune_operator.api.finetunejob_status import FineTuneJobStatus
from finetune_operator.api.modelserve import ModelServeSpec, ModelServeStatus
from finetune_operator.api.rules import finetunejob, modelserve
from finetune_operator.meta import GROUP, VERSION, Rule

Schema = dict[str, Any]

LIST_KEYS = ("type", "name", "subject")  # where items require one of these, the list is a map by it
LONGEST_STRING = 1024  # of what has no bound of its own: the API server reckons the cost of CEL rules from bounds
LARGEST_MAP = 64
LARGEST_LIST = 64

# Keys of JSON Schema that a structural schema of OpenAPI v3.0 has no place for.
DROPPED = ("title", "additionalProperties", "propertyNames", "discriminator", "x-preserve")


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, but defaults made by factories count and a null is never asked for."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        factory = schema.get("default_factory")
        default = schema.get("default", NoDefault) if factory is None else factory()  # type: ignore[call-arg]
        return NoDefault if default is None or default in ([], {}) else default

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, BaseModel):  # the inner defaults are added by the API server, level by level
            return dft.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
        return super().encode_default(dft)

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def schema_of(model: type[BaseModel], *, defaults: bool) -> Schema:
    """A structural OpenAPI v3.0 schema of the model, with its defaults or without any."""
    whole = model.model_json_schema(by_alias=True, schema_generator=_Generator)
    return _structural(whole, whole.get("$defs", {}), defaults=defaults)


def _structural(node: Schema, definitions: dict[str, Schema], *, defaults: bool) -> Schema:
    if reference := node.get("$ref"):
        node = definitions[reference.rpartition("/")[2]] | {k: v for k, v in node.items() if k != "$ref"}
    if node.get("x-kubernetes-int-or-string"):
        return _quantity(node, defaults=defaults)
    out = {k: v for k, v in node.items() if k not in (*DROPPED, "$defs", "properties", "items", "const", "default")}
    if "const" in node:
        out |= {"type": "string", "enum": [node["const"]]}
    for bound in ("Minimum", "Maximum"):
        if (exclusive := f"exclusive{bound}") in out:
            out |= {bound.lower(): out[exclusive], exclusive: True}
    if defaults and "default" in node:
        out["default"] = node["default"]
    inner = {k: _structural(v, definitions, defaults=defaults) for k, v in node.get("properties", {}).items()}
    if inner:
        out["properties"] = inner
    elif node.get("type") == "object":
        out |= _map(node, definitions, defaults=defaults)
    if node.get("type") == "array":
        out |= _list(node, definitions, defaults=defaults)
    if node.get("type") == "string" and "enum" not in out:
        out.setdefault("maxLength", LONGEST_STRING)
    return _described(out) if defaults else out


def _quantity(node: Schema, *, defaults: bool) -> Schema:
    kept = ("description", "pattern", "maxLength", "x-kubernetes-int-or-string", *(("default",) if defaults else ()))
    out = {k: node[k] for k in kept if k in node} | {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    return _described(out)


def _map(node: Schema, definitions: dict[str, Schema], *, defaults: bool) -> Schema:
    values = node.get("additionalProperties")
    if node.get("x-preserve") or not isinstance(values, dict):
        return {"x-kubernetes-preserve-unknown-fields": True}
    return {
        "additionalProperties": _structural(values, definitions, defaults=defaults),
        "maxProperties": node.get("maxProperties", LARGEST_MAP),
    }


def _list(node: Schema, definitions: dict[str, Schema], *, defaults: bool) -> Schema:
    items = _structural(node["items"], definitions, defaults=defaults)
    key = next((k for k in LIST_KEYS if k in items.get("required", ()) and "properties" in items), None)
    kind: Schema = {"x-kubernetes-list-type": "atomic"}
    if key is not None:
        kind = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    return {"items": items, "maxItems": node.get("maxItems", LARGEST_LIST), **kind}


def _described(node: Schema) -> Schema:
    """`kubectl explain` shows no defaults, so the description names the one that is a plain value."""
    default, text = node.get("default"), node.get("description", "")
    if isinstance(default, str | int | float) and default != "" and "Default:" not in text:
        shown = str(default).lower() if isinstance(default, bool) else default
        node["description"] = f"{text} Default: {shown}.".strip()
    if "description" in node:
        node["description"] = " ".join(node["description"].split())
    return node


# ── Rules ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def with_rules(schema: Schema, rules: Iterable[Rule]) -> Schema:
    """The schema, with each rule at its place. Raises KeyError where a rule names a field that does not exist."""
    for rule in rules:
        node = schema
        for part in rule.at.split("."):
            node = node["properties"][part.removesuffix("[]")]
            node = node["items"] if part.endswith("[]") else node
        node.setdefault("x-kubernetes-validations", []).append({"rule": rule.must, "message": rule.message})
    return schema


# ── The two kinds ─────────────────────────────────────────────────────────────────────────────────────────────────────


def column(name: str, path: str, kind: str = "string", *, wide: bool = False) -> Schema:
    """A column of `kubectl get`."""
    return {"name": name, "type": kind, "jsonPath": path} | ({"priority": 1} if wide else {})


def _condition(kind: str, part: str = "status") -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{part}'


def finetunejobs() -> Schema:
    """The CustomResourceDefinition of FineTuneJob."""
    columns = [
        column("STAGE", ".status.stage"),
        column("PROGRESS", ".status.progress.percent", "integer"),
        column("LOSS", ".status.progress.loss", "number"),
        column("ETA", ".status.progress.etaSeconds", "integer"),
        column("READY", _condition("Ready")),
        column("REASON", _condition("Ready", "reason")),
        column("MESSAGE", _condition("Ready", "message"), wide=True),
        column("MEMORY", _condition("Fits", "message"), wide=True),
        column("AGE", ".metadata.creationTimestamp", "date"),
    ]
    description = "A FineTuneJob trains a language model on a dataset, proves that it got better and serves it."
    schema = _root(description, FineTuneJobSpec, FineTuneJobStatus)
    names = {"plural": "finetunejobs", "singular": "finetunejob", "kind": "FineTuneJob", "shortNames": ["ftj"]}
    return _definition(names, columns, with_rules(schema, finetunejob.RULES), {"status": {}})


def modelserves() -> Schema:
    """The CustomResourceDefinition of ModelServe."""
    columns = [
        column("MODEL", ".status.servedName"),
        column("REVISION", ".status.live.name"),
        column("READY", _condition("Ready")),
        column("AVAILABLE", _condition("Available")),
        column("URL", ".status.url"),
        column("REASON", _condition("Ready", "reason"), wide=True),
        column("MESSAGE", _condition("Ready", "message"), wide=True),
        column("AGE", ".metadata.creationTimestamp", "date"),
    ]
    description = "A ModelServe serves a model by the OpenAI API and rolls a new one out only after it has answered."
    schema = _root(description, ModelServeSpec, ModelServeStatus)
    names = {"plural": "modelserves", "singular": "modelserve", "kind": "ModelServe", "shortNames": ["mserve"]}
    scale = {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    return _definition(names, columns, with_rules(schema, modelserve.RULES), {"status": {}, "scale": scale})


def _root(description: str, spec: type[BaseModel], status: type[BaseModel]) -> Schema:
    return {
        "description": description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": schema_of(spec, defaults=True) | {"description": "What is wanted."},
            "status": schema_of(status, defaults=False)
            | {"description": "What is, as the operator last saw it.", "default": {"observedGeneration": -1}},
        },
    }


def _definition(names: Schema, columns: list[Schema], schema: Schema, subresources: Schema) -> Schema:
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": subresources,
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": schema},
    }
    names = names | {"listKind": f"{names['kind']}List", "categories": ["finetune"]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def render() -> dict[str, str]:
    """Text of each CRD's file, by file name."""
    note = "# Generated by finetune_operator.api.crdgen; `make crds` writes it anew.\n"
    definitions = {"finetunejobs.yaml": finetunejobs(), "modelserves.yaml": modelserves()}
    return {n: note + yaml.safe_dump(d, sort_keys=False, allow_unicode=True, width=160) for n, d in definitions.items()}


if __name__ == "__main__":
    for directory in sys.argv[1:]:
        for file, text in render().items():
            (Path(directory) / file).write_text(text)
