"""The file that a user writes: one FineTuneJob, and the ConfigMaps that it refers to."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.pod_template import NAME
from finetune_operator.cli import rules
from finetune_operator.finetunejob import admission
from finetune_operator.meta import API_VERSION
from finetune_operator.sentences import sentences, shown
from finetune_operator.wording import of_pattern


class FileError(Exception):
    """The file can't be used; each argument is a sentence that names the field and says what to write."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _AsKubectl(yaml.SafeLoader):
    """YAML as kubectl reads it: a key comes once in a mapping (of two, PyYAML takes the last without a word), and 2e-4 is a
    number.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises ConstructorError, which says where both stand."""
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            name = str(key.value)
            if isinstance(key, yaml.ScalarNode) and name != "<<" and first.setdefault(name, key) is not key:
                raise yaml.constructor.ConstructorError(
                    f"the key {name} comes twice; remove one of them", first[name].start_mark, "again", key.start_mark
                )
        made = super().construct_mapping(node, deep)
        if len(made) < len(first) and "<<" not in {key.value for key, _ in node.value}:
            raise yaml.constructor.ConstructorError(
                f"of the keys {', '.join(first)} two are the same number or truth value; put them in quotes", node.start_mark
            )
        return made


_AsKubectl.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+"), list("-+.0123456789")
)


@dataclass(frozen=True)
class Document:
    job: FineTuneJob
    config_maps: dict[str, dict[str, bytes]]  # data and binaryData by name


def read_document(path: Path, *, cpu: bool = False) -> Document:
    """The file's job and ConfigMaps. `cpu` overrides spec.parallelism.gpusPerNode with 0. Raises FileError."""
    try:
        objects = [o for o in yaml.load_all(path.read_text(encoding="utf-8"), _AsKubectl) if o is not None]
    except OSError as error:
        raise FileError(f"{path} can't be read: {error.strerror}") from None
    except RecursionError:
        raise FileError(f"{path} is not YAML: it is nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of numbers and dates that are none, and of bytes
        raise FileError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not all(isinstance(o, dict) for o in objects):
        raise FileError(f"{path} holds something that is not a Kubernetes object; each document needs kind and metadata")
    jobs = [o for o in objects if o.get("kind") == "FineTuneJob"]
    if len(jobs) != 1:
        raise FileError(f"{path} holds {len(jobs)} FineTuneJobs; write exactly one into the file")
    job = _job(jobs[0], cpu=cpu)
    maps = dict(_held(o) for o in objects if o.get("kind") == "ConfigMap")
    return Document(job, maps)


def _held(config_map: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """Its name, and the bytes of each key as a pod finds them mounted. Raises FileError for what the API server refuses."""
    metadata = config_map.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str):
        raise FileError("a ConfigMap of the file has no metadata.name; add it")
    held: dict[str, bytes] = {}
    for field in ("data", "binaryData"):
        texts = config_map.get(field) or {}
        if not isinstance(texts, dict):
            raise FileError(f"{field} of the ConfigMap {name} is {shown(texts)}; it takes a mapping of keys to texts")
        held |= {str(key): _bytes(f"{field}.{key} of the ConfigMap {name}", text, field) for key, text in texts.items()}
    return name, held


def _bytes(where: str, text: Any, field: str) -> bytes:
    if not isinstance(text, str):
        raise FileError(f"{where} is {shown(text)}; write it as text, in quotes or after |")
    if field == "data":
        return text.encode()
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise FileError(f"{where} is not base64; write what `base64 FILE` prints") from None


def _job(body: dict[str, Any], *, cpu: bool) -> FineTuneJob:
    if body.get("apiVersion") != API_VERSION:
        raise FileError(f"apiVersion is {body.get('apiVersion')}; write {API_VERSION}")
    metadata, spec = body.get("metadata") or {}, body.get("spec")
    if isinstance(metadata, dict):
        metadata = {"namespace": "default", **metadata}
    if cpu and isinstance(spec, dict) and isinstance(spec.get("parallelism", {}), dict | None):
        spec = {**spec, "parallelism": {**(spec.get("parallelism") or {}), "gpusPerNode": 0}}
    try:
        # Names as the API server takes them: learningRate, not learning_rate.
        job = FineTuneJob.model_validate({"metadata": metadata, "spec": spec}, by_name=False)
    except ValidationError as error:
        raise FileError(*sentences(error, FineTuneJob, "")) from None
    if not re.fullmatch(NAME, name := job.metadata.name):
        raise FileError(f"metadata.name is {name}; {of_pattern(NAME, name)}")
    if wrong := dict.fromkeys([*rules.broken(job.spec), *admission.problems(job.spec)]):
        raise FileError(*wrong)
    return job
