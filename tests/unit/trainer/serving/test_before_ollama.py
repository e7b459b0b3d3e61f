"""A front before Ollama, which leaves out of a conversation what does not fit, and of a request what it does not know."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from finetune_operator.modelserve.engines import ollama
from finetune_trainer.serving import front
from finetune_trainer.serving.fitted import Facts, facts, shortened
from finetune_trainer.serving.lacking import Lacking

CONTEXT = 1024
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SOON = 20.0
FAILURES = {500: "llama runner process no longer running", 501: "invalid JSON schema in format"}
PROMISED = Facts(CONTEXT)
Message = dict[str, Any]


def message(letters: int, role: str = "user") -> Message:
    return {"role": role, "content": "x" * letters}


@dataclass
class Ollama:
    """Answers as 0.6.5 does; a letter is a token, and a message has one more. `system` is its model's own message."""

    system: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    begun: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.Response:
        self.hosts.append(request.headers["Host"])
        if request.path == "/api/version":
            return web.json_response({"version": "0.6.5"})
        if request.path not in (CHAT, COMPLETIONS):
            return web.Response(status=404, text="404 page not found")
        body = await request.json()
        self.asked.append(body)
        if body.get("seed") == 9:
            self.begun.release()
            await self.let_go.wait()
        if body.get("seed") in FAILURES:
            failed = {"message": FAILURES[body["seed"]], "type": "api_error", "param": None, "code": None}
            return web.json_response({"error": failed}, status=500)
        return web.json_response({"model": body["model"], "usage": {"prompt_tokens": self.counted(body)}})

    def counted(self, body: dict[str, Any]) -> int:
        """Tokens of what is left: the last message, as many before it as fit, and the system messages before the first that
        does not fit.
        """
        if "prompt" in body:
            return min(len(body["prompt"]), CONTEXT)
        messages = body["messages"]
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        system, first = list[Message](), len(messages) - 1
        for n in range(len(messages) - 2, -1, -1):
            system = [m for m in messages[:n] if m["role"] == "system"]
            if sum(map(tokens, system + messages[n:])) > CONTEXT:
                break
            first = n
        return min(sum(map(tokens, system + messages[first:])), CONTEXT)


def tokens(one: Message) -> int:
    return len(one["content"]) + 1


@dataclass
class Scene:
    engine: Ollama
    url: str
    caller: aiohttp.ClientSession

    async def post(self, body: dict[str, Any], path: str = CHAT) -> tuple[int, Any]:
        async with self.caller.post(self.url + path, json=body, headers={"Host": "facts.team:8000"}) as found:
            return found.status, await found.json()

    async def get(self, path: str) -> tuple[int, str]:
        async with self.caller.get(self.url + path) as found:
            return found.status, await found.text()


def told(story: Callable[[Scene], Awaitable[None]], model: Facts = PROMISED) -> None:
    async def run() -> None:
        engine, application = Ollama(model.system), web.Application()
        application.router.add_route("*", "/{path:.*}", engine.answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        behind = f"http://127.0.0.1:{runner.addresses[0][1]}"
        besides = Lacking(ollama.MANNERS.model_copy(update={"model": "facts"}), ollama.LACKS, model)
        async with front.standing(0, behind, "127.0.0.1", besides) as (_, stands), aiohttp.ClientSession() as caller:
            await story(Scene(engine, f"http://127.0.0.1:{stands.addresses[0][1]}", caller))
            assert set(engine.hosts) <= {behind.removeprefix("http://")}, "it answers to its own address alone"
        await runner.cleanup()

    asyncio.run(asyncio.wait_for(run(), SOON))


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([message(700)], 200),
        ([message(100, "system"), *[message(100)] * 8], 200),  # long, and whole
        ([message(100, "system"), *[message(100)] * 12], 400),  # the first questions would be gone
        ([message(700), message(700)], 400),
        ([message(700, "system"), message(700)], 400),  # what all is to be answered by would be gone
        ([message(300, "system"), message(600, "system"), message(300)], 400),
        ([message(10), message(1100)], 400),
        ([message(1100)], 400),
        ([message(1023)], 400),  # no room for an answer
    ],
)
def test_no_conversation_is_cut_in_silence(messages: list[Message], status: int) -> None:
    async def story(scene: Scene) -> None:
        found = await scene.post({"model": "facts", "messages": messages})
        assert found[0] == status, found
        if status == 400:
            assert "context is 1024 tokens, the prompt has 1024 or more" in found[1]["error"]["message"]
        else:
            assert scene.engine.asked[-1]["messages"] == messages

    told(story)


def test_a_conversation_of_short_messages_is_counted_once() -> None:
    async def story(scene: Scene) -> None:
        assert (await scene.post({"messages": [message(30)] * 20, "max_tokens": 300}))[0] == 200
        assert [asked["max_tokens"] for asked in scene.engine.asked] == [1, 300]

    told(story)


@pytest.mark.parametrize(("letters", "status"), [(100, 200), (900, 400)])
def test_the_models_own_system_message_is_kept_or_the_conversation_refused(letters: int, status: int) -> None:
    async def story(scene: Scene) -> None:
        assert (await scene.post({"messages": [message(letters)], "max_tokens": 100}))[0] == status

    told(story, Facts(CONTEXT, system="x" * 200))


@pytest.mark.parametrize(
    ("roles", "left"), [("u", None), ("sua", "sa"), ("uau", "au"), ("ssu", "s-u"), ("su", "-u"), ("suau", "sau"), ("-u", None)]
)
def test_what_goes_first_is_no_system_message_and_never_the_last(roles: str, left: str | None) -> None:
    one = {"s": message(1, "system"), "-": message(0, "system"), "u": message(1), "a": message(1, "assistant")}
    assert shortened([one[role] for role in roles]) == (None if left is None else [one[role] for role in left])


def test_completions_are_of_the_prompt_as_it_is() -> None:
    async def story(scene: Scene) -> None:
        assert (await scene.post({"model": "facts", "prompt": "x", "max_tokens": 5}, COMPLETIONS))[0] == 200
        assert (await scene.post({"model": "facts", "messages": [message(1)], "max_tokens": 5}))[0] == 200
        assert [asked["model"] for asked in scene.engine.asked] == ["facts:raw", "facts"]

    told(story)


@pytest.mark.parametrize("field", ["top_k", "logit_bias", "n", "tool_choice", "guided_json", "keep_alive", "x" * 300])
def test_fields_that_it_would_pass_over_are_refused(field: str) -> None:
    async def story(scene: Scene) -> None:
        status, found = await scene.post({"messages": [message(1)], field: {"a": 1}})
        assert (status, found["error"]["param"], scene.engine.asked) == (400, field[:200], [])
        assert (await scene.post({"messages": [message(1)], field: None, "temperature": 0, "stop": ["x"]}))[0] == 200

    told(story)


def test_what_changes_or_tells_of_its_models_is_out_of_reach() -> None:
    async def story(scene: Scene) -> None:
        for path in ("/api/pull", "/api/create", "/api/delete", "/api/copy", "/api/generate", "/api/embed", "/v1/embeddings"):
            assert (await scene.post({"model": "facts"}, path))[0] == 404
        for path in ("/api/tags", "/api/ps", "/", "/api/version"):
            assert (await scene.get(path))[0] == 404
        assert (await scene.get("/health"))[0] == 200
        assert (await scene.post({"model": "another", "messages": [message(1)]}))[0] == 404
        assert scene.engine.asked == []

    told(story)


@pytest.mark.parametrize(("seed", "expected"), [(500, (500, "server_error")), (501, (400, "invalid_request_error"))])
def test_its_own_words_for_a_failure_are_told(seed: int, expected: tuple[int, str]) -> None:
    async def story(scene: Scene) -> None:
        status, found = await scene.post({"messages": [message(1)], "seed": seed})
        assert (status, found["error"]["type"]) == expected
        assert found["error"]["message"] == FAILURES[seed]

    told(story)


def test_requests_wait_that_are_more_than_it_answers_side_by_side() -> None:
    async def story(scene: Scene) -> None:
        asking = [asyncio.create_task(scene.post({"messages": [message(1)], "seed": 9})) for _ in range(ollama.SLOTS + 2)]
        for _ in asking:
            await scene.engine.begun.acquire()
        text = (await scene.get("/metrics"))[1]
        assert f"ollama:num_requests_running {ollama.SLOTS}" in text
        assert "ollama:num_requests_waiting 2" in text
        scene.engine.let_go.set()
        assert {(await one)[0] for one in asking} == {200}

    told(story)


# ── Modelfile ─────────────────────────────────────────────────────────────────────────────────────────────────────────

OURS = '{{ range .Messages }}{{ if eq .Role "system" }}S{{ end }}{{ if eq .Role "user" }}U{{ .Content }}{{ end }}{{ end }}'
ANY = "{{ range .Messages }}{{ .Role }}: {{ .Content }}{{ end }}"
ELSE = '{{ range $m := .Messages }}{{ if eq $m.Role "user" }}U{{ else }}A{{ end }}{{ end }}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Facts(512)),
        (f'FROM ./a.gguf\nTEMPLATE """{OURS}"""\n', Facts(512, roles=frozenset({"system", "user"}))),
        (f'template """{ANY}{{{{ .Tools }}}}"""\n', Facts(512, has_tools=True)),
        (f'TEMPLATE """{ELSE}"""', Facts(512)),
        ('TEMPLATE "{{ .Prompt }}"\nSYSTEM Be kind.\n', Facts(512, roles=frozenset({"user", "assistant"}), system="Be kind.")),
        ("TEMPLATE {{ .System }}{{ .Prompt }}", Facts(512, roles=frozenset({"user", "assistant", "system"}))),
        ('SYSTEM """Be kind.\nBe short."""\nPARAMETER stop x\n', Facts(512, system="Be kind.\nBe short.")),
    ],
)
def test_what_a_modelfile_tells(text: str, expected: Facts, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    if text:
        (tmp_path / "Modelfile").write_text(text)
    assert facts(tmp_path, 512) == expected


def test_messages_that_have_no_place_in_the_template_are_refused() -> None:
    async def story(scene: Scene) -> None:
        status, found = await scene.post({"messages": [message(1, "developer"), message(1)]})
        assert (status, "the role developer" in found["error"]["message"]) == (400, True)
        assert scene.engine.asked == []

    told(story, Facts(CONTEXT, roles=frozenset({"user", "assistant"})))


@pytest.mark.parametrize(("letters", "status"), [(500, 200), (700, 400)])
def test_the_modelfiles_system_message_is_not_left_out_either(letters: int, status: int) -> None:
    async def story(scene: Scene) -> None:
        assert (await scene.post({"messages": [message(letters)]}))[0] == status
        assert scene.engine.asked[0]["messages"] == [message(400, "system"), message(letters)]

    told(story, Facts(CONTEXT, system="x" * 400))


def test_the_parts_of_a_message_are_one_text() -> None:
    """It would take each for a message, and keep the last alone where they are long."""

    async def story(scene: Scene) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        assert (await scene.post({"messages": [{"role": "user", "content": parts}]}))[0] == 200
        assert scene.engine.asked[-1]["messages"] == [{"role": "user", "content": "a\nb"}]

    told(story)
