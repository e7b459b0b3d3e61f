"""The default StorageClass: a claim becomes a directory of the node, kept until the claim is deleted.

Provisioning waits for the first pod (WaitForFirstConsumer), as with disks of a cloud. A volume belongs to root
and mode 0755, as a new disk's file system does: a pod that does not run as root needs `fsGroup`. The requested size
is not enforced.

    python -m localcluster.storage KUBECONFIG DIRECTORY      # the provisioner's process
"""

import shutil
import sys
import time
from pathlib import Path

from localcluster import access
from localcluster.api import Api, ApiError, Object
from localcluster.pki import Authority
from localcluster.processes import Process
from localcluster.settings import NODE_NAME, Settings

PROVISIONER = "finetune.dev/node-directory"
STORAGE_CLASS = "standard"
USER = "finetune-localcluster:storage"
# On the only node a directory is shared by all pods there are.
MODES = {"ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany", "ReadOnlyMany"}
SECONDS_BETWEEN_PASSES = 1.0  # reads come from the API server's cache
RULES: list[Object] = [
    {"apiGroups": [""], "resources": ["persistentvolumes"], "verbs": ["list", "create", "delete"]},
    {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["list"]},
]
CLAIMS = "/api/v1/persistentvolumeclaims?resourceVersion=0"
VOLUMES = "/api/v1/persistentvolumes"


def ensure(settings: Settings, api: Api, server: str) -> None:
    """Apply the StorageClass and start the provisioner."""
    identity = Authority(settings.directory / "pki").issue("storage", USER)
    kubeconfig = identity.write_kubeconfig(settings.directory / "storage.kubeconfig", server)
    access.grant(api, USER, RULES)
    _apply_class(api)
    volumes = settings.directory / "volumes"
    volumes.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "localcluster.storage", str(kubeconfig), str(volumes)]
    source = str(Path(__file__).parent.parent)
    environment = {"PYTHONPATH": source, "PYTHONUNBUFFERED": "1"}
    Process(settings.directory, "storage", command, environment, configuration=(Path(__file__),)).ensure()


def main() -> None:
    """Provision and delete until the process is ended."""
    api, directory = Api.from_kubeconfig(Path(sys.argv[1])), Path(sys.argv[2])
    while True:
        try:
            reconcile(api, directory)
        except (OSError, ApiError) as error:  # the API server restarts, or another pass was quicker: look again
            print(f"the next pass tries again: {error}")
        time.sleep(SECONDS_BETWEEN_PASSES)


def reconcile(api: Api, directory: Path) -> None:
    """One pass: a volume for each claim that waits for one, and none for a claim that is gone."""
    existing = api.request("GET", f"{VOLUMES}?resourceVersion=0")["items"]
    volumes = {volume["metadata"]["name"]: volume for volume in existing}
    for claim in api.request("GET", CLAIMS)["items"]:
        name = volume_name(claim)
        if name not in volumes and awaits_volume(claim):
            (directory / name).mkdir(mode=0o755, exist_ok=True)
            _create(api, volume_for(claim, directory / name))
            print(f"made {name} for {claim['metadata']['namespace']}/{claim['metadata']['name']}")
    for name, volume in volumes.items():
        if is_released(volume):
            shutil.rmtree(directory / name, ignore_errors=True)
            api.request("DELETE", f"{VOLUMES}/{name}")
            print(f"deleted {name}")


def awaits_volume(claim: Object) -> bool:
    """Whether the scheduler has picked our node for the first pod that uses `claim`, which we can serve."""
    spec, annotations = claim["spec"], claim["metadata"].get("annotations", {})
    return (
        claim["status"].get("phase") == "Pending"
        and spec.get("storageClassName") == STORAGE_CLASS
        and annotations.get("volume.kubernetes.io/selected-node") == NODE_NAME
        and spec.get("volumeMode", "Filesystem") == "Filesystem"
        and set(spec["accessModes"]) <= MODES
        and "deletionTimestamp" not in claim["metadata"]
    )


def is_released(volume: Object) -> bool:
    """Whether `volume` is one of ours whose claim was deleted and whose content goes with it."""
    ours = volume["metadata"].get("annotations", {}).get("pv.kubernetes.io/provisioned-by") == PROVISIONER
    gone = volume["status"].get("phase") == "Released" and "deletionTimestamp" not in volume["metadata"]
    return ours and gone and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"


def volume_name(claim: Object) -> str:
    return f"pvc-{claim['metadata']['uid']}"


def volume_for(claim: Object, path: Path) -> Object:
    """The PersistentVolume that binds to `claim` and to no other."""
    metadata, spec = claim["metadata"], claim["spec"]
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE_NAME]}
    reference = {key: metadata[key] for key in ("namespace", "name", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume_name(claim), "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {
            "storageClassName": STORAGE_CLASS,
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **reference},
            "local": {"path": str(path)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }


def _create(api: Api, volume: Object) -> None:
    try:
        api.request("POST", VOLUMES, volume)
    except ApiError as error:
        if error.code != 409:  # the cache we read from was older than our own last pass
            raise


def _apply_class(api: Api) -> None:
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": PROVISIONER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
    }
    api.apply(f"/apis/storage.k8s.io/v1/storageclasses/{STORAGE_CLASS}", storage_class)


if __name__ == "__main__":
    main()
