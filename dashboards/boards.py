"""What the four dashboards show. Their queries ask for the names that the chart's rules record, and for our own series."""

from __future__ import annotations

from dashboards.panels import Board, Panel, Row

BY_NAME = "{{namespace}}/{{name}}"
OF_JOB = 'kind="FineTuneJob", namespace="$namespace", name="$name"'
OF_SERVE = 'kind="ModelServe", namespace="$namespace", name="$name"'
ONE = 'namespace="$namespace", name="$name"'
KINDS = 'controller=~"FineTuneJob|ModelServe"'
QUEUE = 'name="finetune-operator"'
PODS = 'job=~".*finetune-operator.*-metrics"'
SINCE = "[$__rate_interval]"

FLEET = Board(
    "finetune-fleet",
    "Fine-tuning: fleet",
    (
        Row(
            "Now",
            (
                Panel(
                    "Jobs at work",
                    'sum(finetune_resources{kind="FineTuneJob", condition="Reconciling", status="True"})',
                    shape="stat",
                ),
                Panel(
                    "Jobs succeeded",
                    'sum(finetune_resources{kind="FineTuneJob", condition="Succeeded", status="True"})',
                    shape="stat",
                ),
                Panel("Objects stalled", 'sum(finetune_resources{condition="Stalled", status="True"})', shape="stat"),
                Panel("Models available", "sum(finetune:available)", shape="stat"),
                Panel("GPUs asked for", "sum(finetune:gpus_requested:count)", shape="stat"),
                Panel("GPU utilization", "avg(finetune:gpu_utilization:ratio)", unit="percentunit", shape="stat"),
            ),
        ),
        Row(
            "What needs somebody",
            (
                Panel(
                    "Stalled",
                    'max by (kind, namespace, name, reason) (finetune_condition{condition="Stalled"}) == 1',
                    shape="table",
                ),
                Panel(
                    "Gates that were not passed",
                    "max by (namespace, name, gate, action) (finetune_gate_passed) == 0",
                    shape="table",
                ),
            ),
        ),
        Row(
            "Training",
            (
                Panel("Tokens a second", "finetune:tokens_per_second", BY_NAME),
                Panel("Loss", "finetune:loss", BY_NAME, "none"),
                Panel(
                    "GPU seconds",
                    "sum by (namespace) (increase(finetune_job_gpu_seconds_total[1h]))",
                    "{{namespace}}",
                    "s",
                    "GPUs held times seconds of attempts that ended within the hour.",
                ),
                Panel(
                    "Jobs by reason",
                    'count by (reason) (finetune_condition{kind="FineTuneJob", condition="Ready"})',
                    "{{reason}}",
                ),
            ),
        ),
        Row(
            "GPUs",
            (
                Panel("GPUs asked for by team", "sum by (namespace) (finetune:gpus_requested:count)", "{{namespace}}"),
                Panel(
                    "Utilization by object", "avg by (namespace, name) (finetune:gpu_utilization:ratio)", BY_NAME, "percentunit"
                ),
                Panel("Memory used by object", "sum by (namespace, name) (finetune:gpu_memory_used:bytes)", BY_NAME, "bytes"),
                Panel("Power by object", "sum by (namespace, name) (finetune:gpu_power:watts)", BY_NAME, "watt"),
            ),
        ),
        Row(
            "Serving",
            (
                Panel("Generated tokens a second", "sum by (namespace, name) (finetune:generated_tokens:rate5m)", BY_NAME),
                Panel("Requests that wait", "sum by (namespace, name) (finetune:requests_waiting)", BY_NAME),
            ),
        ),
    ),
)

JOB = Board(
    "finetune-job",
    "Fine-tuning: one job",
    (
        Row(
            "Now",
            (
                Panel("Step", f"max(finetune_job_step{{{ONE}}})", shape="stat"),
                Panel("of", f"max(finetune_job_steps{{{ONE}}})", shape="stat"),
                Panel("Loss", f"finetune:loss{{{ONE}}}", unit="none", shape="stat"),
                Panel("Time left", f"max(finetune_job_eta_seconds{{{ONE}}})", unit="s", shape="stat"),
                Panel("Memory", f"finetune:memory:bytes{{{ONE}}}", unit="bytes", shape="stat", says="The most on one device."),
                Panel("GPU seconds", f"max(finetune_job_gpu_seconds_total{{{ONE}}})", unit="s", shape="stat"),
            ),
        ),
        Row(
            "State",
            (
                Panel("Conditions", f"max by (condition, reason) (finetune_condition{{{OF_JOB}}}) == 1", shape="table"),
                Panel("Gates", f"max by (gate, action) (finetune_gate_passed{{{ONE}}})", shape="table", says="1 is passed."),
            ),
        ),
        Row(
            "Training",
            (
                Panel("Loss", f"finetune:loss{{{ONE}}}", "loss", "none"),
                Panel(
                    "Learning rate",
                    f"max(finetune_learning_rate{{{ONE}}}) or max(finetune_job_learning_rate{{{ONE}}})",
                    "rate",
                    "sci",
                ),
                Panel(
                    "Tokens a second",
                    f"max(finetune_job_tokens_per_second{{{ONE}}})",
                    "tokens/s",
                    says="As last reported; it stays when training has ended.",
                ),
                Panel("Steps a second", f"finetune:train_steps:rate10m{{{ONE}}}", "steps/s"),
                Panel("Steps done", f"max by (step_name) (finetune_job_step{{{ONE}}})", "{{step_name}}"),
                Panel(
                    "Seconds since the last report",
                    f"time() - max(finetune_job_reported_timestamp_seconds{{{ONE}}})",
                    "silent",
                    "s",
                ),
            ),
        ),
        Row(
            "Devices",
            (
                Panel("GPU utilization", f"finetune:gpu_utilization:ratio{{{OF_JOB}}}", "{{pod}} {{gpu}}", "percentunit"),
                Panel("GPU memory used", f"finetune:gpu_memory_used:bytes{{{OF_JOB}}}", "{{pod}} {{gpu}}", "bytes"),
                Panel("GPU power", f"finetune:gpu_power:watts{{{OF_JOB}}}", "{{pod}} {{gpu}}", "watt"),
                Panel("GPUs asked for", f"finetune:gpus_requested:count{{{OF_JOB}}}", "{{pod}}"),
            ),
        ),
        Row(
            "What went wrong",
            (
                Panel(
                    "Last failure, seconds ago",
                    f"time() - max by (step_name, reason) (finetune_job_failed_timestamp_seconds{{{ONE}}})",
                    unit="s",
                    shape="table",
                ),
            ),
        ),
    ),
    ("namespace", "name"),
    "finetune_job_gpu_seconds_total",
)

SERVED = Board(
    "finetune-served",
    "Fine-tuning: one served model",
    (
        Row(
            "Now",
            (
                Panel("Available", f"finetune:available{{{ONE}}}", shape="stat"),
                Panel("Pods ready", f"max(finetune_serve_replicas{{{ONE}}})", shape="stat"),
                Panel("Pods wanted", f"max(finetune_serve_wanted_replicas{{{ONE}}})", shape="stat"),
                Panel("Requests at work", f"sum(finetune:requests_running{{{ONE}}})", shape="stat"),
                Panel("Requests that wait", f"sum(finetune:requests_waiting{{{ONE}}})", shape="stat"),
                Panel("Errors in an hour", f"finetune:errors:ratio_rate1h{{{ONE}}}", unit="percentunit", shape="stat"),
            ),
        ),
        Row(
            "State",
            (
                Panel("Revisions", f"max by (role, revision, state) (finetune_serve_revision{{{ONE}}})", shape="table"),
                Panel("Conditions", f"max by (condition, reason) (finetune_condition{{{OF_SERVE}}}) == 1", shape="table"),
            ),
        ),
        Row(
            "Requests",
            (
                Panel("Requests a second", f"finetune:requests:rate5m{{{ONE}}}", "requests/s", says="vLLM counts them."),
                Panel(
                    "Share of errors",
                    f"finetune:errors:ratio_rate5m{{{ONE}}}",
                    "errors",
                    "percentunit",
                    "Of an engine that counts no requests, the share of time without an available revision.",
                ),
                Panel(
                    "Time to the first token, 95 %",
                    f"finetune:first_token_seconds:p95{{{ONE}}}",
                    "{{revision}}",
                    "s",
                    "vLLM tells it.",
                ),
                Panel(
                    "Time of a request, 95 %", f"finetune:request_seconds:p95{{{ONE}}}", "{{revision}}", "s", "vLLM tells it."
                ),
            ),
        ),
        Row(
            "Engine",
            (
                Panel("Generated tokens a second", f"finetune:generated_tokens:rate5m{{{ONE}}}", "{{revision}}"),
                Panel("Prompt tokens a second", f"finetune:prompt_tokens:rate5m{{{ONE}}}", "{{revision}}"),
                Panel("Requests at work", f"finetune:requests_running{{{ONE}}}", "{{revision}}"),
                Panel("Requests that wait", f"finetune:requests_waiting{{{ONE}}}", "{{revision}}"),
                Panel(
                    "KV cache in use",
                    f"finetune:kv_cache_usage:ratio{{{ONE}}}",
                    "{{revision}}",
                    "percentunit",
                    "vLLM tells it.",
                ),
                Panel("GPU utilization", f"finetune:gpu_utilization:ratio{{{OF_SERVE}}}", "{{pod}} {{gpu}}", "percentunit"),
            ),
        ),
    ),
    ("namespace", "name"),
    "finetune_serve_replicas",
)

OPERATOR = Board(
    "finetune-operator",
    "Fine-tuning: operator",
    (
        Row(
            "Now",
            (
                Panel("Replicas up", f"sum(up{{{PODS}}})", shape="stat"),
                Panel("Replicas that act", 'sum(leader_election_master_status{name=~".*finetune-operator.*"})', shape="stat"),
                Panel("Keys that wait", f"sum(workqueue_depth{{{QUEUE}}})", shape="stat"),
                Panel(
                    "Longest pass",
                    f"max(workqueue_longest_running_processor_seconds{{{QUEUE}}})",
                    unit="s",
                    shape="stat",
                ),
                Panel("Objects", 'sum(finetune_resources{condition="Ready"})', shape="stat"),
                Panel("Objects without series", "sum(finetune_objects_without_series)", shape="stat"),
            ),
        ),
        Row(
            "Passes",
            (
                Panel(
                    "Passes a second",
                    f"sum by (controller, result) (rate(controller_runtime_reconcile_total{{{KINDS}}}{SINCE}))",
                    "{{controller}} {{result}}",
                ),
                Panel(
                    "Failed passes a second",
                    f"sum by (controller) (rate(controller_runtime_reconcile_errors_total{{{KINDS}}}{SINCE}))",
                    "{{controller}}",
                ),
                Panel(
                    "Length of a pass, 95 %",
                    "histogram_quantile(0.95, sum by (le, controller) "
                    f"(rate(controller_runtime_reconcile_time_seconds_bucket{{{KINDS}}}{SINCE})))",
                    "{{controller}}",
                    "s",
                ),
                Panel(
                    "Workers",
                    'max(controller_runtime_max_concurrent_reconciles{controller="FineTuneJob"}) '
                    f"- sum(controller_runtime_active_workers{{{KINDS}}})",
                    "idle",
                ),
            ),
        ),
        Row(
            "Queue and API server",
            (
                Panel(
                    "Wait for a worker, 95 %",
                    f"histogram_quantile(0.95, sum by (le) (rate(workqueue_queue_duration_seconds_bucket{{{QUEUE}}}{SINCE})))",
                    "wait",
                    "s",
                ),
                Panel(
                    "Retries a second",
                    f"sum(rate(workqueue_retries_total{{{QUEUE}}}{SINCE}))",
                    "retries",
                ),
                Panel(
                    "Requests to the API server",
                    f"sum by (method, code) (rate(rest_client_requests_total{{{PODS}}}{SINCE}))",
                    "{{method}} {{code}}",
                ),
                Panel("Events of watches", f"sum by (kind) (rate(finetune_watch_events_total{SINCE}))", "{{kind}}"),
            ),
        ),
        Row(
            "Process",
            (
                Panel("CPU", f"rate(process_cpu_seconds_total{{{PODS}}}{SINCE})", "{{pod}}"),
                Panel("Memory", f"process_resident_memory_bytes{{{PODS}}}", "{{pod}}", "bytes"),
            ),
        ),
    ),
)

BOARDS = (FLEET, JOB, SERVED, OPERATOR)
