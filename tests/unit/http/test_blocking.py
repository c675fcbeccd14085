"""Reads: answered from memory while nothing changes, and waiting for a change."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from mesh_agent.catalog.view import View
from mesh_agent.errors import InvalidRequest, NoPathToDatacenter
from mesh_agent.http import blocking
from mesh_agent.http.blocking import Reads, parse_index, parse_wait
from mesh_agent.http.deps import Deps
from mesh_agent.http.message import Answer, Request, Response, parse_target
from mesh_agent.model import Node, Service, Topic
from tests.support.catalog import StaticCatalog, ViewWriter

TOPIC = Topic("dc1", "service", "web")
NODE = Node(name="n1", address="10.0.0.1")


class Timers:
    """`after` of Deps, fired by hand."""

    def __init__(self) -> None:
        self.set: dict[int, tuple[float, Callable[[], None]]] = {}

    def after(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        key = len(self.set)
        self.set[key] = (seconds, call)
        return lambda: cast(None, self.set.pop(key))

    def fire(self) -> None:
        for _, call in tuple(self.set.values()):
            call()


class Setting:
    """A View of dc1 with service web on one node, and reads of it that count how often they rendered."""

    def __init__(self) -> None:
        self.writer = ViewWriter("dc1")
        self.catalog = StaticCatalog({"dc1": self.writer.view})
        self.timers = Timers()
        self.rendered = 0
        self.writer.put(NODE)
        self.put("web", 80)
        unused = cast(Any, None)
        deps = Deps(
            config=unused,
            node_id="",
            version="",
            catalog=self.catalog,
            agent=unused,
            lan=unused,
            wan=None,
            leafs=unused,
            forward=unused,
            writer=None,
            metrics=unused,
            clock=unused,
            leave=unused,
            after=self.timers.after,
            future=lambda: asyncio.get_running_loop().create_future(),
        )
        self.reads = Reads(deps)

    def put(self, name: str, port: int) -> None:
        self.writer.put(Service(id=name, name=name, node=NODE.name, port=port))

    def _render(self, view: View) -> list[int]:
        self.rendered += 1
        return [each.service.port for each in view.instances("web")]

    def ask(self, target: str) -> Answer | Awaitable[Answer]:
        path, query = parse_target(target)
        return self.reads.read(Request("GET", path, query, target=target), TOPIC, self._render)

    def now(self, target: str) -> Response:
        answer = self.ask(target)
        assert isinstance(answer, Response)
        return answer

    def later(self, target: str) -> "asyncio.Task[Response]":
        answer = self.ask(target)
        assert isinstance(answer, Awaitable)
        return asyncio.ensure_future(cast(Any, answer))


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def turns(count: int = 5) -> None:
    """Let every task that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_an_answer_has_the_index_of_its_topic(setting: Setting) -> None:
    answer = setting.now("/web")
    assert answer.body == b"[80]"
    assert answer.header("X-Consul-Index") == str(setting.writer.view.topic_index(TOPIC))
    assert answer.header("X-Consul-KnownLeader") == "true"
    assert answer.header("X-Consul-LastContact") == "0"


def test_the_same_question_is_rendered_once_until_its_topic_changes(setting: Setting) -> None:
    first = setting.now("/web")
    assert setting.now("/web") is first
    setting.put("other", 81)  # on the same node: not this topic
    assert setting.now("/web") is first
    assert setting.now("/web?passing") is not first, "another question"
    setting.put("web", 90)
    assert setting.now("/web").body == b"[90]"
    assert setting.rendered == 3


def test_a_view_that_begins_anew_is_not_mistaken_for_the_old_one(setting: Setting) -> None:
    first = setting.now("/web")
    fresh = ViewWriter("dc1")
    fresh.put(NODE)
    fresh.put(Service(id="web", name="web", node="n1", port=70))
    setting.catalog.views["dc1"] = fresh.view
    assert fresh.view.topic_index(TOPIC) == int(first.header("X-Consul-Index"))
    assert setting.now("/web").body == b"[70]"


def test_a_lost_leader_shows_at_once(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    setting.now("/web")
    monkeypatch.setattr(setting.catalog, "known_leader", lambda: False)
    assert setting.now("/web").header("X-Consul-KnownLeader") == "false"


def test_answers_that_are_kept_have_a_limit(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the same with another `?_=` each time must not fill the memory."""
    monkeypatch.setattr(blocking, "_MAX_CACHED_BYTES", 40)  # ten answers of 4 bytes
    first = setting.now("/web")
    for at in range(9):
        setting.now(f"/web?_={at}")
    assert setting.now("/web") is first
    setting.now("/web?_=one-more")
    assert setting.now("/web") is not first


async def test_an_unknown_view_is_subscribed_to(setting: Setting) -> None:
    setting.catalog.hidden.add("dc1")
    assert (await setting.later("/web")).body == b"[80]"
    setting.catalog.cut["dc1"] = "No path to datacenter"
    with pytest.raises(NoPathToDatacenter):
        await setting.later("/web")
    with pytest.raises(NoPathToDatacenter):
        await setting.later("/web?index=1")


@pytest.mark.parametrize("seen", ["0", "1", "999", ""])
async def test_who_has_not_seen_the_present_index_is_answered_at_once(setting: Setting, seen: str) -> None:
    setting.put("web", 81)
    assert (await setting.later(f"/web?index={seen}")).body == b"[81]"
    assert not setting.timers.set


async def test_a_change_of_the_topic_wakes_and_others_do_not(setting: Setting) -> None:
    index = setting.now("/web").header("X-Consul-Index")
    waiting = setting.later(f"/web?index={index}")
    await turns()
    setting.put("other", 1)
    await turns()
    assert not waiting.done()
    setting.put("web", 91)
    answer = await waiting
    assert answer.body == b"[91]"
    assert int(answer.header("X-Consul-Index")) > int(index)
    assert not setting.timers.set, "its timer is taken back"
    assert not setting.writer.view.has_listeners()


async def test_after_the_wait_the_answer_is_what_it_was(setting: Setting) -> None:
    index = setting.now("/web").header("X-Consul-Index")
    waiting = setting.later(f"/web?index={index}&wait=10s")
    await turns()
    assert [seconds for seconds, _ in setting.timers.set.values()] == [10.0]
    setting.timers.fire()
    answer = await waiting
    assert (answer.body, answer.header("X-Consul-Index")) == (b"[80]", index)
    assert not setting.writer.view.has_listeners()


async def test_who_goes_away_leaves_nothing_behind(setting: Setting) -> None:
    index = setting.now("/web").header("X-Consul-Index")
    waiting = setting.later(f"/web?index={index}")
    await turns()
    assert setting.writer.view.has_listeners()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not setting.timers.set
    assert not setting.writer.view.has_listeners()


async def test_a_thousand_waiters_are_rendered_for_once(setting: Setting) -> None:
    index = setting.now("/web?passing").header("X-Consul-Index")
    waiting = [setting.later(f"/web?passing&index={index}&wait={each}s") for each in range(1, 501)]
    waiting += [setting.later(f"/web?index={index}&passing") for _ in range(500)]
    await turns()
    before = setting.rendered
    setting.put("web", 92)
    answers = await asyncio.gather(*waiting)
    assert {answer.body for answer in answers} == {b"[92]"}
    assert setting.rendered == before + 1
    assert setting.now("/web?passing") is answers[0], "and for those who do not wait"


@pytest.mark.parametrize(
    ("query", "index"), [("", 0), ("index", 0), ("index=", 0), ("index=0", 0), ("index=17", 17), ("index=007", 7)]
)
def test_index(query: str, index: int) -> None:
    assert parse_index(Request("GET", "/", parse_target(f"/?{query}")[1])) == index


@pytest.mark.parametrize("text", ["-1", "x", "1.5", "%C2%B2", "%D9%A3", "9" * 5000, "+1"])
def test_an_index_that_is_none(text: str) -> None:
    with pytest.raises(InvalidRequest, match="Invalid index"):
        parse_index(Request("GET", "/", parse_target(f"/?index={text}")[1]))


@pytest.mark.parametrize(
    ("query", "wait_s"),
    [
        ("", 300.0),
        ("wait=", 300.0),
        ("wait=0s", 300.0),
        ("wait=0", 300.0),
        ("wait=-5s", 300.0),
        ("wait=250ms", 0.25),
        ("wait=1m30s", 90.0),
        ("wait=10m", 600.0),
        ("wait=2h", 600.0),
    ],
)
def test_wait(query: str, wait_s: float) -> None:
    assert parse_wait(Request("GET", "/", parse_target(f"/?{query}")[1])) == wait_s


@pytest.mark.parametrize("text", ["x", "10", "1d", "5 minutes"])
def test_a_wait_that_is_none(text: str) -> None:
    with pytest.raises(InvalidRequest, match="Invalid wait time"):
        parse_wait(Request("GET", "/", {"wait": [text]}))


@pytest.mark.parametrize("target", ["/web?stale&consistent", "/web?wait=10", "/web?wait=soon"])
def test_a_question_that_makes_no_sense_is_refused(setting: Setting, target: str) -> None:
    with pytest.raises(InvalidRequest):
        setting.ask(target)
    assert setting.now("/web?stale").body == setting.now("/web?consistent&wait=10s").body == b"[80]"


async def test_a_blocking_question_that_makes_no_sense_is_refused(setting: Setting) -> None:
    with pytest.raises(InvalidRequest, match="conflicting semantics"):
        await setting.later("/web?index=1&stale&consistent")
