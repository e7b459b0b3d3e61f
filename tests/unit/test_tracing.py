"""One trace for an object: the operator's spans, what its pods are told, and the pods' own spans below."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import structlog
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from tests.builders import make_job
from tests.story import SETTINGS, Story

from finetune_operator import logs, tracing
from finetune_operator.meta import Key
from finetune_operator.settings import Settings, read_settings
from finetune_operator.tracing import Traces
from finetune_trainer import environment
from finetune_trainer import tracing as of_pods
from finetune_trainer.contract import pod, traces
from finetune_trainer.contract.reports import Progress

UID = "5f0c1c3e-0f5d-4a7b-9a57-0c6f4a1f4b11"
KEY = Key("FineTuneJob", "team", "tickets")
JOB = {"kind": "Job", "metadata": {"name": "tickets-train-1", "namespace": "team"}}


def test_pods_and_operator_start_where_opentelemetry_is_not_installed() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; import finetune_trainer.contract.traces"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What reaches the collector."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(exporter, "shutdown", lambda: None)  # each step shuts its own sender down
    monkeypatch.setattr(traces, "sender", lambda _endpoint: SimpleSpanProcessor(exporter))
    return exporter


def body(**status: Any) -> dict[str, Any]:
    return {"metadata": {"uid": UID}, "status": status}


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def parent_of(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


def test_a_place_is_read_as_it_was_written_and_follows_from_names() -> None:
    place = traces.place_of(UID, "tickets-train-1")
    assert traces.read(place.traceparent) == place == traces.place_of(UID, "tickets-train-1")
    assert place.trace == traces.place_of(UID, "tickets-merge-1").trace
    assert place.span != traces.place_of(UID, "tickets-merge-1").span
    assert traces.place_of("another").trace != place.trace
    for wrong in ("", "00-1-2-01", f"00-{'x' * 32}-{'1' * 16}-01", "no trace"):
        assert traces.read(wrong) is None


def test_a_place_is_written_as_other_versions_of_us_write_it() -> None:
    assert traces.place_of(UID).traceparent == "00-5f71bb35b7c993bb356db1b78e55b9e7-ab6aa5db380f663e-01"
    assert traces.place_of(UID, "tickets-train-1").traceparent == "00-5f71bb35b7c993bb356db1b78e55b9e7-650865d5f178277d-01"


def test_a_span_says_what_it_was_told() -> None:
    above, place = traces.place_of(UID), traces.place_of(UID, "train")
    found = traces.span("finetune-operator", "train", place, above, (3, 7), {"step": "train"}, "out of memory")
    assert found.parent is not None
    for context, of in ((found.context, place), (found.parent, above)):
        assert (context.trace_id, context.span_id, context.is_remote, context.trace_flags) == (of.trace, of.span, False, 1)
    assert (found.name, found.start_time, found.end_time, found.attributes) == ("train", 3, 7, {"step": "train"})
    assert found.resource.attributes["service.name"] == "finetune-operator"
    assert (found.status.status_code, found.status.description) == (StatusCode.ERROR, "out of memory")
    well = traces.span("finetune-operator", "train", place, None, (3, 7), {})
    assert (well.parent, well.status.status_code) == (None, StatusCode.UNSET)


def test_spans_are_sent_to_the_collectors_path_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []

    class Exporter(InMemorySpanExporter):
        def __init__(self, endpoint: str, timeout: int) -> None:
            super().__init__()
            made.append((endpoint, timeout))

    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", Exporter)
    for endpoint in ("http://collector:4318", "http://collector:4318/"):
        traces.sender(endpoint).shutdown()
    assert made == [("http://collector:4318/v1/traces", 5)] * 2


def test_reconcile_job_and_step_are_one_trace(told: InMemorySpanExporter, capsys: pytest.CaptureFixture[str]) -> None:
    operator = tracing.start("http://collector:4318")
    seen = body()
    with operator.a_pass(KEY, seen) as running, operator.creating(JOB):
        seen["status"] = {"conditions": [{"type": "Ready"}]}  # what is kept of an object is its newest state
        running.outcome = "changed"
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "FINETUNE_ATTEMPT": "2"}
    variables["TRACEPARENT"] = traces.place_of(UID, JOB["metadata"]["name"]).traceparent  # type: ignore[index]
    with of_pods.of_step("train", environment.read(variables), is_rank=False) as trace:
        assert trace is not None
        for activity in ("loading the model", "training", "training", "saving"):
            trace.reading(Progress(step_name="train", activity=activity, step=0, total=0))
    found = spans(told)
    assert len({span.context.trace_id for span in found.values()}) == 1
    chain = ["FineTuneJob tickets", "reconcile", "create Job tickets-train-1", "train"]
    for above, below in pairwise(chain):
        assert parent_of(found[below]) == found[above].context.span_id, below
    for activity in ("loading the model", "training", "saving"):
        assert parent_of(found[activity]) == found["train"].context.span_id
    assert [name for name in found if name not in (*chain, "loading the model", "training", "saving")] == []
    assert found["train"].attributes == {"finetune.step": "train", "finetune.attempt": "2", "finetune.node": "0"}
    assert f"this step is part of the trace {found['train'].context.trace_id:032x}" in capsys.readouterr().err


def test_a_pass_that_wrote_nothing_is_not_told_and_a_failed_one_says_why(told: InMemorySpanExporter) -> None:
    operator = tracing.start("http://collector:4318")
    with operator.a_pass(KEY, body(conditions=[{"type": "Ready"}])):
        pass
    assert told.get_finished_spans() == ()
    with operator.a_pass(KEY, body(conditions=[{"type": "Ready"}])) as running:
        running.failed(ValueError("no"))
    (span,) = told.get_finished_spans()
    assert (span.name, span.status.is_ok, span.status.description) == ("reconcile", False, "ValueError: no")


def test_a_failed_step_says_why_and_ranks_leave_the_step_to_who_started_them(told: InMemorySpanExporter) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "TRACEPARENT": traces.place_of(UID, "j").traceparent}
    told_pod = environment.read(variables)
    with pytest.raises(RuntimeError), of_pods.of_step("train", told_pod, is_rank=False):
        raise RuntimeError("out of memory")
    with pytest.raises(SystemExit), of_pods.of_step("merge", told_pod, is_rank=False):
        raise SystemExit(143)
    with of_pods.of_step("train", told_pod, is_rank=True) as trace:
        assert trace is not None
        trace.reading(Progress(step_name="train", activity="training", step=0, total=0))
    train, merge, training = told.get_finished_spans()
    assert train.status.description == "RuntimeError: out of memory"
    assert merge.status.description == "the pod was told to stop"
    assert (training.name, parent_of(training)) == ("training", train.context.span_id)


def test_each_attempts_pods_are_below_the_span_of_its_job() -> None:
    def told(settings: Settings) -> dict[str, dict[str, str]]:
        story = Story(make_job(), settings=settings)
        story.to_the_end()
        made = {job["metadata"]["name"]: job for job in story.created if job["kind"] == "Job"}
        return {
            name: {v["name"]: v["value"] for v in job["spec"]["template"]["spec"]["containers"][0]["env"] if "value" in v}
            for name, job in made.items()
        }

    assert all(pod.ENV_TRACEPARENT not in env and pod.ENV_OTLP not in env for env in told(SETTINGS).values())
    traced = told(replace(SETTINGS, otlp_endpoint="http://collector:4318"))
    uid = make_job()["metadata"]["uid"]
    assert len(traced) > 3
    assert {name: env[pod.ENV_TRACEPARENT] for name, env in traced.items()} == {
        name: traces.place_of(uid, name).traceparent for name in traced
    }
    assert {env[pod.ENV_OTLP] for env in traced.values()} == {"http://collector:4318"}


def test_the_standard_name_counts_where_ours_says_nothing() -> None:
    standard = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318"}
    assert read_settings(standard).otlp_endpoint == "http://a:4318"
    assert read_settings(standard | {"FINETUNE_OTLP_ENDPOINT": "http://b:4318"}).otlp_endpoint == "http://b:4318"
    assert read_settings({}).otlp_endpoint == ""


def test_without_an_endpoint_nothing_is_told() -> None:
    assert tracing.start("") is tracing.SILENT
    with Traces().a_pass(KEY, body()) as running, Traces().creating(JOB):
        running.outcome = "changed"
    with of_pods.of_step("train", environment.read({"TRACEPARENT": traces.place_of(UID).traceparent}), is_rank=False) as trace:
        assert trace is None


def test_an_endpoint_that_is_none_and_a_missing_library_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="write it as http://collector:4318"):
        tracing.start("collector:4318")

    def missing(_endpoint: str) -> None:
        raise ModuleNotFoundError("no", name="opentelemetry")

    monkeypatch.setattr(traces, "sender", missing)
    with pytest.raises(ValueError, match=r"opentelemetry is missing: install finetune-operator\[tracing\]"):
        tracing.start("http://collector:4318")


@pytest.fixture
def as_before() -> Iterator[None]:
    """Logging as it was is put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.usefixtures("as_before")
def test_logs_of_a_pass_name_its_trace(told: InMemorySpanExporter, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    with tracing.start("http://collector:4318").a_pass(KEY, body()) as running:
        running.outcome = "changed"
        structlog.get_logger("test").info("within")
        logging.getLogger("somebody").warning("else")
    structlog.get_logger("test").info("after")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    trace = f"{told.get_finished_spans()[0].context.trace_id:032x}"
    assert [(line["message"], line.get("trace_id")) for line in lines] == [("within", trace), ("else", trace), ("after", None)]
