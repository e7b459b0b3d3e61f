"""The sweep's result as it is printed: a line a class."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.classes import CLASSES
from tests.faults.sweep import Case


def printed(cases: Sequence[Case], used: dict[str, set[str]]) -> str:
    lines = [f"\n{'fault':<28} {'cases':>6} {'struck':>7} {'converged':>10} {'differences':>12}"]
    for name in dict.fromkeys(c.name for c in CLASSES):
        of = [c for c in cases if c.fault_class.name == name]
        if of:
            good = sum(not c.differences for c in of)
            lines.append(f"{name:<28} {len(of):>6} {sum(c.struck for c in of):>7} {good:>10} {len(of) - good:>12}")
    good = sum(not c.differences for c in cases)
    lines.append(f"{'all':<28} {len(cases):>6} {sum(c.struck for c in cases):>7} {good:>10} {len(cases) - good:>12}")
    lines += [f"{resource}: {', '.join(sorted(verbs))}" for resource, verbs in sorted(used.items()) if verbs]
    return "\n".join(lines)
