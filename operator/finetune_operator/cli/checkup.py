"""Reads what the doctor looks at. What whoever asks may not read is told, and is no fault of the cluster."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from finetune_operator.cli.doctor import NEEDED, OPERATORS, Facts, Finding, Level
from finetune_operator.cli.kinds import Right
from finetune_operator.cli.reach import Reach
from finetune_operator.errors import Forbidden
from finetune_operator.meta import API_VERSION, Object

T = TypeVar("T")
OPERATOR_LABELS = {"app.kubernetes.io/name": "finetune-operator"}
COLOUR = {Level.OK: "green", Level.WARNING: "yellow", Level.FAULT: "red"}


async def read_facts(reach: Reach) -> Facts:
    """All facts of the cluster and of the namespace."""
    unread: dict[str, str] = {}

    async def allowed(about: str, asked: Awaitable[T]) -> T | None:
        try:
            return await asked
        except Forbidden as error:
            unread[about] = str(error)
            return None

    operators = await allowed("operator", reach.list("Deployment", OPERATOR_LABELS, namespace=""))
    kueue = await reach.resources("kueue.x-k8s.io/v1beta1")
    return Facts(
        namespace=reach.namespace,
        ours=await reach.resources(API_VERSION),
        operators=operators,
        operator_lacks=await _lacking(reach, operators or []),
        nodes=await allowed("nodes", reach.list("Node")),
        storage_classes=await allowed("storage", reach.list("StorageClass")),
        quotas=await allowed("quota", reach.list("ResourceQuota")),
        refused=[right for right in NEEDED if not await reach.may(right)],
        monitors="servicemonitors" in await reach.resources("monitoring.coreos.com/v1"),
        queues=await allowed("Kueue", reach.list("LocalQueue")) if kueue else None,
        unread=unread,
    )


async def _lacking(reach: Reach, operators: list[Object]) -> list[Right]:
    """What no operator that is there may do in the namespace; only who may review others' access learns it."""
    accounts = [_account(deployment) for deployment in operators]
    try:
        return [r for r in OPERATORS if accounts and not any([await reach.may(r, user=user) for user in accounts])]
    except Forbidden:
        return []


def _account(deployment: Object) -> str:
    name = deployment["spec"]["template"]["spec"].get("serviceAccountName", "default")
    return f"system:serviceaccount:{deployment['metadata']['namespace']}:{name}"


def shown(findings: list[Finding]) -> Table:
    """A row for each finding; what is wrong has its remedy below it."""
    table = Table("", "about", "finding")
    for finding in findings:
        text: RenderableType = Text(finding.message)
        if finding.remedy:
            text = Text(f"{finding.message}\n→ {finding.remedy}")
        table.add_row(Text(finding.level.value, style=COLOUR[finding.level]), finding.about, text)
    return table


def told(findings: list[Finding], console: Console) -> int:
    """Print the findings. Returns 1 where there is a fault."""
    console.print(shown(findings))
    faults = sum(finding.level is Level.FAULT for finding in findings)
    console.print(f"{faults} faults found" if faults else "nothing is wrong")
    return 1 if faults else 0
