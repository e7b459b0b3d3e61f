"""What must hold in a podTemplate, of either kind."""

from __future__ import annotations

from finetune_operator.api.pod_template import PodTemplate
from finetune_operator.meta import Rule

AT = "spec.podTemplate"
TAKEN = ("finetune.dev/", "app.kubernetes.io/", "batch.kubernetes.io/", "kueue.x-k8s.io/")
_FREE = " && ".join(f"!key.startsWith('{taken}')" for taken in TAKEN)
_LABELS = f"{AT}.labels can't begin with {', '.join(TAKEN)}: pods are found by those; choose other keys"
_EXISTS = f"{AT}.tolerations[].value goes with operator Equal; remove it, or write Equal"
_DOMAINS = f"{AT}.topologySpreadConstraints[].minDomains goes with whenUnsatisfiable DoNotSchedule; remove it, or write that"

RULES = (
    Rule(AT, f"!has(self.labels) || self.labels.all(key, {_FREE})", _LABELS),
    Rule(f"{AT}.tolerations[]", "self.operator == 'Equal' || !has(self.value)", _EXISTS),
    Rule(f"{AT}.topologySpreadConstraints[]", "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'", _DOMAINS),
)


def broken_by(template: PodTemplate) -> list[str]:
    """The same for a template that a FineTuneJob will hand over."""
    found = {
        _LABELS: any(key.startswith(TAKEN) for key in template.labels),
        _EXISTS: any(t.operator == "Exists" and t.value is not None for t in template.tolerations),
        _DOMAINS: any(s.min_domains and s.when_unsatisfiable != "DoNotSchedule" for s in template.topology_spread_constraints),
    }
    return [sentence for sentence, broken in found.items() if broken]
