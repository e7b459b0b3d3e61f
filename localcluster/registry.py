"""The OCI registry on loopback: `buildah push` fills it, containerd pulls changed layers from it.

It is CNCF Distribution as Debian and Ubuntu package it. Its content lies in the cache, so a cluster made anew finds the images
of the old one.
"""

import json
from pathlib import Path

from localcluster import debian
from localcluster.processes import Process, answers
from localcluster.settings import Settings


def ensure(settings: Settings) -> None:
    """Start the registry and return when it answers."""
    directory = settings.directory
    configuration = directory / "registry.json"
    configuration.write_text(json.dumps(_configuration(settings), indent=2))
    command = [str(debian.registry(settings.cache)), "serve", str(configuration)]
    process = Process(
        directory,
        "registry",
        command,
        configuration=(configuration,),
        listens_on=("127.0.0.1", settings.registry_port),
    )
    process.ensure()
    process.wait(lambda: answers(f"http://{settings.registry_address}/v2/"))


def storage(settings: Settings) -> Path:
    """Where the images lie; kept by `down`."""
    return settings.cache / "registry"


def _configuration(settings: Settings) -> dict[str, object]:
    return {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(storage(settings))}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{settings.registry_port}"},
    }
