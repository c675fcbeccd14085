"""Reads that wait for a change: Consul's blocking queries, and the cache of answers that have not changed. Pure.

Source: https://developer.hashicorp.com/consul/api-docs/features/blocking. `index` is what the client saw last; the answer comes when the topic's index is
larger, or after `wait` (default 5 min, at most 10 min, plus up to a sixteenth of it against thundering herds; ours adds none: the caller's wait is kept).
"""

from collections.abc import Awaitable, Callable
from typing import Any

from mesh_agent.agent import durations
from mesh_agent.catalog.view import View
from mesh_agent.errors import InvalidRequest, NotFound
from mesh_agent.http.deps import Deps
from mesh_agent.http.message import Answer, Request, Response
from mesh_agent.model import Topic

_DEFAULT_WAIT_S = 300.0
_MAX_WAIT_S = 600.0
_MAX_CACHED = 4096
_MAX_CACHED_BYTES = 8 * 1024 * 1024
_LARGEST_INDEX_DIGITS = 20

Render = Callable[[View], Any]


class Reads:
    """Answers reads of one topic each."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._cache: dict[str, tuple[View, int, bool, Response]] = {}
        self._cached_bytes = 0

    def cached(self, target: str, topic: Topic) -> Response | None:
        """The answer that was given to the same target (without index and wait), if the topic has not changed since."""
        known = self._cache.get(target)
        if known is None:
            return None
        view, index, leader, response = known
        catalog = self._deps.catalog
        if catalog.view(topic) is not view or view.topic_index(topic) != index or catalog.known_leader() is not leader:
            self._forget(target)
            return None
        return response

    def read(self, request: Request, topic: Topic, render: Render) -> Answer | Awaitable[Answer]:
        """Answer now if the View is there and nothing has to be waited for; `render(view)` makes the JSON."""
        query = request.query
        if "index" not in query:
            known = self.cached(request.target, topic)
            if known is not None:
                return known
            _check(request)
            view = self._deps.catalog.view(topic)
            return (
                self._read_unknown(request, topic, render)
                if view is None
                else self._answer(request, topic, view, render)
            )
        return self._block(request, topic, render)

    async def _read_unknown(self, request: Request, topic: Topic, render: Render) -> Answer:
        view = await self._deps.catalog.ensure(topic)
        return self._answer(request, topic, view, render)

    async def _block(self, request: Request, topic: Topic, render: Render) -> Answer:
        _check(request)
        seen = parse_index(request)
        wait_s = parse_wait(request)
        view = self._deps.catalog.view(topic) or await self._deps.catalog.ensure(topic)
        if seen > 0 and view.topic_index(topic) == seen:
            await self.changed(lambda wake: view.listen(topic, lambda _: wake()), wait_s)
        return self._answer(request, topic, view, render)

    async def changed(self, listen: Callable[[Callable[[], None]], Callable[[], None]], wait_s: float) -> None:
        """Wait for a call of what is given to `listen`, at most `wait_s`."""
        woken = self._deps.future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        stop = listen(wake)
        cancel = self._deps.after(wait_s, wake)
        try:
            await woken
        finally:
            stop()
            cancel()

    def _answer(self, request: Request, topic: Topic, view: View, render: Render) -> Response:
        # A thousand waiters that one change wakes ask the same thing: it is rendered once.
        target = _without_waiting(request.target) if "index" in request.query else request.target
        known = self.cached(target, topic)
        if known is not None:
            return known
        index = view.topic_index(topic)
        try:
            response = Response.json(render(view), headers=self.headers(index))
        except NotFound as error:  # with an index, so that a client can wait until it is there
            refusal = Response.text(404, str(error))
            refusal.headers += self.headers(index)
            return refusal
        if target:
            self._remember(target, (view, index, self._deps.catalog.known_leader(), response))
        return response

    def _remember(self, target: str, answer: tuple[View, int, bool, Response]) -> None:
        size = len(answer[-1].body)
        if len(self._cache) >= _MAX_CACHED or self._cached_bytes + size > _MAX_CACHED_BYTES:
            self._cache.clear()
            self._cached_bytes = 0
        self._cache[target] = answer
        self._cached_bytes += size

    def _forget(self, target: str) -> None:
        self._cached_bytes -= len(self._cache.pop(target)[-1].body)

    def headers(self, index: int) -> list[tuple[str, str]]:
        """Consul's headers of a read."""
        leader = "true" if self._deps.catalog.known_leader() else "false"
        return [
            ("X-Consul-Index", str(index)),
            ("X-Consul-KnownLeader", leader),
            ("X-Consul-LastContact", "0"),
            ("X-Consul-Effective-Consistency", "default"),
        ]


def _without_waiting(target: str) -> str:
    path, _, query = target.partition("?")
    kept = "&".join(part for part in query.split("&") if not part.startswith(("index=", "wait=")))
    return f"{path}?{kept}" if kept else path


def _check(request: Request) -> None:
    """InvalidRequest if the question contradicts itself."""
    if "wait" in request.query:
        parse_wait(request)
    if request.flag("stale") and request.flag("consistent"):
        raise InvalidRequest("Cannot specify ?stale with ?consistent, conflicting semantics.")


def parse_index(request: Request) -> int:
    """`?index=`, 0 if absent; InvalidRequest if it is not a number."""
    text = request.first("index", "0") or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= _LARGEST_INDEX_DIGITS):
        raise InvalidRequest("Invalid index")
    return int(text)


def parse_wait(request: Request) -> float:
    """`?wait=` in seconds; InvalidRequest if it is not a duration."""
    text = request.first("wait")
    if not text:
        return _DEFAULT_WAIT_S
    try:
        return min(_MAX_WAIT_S, max(0.0, durations.parse(text))) or _DEFAULT_WAIT_S
    except InvalidRequest as error:
        raise InvalidRequest(f"Invalid wait time: {error}") from error
