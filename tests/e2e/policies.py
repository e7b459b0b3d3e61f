"""Who may reach whom, as a network plugin that enforces NetworkPolicies reads them (networking.k8s.io/v1), for pods alone.

A pod that no policy selects for a direction takes, or asks, everybody; one that some select, whom one of them names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from demo.kubectl import Kubectl, Object


@dataclass(frozen=True)
class Network:
    """Policies and namespaces of a cluster, read once."""

    policies: list[Object]
    labels: dict[str, dict[str, str]]  # of each namespace

    def may_reach(self, asker: Object, asked: Object, port: int) -> bool:
        """Whether a TCP connection from one pod to a port of another is let out and let in."""
        return self._lets("Egress", asker, asked, asked, port) and self._lets("Ingress", asked, asker, asked, port)

    def _lets(self, direction: str, pod: Object, peer: Object, asked: Object, port: int) -> bool:
        selecting = [policy for policy in self.policies if direction in _types(policy) and _selects(policy, pod)]
        if not selecting:
            return True
        side, who = direction.lower(), "from" if direction == "Ingress" else "to"
        return any(
            _has_port(rule.get("ports"), asked, port) and self._is_one_of(rule.get(who), peer, policy["metadata"]["namespace"])
            for policy in selecting
            for rule in policy["spec"].get(side) or []
        )

    def _is_one_of(self, peers: list[Object] | None, pod: Object, own: str) -> bool:
        return not peers or any(self._is(peer, pod, own) for peer in peers)

    def _is(self, peer: Object, pod: Object, own: str) -> bool:
        assert "ipBlock" not in peer, "addresses of pods are not known here"
        namespace = pod["metadata"]["namespace"]
        if "namespaceSelector" in peer:
            is_there = _matches(peer["namespaceSelector"], self.labels[namespace])
        else:
            is_there = namespace == own
        return is_there and _matches(peer.get("podSelector"), pod["metadata"].get("labels", {}))


def read(kubectl: Kubectl) -> Network:
    """All that is applied in the cluster."""
    spaces = kubectl.items("namespace", "default")
    names = [space["metadata"]["name"] for space in spaces]
    policies = [policy for name in names for policy in kubectl.items("networkpolicy", name)]
    return Network(policies, {space["metadata"]["name"]: space["metadata"]["labels"] for space in spaces})


def _types(policy: Object) -> list[str]:
    spec = policy["spec"]
    return list(spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])])


def _selects(policy: Object, pod: Object) -> bool:
    is_here = policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
    return is_here and _matches(policy["spec"]["podSelector"], pod["metadata"].get("labels", {}))


def _matches(selector: Object | None, labels: dict[str, str]) -> bool:
    selector = selector or {}
    equal = (selector.get("matchLabels") or {}).items() <= labels.items()
    return equal and all(_holds(expression, labels) for expression in selector.get("matchExpressions") or [])


def _holds(expression: Object, labels: dict[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or []
    match expression["operator"]:
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case other:
            raise AssertionError(f"no selector has the operator {other}")


def _has_port(ports: list[Object] | None, asked: Object, number: int) -> bool:
    return not ports or any(_is_port(port, asked, number) for port in ports)


def _is_port(port: Object, asked: Object, number: int) -> bool:
    """A port may be a number, the first one of a range, or the name of one of the pod's."""
    wanted: Any = port.get("port")
    if port.get("protocol", "TCP") != "TCP":
        return False
    if isinstance(wanted, str):
        return number in _numbers(asked, wanted)
    return wanted is None or wanted <= number <= port.get("endPort", wanted)


def _numbers(pod: Object, name: str) -> Iterator[int]:
    for container in pod["spec"]["containers"]:
        yield from (p["containerPort"] for p in container.get("ports", []) if p.get("name") == name)
