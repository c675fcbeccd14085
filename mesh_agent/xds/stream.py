"""One delta ADS stream as a state machine. Source: the xDS protocol document, "incremental xDS". Pure.

The shell feeds `receive` with what Envoy sends and calls `due(snapshot)` whenever either side may have news; `due` gives what must be sent now, in the
order in which it must be sent. Nothing waits for acknowledgements: the transport keeps the order, and Envoy keeps its old configuration where it
rejects the new one.

What a proxy has (`known`) begins with `initial_resource_versions` of the first request of a type, also for names that the same request subscribes to:
after a reconnect nothing is sent twice. A later subscription to a name always is answered, because Envoy may have dropped what it had.
A changed cluster is warmed by Envoy with its old settings until endpoints arrive, so its endpoints are sent again after it, changed or not.
Removals go last and in reverse order: first what refers, then what was referred to.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from mesh_agent.xds.naming import CLUSTER, ENDPOINTS, ORDER
from mesh_agent.xds.snapshot import EMPTY, Resource, Snapshot, Table

WILDCARD = "*"


class Request(NamedTuple):
    """A DeltaDiscoveryRequest; `error` is the text of a rejection (NACK)."""

    type_url: str
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: tuple[tuple[str, str], ...] = ()
    nonce: str = ""
    error: str = ""


class Response(NamedTuple):
    """A DeltaDiscoveryResponse to be sent."""

    type_url: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...]
    nonce: str


class Rejected(NamedTuple):
    """The proxy refused a response and goes on with what it had."""

    type_url: str
    names: tuple[str, ...]
    reason: str


@dataclass(slots=True)
class _Subscription:
    """What a proxy wants and has of one type."""

    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    known: dict[str, str | None] = field(default_factory=dict)  # None: it was told that there is none
    answered: Table | None = None  # the table that `known` agrees with
    unanswered: bool = True
    in_flight: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names


class Stream:
    """See the module's text. One object for each gRPC stream."""

    def __init__(self) -> None:
        self._types: dict[str, _Subscription] = {}
        self._stale_endpoints: set[str] = set()
        self._sent = 0

    @property
    def settled(self) -> bool:
        """Whether the proxy has answered everything that was sent."""
        return not any(each.in_flight for each in self._types.values())

    def has(self, snapshot: Snapshot) -> bool:
        """Whether everything that the proxy asked for of `snapshot` was sent."""
        return all(state.answered is snapshot.table(kind) for kind, state in self._types.items())

    def receive(self, request: Request) -> Rejected | None:
        """Take note of a request; call `due` afterwards. Types that we do not serve are answered as if empty."""
        state = self._types.get(request.type_url)
        if state is None:
            state = self._types[request.type_url] = _Subscription(
                wildcard=not request.subscribe, known=dict(request.initial_versions)
            )
            fresh = True
        else:
            fresh = False
        for name in request.unsubscribe:
            self._unsubscribe(state, name)
        for name in request.subscribe:
            self._subscribe(state, name, forget=not fresh)
        if request.subscribe or request.unsubscribe:
            state.answered = None
        rejected = state.in_flight.pop(request.nonce, ()) if request.nonce else ()
        return Rejected(request.type_url, rejected, request.error) if request.error else None

    @staticmethod
    def _subscribe(state: _Subscription, name: str, *, forget: bool) -> None:
        if name == WILDCARD:
            state.wildcard = True
            return
        state.names.add(name)
        if forget:
            state.known.pop(name, None)

    @staticmethod
    def _unsubscribe(state: _Subscription, name: str) -> None:
        if name == WILDCARD:
            state.wildcard = False
            state.known = {each: version for each, version in state.known.items() if each in state.names}
            return
        state.names.discard(name)
        if not state.wildcard:
            state.known.pop(name, None)

    def due(self, snapshot: Snapshot) -> list[Response]:
        """Everything that the proxy must be told for it to have `snapshot`; it is taken as sent."""
        responses: list[Response] = []
        gone: list[tuple[str, tuple[str, ...]]] = []
        extra = [kind for kind in self._types if kind not in ORDER]
        for kind in (*ORDER, *extra):
            state = self._types.get(kind)
            if state is None:
                continue
            changed, removed = self._difference(kind, state, snapshot.table(kind))
            if changed or (state.unanswered and not removed and not state.known):
                responses.append(self._response(kind, state, changed, ()))
            if removed:
                gone.append((kind, removed))
            state.unanswered = False
        for kind, removed in reversed(gone):
            responses.append(self._response(kind, self._types[kind], (), removed))
        return responses

    def _difference(
        self, kind: str, state: _Subscription, table: Table
    ) -> tuple[tuple[Resource, ...], tuple[str, ...]]:
        stale = self._take_stale(state) if kind == ENDPOINTS else set()
        if state.answered is table and not stale:
            return (), ()
        if state.answered is not None:
            change = table.since(state.answered)
            names = [*change.changed, *(name for name in stale if name not in change.changed)]
            candidates = [name for name in names if state.wants(name) and name in table.resources]
            removed = tuple(name for name in change.removed if state.wants(name))
        else:
            wanted = table.resources.keys() if state.wildcard else state.names & table.resources.keys()
            candidates = [name for name in table.resources if name in wanted]
            gone = (name for name, version in state.known.items() if version is not None)
            asked = (name for name in state.names if name not in state.known)
            removed = tuple(sorted({name for name in (*gone, *asked) if name not in table.resources}))
        changed = tuple(
            table.resources[name] for name in candidates if state.known.get(name) != table.resources[name].version
        )
        self._remember(kind, state, changed, removed)
        state.answered = table
        return changed, removed

    def _take_stale(self, state: _Subscription) -> set[str]:
        stale = {name for name in self._stale_endpoints if state.wants(name)}
        self._stale_endpoints -= stale
        for name in stale:
            state.known.pop(name, None)
        return stale

    def _remember(
        self, kind: str, state: _Subscription, changed: tuple[Resource, ...], removed: tuple[str, ...]
    ) -> None:
        for each in changed:
            if kind == CLUSTER and state.known.get(each.name) is not None:
                self._stale_endpoints.add(each.name)
            state.known[each.name] = each.version
        for name in removed:
            if name in state.names:
                state.known[name] = None
            else:
                state.known.pop(name, None)
            if kind == CLUSTER:
                self._stale_endpoints.discard(name)

    def _response(
        self, kind: str, state: _Subscription, changed: tuple[Resource, ...], removed: tuple[str, ...]
    ) -> Response:
        self._sent += 1
        nonce = str(self._sent)
        state.in_flight[nonce] = (*(each.name for each in changed), *removed)
        return Response(kind, changed, removed, nonce)


__all__ = ["EMPTY", "Rejected", "Request", "Response", "Stream"]
