"""`make test`: every layer of tests, one after the other, and what each came to. A layer that can't run here says why.

    python -m tests.layers [--all]

With CI set, a layer that was skipped is a failure, and so is a scenario: CI is where everything runs but what only a GPU can.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localcluster import llamacpp, npm, settings, toolchain

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Layer:
    """`command` runs under this Python; `lacks` says why the layer can't run here, or nothing."""

    name: str
    command: tuple[str, ...]
    lacks: Callable[[], str] = lambda: ""
    prepare: Callable[[], None] = lambda: None


def _no_root() -> str:
    return "" if os.geteuid() == 0 else "containers need root: run it as root"


def _build_programs() -> None:
    """What the layers run that is not Python; a failure shows in the layer."""
    cache = settings.read().cache
    for program in ("kubernetes", "helm", "versitygw", "kstatus", "collector"):
        toolchain.binary(cache, program)
    npm.azurite(cache)


def _install_everything() -> None:
    """Environments as in other images; the cluster, images and hub's model, which the trainer's tests use too; llama.cpp."""
    for image, *locks in (("quantizer", "quantizer"), ("evaluator", "serve-vllm", "evaluator")):
        folder = str(settings.read().cache / image)
        subprocess.run(["sh", str(ROOT / "requirements/image-venv.sh"), folder, *locks], check=True)
    if os.geteuid() != 0:
        return
    from demo.installation import install_locally

    install_locally()
    llamacpp.ensure(settings.read())


def layers(everything: bool) -> list[Layer]:
    """The layers in the order of their cost."""
    pytest_ = ("-m", "pytest", *(["-p", "no:cacheprovider"] if os.environ.get("CI") else []))
    scenarios = () if everything else ("-m", "core")
    quick = () if everything else ("-m", "not slow")
    on_two = ("-n", "2", "--dist", "loadfile")  # each process has a control plane of its own
    return [
        Layer("lint", ("-m", "ruff", "check", ".")),
        Layer("format", ("-m", "ruff", "format", "--check", ".")),
        Layer("types", ("-m", "mypy")),
        Layer("unit", (*pytest_, "tests/unit", "-n", "2")),
        Layer("house", (*pytest_, "tests/house", "-n", "2")),
        Layer("integration", (*pytest_, "tests/integration", *on_two), prepare=_build_programs),
        Layer("faults", ("-m", "tests.faults", "--quick", "--cases", "24")),
        Layer("observability", (*pytest_, "tests/observability")),
        Layer("trainer", (*pytest_, "tests/trainer", "-n", "2", *quick), prepare=_install_everything),
        Layer("e2e", (*pytest_, "tests/e2e", "-s", *scenarios), _no_root),
    ]


def run(layer: Layer) -> str:
    """passed, failed, or skipped with the reason."""
    if why := layer.lacks():
        return f"skipped: {why}"
    try:
        layer.prepare()
    except Exception as error:  # whatever it is, the layer's own tests say more
        print(f"preparing {layer.name}: {error}", file=sys.stderr, flush=True)
    path = os.pathsep.join(str(ROOT / folder) for folder in ("operator", "trainer_image", "."))
    done = subprocess.run([sys.executable, *layer.command], cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, check=False)
    return "passed" if done.returncode == 0 else "failed"


def main() -> int:
    """0 only if no layer failed, and in CI only if none was skipped."""
    results = []
    for layer in layers("--all" in sys.argv[1:]):
        print(f"\n══ {layer.name}", flush=True)
        begin = time.monotonic()
        results.append((layer.name, run(layer), time.monotonic() - begin))
    print("\n══ layers")
    for name, result, seconds in results:
        print(f"{name:<12} {seconds:6.0f} s  {result}")
    failed = [name for name, result, _ in results if result == "failed"]
    skipped = [name for name, result, _ in results if result.startswith("skipped")]
    passed = len(results) - len(failed) - len(skipped)
    if skipped and os.environ.get("CI"):
        print(f"in CI no layer may be skipped: {', '.join(skipped)}", file=sys.stderr)
        return 1
    print(f"{passed} layers passed, {len(failed)} failed, {len(skipped)} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
