"""The driver of a Ray Train run on pod 0: it waits until all nodes have joined, and places one worker for each rank."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from typing import Any

from finetune_trainer import environment
from finetune_trainer.contract.devices import Devices
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.ranks.launching import JOIN_SECONDS
from finetune_trainer.ranks.ray_node import claim_local_rank, note_process, ray_address


def main(step: str, devices: Devices) -> int:
    """0 when every worker has come back, WORLD_INCOMPLETE when not all nodes joined. A lost node ends it with an error."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    pod = environment.read()
    ray.init(ray_address(pod.master), log_to_driver=False, logging_level=logging.WARNING)
    until = time.monotonic() + JOIN_SECONDS
    while sum(node["Alive"] for node in ray.nodes()) < devices.nodes:
        if time.monotonic() > until:
            return int(ExitCode.WORLD_INCOMPLETE)
        time.sleep(0.2)
    of_a_worker = {"CPU": 1.0} | ({"GPU": 1.0} if devices.gpus else {})
    DataParallelTrainer(
        run_rank,
        train_loop_config={"step": step, "devices": devices.model_dump(mode="json")},
        scaling_config=ScalingConfig(
            num_workers=devices.world_size, use_gpu=devices.gpus > 0, resources_per_worker=of_a_worker
        ),
        run_config=RunConfig(
            storage_path=str(pod.scratch),
            failure_config=FailureConfig(max_failures=0),  # the operator starts the next attempt
        ),
    ).fit()
    return 0


def run_rank(config: dict[str, Any]) -> None:
    """A worker of Ray Train: start the rank beside it and wait for its end, which the rank itself reports.

    The numbers follow the pods' indices, so that rank 0 is where the operator looks for the result.
    """
    devices, folder, pod = Devices.model_validate(config["devices"]), environment.ends(), environment.read()
    local = claim_local_rank(folder, devices.ranks_per_node)
    host, _, port = pod.master.partition(":")
    variables = {
        "RANK": str(pod.node_rank * devices.ranks_per_node + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(devices.world_size),
        "LOCAL_WORLD_SIZE": str(devices.ranks_per_node),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }
    command = [sys.executable, "-m", "finetune_trainer", config["step"]]
    with environment.rank_log().open("ab") as log:
        process = subprocess.Popen(command, env=environment.of_child(variables), stdout=log, stderr=log, start_new_session=True)
    note_process(folder, local, process.pid)
    process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Devices.model_validate_json(sys.argv[2])))
