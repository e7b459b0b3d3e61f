"""Argo CD's verdicts and actions, by a real Lua 5.1 over objects as the operator leaves them, in Argo CD's own test format."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa.lua51 import LuaRuntime
from tests.unit.finetunejob import test_status as jobs
from tests.unit.modelserve import test_contract as serves

from finetune_operator.meta import Object

ROOT = Path(__file__).parents[2] / "gitops/argocd"
KINDS = ROOT / "finetune.dev"
SITUATIONS: dict[str, dict[str, Callable[[], Any]]] = {
    "FineTuneJob": {
        "preparing": jobs.preparing,
        "succeeded": jobs.done,
        "failed": jobs.bad_data,
        "gate-failed": jobs.gate_failed,
        "suspended": jobs.suspended,
        "edited": jobs.edited,
    },
    "ModelServe": {
        "loading": serves.loading,
        "serving": serves.serving,
        "refused": serves.refused_beside_live,
        "suspended": serves.suspended,
        "edited": serves.edited_but_not_seen,
        "awaiting": serves.awaiting_promotion,
        "sharing": serves.sharing,
        "in-window": serves.in_window,
        "rolled-back": serves.rolled_back,
    },
}


def run(script: Path, obj: Object) -> Any:
    """What a script makes of an object, as Argo CD calls it: `obj` is global, what is returned counts."""
    lua = LuaRuntime(unpack_returned_tuples=True)
    lua.globals().obj = table(lua, obj)
    return plain(lua.execute(script.read_text()))


def table(lua: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return lua.table_from({k: table(lua, v) for k, v in value.items()})
    return lua.table_from([table(lua, v) for v in value]) if isinstance(value, list) else value


def plain(value: Any) -> Any:
    if not hasattr(value, "items"):
        return value
    found = {k: plain(v) for k, v in value.items()}
    return list(found.values()) if found and set(found) == set(range(1, len(found) + 1)) else found


def health(obj: Object) -> dict[str, str]:
    found: dict[str, str] = run(KINDS / obj["kind"] / "health.lua", obj)
    return found


def body(situation: Any) -> Object:
    found: Object = copy.deepcopy(situation.job if hasattr(situation, "job") else situation.serve)
    return found


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in SITUATIONS.items() for n in names])
def test_the_examples_are_what_the_operator_writes(kind: str, name: str, golden: Callable[[Path, str], None]) -> None:
    text = yaml.safe_dump(body(SITUATIONS[kind][name]()), sort_keys=False, width=140, allow_unicode=True)
    golden(KINDS / kind / "testdata" / f"{name}.yaml", text)


@pytest.mark.parametrize("kind", SITUATIONS)
def test_health_in_argo_cds_own_format(kind: str) -> None:
    tests = read(KINDS / kind / "health_test.yaml")["tests"]
    assert {Path(t["inputPath"]).stem for t in tests} == set(SITUATIONS[kind])
    for test in tests:
        found = health(read(KINDS / kind / test["inputPath"]))
        assert {k: found[k] for k in test["healthStatus"]} == test["healthStatus"], test["inputPath"]


VERDICTS = {"Current": {"Healthy", "Suspended"}, "Failed": {"Degraded"}, "InProgress": {"Progressing", "Suspended"}}


@pytest.mark.parametrize("row", [*jobs.ROWS, *serves.ROWS], ids=lambda row: row[0].__name__)
def test_argo_cd_agrees_with_flux_on_every_row_of_the_contract(row: Any) -> None:
    obj = body(row[0]())
    verdict = (jobs if obj["kind"] == "FineTuneJob" else serves).kstatus(obj)
    assert health(obj)["status"] in VERDICTS[verdict]


def test_a_held_object_is_suspended() -> None:
    obj = body(jobs.preparing())
    obj["status"]["conditions"].append({"type": "Held", "status": "True", "reason": "Held", "message": "by an SRE"})
    assert health(obj) == {"status": "Suspended", "message": "by an SRE"}


@pytest.mark.parametrize("kind", SITUATIONS)
def test_actions_in_argo_cds_own_format(kind: str) -> None:
    folder = KINDS / kind
    tests = read(folder / "actions/action_test.yaml")
    for test in tests["discoveryTests"]:
        found = run(folder / "actions/discovery.lua", read(folder / "actions" / test["inputPath"]))
        assert {name: a["disabled"] for name, a in found.items()} == {r["name"]: r["disabled"] for r in test["result"]}
    actions = {path.parent.name for path in (folder / "actions").glob("*/action.lua")}
    assert {t["action"] for t in tests["actionTests"]} == actions == set(found)
    for test in tests["actionTests"]:
        obj = read(folder / "actions" / test["inputPath"])
        done = run(folder / "actions" / test["action"] / "action.lua", copy.deepcopy(obj))
        assert changes(obj, done) == changes(obj, read(folder / "actions" / test["expectedOutputPath"])), test["action"]


def changes(before: Object, after: Object) -> dict[str, Any]:
    """What an action changed of spec and annotations; the time of a retry is any."""
    annotations = dict(after["metadata"].get("annotations") or {})
    if "finetune.dev/retry" in annotations:
        annotations["finetune.dev/retry"] = datetime.fromisoformat(annotations["finetune.dev/retry"]).tzname()
    return {"annotations": annotations, "suspend": after["spec"].get("suspend"), "name": before["metadata"]["name"]}


def test_both_kinds_have_the_same_scripts() -> None:
    for script in (KINDS / "FineTuneJob").rglob("*.lua"):
        assert script.read_text() == (KINDS / "ModelServe" / script.relative_to(KINDS / "FineTuneJob")).read_text()


def test_the_config_map_holds_the_scripts(golden: Callable[[Path, str], None]) -> None:
    data = {}
    for kind in SITUATIONS:
        folder = KINDS / kind
        data[f"resource.customizations.health.finetune.dev_{kind}"] = (folder / "health.lua").read_text()
        actions = {"discovery.lua": (folder / "actions/discovery.lua").read_text(), "definitions": []}
        for path in sorted((folder / "actions").glob("*/action.lua")):
            actions["definitions"].append({"name": path.parent.name, "action.lua": path.read_text()})  # type: ignore[attr-defined]
        data[f"resource.customizations.actions.finetune.dev_{kind}"] = yaml.dump(actions, Dumper=Blocks, sort_keys=False)
    text = yaml.dump({"data": data}, Dumper=Blocks, sort_keys=False)
    golden(
        ROOT / "argocd-cm.yaml",
        "# For argocd-cm: kubectl patch -n argocd configmap argocd-cm --patch-file argocd-cm.yaml\n" + text,
    )


class Blocks(yaml.SafeDumper):
    """Texts of several lines stand as they are."""


Blocks.add_representer(str, lambda d, s: d.represent_scalar("tag:yaml.org,2002:str", s, style="|" if "\n" in s else None))
