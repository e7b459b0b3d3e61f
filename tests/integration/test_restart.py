"""What a fresh operator believes before it has seen everything: nothing that is not so."""

from __future__ import annotations

import json
from collections.abc import Callable

from aiohttp import web
from tests.faults.stories import LLAMA
from tests.integration.conftest import FINETUNE, Operator, World
from tests.integration.fake_node import Ending, FakeNode, Pod
from tests.integration.fault_proxy import FaultProxy
from tests.integration.test_crashes import PROGRAM, apply_facts, succeeded, trainer
from tests.integration.test_operator import quiet
from tests.integration.test_rollout import good_engine
from tests.waiting import lasts, wait_until

LATE_SECONDS = 4.0


class LateServes(FaultProxy):
    """Answers each list of ModelServes late: a pass over a FineTuneJob could long have begun by then."""

    late = False

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        is_list = request.path.endswith("/modelserves") and request.query.get("watch") != "true"
        await lasts(LATE_SECONDS if self.late and is_list else 0)
        return await super()._forward(request)


def test_a_restart_takes_no_modelserve_for_missing_that_it_was_not_told_of_yet(
    world: World, operators: Callable[..., Operator]
) -> None:
    space = world.namespace("restarted")
    path = apply_facts(world, space)
    operator = operators(*PROGRAM, proxy=LateServes, FINETUNE_NAMESPACE=space).start()
    train = trainer(world, space)

    def ending(pod: Pod) -> Ending | None:
        return train(pod) if "finetune.dev/step" in pod["metadata"]["labels"] else good_engine(pod)

    with FakeNode(world.api, space, ending):
        world.kubectl(
            *("patch", "finetunejob", "facts", "-n", space, "--type=merge"),
            *("-p", json.dumps({"spec": {"serving": {"template": LLAMA}}})),
        )
        wait_until("the job has handed over", lambda: succeeded(world, path), 120)
        wait_until("its model serves", lambda: world.read(path)["status"]["serving"]["ready"])
        writes = quiet(operator)
        operator.stop()
        assert isinstance(operator.proxy, LateServes)
        operator.proxy.late = True
        operator.start()
        serves = f"{FINETUNE}/namespaces/{space}/modelserves"
        wait_until(
            "all is listed", lambda: sum(r.path == serves and "watch=true" in r.query for r in operator.proxy.requests) > 1
        )
        assert quiet(operator) == writes, operator.proxy.writes()[writes:]
    assert operator.refusals() == []
