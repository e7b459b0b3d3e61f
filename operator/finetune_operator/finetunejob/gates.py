"""What must hold before a result is published or served: verdicts from scores, with the numbers that decided."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from finetune_operator.api.evaluation import Gate, GateAction
from finetune_operator.api.finetunejob_status import GateVerdict
from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.metrics import BOUNDS, LOWER_IS_BETTER, OF_ANSWERS, ONLY_FOR, SHARE, Metric
from finetune_trainer.contract.objectives import OBJECTIVES, Objective
from finetune_trainer.contract.pipeline import BASE, MERGED
from finetune_trainer.contract.reports import Scores

# Judged where the spec names no gate: training must not have made the model worse on the test rows.
DEFAULT = Gate(name="not-worse-than-base", metric=Metric.LOSS, min_improvement_over_base=0.0)
# Learning what to prefer may cost some of the chosen answers' likelihood (Rafailov et al. 2023), so that is not judged.
DEFAULT_OF_PAIRS = DEFAULT.model_copy(update={"metric": Metric.PREFERENCE_ACCURACY})


def verdicts(gates: Iterable[Gate], scores: Iterable[Scores], objective: Objective = Objective.SFT) -> list[GateVerdict]:
    """One verdict for each gate; for the default gate where there are scores but no gates."""
    by_subject = {s.subject: s for s in scores}
    paired = any(Metric.PREFERENCE_ACCURACY in s.values for s in by_subject.values())  # KTO learns from other rows, too
    default = DEFAULT_OF_PAIRS if OBJECTIVES[objective].of_pairs and paired else DEFAULT
    chosen = list(gates) or ([default] if by_subject else [])
    return [_verdict(gate, by_subject) for gate in chosen]


def blocking(judged: Iterable[GateVerdict]) -> list[GateVerdict]:
    """The failed gates that stop the job."""
    return [v for v in judged if not v.passed and v.action is GateAction.BLOCK]


def problems(gates: Iterable[Gate]) -> Iterator[str]:
    """A sentence for each gate that no model can pass, told before anything is trained."""
    for gate in (gate for gate in gates if gate.metric in list(Metric)):
        least, most = BOUNDS.get(Metric(gate.metric), SHARE)
        given = {"min": gate.min, "minImprovementOverBase": gate.min_improvement_over_base}
        above = [(field, value) for field, value in given.items() if value is not None and value > most]
        at = f"spec.evaluation.gates[] {gate.name}"
        for field, value in above:
            yield f"{at}: {field} is {value:g}, but {gate.metric} is {most:g} at most, so that no model passes; lower it"
        if gate.max is not None and gate.max < least:
            yield f"{at}: max is {gate.max:g}, but {gate.metric} is {least:g} at least, so that no model passes; raise it"


def unscored(gates: Iterable[Gate], format: DatasetFormat) -> Iterator[str]:
    """A sentence for each gate whose score such rows don't give, told once prepare has seen them and nothing is trained."""
    for gate in (gate for gate in gates if gate.metric in list(Metric)):
        metric, at = Metric(gate.metric), f"spec.evaluation.gates[] {gate.name}: the rows are {format}"
        if metric in ONLY_FOR and ONLY_FOR[metric][0] != format:
            wanted, instead = ONLY_FOR[metric]
            yield f"{at}, and {metric} is for rows of format {wanted}: judge {instead}, or set spec.dataset.format"
        elif metric in OF_ANSWERS and format is DatasetFormat.TEXT:
            yield f"{at}, which ask nothing, so that there are no answers for {metric}: judge {Metric.LOSS}"


def _verdict(gate: Gate, scores: dict[str, Scores]) -> GateVerdict:
    passed, message = _judge(gate, scores)
    return GateVerdict(name=gate.name, passed=passed, action=gate.action, message=message)


def _judge(gate: Gate, scores: dict[str, Scores]) -> tuple[bool, str]:
    value = _value(gate.artifact, gate.metric, scores)
    if value is None and gate.metric in ONLY_FOR and gate.artifact in scores:
        format, instead = ONLY_FOR[Metric(gate.metric)]
        return False, f"{gate.artifact} has no {gate.metric} score; it is for rows of format {format}: judge {instead}"
    if value is None:
        return False, f"{gate.artifact} has no {gate.metric} score; {_instead(gate, scores)}"
    what = f"{gate.metric} of {gate.artifact} is {value:.4g}"
    if gate.min is not None:
        return value >= gate.min, f"{what}, must be at least {gate.min:g}"
    if gate.max is not None:
        return value <= gate.max, f"{what}, must be at most {gate.max:g}"
    if gate.min_improvement_over_base is not None:
        return _compare(gate, what, value, BASE, gate.min_improvement_over_base, scores)
    return _compare(gate, what, value, MERGED, -(gate.max_regression_from_merged or 0.0), scores)


def _compare(gate: Gate, what: str, value: float, other: str, at_least: float, scores: dict[str, Scores]) -> tuple[bool, str]:
    """Whether `value` is better than the other subject's by at least this much; negative allows it to be worse."""
    reference = _value(other, gate.metric, scores)
    if reference is None:
        return False, f"{what}, but {other} has no {gate.metric} score to compare with"
    lower = LOWER_IS_BETTER | set(scores[gate.artifact].lower_is_better or ())
    gain = reference - value if gate.metric in lower else value - reference
    bound = f"at least {at_least:g} better than" if at_least > 0 else "not worse than"
    if at_least < 0:
        bound = f"at most {-at_least:g} worse than"
    # Scores are means of floats: a bound that is met exactly must not fail by the last bit.
    return gain >= at_least - 1e-9, f"{what}, must be {bound} {other}'s {reference:.4g}"


def _instead(gate: Gate, scores: dict[str, Scores]) -> str:
    """What to do about a score that is not there."""
    if "/" not in gate.metric or gate.artifact not in scores:
        return "are there test rows?"
    of_tasks = sorted(metric for metric in scores[gate.artifact].values if "/" in metric)
    return f"its tasks have {', '.join(of_tasks)}" if of_tasks else "it was scored on no task"


def _value(subject: str, metric: str, scores: dict[str, Scores]) -> float | None:
    found = scores.get(subject)
    return None if found is None else found.values.get(metric)
