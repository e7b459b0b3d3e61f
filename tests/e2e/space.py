"""A namespace of a real cluster, as a scenario sees it: applied objects, waits with deadlines, and what to show on failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from demo.follow import condition, is_true
from demo.installation import SYSTEM
from demo.kubectl import Kubectl, KubectlFailed, Object

PATIENCE = 900  # seconds; two busy cores start a pod with torch in half a minute
OPERATOR = "app.kubernetes.io/name=finetune-operator"
JOB, SERVE = "finetunejob", "modelserve"


@dataclass(frozen=True)
class Space:
    """One namespace."""

    kubectl: Kubectl
    name: str
    operator_image: str

    def apply(self, *bodies: Object) -> None:
        for body in bodies:
            self.kubectl.apply(body | {"metadata": {**body["metadata"], "namespace": self.name}})

    def get(self, kind: str, name: str) -> Object | None:
        return self.kubectl.get(kind, name, self.name)

    def items(self, kind: str, selector: str = "") -> list[Object]:
        return self.kubectl.items(kind, self.name, selector)

    def delete(self, kind: str, name: str, *options: str) -> None:
        self.kubectl("delete", kind, name, "-n", self.name, *options)

    def until(self, kind: str, name: str, what: str, check: Callable[[Object], Any], seconds: int = PATIENCE) -> Object:
        """The first version of an object that `check` holds for."""
        end, last = time.monotonic() + seconds, None
        while (left := end - time.monotonic()) > 0:
            with self.kubectl.watch(kind, name, self.name, max(1, round(min(left, 60)))) as versions:
                for last in versions:
                    if check(last):
                        return last
        raise AssertionError(f"waited {seconds} s in vain until {kind} {name} {what}; its status: {(last or {}).get('status')}")

    def succeeded(self, name: str) -> Object:
        """The job once it has succeeded; a job that stalls instead fails the test at once."""
        found = self.until(JOB, name, "ends", lambda job: is_true(job, "Succeeded") or condition(job, "Stalled"))
        assert is_true(found, "Succeeded"), condition(found, "Stalled")
        return found

    def stalled(self, name: str) -> Object:
        """The condition Stalled of a job, once it has it."""
        found = self.until(JOB, name, "stalls", lambda job: condition(job, "Stalled") or is_true(job, "Succeeded"))
        stalled = condition(found, "Stalled")
        assert stalled is not None, "it succeeded"
        return stalled

    def jobs_by_step(self, owner: Object) -> dict[str, int]:
        """How many Jobs each step of a FineTuneJob's run has had: by its status, as Jobs that have ended are removed."""
        uid, counts = owner["metadata"]["uid"], {s["name"]: s["attempt"] for s in owner["status"]["steps"] if s.get("attempt")}
        there = [
            job["metadata"]["labels"]["finetune.dev/step"]
            for job in self.items("job", f"finetune.dev/job={owner['metadata']['name']}")
            if any(o["uid"] == uid for o in job["metadata"].get("ownerReferences", []))
        ]
        assert all(there.count(step) <= counts.get(step, 0) for step in there), (there, counts)
        return counts

    def operator_restarts(self) -> dict[str, int]:
        """How often the container of each pod of the operator was started again."""
        pods = self.kubectl.items("pod", SYSTEM, OPERATOR)
        return {p["metadata"]["name"]: c["restartCount"] for p in pods for c in p["status"].get("containerStatuses", [])}

    def operator_log(self, *options: str) -> str:
        return self.kubectl("logs", "-n", SYSTEM, "-l", OPERATOR, "--tail=-1", *options)

    def diagnosis(self) -> str:
        """What an engineer would look at first."""
        look = [
            ("get", "finetunejobs,modelserves,jobs,pods,pvc", "-n", self.name, "-o", "wide"),
            (
                "get",
                "finetunejobs",
                "-n",
                self.name,
                "-o",
                "jsonpath={range .items[*]}{.metadata.name}{' '}{.status}{'\\n'}{end}",
            ),
            ("describe", "pods", "-n", self.name),
            ("get", "events", "-n", self.name, "--sort-by=.lastTimestamp"),
            (
                "logs",
                "-n",
                self.name,
                "-l",
                "app.kubernetes.io/managed-by=finetune-operator",
                "--tail=30",
                "--prefix",
                "--all-containers",
            ),
            ("logs", "-n", SYSTEM, "deployment/finetune-operator", "--tail=60"),
        ]
        return "\n".join(f"$ kubectl {' '.join(command)}\n{self._told(command)[-6000:]}" for command in look)

    def _told(self, command: tuple[str, ...]) -> str:
        try:
            return self.kubectl(*command)
        except KubectlFailed as error:
            return str(error)


def steps(job: Object) -> dict[str, str]:
    """State of each step by name."""
    return {step["name"]: step["state"] for step in job["status"]["steps"]}


def step(job: Object, name: str) -> Object:
    """One step of a job's status; {} while there is none."""
    return next((s for s in job.get("status", {}).get("steps", []) if s["name"] == name), {})


def optimizer_steps(job: Object) -> int:
    """How many steps training has reported; 0 while something else runs."""
    progress = job.get("status", {}).get("progress", {})
    return int(progress.get("current", 0)) if progress.get("step") == "train" else 0
