"""What an engine is started with: room for each request, and the API key that all who ask it must bring."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.listening import Quiet, listening
from tests.serving import SETTINGS, Stage, make_serve
from tests.waiting import wait_until

from finetune_operator.api.modelserve import ModelServe, ModelServeSpec
from finetune_operator.api.rules.modelserve import broken_by
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.decision import Create
from finetune_operator.meta import Object
from finetune_operator.modelserve.engines import ENGINES, EngineType, llamacpp, ollama, transformers
from finetune_operator.modelserve.engines.engine import UNTIL_DRAINED, is_served
from finetune_operator.modelserve.pod import pod_template
from finetune_trainer.contract.manners import Manners

MODEL_OF_OLD = ResolvedModel(source="uri", uri="pvc://models/q4")
KEY = {"secretRef": {"name": "keys"}}


def arguments(engine: EngineType, **fields: Any) -> list[str]:
    spec = ModelServeSpec.model_validate({"model": {"uri": "pvc://c/m"}, "engine": {"type": engine, **fields}})
    return ENGINES[engine].launch(spec, "facts", 8080).args


def after(args: list[str], option: str) -> str:
    return args[args.index(option) + 1]


HTTP: Object = {"name": "http_requests_total", "labels": {"method": "POST", "handler": "/v1/.*"}}
OF_HTTP: Object = {"requests": HTTP, "errors": {**HTTP, "labels": {**HTTP["labels"], "status": "5.."}}}


def between_tokens(engine: str) -> Object:
    name = f"{engine}:inter_token_latency_seconds"
    return {"tokens": {"name": f"{name}_count"}, "token_seconds": {"name": f"{name}_sum"}}


PREDICTED = {
    "tokens": {"name": "llamacpp:tokens_predicted_total"},
    "token_seconds": {"name": "llamacpp:tokens_predicted_seconds_total"},
}


@pytest.mark.parametrize(
    ("engine", "key", "counted", "loads"),
    [
        (EngineType.LLAMA_CPP, "LLAMA_API_KEY", PREDICTED, {"WaitingRequests": "llamacpp_requests_deferred"}),
        (
            EngineType.OLLAMA,
            None,
            OF_HTTP | between_tokens("ollama"),
            {"WaitingRequests": "ollama_num_requests_waiting"},
        ),
        (
            EngineType.TRANSFORMERS,
            None,
            OF_HTTP | between_tokens("transformers"),
            {"WaitingRequests": "transformers_num_requests_waiting"},
        ),
        (
            EngineType.VLLM,
            "VLLM_API_KEY",
            OF_HTTP | between_tokens("vllm"),
            {"WaitingRequests": "vllm_num_requests_waiting", "CacheUsage": "vllm_kv_cache_usage_perc"},
        ),
    ],
)
def test_what_an_engine_counts_is_read_by_the_names_that_it_has(
    engine: EngineType, key: str | None, counted: Object, loads: Object
) -> None:
    found = ENGINES[engine]
    assert found.api_key_variable == key
    assert found.counters.model_dump(exclude_defaults=True) == counted
    assert dict(found.loads) == loads


def test_each_of_llamacpps_requests_has_the_promised_context() -> None:
    args = arguments(EngineType.LLAMA_CPP, maxModelLength=1024)
    slots = int(after(args, "--parallel"))
    assert slots > 1
    assert int(after(args, "--ctx-size")) == 1024 * slots
    assert "--no-kv-unified" in args


def test_vllm_is_told_the_longest_context_that_was_asked_for() -> None:
    assert after(arguments(EngineType.VLLM, maxModelLength=1024), "--max-model-len") == "1024"
    assert "--max-model-len" not in arguments(EngineType.VLLM)


def test_the_models_own_context_is_one_requests() -> None:
    args = arguments(EngineType.LLAMA_CPP)
    assert after(args, "--parallel") == "1"
    assert "--ctx-size" not in args


def test_one_model_stays_in_ollamas_memory_and_each_of_its_requests_has_the_promised_context() -> None:
    wanted = {"model": {"uri": "pvc://c/m"}, "engine": {"type": "Ollama", "maxModelLength": 1024}}
    cpus = {"parallelism": {"gpus": False}, "resources": {"limits": {"cpu": "1500m"}}}
    start = ollama.launch(ModelServeSpec.model_validate(wanted | cpus), "team/facts", 8081)
    assert start.command == ["sh", "-c", ollama.SERVE, "team/facts", "1024", "2"]
    assert start.env["OLLAMA_NUM_PARALLEL"] == str(ollama.LACKS.at_once)
    assert start.env["OLLAMA_KEEP_ALIVE"] == "-1"
    assert start.env["OLLAMA_HOST"] == "127.0.0.1:8081", "it asks for no key: nobody but its front may reach it"


@pytest.mark.parametrize("script", [ollama.SERVE, ollama.IS_MADE, transformers.SERVE])
def test_what_is_started_has_none_of_the_words_that_kubernetes_replaces(script: str) -> None:
    assert "$(" not in script
    assert "$$" not in script


def test_nobody_is_shown_what_others_ask() -> None:
    assert "--no-slots" in arguments(EngineType.LLAMA_CPP)


# ── API key ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def engine() -> Any:
    """A server that lists the model facts to whoever brings the key."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            refused = self.path.startswith("/v1") and self.headers.get("Authorization") != "Bearer s3cret"
            self.answer(401 if refused else 200, b'{"data": [{"id": "facts"}]}')

    with listening(Handler) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("curl", [True, False])
@pytest.mark.parametrize(
    ("variable", "name", "served"), [("API_KEY", "facts", True), (None, "facts", False), ("API_KEY", "x", False)]
)
def test_the_startup_probe_brings_the_key(engine: str, variable: str | None, name: str, served: bool, curl: bool) -> None:
    script = is_served(variable)
    if not curl:
        script = script.replace("command -v curl", "false").replace("python3", sys.executable)
    environment = {"PATH": "/usr/bin:/bin", "API_KEY": "s3cret"}
    done = subprocess.run(["sh", "-c", script, engine, name], env=environment, check=False, capture_output=True)
    assert (done.returncode == 0) == served, done.stderr


def stage(**spec: Any) -> Stage:
    found = Stage(make_serve(**spec))
    found.put({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "namespace": "default"}})
    return found


@pytest.mark.parametrize("engine_type", ["LlamaCpp", "VLLM"])
def test_engine_and_gate_read_the_key_from_the_secret(engine_type: str) -> None:
    served = stage(auth=KEY, engine={"type": engine_type})
    served.step()
    engine, *_ = served.deployment(served.candidate())["spec"]["template"]["spec"]["containers"]
    served.available(served.candidate())
    (job,) = [a.body for a in served.step().actions if isinstance(a, Create) and a.body["kind"] == "Job"]
    (gate,) = job["spec"]["template"]["spec"]["containers"]
    variable = str(ENGINES[EngineType(engine_type)].api_key_variable)
    for container, name in ((engine, variable), (gate, "FINETUNE_API_KEY")):
        assert secret_of(container, name) == {"name": "keys", "key": "api-key"}
    assert f"Bearer ${variable}" in engine["startupProbe"]["exec"]["command"][2]


def secret_of(container: Object, variable: str) -> Object:
    (found,) = [e for e in container["env"] if e["name"] == variable]
    reference: Object = found["valueFrom"]["secretKeyRef"]
    return reference


def test_a_key_that_is_not_there_is_told_before_a_pod_waits_for_it() -> None:
    served = Stage(make_serve(auth=KEY))
    served.step()
    assert served.conditions()["Stalled"] == ("True", "SecretNotFound")
    assert served.of("Deployment") == []


# ── Front ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def pods(engine_type: str, **spec: Any) -> Object:
    served = Stage(make_serve(engine={"type": engine_type}, **spec))
    served.step()
    template: Object = served.deployment(served.candidate())["spec"]["template"]["spec"]
    return template


def test_a_front_takes_the_requests_of_an_engine_that_cuts_answers_when_it_is_stopped() -> None:
    engine, front = pods("LlamaCpp", drain={"seconds": 40})["containers"]
    assert front["ports"] == [{"name": "http", "containerPort": 8080}], "where Services and policies lead"
    assert after(engine["args"], "--port") == "8081"
    assert after(front["command"], "--engine") == "http://127.0.0.1:8081"
    assert "http://127.0.0.1:8081" in engine["startupProbe"]["exec"]["command"]
    assert engine["livenessProbe"]["httpGet"]["port"] == engine["ports"][0]["name"] == "engine"
    assert front["readinessProbe"]["httpGet"]["port"] == "http", "no pod is ready whose front leads nowhere"


def test_the_engine_is_told_to_stop_when_the_front_has_drained() -> None:
    pod = pods("LlamaCpp", drain={"seconds": 40})
    engine, front = pod["containers"]
    assert after(front["command"], "--drain") == "40"
    assert "lifecycle" not in front, "it drains from the moment on that the pod is deleted"
    assert engine["lifecycle"] == {"preStop": {"exec": {"command": ["sh", "-c", UNTIL_DRAINED, "8080", "40"]}}}
    assert pod["terminationGracePeriodSeconds"] > 40


@pytest.mark.parametrize("missing", [(), ("curl",), ("curl", "python3")])
def test_an_engine_is_stopped_once_its_front_has_ended_and_not_while_that_is_slow(missing: tuple[str, ...]) -> None:
    """The front here takes connections and answers none. Images have curl, Python, or a bash at least."""
    script = UNTIL_DRAINED
    for program in missing:
        script = script.replace(f"command -v {program}", "false")
    script = script.replace("else python3", f"else {sys.executable}")
    with socket.create_server(("127.0.0.1", 0)) as front:
        command = ["sh", "-c", script, str(front.getsockname()[1])]
        subprocess.run([*command, "1"], env={"PATH": "/usr/bin:/bin"}, check=True, timeout=60)  # the time is over
        waits = subprocess.Popen([*command, "3600"], env={"PATH": "/usr/bin:/bin"})
        with pytest.raises(subprocess.TimeoutExpired):
            waits.wait(3)
    assert waits.wait(60) == 0


def test_a_revision_is_the_same_whatever_the_front_is_waited_for_by() -> None:
    served = Stage(make_serve(engine={"type": "LlamaCpp"}, drain={"seconds": 40}))
    made = pod_template(ModelServe.model_validate(served.serve), MODEL_OF_OLD, SETTINGS, fronted=False)
    assert made["spec"]["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 40}}}


def test_no_front_where_the_engine_drains_and_knows_its_name() -> None:
    (engine,) = pods("VLLM", drain={"seconds": 40})["containers"]
    assert engine["ports"] == [{"name": "http", "containerPort": ENGINES[EngineType.VLLM].port}]


def test_before_an_engine_that_answers_to_any_name_a_front_stands_though_nobody_waits() -> None:
    engine, front = pods("LlamaCpp", drain={"seconds": 0}, servedName="facts/v2")["containers"]
    assert "lifecycle" not in engine, "nothing is waited for"
    manners = Manners.model_validate_json(after(front["command"], "--manners"))
    assert manners == llamacpp.MANNERS.model_copy(update={"model": "facts/v2"})


# ── Cache ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

CACHE = {"secretRef": {"name": "redis"}, "ttlSeconds": 60}


def with_cache(engine_type: str, **spec: Any) -> Stage:
    served = stage(engine={"type": engine_type}, **spec)
    served.put({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "redis", "namespace": "default"}})
    served.step()
    return served


@pytest.mark.parametrize("engine_type", list(EngineType))
def test_a_front_keeps_answers_where_that_is_asked(engine_type: EngineType) -> None:
    served = with_cache(engine_type, responseCache=CACHE, auth=KEY)
    pod = served.deployment(served.candidate())["spec"]["template"]["spec"]
    engine, front = pod["containers"]
    assert after(front["command"], "--cache-seconds") == "60"
    assert secret_of(front, "FINETUNE_CACHE_URL") == {"name": "redis", "key": "url"}
    assert secret_of(front, "FINETUNE_API_KEY") == {"name": "keys", "key": "api-key"}, "another key, another cache"
    (revision,) = [e["valueFrom"] for e in front["env"] if e["name"] == "FINETUNE_REVISION"]
    assert revision == {"fieldRef": {"fieldPath": "metadata.labels['finetune.dev/revision']"}}
    assert [e["name"] for e in engine["env"] if e.get("valueFrom", {}).get("secretKeyRef", {}).get("name") == "redis"] == []
    wait = ["sh", "-c", UNTIL_DRAINED, str(ENGINES[engine_type].port), "30"]
    assert engine["lifecycle"] == {"preStop": {"exec": {"command": wait}}}, "the front comes to its end first"


@pytest.mark.parametrize("engine_type", list(EngineType))
def test_to_keep_answers_or_not_is_another_revision(engine_type: EngineType) -> None:
    """A pod has its front from its start: what is asked for would otherwise come with the next revision, some day."""
    found = [None, CACHE, {**CACHE, "ttlSeconds": 61}]
    names = {with_cache(engine_type, **({} if cache is None else {"responseCache": cache})).candidate() for cache in found}
    assert len(names) == 3


def test_a_redis_that_nobody_names_is_told_before_a_pod_waits_for_it() -> None:
    served = stage(responseCache=CACHE)
    served.step()
    assert served.conditions()["Stalled"] == ("True", "SecretNotFound")


def test_pods_that_keep_answers_may_ask_the_redis() -> None:
    (policy,) = with_cache("LlamaCpp", responseCache=CACHE).of("NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    (policy,) = with_cache("LlamaCpp").of("NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_front_of_transformers_does_what_that_lacks() -> None:
    """It asks for the key and knows the model's folder; the engine listens in the pod alone, and is asked from within."""
    pod = pods_with_key("Transformers", resources={"limits": {"cpu": "1500m"}}, engine_fields={"maxModelLength": 512})
    engine, front = pod["containers"]
    assert secret_of(front, "FINETUNE_API_KEY") == {"name": "keys", "key": "api-key"}
    assert [e["name"] for e in engine["env"] if "valueFrom" in e] == []
    assert (after(front["command"], "--folder"), after(front["command"], "--context")) == ("/mnt/model/model", "512")
    assert [m for m in engine["volumeMounts"] if m["name"] != "tmp"] == [m for m in front["volumeMounts"] if m["name"] != "tmp"]
    assert after(engine["args"], "--host") == "127.0.0.1"
    assert "readinessProbe" not in engine
    for probe in ("startupProbe", "livenessProbe"):
        assert "http://127.0.0.1:8081" in engine[probe]["exec"]["command"]
    assert {"name": "OMP_NUM_THREADS", "value": "2"} in engine["env"]
    assert Manners.model_validate_json(after(front["command"], "--manners")).lacks == transformers.LACKS


def pods_with_key(engine_type: str, engine_fields: Object, **spec: Any) -> Object:
    served = stage(auth=KEY, engine={"type": engine_type, **engine_fields}, **spec)
    served.step()
    template: Object = served.deployment(served.candidate())["spec"]["template"]["spec"]
    return template


@pytest.mark.parametrize("name", ["facts", "team/facts", "a.b-c/d_e"])
def test_transformers_is_started_with_the_served_name_as_its_folder(name: str, tmp_path: Path) -> None:
    """Twice, as a container that is started anew finds what it made."""
    (model := tmp_path / "model").mkdir()
    (model / "config.json").write_text("the model's")
    (program := tmp_path / "transformers").write_text('#!/bin/sh\ncat "$2/config.json"; echo " $@"\n')
    program.chmod(0o755)
    script = transformers.SERVE.replace("/mnt/model/model", str(model)).replace("/tmp/served", str(tmp_path / "served"))
    spec = ModelServeSpec.model_validate({"model": {"uri": "pvc://c/m"}, "engine": {"type": "Transformers", "args": ["--x"]}})
    start = transformers.launch(spec, name, 8081)
    assert start.command[:3] == ["sh", "-c", transformers.SERVE]
    for _ in range(2):
        command = ["sh", "-c", script, *start.command[3:], *start.args]
        done = subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True, capture_output=True, text=True)
        assert done.stdout == f"the model's serve {name} --host 127.0.0.1 --port 8081 --device auto --x\n"


# ── Ollama ────────────────────────────────────────────────────────────────────────────────────────────────────────────

OLLAMA = """#!/bin/sh
case $1 in
  serve) exec sleep 3600 ;;
  create) echo "create $2" >>{log} && cat "$4" >>{log} ;;
  show) echo "    context length      2048    " ;;
  run) echo "run $2" >>{log} ;;
esac
"""


@dataclass
class Made:
    """A folder with a GGUF file, and what is made of it by a program that only says what it is asked."""

    at: Path

    def run(self, context: int, threads: int = 0) -> tuple[int, str, str]:
        """Exit status of the container's script, what Ollama was asked, and what the script says."""
        (program := self.at / "ollama").write_text(OLLAMA.replace("{log}", str(self.at / "log")))
        program.chmod(0o755)
        (self.at / "log").write_text("")
        (self.at / "store/made").unlink(missing_ok=True)
        script = ollama.SERVE.replace("/mnt/model", str(self.at))
        environment = {"PATH": f"{self.at}:/usr/bin:/bin", "OLLAMA_MODELS": str(self.at / "store")}
        with (self.at / "said").open("w") as said:
            command = ["sh", "-c", script, "team/facts", str(context), str(threads)]
            server = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        wait_until("the model is made, or can't be", lambda: (self.at / "store/made").exists() or server.poll() is not None)
        server.terminate()
        return server.wait(60), (self.at / "log").read_text(), (self.at / "said").read_text()


@pytest.fixture
def made(tmp_path: Path) -> Made:
    (tmp_path / "model").mkdir()
    (tmp_path / "model.gguf").write_text("weights")
    return Made(tmp_path)


def test_ollama_makes_the_model_of_the_file_that_was_checked_whatever_its_modelfile_names(made: Made) -> None:
    """Twice, as a container that is started anew finds what it made."""
    modelfile = 'FROM ./q8.gguf\nTEMPLATE """{{ .System }}\nFROM here"""\nPARAMETER stop "<end>"\n'
    (made.at / "model/Modelfile").write_text(modelfile)
    for _ in range(2):
        status, asked, said = made.run(2048, threads=2)
        given = modelfile.replace("./q8.gguf", str(made.at / "model.gguf"))
        fitted = "FROM team/facts\nPARAMETER num_ctx 2048\nPARAMETER num_thread 2\n"
        raw = 'FROM team/facts\nTEMPLATE "{{ .Prompt }}"\n'
        assert asked == (f"create team/facts\n{given}create team/facts\n{fitted}create team/facts:raw\n{raw}run team/facts\n")
        assert (status, "no Modelfile" in said) == (0, False)
    (blob,) = (made.at / "store/blobs").iterdir()
    assert blob.readlink() == made.at / "model.gguf", "no weights are copied"
    assert blob.name == f"sha256-{hashlib.sha256(b'weights').hexdigest()}"


def test_ollama_says_that_it_guesses_where_no_modelfile_tells_the_chat_template(made: Made) -> None:
    status, asked, said = made.run(1024)
    assert (status, "no Modelfile lies beside" in said) == (0, True)
    assert asked.startswith(f"create team/facts\nFROM {made.at}/model.gguf\ncreate")
    assert "num_thread" not in asked


def test_a_context_that_ollama_would_shorten_in_silence_ends_the_container_with_its_field(made: Made) -> None:
    status, asked, said = made.run(4096)
    assert status != 0
    assert "spec.engine.maxModelLength is 4096, and the model reads 2048 tokens at most" in said
    assert "run" not in asked


def test_conversations_in_a_modelfile_are_refused_as_ollama_would_leave_them_out(made: Made) -> None:
    (made.at / "model/Modelfile").write_text("FROM ./q8.gguf\nMESSAGE user Hi\n")
    status, asked, said = made.run(1024)
    assert (status != 0, asked) == (True, "")
    assert "MESSAGE lines" in said


def test_a_model_that_ollama_does_not_take_ends_the_container(made: Made) -> None:
    (made.at / "model.gguf").unlink()
    assert made.run(1024)[0] != 0


def test_the_front_of_ollama_waits_for_a_model_in_memory_and_probes_need_no_other_program() -> None:
    pod = pods_with_key("Ollama", engine_fields={"maxModelLength": 512})
    engine, front = pod["containers"]
    assert engine["startupProbe"]["exec"]["command"] == ["sh", "-c", ollama.IS_MADE, "http://127.0.0.1:8081", "facts"]
    assert engine["livenessProbe"]["exec"]["command"] == ["sh", "-c", ollama.IS_MADE, "http://127.0.0.1:8081"]
    assert (after(front["command"], "--folder"), after(front["command"], "--context")) == ("/mnt/model/model", "512")
    (loader,) = pod["initContainers"]
    assert "--gguf" in loader["command"]


@pytest.mark.parametrize(
    ("name", "listed", "there"), [("facts", "facts:latest a1b2", True), ("facts", "", False), (None, "", True)]
)
def test_ollama_is_asked_whether_the_model_is_in_memory(name: str | None, listed: str, there: bool, tmp_path: Path) -> None:
    (program := tmp_path / "ollama").write_text(f"#!/bin/sh\necho NAME ID\nprintf '{listed}'\n")
    program.chmod(0o755)
    command = ["sh", "-c", ollama.IS_MADE, "http://x", *([] if name is None else [name])]
    done = subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False)
    assert (done.returncode == 0) == there
    program.write_text("#!/bin/sh\nexit 1\n")
    assert subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False).returncode != 0


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"engine": {"type": "Ollama"}}, "spec.engine.type Ollama needs spec.engine.maxModelLength"),
        ({"servedName": "a.b/facts/v2/x"}, "spec.servedName is none that Ollama can have"),
        ({"servedName": "team.a/facts"}, "spec.servedName is none that Ollama can have"),
        ({"rollout": {"gate": {"heldOut": {}}}}, "ask by token ids"),
    ],
)
def test_what_ollama_would_do_wrongly_is_refused_beforehand(spec: Object, said: str) -> None:
    asked = {"model": {"uri": "pvc://c/m"}, "engine": {"type": "Ollama", "maxModelLength": 512}}
    assert broken_by(ModelServeSpec.model_validate(asked | {"servedName": "hub.local/team/facts.v2"})) == []
    (sentence,) = broken_by(ModelServeSpec.model_validate(asked | spec))
    assert said in sentence


@pytest.mark.parametrize("engine_type", [name for name, engine in ENGINES.items() if not engine.takes_tokens])
def test_an_engine_that_takes_texts_alone_is_asked_the_prompts_and_no_test_rows(engine_type: EngineType) -> None:
    evaluation = "pvc://models/evaluate/" + "e" * 20
    model = {"uri": "pvc://models/q4", "digest": "sha256:" + "a" * 64, "evaluation": evaluation}
    served = stage(model=model, engine={"type": engine_type, "maxModelLength": 512})
    served.step()
    served.available(served.candidate())
    (job,) = [a.body for a in served.step().actions if isinstance(a, Create) and a.body["kind"] == "Job"]
    assert "--rows" not in job["spec"]["template"]["spec"]["containers"][0]["command"]


def test_a_front_is_no_part_of_the_revision() -> None:
    """It comes with the operator: a newer one may load no model anew."""
    names = set()
    for image in ("operator:1", "operator:2"):
        served = Stage(make_serve(engine={"type": "LlamaCpp"}))
        served.settings = replace(SETTINGS, operator_image=image)
        served.step()
        _, front = served.deployment(served.candidate())["spec"]["template"]["spec"]["containers"]
        assert front["image"] == image
        names.add(served.candidate())
    assert len(names) == 1
