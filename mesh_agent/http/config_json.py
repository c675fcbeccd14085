"""Config entries as Consul's API writes them: reading and rendering. Pure.

Source: https://developer.hashicorp.com/consul/docs/connect/config-entries. What this mesh does not do is refused with a clear text and never
accepted in silence; empty values of such fields, which clients of Consul send, are no request for anything.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from mesh_agent.agent import fields as f
from mesh_agent.agent.fields import Fields
from mesh_agent.catalog.config_entries import (
    GLOBAL,
    KINDS,
    PROXY_DEFAULTS,
    SERVICE_DEFAULTS,
    SERVICE_INTENTIONS,
    Found,
)
from mesh_agent.errors import InvalidRequest
from mesh_agent.model import Action, ConfigEntry, Intention

_DEEPEST = 64
PROTOCOLS = ("tcp", "http", "http2", "grpc")
_READ_ONLY = ("CreateIndex", "ModifyIndex", "Hash", "Namespace", "Partition", "EnterpriseMeta")
_LATER = {
    SERVICE_DEFAULTS: (
        "Mode",
        "TransparentProxy",
        "MutualTLSMode",
        "MeshGateway",
        "Expose",
        "ExternalSNI",
        "UpstreamConfig",
        "Destination",
        "MaxInboundConnections",
        "LocalConnectTimeoutMs",
        "LocalRequestTimeoutMs",
        "BalanceInboundConnections",
        "RateLimits",
        "EnvoyExtensions",
    ),
    PROXY_DEFAULTS: (
        "Mode",
        "TransparentProxy",
        "MutualTLSMode",
        "MeshGateway",
        "Expose",
        "AccessLogs",
        "EnvoyExtensions",
        "FailoverPolicy",
        "PrioritizeByLocality",
    ),
    SERVICE_INTENTIONS: ("JWT",),
}
"""Fields of Consul that mean nothing here yet."""


class Given(NamedTuple):
    """An entry as a request gives it."""

    entry: ConfigEntry
    sources: tuple[Intention, ...] = ()


def check_depth(value: Any) -> None:  # decoded JSON
    """InvalidRequest for what is nested more deeply than any entry: it could be read once, but not within a list of entries."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
        ]
        if not level:
            return
    raise InvalidRequest(f"a config entry may not be nested more than {_DEEPEST} levels deep")


def known_kind(kind: str) -> str:
    """`kind`, or InvalidRequest that lists those that there are."""
    if kind not in KINDS:
        raise InvalidRequest(f"invalid config entry kind: {kind or '(none)'!s}; this mesh knows {', '.join(KINDS)}")
    return kind


def parse(body: bytes, now: float) -> Given:
    """An entry; InvalidRequest says which field is wrong."""
    found = f.decode_object(body)
    check_depth(found)
    fields = Fields(found)
    kind = known_kind(fields.take("Kind", f.text, ""))
    name = fields.take("Name", f.name, GLOBAL if kind == PROXY_DEFAULTS else "")
    meta: dict[str, str] = fields.take("Meta", f.mapping, {})
    fields.ignore(*_READ_ONLY)
    if not name:
        raise InvalidRequest("Name must be set")
    settings, sources = _PARSERS[kind](fields, name, now)
    _refuse(fields, _LATER[kind], kind)
    fields.done()
    return Given(ConfigEntry(kind=kind, name=name, settings=settings, meta=meta), sources)


Parsed = tuple[dict[str, Any], tuple[Intention, ...]]


def _service_defaults(fields: Fields, name: str, now: float) -> Parsed:
    if name == "*":
        raise InvalidRequest("service-defaults: '*' is no service; use proxy-defaults for all of them")
    protocol = fields.take("Protocol", _protocol, "")
    return ({"Protocol": protocol} if protocol else {}), ()


def _proxy_defaults(fields: Fields, name: str, now: float) -> Parsed:
    if name != GLOBAL:
        raise InvalidRequest(f"proxy-defaults: the name is {name!r}; the only one that counts is {GLOBAL!r}")
    config: dict[str, Any] = fields.take("Config", f.anything, {})
    if "protocol" in config:
        config = {**config, "protocol": _protocol(config["protocol"], "Config.protocol")}
    return ({"Config": config} if config else {}), ()


def _service_intentions(fields: Fields, name: str, now: float) -> Parsed:
    given: list[Any] = fields.take("Sources", f.items, [])
    sources = tuple(_source(each, f"Sources[{at}]", name, now) for at, each in enumerate(given))
    if not sources:
        raise InvalidRequest("service-intentions: at least one source must be given; to have none, delete the entry")
    named = [each.source for each in sources]
    twice = next((each for each in named if named.count(each) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"service-intentions: the source {twice!r} is there more than once")
    return {}, sources


_PARSERS: dict[str, Callable[[Fields, str, float], Parsed]] = {
    SERVICE_DEFAULTS: _service_defaults,
    PROXY_DEFAULTS: _proxy_defaults,
    SERVICE_INTENTIONS: _service_intentions,
}


def _source(value: Any, path: str, destination: str, now: float) -> Intention:  # decoded JSON
    fields = Fields(value, path)
    name, action = fields.take("Name", f.name, ""), fields.take("Action", f.text, "")
    description = fields.take("Description", f.text, "")
    kind = fields.take("Type", f.text, "consul")
    fields.ignore("Namespace", "Partition", "Precedence", "LegacyID", "LegacyMeta", "LegacyCreateTime")
    fields.ignore("LegacyUpdateTime")
    _refuse(fields, ("Peer", "SamenessGroup"), path)
    if fields.take("Permissions", f.items, []):
        raise InvalidRequest(f"{path}: Permissions (rules for single paths) are not supported; use Action")
    fields.done()
    if not name:
        raise InvalidRequest(f"{path}: Name must be set")
    if action not in ("allow", "deny"):
        raise InvalidRequest(f"{path}: Action must be set to 'allow' or 'deny'")
    if kind != "consul":
        raise InvalidRequest(f"{path}: Type must be 'consul'")
    return Intention(
        source=name,
        destination=destination,
        action=Action(action),
        description=description,
        created_at=now,
        updated_at=now,
    )


def _protocol(value: Any, path: str) -> str:  # decoded JSON
    found = f.text(value, path).lower()
    if found and found not in PROTOCOLS:
        raise InvalidRequest(f"{path}: {found!r} is not supported; use one of {', '.join(PROTOCOLS)}")
    return found


def _refuse(fields: Fields, names: tuple[str, ...], what: str) -> None:
    for name in names:
        if _says_something(fields.take(name, lambda value, _: value, None)):
            raise InvalidRequest(f"{what}: {name} is not supported by this mesh yet; leave it out")


def _says_something(value: Any) -> bool:  # decoded JSON
    rest = [value]
    while rest:  # not by recursion: JSON is nested as deeply as its author likes
        each = rest.pop()
        if isinstance(each, dict):
            rest += each.values()
        elif each:
            return True
    return False


_EMPTY: dict[str, dict[str, Any]] = {SERVICE_DEFAULTS: {"Protocol": ""}, PROXY_DEFAULTS: {"Config": {}}}


def render(found: Found) -> dict[str, Any]:
    """An entry as a reader sees it."""
    shown: dict[str, Any] = {"Kind": found.entry.kind, "Name": found.entry.name, **found.entry.settings}
    if found.entry.kind == SERVICE_INTENTIONS:
        shown["Sources"] = [_shown(each) for each in found.sources]
    else:
        shown = {**_EMPTY[found.entry.kind], **shown, "MeshGateway": {}, "Expose": {}}
    if found.entry.meta:
        shown["Meta"] = found.entry.meta
    return shown | {"CreateIndex": found.created, "ModifyIndex": found.modified}


def _shown(source: Intention) -> dict[str, Any]:
    described = {"Description": source.description} if source.description else {}
    return {
        "Name": source.source,
        "Action": source.action.value,
        "Precedence": source.precedence,
        "Type": "consul",
        **described,
    }
