"""The children's watches: what is told, what a relist finds out, and that no error ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from finetune_operator.cache import Children, key_of
from finetune_operator.errors import Gone, NotFound, Unavailable
from finetune_operator.meta import Object
from finetune_operator.watches import WATCHED, Watches

LABELS = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune.dev/job": "facts"}


def pod(name: str, version: int, **status: Any) -> Object:
    metadata = {"name": name, "namespace": "default", "uid": name, "resourceVersion": str(version), "labels": LABELS}
    return {"kind": "Pod", "metadata": metadata, "status": status}


def event(kind: str, body: Object) -> Object:
    return {"type": kind, "object": {k: v for k, v in body.items() if k != "kind"}}


BOOKMARK = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "50"}}}
TOO_OLD = {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}


class Server:
    """Answers lists and watches as a test scripts them; then it is silent for ever."""

    def __init__(self, lists: list[Any], watches: list[Any]) -> None:
        self.lists, self.watches = lists, watches
        self.asked: list[str] = []
        self.idle = asyncio.Event()

    async def pages(self, kind: str, namespace: str, labels: dict[str, str]) -> AsyncIterator[tuple[tuple[Object, ...], str]]:
        self.asked.append("list")
        answer = self.lists.pop(0)
        if isinstance(answer, Exception):
            raise answer
        yield answer

    async def watch(self, kind: str, namespace: str, labels: dict[str, str], version: str) -> AsyncIterator[Object]:
        self.asked.append(f"watch {version}")
        if not self.watches:
            self.idle.set()
            await asyncio.Event().wait()
        for one in self.watches.pop(0):
            if isinstance(one, Exception):
                raise one
            yield one


async def no_pause(_: float) -> None: ...


async def follow(lists: list[Any], watches: list[Any], children: Children | None = None) -> tuple[Server, list[str], Children]:
    """Everything that the script has to say; what was asked and told, and what is kept then."""
    server, told, children = Server(lists, watches), list[str](), children or Children()
    await play(server, watches_of(server, "default", children, told, no_pause), "Pod")
    return server, told, children


def watches_of(
    server: Server, namespace: str, children: Children, told: list[str], pause: Callable[[float], Awaitable[None]]
) -> Watches:
    """Watches of a scripted server that write what they tell of into `told`."""

    def tell(change: str, body: Object) -> None:
        told.append(f"{change} {body['metadata']['name']}")

    return Watches(server, namespace, children, tell, pause)  # type: ignore[arg-type]


async def play(server: Server, made: Watches, kind: str) -> None:
    """Follow a kind until the server's script has nothing more to say."""
    task = asyncio.create_task(made.follow(kind))
    await asyncio.wait_for(server.idle.wait(), 10)
    assert not task.done()
    task.cancel()


async def test_what_is_listed_then_what_changes_then_what_goes() -> None:
    changes = [
        event("ADDED", pod("b", 11)),
        event("MODIFIED", pod("a", 12, phase="Running")),
        event("MODIFIED", pod("a", 13, phase="Running", podIP="10.0.0.1")),
        BOOKMARK,
        event("DELETED", pod("b", 51)),
    ]
    server, told, children = await follow([((pod("a", 5),), "10")], [changes])
    assert told == ["ADDED a", "ADDED b", "MODIFIED a", "DELETED b"]
    assert server.asked == ["list", "watch 10", "watch 51"]
    assert [p["metadata"]["name"] for p in children.list("Pod", "default", LABELS)] == ["a"]


def of_job(name: str, version: int, phase: str, job: str) -> Object:
    """A step's pod."""
    body = pod(name, version, phase=phase)
    owner = {"kind": "Job", "name": job, "uid": job}
    body["metadata"] |= {"labels": LABELS | {"finetune.dev/step": "train"}, "ownerReferences": [owner]}
    return body


def being_deleted(body: Object) -> Object:
    return body | {"metadata": body["metadata"] | {"deletionTimestamp": "2026-11-30T12:00:00Z"}}


async def test_a_pod_that_had_ended_goes_after_its_job_without_a_word() -> None:
    """Its end was told, and that of its Job: a pass would find nothing new."""
    children = Children()
    children.keep({**pod("there", 3), "kind": "Job"})
    pods = (("done", "Succeeded", "gone"), ("left", "Running", "gone"), ("lost", "Failed", "there"))
    listed = tuple(of_job(name, 5, phase, job) for name, phase, job in pods)
    goes = [event("MODIFIED", being_deleted(of_job(name, 20, phase, job))) for name, phase, job in pods]
    gone = [event("DELETED", of_job(name, 30, phase, job)) for name, phase, job in pods]
    _, told, children = await follow([(listed, "10")], [goes, gone], children)
    others = [f"{change} {name}" for change in ("MODIFIED", "DELETED") for name in ("left", "lost")]
    assert told == ["ADDED done", "ADDED left", "ADDED lost", *others]
    assert children.keys("Pod") == []


async def test_a_version_too_old_lists_anew_and_finds_what_went_in_between() -> None:
    for too_old in ([TOO_OLD], [Gone("410")]):
        lists = [((pod("a", 5), pod("b", 6)), "10"), ((pod("b", 6),), "60")]
        server, told, children = await follow(lists, [too_old])
        assert told == ["ADDED a", "ADDED b", "DELETED a"]
        assert server.asked == ["list", "watch 10", "list", "watch 60"]
        assert [p["metadata"]["name"] for p in children.list("Pod", "default", LABELS)] == ["b"]


async def test_what_we_wrote_while_a_list_was_made_is_kept() -> None:
    children = Children()
    children.keep(pod("mine", 12))
    _, told, children = await follow([((), "10")], [], children)
    assert told == []
    assert [key.name for key in children.keys("Pod")] == ["mine"]


async def test_a_watch_that_breaks_goes_on_from_where_it_was() -> None:
    watches = [[BOOKMARK, Unavailable("silent")], [{"type": "ERROR", "object": {"code": 500, "message": "x"}}]]
    server, _, _ = await follow([Unavailable("not yet"), ((), "10")], watches)
    assert server.asked == ["list", "list", "watch 10", "watch 50", "watch 50"]


async def test_a_child_that_can_not_be_kept_hides_no_other() -> None:
    broken = pod("broken", 11)
    broken["metadata"]["namespace"] = {"no": "name"}
    _, told, _ = await follow([((), "10")], [[event("ADDED", broken), event("ADDED", pod("b", 12))]])
    assert told == ["ADDED b"]


async def test_a_kind_that_the_cluster_does_not_have_holds_up_nothing_and_is_looked_for_again() -> None:
    route = {**pod("bot", 12), "kind": "HTTPRoute"}
    children = Children()
    asked, told, paused = await follow_routes([NotFound("404"), NotFound("404"), ((route,), "20")], [], children)
    assert (paused, told) == ([(True, {"HTTPRoute"})] * 2, ["ADDED bot"])
    assert (asked, children.unserved) == (["list", "list", "list", "watch 20"], set())


async def test_a_kind_that_is_taken_away_takes_its_objects_with_it() -> None:
    route = {**pod("bot", 12), "kind": "HTTPRoute"}
    children = Children()
    asked, told, paused = await follow_routes([((route,), "20"), ((), "60")], [[NotFound("404")]], children)
    assert (paused, told) == ([(True, {"HTTPRoute"})], ["ADDED bot", "DELETED bot"])
    assert asked == ["list", "watch 20", "list", "watch 60"]


Paused = list[tuple[bool, set[str]]]  # whether it counted as listed, and what was not served


async def follow_routes(lists: list[Any], watches: list[Any], children: Children) -> tuple[list[str], list[str], Paused]:
    """What a script of a kind that is not everywhere comes to: what was asked and told, and how it stood at each pause."""
    server, told, paused = Server(lists, watches), list[str](), Paused()

    async def pause(_: float) -> None:
        paused.append((made._listed["HTTPRoute"].is_set(), set(children.unserved)))

    made = watches_of(server, "", children, told, pause)
    await play(server, made, "HTTPRoute")
    return server.asked, told, paused


async def test_no_pass_begins_before_each_kind_was_listed() -> None:
    server = Server([((), "10")] * len(WATCHED), [])
    made = Watches(server, "", Children(), lambda *_: None, no_pause)  # type: ignore[arg-type]
    listed = asyncio.create_task(made.all_listed())
    following = []
    for kind in WATCHED:
        assert not listed.done()
        following.append(asyncio.create_task(made.follow(kind)))
        await asyncio.wait_for(server.idle.wait(), 10)
        server.idle.clear()
    await asyncio.wait_for(listed, 10)
    for task in following:
        task.cancel()


def test_keys_are_of_their_kind() -> None:
    assert key_of(pod("a", 1)) == ("Pod", "default", "a")
