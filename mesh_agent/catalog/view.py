"""The View: an in-memory, indexed picture of a datacenter's catalog (or of one topic of it), and the only thing readers read.

Theory: a View is a pure function of the records applied to it. `apply` takes what one commit changed, works out which topics that touches,
stamps them with the commit's revision and calls their listeners. A topic's index is therefore the revision at which its answer last changed,
which is what `X-Consul-Index` means. A server's View holds a whole datacenter; a client agent holds one small View for each topic
that it subscribes to.
Deleted topics keep no entry for ever: an unknown topic answers the floor, the revision at which this View was loaded or last pruned.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import msgspec

from mesh_agent.catalog import keys
from mesh_agent.model import Check, ConfigEntry, Federated, Instance, Intention, Node, Record, Root, Service, Topic

T = TypeVar("T")
Listener = Callable[[Topic], None]

_NODE = msgspec.json.Decoder(Node)
_SERVICE = msgspec.json.Decoder(Service)
_CHECK = msgspec.json.Decoder(Check)
_FEDERATED = msgspec.json.Decoder(Federated)
_MAX_TOPICS = 200_000


class View:
    """See the module's text. One writer calls `apply` and `load`; everybody reads; nothing here waits."""

    def __init__(self, datacenter: str) -> None:
        self.datacenter = datacenter
        self.index = 0
        self._floor = 0
        self._records: dict[str, Record] = {}
        self._nodes: dict[str, Node] = {}
        self._services: dict[str, dict[str, Service]] = {}
        self._checks: dict[str, dict[str, Check]] = {}
        self._by_topic: dict[Topic, dict[tuple[str, str], Service]] = {}
        self._intentions: dict[str, Intention] = {}
        self._roots: dict[str, Root] = {}
        self._entries: dict[str, ConfigEntry] = {}
        self._federated: dict[str, Record] = {}
        self._touched_at: dict[Topic, int] = {}
        self._listeners: dict[Topic, list[Listener]] = {}
        self._cache: dict[Topic, tuple[Instance, ...]] = {}
        self._everything = Topic(datacenter, "all")

    # -- writing

    def load(self, index: int, records: Iterable[Record]) -> None:
        """Become exactly `records` as of `index`; what is not among them is deleted. Used at start and when a stream begins anew."""
        fresh = list(records)
        wanted = {record.key for record in fresh}
        changed = [record for record in fresh if self._records.get(record.key) != record]
        gone = [key for key in self._records if key not in wanted]
        if not self.index or index < self.index:  # first load, or a publisher whose store began anew
            self.index = self._floor = index
            self._touched_at.clear()
        self.apply(index, changed, gone)

    def apply(self, index: int, puts: Iterable[Record], deletes: Iterable[str]) -> frozenset[Topic]:
        """Take over what one commit did; returns the topics that it touched, after their listeners were called."""
        touched: set[Topic] = set()
        for key in deletes:
            touched |= self._drop(key)
        for record in puts:
            touched |= self._put(record)
        self.index = max(self.index, index)
        if touched:
            touched.add(self._everything)
            self._stamp(touched)
        return frozenset(touched)

    def _stamp(self, touched: set[Topic]) -> None:
        for topic in touched:
            self._touched_at[topic] = self.index
            self._cache.pop(topic, None)
        if len(self._touched_at) > _MAX_TOPICS:
            self._touched_at = {
                topic: at for topic, at in self._touched_at.items() if topic in self._by_topic or topic.kind == "all"
            }
            self._floor = self.index
        for topic in touched:
            for listener in tuple(self._listeners.get(topic, ())):
                listener(topic)

    def _put(self, record: Record) -> set[Topic]:
        key = record.key
        if key.startswith(keys.SERVICES):
            touched = self._forget_service(key)
            self._records[key] = record
            return touched | self._learn_service(_SERVICE.decode(record.value))
        self._records[key] = record
        if key.startswith(keys.NODES):
            node = _NODE.decode(record.value)
            self._nodes[node.name] = node
            return self._topics_of_node(node.name)
        if key.startswith(keys.CHECKS):
            check = _CHECK.decode(record.value)
            self._checks.setdefault(check.node, {})[check.id] = check
            return self._topics_of_check(check)
        return self._put_federated(record)

    def _put_federated(self, record: Record) -> set[Topic]:
        if not record.key.startswith(keys.FEDERATED):
            return set()
        envelope = _FEDERATED.decode(record.value)
        self._forget_federated(record.key)
        self._federated[record.key] = record
        if envelope.value is not None and record.key.startswith(keys.INTENTIONS):
            self._intentions[record.key] = msgspec.convert(envelope.value, Intention)
        elif envelope.value is not None and record.key.startswith(keys.ROOTS):
            self._roots[record.key] = msgspec.convert(envelope.value, Root)
        elif envelope.value is not None and record.key.startswith(keys.CONFIG):
            self._entries[record.key] = msgspec.convert(envelope.value, ConfigEntry)
        return {self._topic("federated", "")}

    def _drop(self, key: str) -> set[Topic]:
        record = self._records.get(key)
        if record is None:
            return set()
        if key.startswith(keys.SERVICES):
            return self._forget_service(key)
        del self._records[key]
        if key.startswith(keys.NODES):
            name = keys.owner(key)
            touched = self._topics_of_node(name)
            del self._nodes[name]
            return touched
        if key.startswith(keys.CHECKS):
            check = _CHECK.decode(record.value)
            touched = self._topics_of_check(check)
            _remove(self._checks, check.node, check.id)
            return touched
        self._forget_federated(key)
        return {self._topic("federated", "")} if key.startswith(keys.FEDERATED) else set()

    def _forget_federated(self, key: str) -> None:
        for table in (self._federated, self._intentions, self._roots, self._entries):
            table.pop(key, None)

    def _learn_service(self, service: Service) -> set[Topic]:
        self._services.setdefault(service.node, {})[service.id] = service
        topics = self._topics_of_service(service)
        for topic in topics:
            if topic.kind != "node":
                self._by_topic.setdefault(topic, {})[service.node, service.id] = service
        return topics

    def _forget_service(self, key: str) -> set[Topic]:
        record = self._records.pop(key, None)
        if record is None:
            return set()
        service = _SERVICE.decode(record.value)
        _remove(self._services, service.node, service.id)
        topics = self._topics_of_service(service)
        for topic in topics:
            if topic.kind != "node":
                _remove(self._by_topic, topic, (service.node, service.id))
        return topics

    # -- which topics a record belongs to

    def _topic(self, kind: str, name: str) -> Topic:
        return Topic(self.datacenter, kind, name)

    def _topics_of_service(self, service: Service) -> set[Topic]:
        topics = {self._topic("service", service.name.lower()), self._topic("node", service.node.lower())}
        if service.connect_name is not None:
            topics.add(self._topic("connect", service.connect_name.lower()))
        return topics

    def _topics_of_node(self, name: str) -> set[Topic]:
        topics = {self._topic("node", name.lower())}
        for service in self._services.get(name, {}).values():
            topics |= self._topics_of_service(service)
        return topics

    def _topics_of_check(self, check: Check) -> set[Topic]:
        if not check.service_id:
            return self._topics_of_node(check.node)
        service = self._services.get(check.node, {}).get(check.service_id)
        node_topic = self._topic("node", check.node.lower())
        return {node_topic} if service is None else self._topics_of_service(service) | {node_topic}

    # -- reading

    def topic_index(self, topic: Topic) -> int:
        """The revision at which the answer to `topic` last changed; at least 1."""
        return max(1, self._touched_at.get(_folded(topic), self._floor))

    def listen(self, topic: Topic, listener: Listener) -> Callable[[], None]:
        """Call `listener(topic)` after each change of `topic`; call the returned function to stop."""
        topic = _folded(topic)
        self._listeners.setdefault(topic, []).append(listener)

        def stop() -> None:
            listeners = self._listeners.get(topic, [])
            if listener in listeners:
                listeners.remove(listener)
            if not listeners:
                self._listeners.pop(topic, None)

        return stop

    def has_listeners(self) -> bool:
        """Whether anybody listens to any topic."""
        return bool(self._listeners)

    def instances(self, name: str, *, connect: bool = False) -> tuple[Instance, ...]:
        """Every instance of service `name` (or with `connect`, every mesh endpoint that accepts traffic for it), healthy or not, in key order."""
        topic = self._topic("connect" if connect else "service", name.lower())
        found = self._cache.get(topic)
        if found is None:
            services = self._by_topic.get(topic, {})
            found = tuple(self._instance(services[at]) for at in sorted(services) if at[0] in self._nodes)
            self._cache[topic] = found
        return found

    def _instance(self, service: Service) -> Instance:
        record = self._records[keys.service(service.node, service.id)]
        checks = tuple(
            check
            for _, check in sorted(self._checks.get(service.node, {}).items())
            if check.service_id in ("", service.id)
        )
        modified = max([record.revision, *(self._records[keys.check(c.node, c.id)].revision for c in checks)])
        return Instance(self._nodes[service.node], service, checks, record.created, modified)

    def node(self, name: str) -> Node | None:
        """The node called `name` (case folded), or None."""
        found = self._nodes.get(name)
        if found is None:
            folded = name.lower()
            found = next((node for node in self._nodes.values() if node.name.lower() == folded), None)
        return found

    def node_by_id(self, node_id: str) -> Node | None:
        """The node with that id, or None."""
        return next((node for node in self._nodes.values() if node.id == node_id), None)

    def nodes(self) -> list[Node]:
        """Every node, by name."""
        return [self._nodes[name] for name in sorted(self._nodes)]

    def services_of(self, node: str) -> dict[str, Service]:
        """Service instances of a node, by id."""
        return dict(self._services.get(node, {}))

    def checks_of(self, node: str) -> dict[str, Check]:
        """Checks of a node and of its services, by id."""
        return dict(self._checks.get(node, {}))

    def service_tags(self, node_meta: Mapping[str, str] | None = None) -> dict[str, list[str]]:
        """Every service name with the union of its instances' tags, sorted; with `node_meta` of nodes alone that have it."""
        found: dict[str, set[str]] = {}
        for node, services in self._services.items():
            if node_meta and not self.has_meta(node, node_meta):
                continue
            for service in services.values():
                found.setdefault(service.name, set()).update(service.tags)
        return {name: sorted(found[name]) for name in sorted(found)}

    def has_meta(self, node: str, meta: Mapping[str, str]) -> bool:
        """Whether the node is known and has all of `meta`."""
        known = self._nodes.get(node)
        return known is not None and meta.items() <= known.meta.items()

    def checks(self) -> Iterator[Check]:
        """Every check, by node and id."""
        for node in sorted(self._checks):
            for check_id in sorted(self._checks[node]):
                yield self._checks[node][check_id]

    def intentions(self) -> list[Intention]:
        """Every intention, the most specific first."""
        found = self._intentions.values()
        return sorted(found, key=lambda i: (-i.precedence, i.destination, i.source))

    def roots(self) -> list[Root]:
        """The trust bundle: every root of every datacenter, active first."""
        return sorted(self._roots.values(), key=lambda root: (not root.active, root.datacenter, root.fingerprint))

    def root(self, key: str) -> Root | None:
        """The root stored at `key`; None if there is none or it was removed."""
        return self._roots.get(key)

    def config_entry(self, kind: str, name: str) -> ConfigEntry | None:
        """The stored entry of that kind and name."""
        return self._entries.get(keys.config_entry(kind, name))

    def config_entries(self, kind: str) -> list[ConfigEntry]:
        """Every stored entry of a kind, by name."""
        return sorted((each for each in self._entries.values() if each.kind == kind), key=lambda each: each.name)

    def federated(self, prefix: str) -> dict[str, Record]:
        """The federated records below a prefix, tombstones included."""
        return {key: record for key, record in self._federated.items() if key.startswith(prefix)}

    def record(self, key: str) -> Record | None:
        """The stored record behind `key`, as last applied."""
        return self._records.get(key)

    def records(self, topic: Topic) -> dict[str, Record]:
        """Every record that a reader of `topic` needs, by key: what a subscription to it carries."""
        topic = _folded(topic)
        if topic.kind == "all":
            return dict(self._records)
        if topic.kind == "federated":
            return dict(self._federated)
        if topic.kind == "node":
            node = self.node(topic.name)
            names = [] if node is None else [node.name]
            return {
                key: self._records[key] for name in names for key in self._keys_of_node(name) if key in self._records
            }
        wanted: set[str] = set()
        for node_name, service_id in self._by_topic.get(topic, {}):
            wanted.add(keys.node(node_name))
            wanted.add(keys.service(node_name, service_id))
            wanted.update(
                keys.check(node_name, check.id)
                for check in self._checks.get(node_name, {}).values()
                if check.service_id in ("", service_id)
            )
        return {key: self._records[key] for key in wanted if key in self._records}

    def _keys_of_node(self, name: str) -> Iterator[str]:
        yield keys.node(name)
        for service_id in self._services.get(name, {}):
            yield keys.service(name, service_id)
        for check_id in self._checks.get(name, {}):
            yield keys.check(name, check_id)


def _folded(topic: Topic) -> Topic:
    return Topic(topic.datacenter, topic.kind, topic.name.lower())


K = TypeVar("K")
L = TypeVar("L")


def _remove(table: dict[K, dict[L, T]], outer: K, inner: L) -> None:
    """Delete table[outer][inner], and table[outer] when that empties it."""
    row = table.get(outer)
    if row is not None:
        row.pop(inner, None)
        if not row:
            del table[outer]
