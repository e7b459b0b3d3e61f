"""Whose Secret counts where: an owner's own before the store's, that before another source's, all before the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_trainer import environment
from finetune_trainer.contract import pod
from finetune_trainer.contract.places import AZ, HF, HTTPS, S3
from finetune_trainer.contract.pod import Owner, secret_folder

KEY = "AWS_ACCESS_KEY_ID"


def mounted(tmp_path: Path, **secrets: dict[str, str]) -> dict[str, str]:
    """The environment of a pod with these Secrets, by owner."""
    for owner, keys in secrets.items():
        folder = Path(secret_folder(str(tmp_path), Owner(owner)))
        folder.mkdir(parents=True)
        for name, value in keys.items():
            (folder / name).write_text(value)
    return {pod.ENV_MOUNTS: str(tmp_path), KEY: "environment", "HF_TOKEN": "environment"}


@pytest.mark.parametrize(
    ("owner", "secrets", "expected"),
    [
        (Owner.DATASET, {"dataset": {KEY: "own"}, "store": {KEY: "store"}}, "own"),
        (Owner.DATASET, {"dataset": {"HF_TOKEN": "own"}, "store": {KEY: "store"}, "model": {KEY: "model"}}, "store"),
        (Owner.DATASET, {"model": {KEY: "model"}}, "model"),
        (Owner.TEACHER, {"teacher": {KEY: "own"}, "model": {KEY: "model"}}, "own"),
        (Owner.STORE, {"dataset": {KEY: "dataset"}}, "environment"),
        (Owner.PUBLISH, {"store": {KEY: "store"}}, "store"),
        (Owner.MODEL, {"reports": {KEY: "trackers"}}, "environment"),
        (Owner.MODEL, {}, "environment"),
    ],
)
def test_the_nearest_secret_counts(tmp_path: Path, owner: Owner, secrets: dict[str, dict[str, str]], expected: str) -> None:
    access = environment.access(owner, S3, mounted(tmp_path, **secrets))
    assert access.secret.get(KEY, "environment") == expected


def test_a_credential_goes_to_its_own_kind_of_place_only(tmp_path: Path) -> None:
    secret = {"HF_TOKEN": "hf", KEY: "aws", "HTTPS_AUTHORIZATION": "Bearer x", "AZURE_STORAGE_ACCOUNT_NAME": "a"}
    variables = mounted(tmp_path, dataset=secret)
    found = {place.scheme: set(environment.access(Owner.DATASET, place, variables).secret) for place in (HF, S3, HTTPS, AZ)}
    assert found == {
        "hf": {"HF_TOKEN"},
        "s3": {KEY},
        "https": {"HTTPS_AUTHORIZATION"},
        "az": {"AZURE_STORAGE_ACCOUNT_NAME"},
    }


def test_a_line_end_that_a_file_was_saved_with_is_no_part_of_a_key(tmp_path: Path) -> None:
    variables = mounted(tmp_path, model={"HF_TOKEN": "hf_abc\n"})
    assert environment.access(Owner.MODEL, HF, variables).hub_token == "hf_abc"
