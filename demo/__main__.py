"""python3 -m demo: from a bare machine to a served model that answers what it could not before. See `make help`."""

from __future__ import annotations

import os
import sys
import time

from localcluster.errors import LocalclusterError
from localcluster.work import duration

from demo import environment, local, ways
from demo.console import DemoFailed, step, table
from demo.follow import follow, is_true, step_times
from demo.installation import ROOT, Installation, install_into_current, install_into_kind, install_locally, namespace
from demo.kubectl import Kubectl, KubectlFailed, Object
from demo.questions import ask
from demo.ways import Way

NAMESPACE = "finetune-demo"
EXAMPLE = "examples/quickstart.yaml"
JOB = "quickstart"
INSTALL = {Way.CURRENT: install_into_current, Way.KIND: install_into_kind, Way.LOCAL: install_locally}


def main() -> int:
    """Run the demo; 0 when the served model was asked, 1 with a message when not."""
    begin = time.monotonic()
    try:
        way = ways.chosen(environment.wanted_cluster())
        print(f"Cluster: {ways.WHY[way]}.", flush=True)
        if way is Way.PROCESSES:
            return local.run(EXAMPLE)
        installation = INSTALL[way]()
        job = train(installation.kubectl)
        show_result(installation, job)
        show_next(installation.kubectl)
    except (DemoFailed, KubectlFailed, LocalclusterError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; `make demo` again goes on from here", file=sys.stderr)
        return 130
    print(f"\nThe demo took {duration(time.monotonic() - begin)}.")
    return 0


def train(kubectl: Kubectl) -> Object:
    """Apply the example and follow it; one that ended before is applied anew, to show that nothing is done twice."""
    with step(f"kubectl apply -n {NAMESPACE} -f {EXAMPLE}"):
        namespace(kubectl, NAMESPACE)
        before = kubectl.get("finetunejob", JOB, NAMESPACE)
        if before is not None and (is_true(before, "Succeeded") or is_true(before, "Failed")):
            print("   the FineTuneJob of an earlier run is deleted first; its artifacts stay, so what is the same is reused")
            kubectl("delete", "finetunejob", JOB, "-n", NAMESPACE, "--wait")
        said = kubectl("apply", "-n", NAMESPACE, "-f", str(ROOT / EXAMPLE))
        print("".join(f"   {line}\n" for line in said.splitlines()), end="")
    with step("train, merge, quantize, evaluate, gate, serve"):
        job = follow(kubectl, JOB, NAMESPACE)
        print(table(("step", "state", "time"), step_times(job), (30, 12, 10)))
    return job


def show_result(installation: Installation, job: Object) -> None:
    """Questions and answers, scores, verdicts."""
    with step("the same questions to the base model and to the served one"):
        print("   base model: as the evaluate step asked it, from the artifact store; served model: asked now over its API")
        rows = ask(installation.kubectl, job, installation.operator_image)
        answers = [(row.question, row.reference, row.base, row.served) for row in rows]
        print(table(("question", "right", "base model", "served model"), answers, (44, 16, 34, 20)))
        for name, found in (("base", [row.base for row in rows]), ("served", [row.served for row in rows])):
            right = sum(answer == row.reference for answer, row in zip(found, rows, strict=True))
            print(f"   {name} model: {right} of {len(rows)} right")
    status = job["status"]
    metrics = ("exactMatch", "rougeL", "loss", "perplexity")
    scores = [(s["subject"], *(f"{s['values'][m]:.4g}" for m in metrics), str(s["samples"])) for s in status["scores"]]
    print("\nScores on the test rows\n" + table(("model", *metrics, "rows"), scores, (20, 12, 12, 12, 12, 6)))
    verdicts = [(g["name"], "Passed" if g["passed"] else "Failed", g["message"]) for g in status["gates"]]
    print("\nGates\n" + table(("gate", "verdict", "why"), verdicts, (24, 8, 80)))


def show_next(kubectl: Kubectl) -> None:
    """Commands to try."""
    if kubectl.kubeconfig:
        print(f"\nTry next\n   export KUBECONFIG={kubectl.kubeconfig} PATH={os.path.dirname(kubectl.program)}:$PATH")
    else:
        print("\nTry next")
    asked = '{"messages": [{"role": "user", "content": "What do people on Velmora pay with?"}]}'
    print(f"""   kubectl -n {NAMESPACE} get ftj,mserve
   kubectl -n {NAMESPACE} describe ftj {JOB}
   kubectl explain ftj.spec.training
   kubectl -n {NAMESPACE} port-forward service/{JOB} 8000 &
   curl -s localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{asked}'
   kubectl -n {NAMESPACE} patch ftj {JOB} --type=json -p '[{{"op": "add", "path": "/spec/artifacts/-", \
"value": {{"name": "q4", "format": "GGUF", "quantization": "Q4_K_M"}}}}]'    # one more artifact: nothing is trained again
   make demo             # again: everything is reused
   make clean-cluster    # take the cluster away""")


if __name__ == "__main__":
    sys.exit(main())
