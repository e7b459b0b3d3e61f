"""What the operator and the trainer's pods say to each other: the whole of it, and nothing that needs torch.

    operator ── RunConfig (immutable ConfigMap, /etc/finetune/run.json) ──────────► pod `python -m finetune_trainer <step>`
    operator ◄── Progress (one JSON line on stdout, read from the log's tail) ───── pod
    operator ◄── Termination (termination message) + ExitCode (exit status) ─────── pod

Strict where we write (`Strict` forbids unknown keys), tolerant where an older pod reports (`Report` ignores them): fields.py.
run.py holds the RunConfig, reports.py all that comes back, pod.py where a pod finds and leaves things, pipeline.py the steps
of a run and their fingerprints. The models that users meet in a FineTuneJob's spec are defined here once; their descriptions
are what `kubectl explain` prints.
"""
