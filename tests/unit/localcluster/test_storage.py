"""Which claims get a volume, and which volumes go."""

from typing import Any

import pytest
from localcluster import storage


def make_claim(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "team",
            "name": "data",
            "uid": "1234",
            "annotations": {"volume.kubernetes.io/selected-node": "node-1"},
        },
        "spec": {
            "storageClassName": "standard",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "5Gi"}},
            **spec,
        },
        "status": {"phase": "Pending"},
    }


def test_a_claim_waits_for_its_first_pod() -> None:
    claim = make_claim()
    assert storage.awaits_volume(claim)
    del claim["metadata"]["annotations"]
    assert not storage.awaits_volume(claim)


@pytest.mark.parametrize("spec", [{"storageClassName": "fast"}, {"volumeMode": "Block"}, {"accessModes": ["ReadWriteFirst"]}])
def test_a_claim_that_this_class_cannot_serve_is_left_alone(spec: dict[str, Any]) -> None:
    assert not storage.awaits_volume(make_claim(**spec))


def test_the_volume_binds_to_its_claim_alone(tmp_path: Any) -> None:
    volume = storage.volume_for(make_claim(), tmp_path)
    assert volume["spec"]["claimRef"] | {"kind": "", "apiVersion": ""} == {
        "kind": "",
        "apiVersion": "",
        "namespace": "team",
        "name": "data",
        "uid": "1234",
    }
    assert volume["spec"]["capacity"] == {"storage": "5Gi"}


def test_only_released_volumes_of_our_own_are_deleted(tmp_path: Any) -> None:
    volume = storage.volume_for(make_claim(), tmp_path)
    assert not storage.is_released({**volume, "status": {"phase": "Bound"}})
    released = {**volume, "status": {"phase": "Released"}}
    assert storage.is_released(released)
    retained = {**released, "spec": {**released["spec"], "persistentVolumeReclaimPolicy": "Retain"}}
    assert not storage.is_released(retained)
    foreign = {**released, "metadata": {"name": "disk-1"}}
    assert not storage.is_released(foreign)
