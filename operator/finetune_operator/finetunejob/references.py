"""What the spec names and the namespace does not have: found before any pod is started, with what to do about it.

The job waits (Stalled, not Failed) and goes on by itself when the missing object appears.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from finetune_operator.decision import NOT_FOUND, Ref
from finetune_operator.meta import Object
from finetune_trainer.contract import places
from finetune_trainer.contract.fields import CaSecretRef, SecretRef
from finetune_trainer.contract.places import CONFIG_MAP, PVC, Reach, Use, claim_of, config_map_of
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import TRACKERS

# Claims that the train pods mount, and how several of them on several nodes may do so.
TEACHER = "spec.training.distillation.teacher"
BUCKETS = places.either(place.prefix for place in places.usable(Use.STORE, Reach.BUCKET))
READ, WRITTEN = ("ReadWriteMany", "ReadOnlyMany"), ("ReadWriteMany",)
KEY_NOT_FOUND = {"ConfigMap": OperatorReason.ConfigMapKeyNotFound, "Secret": OperatorReason.SecretKeyNotFound}
SHARED = {"spec.storage.artifacts.uri": WRITTEN, "spec.model.uri": READ, f"{TEACHER}.uri": READ}


@dataclass(frozen=True)
class Reference:
    """One object by name, the field that names it, and the keys that it must have."""

    ref: Ref
    field: str
    keys: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()  # a claim must have one of these access modes; none: any will do


@dataclass(frozen=True)
class Missing:
    reason: OperatorReason
    message: str


def references(
    run: RunConfig, store_secret: SecretRef | None, store_ca: CaSecretRef | None, made_claim: str | None
) -> tuple[Reference, ...]:
    """All that a run's pods mount or read. `made_claim` is the one that the operator makes itself: it may be absent."""
    made = Ref("PersistentVolumeClaim", made_claim or "")
    trusted = () if store_ca is None else (_certificates(store_ca),)
    return (*(r for r in _all(run, store_secret) if r.ref != made), *trusted)


def _certificates(ca: CaSecretRef) -> Reference:
    return Reference(Ref("Secret", ca.name), "spec.storage.artifacts.caSecretRef", (ca.key,))


def first_missing(wanted: tuple[Reference, ...], named: Mapping[Ref, Object | None]) -> Missing | None:
    """The first reference that can't be used as things are, or None."""
    return next((m for r in wanted if (m := _missing(r, named.get(r.ref))) is not None), None)


def _all(run: RunConfig, store_secret: SecretRef | None) -> Iterator[Reference]:
    data, distillation = run.dataset, run.training.distillation
    teachers = [distillation.teacher] if distillation else []
    sources: list[tuple[str, str | None]] = [
        ("spec.model.uri", run.model.uri),
        *((f"{TEACHER}.uri", teacher.uri) for teacher in teachers),
        ("spec.dataset.uri", data.uri),
        ("spec.dataset.test.uri", data.test.uri),
        ("spec.dataset.validation.uri", data.validation.uri if data.validation else None),
        ("spec.evaluation.taskFiles.uri", run.tasks.files.uri if run.tasks else None),
        ("spec.storage.artifacts.uri", run.store.uri),
        *((f"spec.publish[{i}].uri", p.uri) for i, p in enumerate(run.publish)),
    ]
    for field, uri in sources:
        if uri is None:
            continue
        if (claim := claim_of(uri)) is not None:
            modes = SHARED.get(field, ()) if run.devices.nodes > 1 else ()
            yield Reference(Ref(PVC.kind, claim), field, modes=modes)
        elif (config_map := config_map_of(uri)) is not None:
            key = uri.removeprefix(f"{CONFIG_MAP.prefix}{config_map}").removeprefix("/")
            yield Reference(Ref(CONFIG_MAP.kind, config_map), field, (key,) if key else ())
    if (template := run.model.chat_template) is not None:
        text = template.config_map_key_ref
        yield Reference(Ref("ConfigMap", text.name), "spec.model.chatTemplate.configMapKeyRef", (text.key,))
    secrets = [
        ("spec.model.secretRef", run.model.uri, run.model.secret_ref),
        *((f"{TEACHER}.secretRef", teacher.uri, teacher.secret_ref) for teacher in teachers),
        ("spec.dataset.secretRef", data.uri, data.secret_ref),
        ("spec.storage.artifacts.secretRef", run.store.uri, store_secret),
        *((f"spec.publish[{i}].secretRef", p.uri, p.secret_ref) for i, p in enumerate(run.publish)),
    ]
    if (tracking := run.training.report_secret_ref) is not None:
        keys = tuple(key for name in run.training.report_to for key in TRACKERS[name])
        yield Reference(Ref("Secret", tracking.name), "spec.training.reportSecretRef", keys)
    for field, uri, secret in secrets:
        if secret is not None:
            yield Reference(Ref("Secret", secret.name), field, places.of(uri).required)


def _missing(wanted: Reference, found: Object | None) -> Missing | None:
    kind, name = wanted.ref.kind, wanted.ref.name
    if found is None:
        return Missing(
            NOT_FOUND[kind],
            f"{wanted.field} names the {kind} {name}, which does not exist in this namespace;"
            f" create it or correct the field, and the job goes on",
        )
    if "deletionTimestamp" in found.get("metadata", {}):
        return Missing(NOT_FOUND[kind], f"{wanted.field} names the {kind} {name}, which is being deleted; create it again")
    if wanted.modes and not set(wanted.modes) & set(found.get("spec", {}).get("accessModes", ())):
        return Missing(
            OperatorReason.ClaimNotShared,
            f"{wanted.field} names the PersistentVolumeClaim {name}, which one node at a time can mount, but"
            f" spec.parallelism.numNodes asks for several; take one with access mode {' or '.join(wanted.modes)}, or {BUCKETS}",
        )
    has = {**(found.get("data") or {}), **(found.get("binaryData") or {})}
    # Secrets may be readable by name only; then their keys are not ours to judge.
    absent = [k for k in wanted.keys if k not in has] if kind == "ConfigMap" or has else []
    if absent:
        return Missing(
            KEY_NOT_FOUND[kind],
            f"the {kind} {name}, which {wanted.field} names, has no key {' and no key '.join(absent)};"
            f" it has {', '.join(sorted(has)) or 'none'}",
        )
    return None
