"""What one failure costs of a step's budget, and which nodes its next attempts avoid. Pure."""

from __future__ import annotations

from finetune_operator.api.finetunejob_status import FineTuneJobStatus, StepStatus
from finetune_operator.finetunejob.failures import Failure
from finetune_trainer.contract.exits import Retry
from finetune_trainer.contract.pipeline import TRAIN, Step
from finetune_trainer.contract.reasons.operator import OperatorReason

AVOIDED_AFTER = 2  # failures of one step on a node
MOST_NODES = 16  # that are remembered for a step
OF_THE_NODE = frozenset({OperatorReason.NodeLost, OperatorReason.PodLost, "Evicted"})  # reasons that cost no retry


def cost(step: Step, record: StepStatus, failure: Failure, reached: int) -> int:
    """Retries that a failure uses up: two where training has come no further than the attempts before it."""
    if failure.retry is not Retry.COUNTED:
        return 0
    stuck = step.stage == TRAIN and record.reached is not None and reached <= record.reached
    return 2 if stuck else 1


def reached_by(status: FineTuneJobStatus, step: Step) -> int:
    """Optimizer steps that training was at when it was last heard of."""
    progress = status.progress
    return progress.current if progress is not None and progress.step == step.name else 0


def with_node(record: StepStatus, failure: Failure) -> dict[str, int] | None:
    """Failures of the step by node, this one among them, where it may be the node's fault."""
    known = dict(record.failed_nodes or {})
    node = failure.node
    if node is not None and (failure.retry is Retry.COUNTED or failure.reason in OF_THE_NODE):
        known = {name: count for name, count in known.items() if name != node} | {node: known.get(node, 0) + 1}
    return dict([*known.items()][-MOST_NODES:]) or None


def avoided(record: StepStatus) -> list[str]:
    """Nodes on which the step has failed too often to be tried there again."""
    return [node for node, count in (record.failed_nodes or {}).items() if count >= AVOIDED_AFTER]
