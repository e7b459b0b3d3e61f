"""The folders that a run without a cluster works in, laid out as a pod finds them mounted.

WORKDIR/mounts/claims/<claim>/…           what are volumes in a cluster; the default claim keeps results between runs
WORKDIR/mounts/configmaps/<name>/<key>    the ConfigMaps of the file
WORKDIR/mounts/secrets/<owner>/<key>      the Secrets that a step reads, as far as they were given; else its environment counts
WORKDIR/run.json  WORKDIR/logs/<step>.log  WORKDIR/scratch
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.cli import environment
from finetune_operator.cli.document import Document, FileError
from finetune_operator.cli.pythons import Pythons, check
from finetune_operator.finetunejob.runs import Run
from finetune_operator.finetunejob.volumes import secrets
from finetune_operator.names import artifacts_claim
from finetune_trainer.contract import pod
from finetune_trainer.contract.pipeline import Step, claims, config_maps, source_uris
from finetune_trainer.contract.places import CONFIG_MAP


@dataclass(frozen=True)
class Workdir:
    root: Path
    pythons: Pythons = field(default_factory=Pythons)
    secrets: Mapping[str, Path] = field(default_factory=dict)  # folders that stand for Secrets, by name

    @property
    def mounts(self) -> Path:
        return self.root / "mounts"

    def claim(self, name: str) -> Path:
        return self.mounts / "claims" / name

    def log(self, step: str) -> Path:
        return self.root / "logs" / f"{step}.log"

    def reported(self, step: str) -> Path:
        """Where the lines stay in which a step told of its progress."""
        return self.root / "logs" / f"{step}.progress.jsonl"

    def mount_secrets(self, job: FineTuneJob, run: Run, step: Step) -> None:
        """Those of this step alone: a place to publish to has other credentials in each of its steps."""
        for owner in pod.Owner:
            Path(pod.secret_folder(str(self.mounts), owner)).unlink(missing_ok=True)
        for owner, name in secrets(job, run, step).items():
            if name in self.secrets:
                _link(Path(pod.secret_folder(str(self.mounts), owner)), self.secrets[name], "--secret")


@dataclass(frozen=True)
class Given:
    """What the command line says of this machine."""

    claims: Mapping[str, Path]  # folders by name
    secrets: Mapping[str, Path]
    pythons: Pythons


def prepare_workdir(document: Document, run: Run, root: Path, given: Given) -> Workdir:
    """Lay out the folders that a pod would find mounted. Raises FileError where the file or the machine lacks one."""
    workdir = Workdir(root.resolve(), given.pythons, given.secrets)
    _need_llama_cpp(run)
    check(run, given.pythons)
    _check_secrets(document, run, given.secrets)
    if run.config.devices.nodes > 1:
        raise FileError("spec.parallelism.numNodes above 1 needs a cluster; set it to 1 for a run on this machine")
    for name in config_maps(run.config):
        _write_config_map(document, name, workdir.mounts / "configmaps" / name, source_uris(run.config))
    made = artifacts_claim(document.job.metadata.name)
    for name in claims(run.config):
        target = workdir.claim(name)
        if name in given.claims:
            _link(target, given.claims[name], "--claim")
        elif name == made or target.exists():
            target.mkdir(parents=True, exist_ok=True)
        else:
            raise FileError(f"the claim {name} has no folder on this machine; add --claim {name}=DIRECTORY")
    for folder in (workdir.root / "logs", workdir.mounts):
        folder.mkdir(parents=True, exist_ok=True)
    config = run.config.model_dump(mode="json", by_alias=True, exclude_none=True)
    (workdir.root / "run.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return workdir


def _need_llama_cpp(run: Run) -> None:
    """Told before an hour of training, not after."""
    folder = environment.llama_cpp()
    wanted = [a.name for a in run.config.artifacts if a.of_format.needs_llama_cpp]
    if wanted and not (folder / "convert_hf_to_gguf.py").is_file():
        raise FileError(
            f"spec.artifacts {', '.join(wanted)}: GGUF needs llama.cpp, which is not in {folder}; set {pod.ENV_LLAMA_CPP}"
            " to a folder with convert_hf_to_gguf.py and bin/llama-quantize, or take these artifacts out"
        )


def _write_config_map(document: Document, name: str, folder: Path, uris: tuple[str, ...]) -> None:
    data = document.config_maps.get(name)
    if data is None:
        raise FileError(f"no ConfigMap {name} is in the file, but the job reads it; add it, or correct the uri")
    for uri in uris:
        key = uri.removeprefix(f"{CONFIG_MAP.prefix}{name}/")
        if key != uri and key not in data:
            raise FileError(f"the ConfigMap {name} has no key {key}; it has {', '.join(sorted(data)) or 'none'}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for key, content in data.items():
        (folder / key).write_bytes(content)


def _check_secrets(document: Document, run: Run, given: Mapping[str, Path]) -> None:
    named = {name for step in run.steps for name in secrets(document.job, run, step).values()}
    for name, folder in given.items():
        if name not in named:
            there = ", ".join(sorted(named)) or "none"
            raise FileError(f"--secret {name}: no secretRef of the file names it; those that are named: {there}")
        if not folder.is_dir():
            raise FileError(f"{folder} is not a directory; --secret takes NAME=DIRECTORY, with a file for each key")


def _link(target: Path, folder: Path, option: str) -> None:
    if not folder.is_dir():
        raise FileError(f"{folder} is not a directory; {option} takes NAME=DIRECTORY")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    target.symlink_to(folder.resolve(), target_is_directory=True)
