"""Whether a revision can fit the memory that it is given: its weights, and what its engine keeps of contexts. Pure.

What is counted is the least that an engine takes. Nothing is said where nothing is known: of a model by uri, of GPUs whose
memory the spec does not name, and where the engine's own arguments decide. A revision that has pods, or had some, tells by
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.meta import quantity_value
from finetune_operator.modelserve import history
from finetune_operator.modelserve.case import Case
from finetune_operator.modelserve.engines import ENGINES
from finetune_operator.modelserve.engines.engine import Memory
from finetune_operator.modelserve.model import Obstacle
from finetune_trainer.contract.reasons.steps import StepReason

GIB = 1 << 30
NUMBER_BYTES = 2  # of what is kept of a context, and of a weight at most, as engines load it
STEP_TOKENS = 16  # a context is told in these, and is never shorter


@dataclass(frozen=True)
class Room:
    """Memory, what says how much, and what gives more."""

    bytes: int
    said_by: str
    remedy: str


def fitted(case: Case) -> Case:
    """The case, with that in its way where its revision can't fit."""
    target = case.target
    if target is None or target.pinned_by is not None or case.resolution.obstacle is not None:
        return case
    if target.revision in case.world.deployed or history.of(case.world.history, target.revision) is not None:
        return case
    text = misfit(case.serve.spec, target.model)
    if text is None:
        return case
    obstacle = Obstacle(StepReason.DoesNotFit, f"{target.model.source} does not fit{text}", blocks=True)
    return replace(case, resolution=replace(case.resolution, obstacle=obstacle))


def misfit(spec: ModelServeSpec, model: ResolvedModel) -> str | None:
    """What is too large, and what would fit; None where nothing is."""
    memory = ENGINES[spec.engine.type].memory
    if memory is None or model.bytes is None or _is_said_otherwise(spec, memory):
        return None
    weights = model.bytes if model.parameters is None else min(model.bytes, NUMBER_BYTES * model.parameters)
    taken = weights + memory.fixed * (spec.parallelism.tensor if spec.parallelism.gpus else 1)
    rooms = list(_rooms(spec, memory, taken))
    least = min(rooms, key=lambda room: room.bytes, default=None)
    if least is None:
        return None
    if least.bytes < 0:
        text = f": its weights and {spec.engine.type} take {_gib(taken)} at least, and {least.said_by} gives"
        return f"{text} {_gib(taken + least.bytes)}; {least.remedy}, or serve a smaller artifact"
    return _too_long(spec, model, memory, least)


def _too_long(spec: ModelServeSpec, model: ResolvedModel, memory: Memory, room: Room) -> str | None:
    """What is said of contexts that are longer than there is room for."""
    asked = spec.engine.max_model_length
    tokens = asked if asked is not None or not memory.takes_all_context else model.context_tokens
    each = NUMBER_BYTES * (model.cached_numbers or 0)
    if tokens is None or each * tokens * (slots := memory.slots if asked is not None else 1) <= room.bytes:
        return None
    whose = "spec.engine.maxModelLength" if asked is not None else "the model's own, as spec.engine.maxModelLength is unset"
    text = f" with a context of {tokens} tokens ({whose}): {f'{slots} of them take' if slots > 1 else 'it takes'}"
    text += f" {_gib(each * tokens * slots)}, and {room.said_by} leaves {_gib(room.bytes)} for that"
    fits = room.bytes // (each * memory.slots) // STEP_TOKENS * STEP_TOKENS
    if fits < STEP_TOKENS:
        return f"{text}; {room.remedy}, or serve a smaller artifact"
    return f"{text}; set spec.engine.maxModelLength to {fits} at most, or {room.remedy}"


def _rooms(spec: ModelServeSpec, memory: Memory, taken: int) -> Iterator[Room]:
    """What is left for contexts beside what is taken; nothing where the spec says nothing of it."""
    if spec.parallelism.gpus:
        given, count, field = spec.parallelism.gpu.memory, spec.parallelism.tensor, "spec.parallelism.gpu.memory"
        remedy = "take a larger GPU" + (", or more by spec.parallelism.tensor" * ENGINES[spec.engine.type].splits_tensors)
        if given is not None and memory.gpu_percent is not None:
            yield Room(int(quantity_value(given)) * count * memory.gpu_percent // 100 - taken, field, remedy)
        return
    given, field = spec.resources.limits.get("memory"), "spec.resources.limits.memory"
    kept = memory.cache_on_cpus
    if given is not None:
        yield Room(int(quantity_value(given)) - taken, field, f"raise {field}")
    if kept is not None:
        yield Room(kept[1], kept[0], f"raise {kept[0]} in spec.engine.env")


def _is_said_otherwise(spec: ModelServeSpec, memory: Memory) -> bool:
    """Whether the engine's own arguments or variables decide about its memory."""
    said = {argument.partition("=")[0] for argument in spec.engine.args} | {variable.name for variable in spec.engine.env}
    return bool(said & memory.said_by)


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
