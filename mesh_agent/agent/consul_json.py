"""Consul's JSON of services and checks, read strictly: an unknown field or a wrong type is a mistake with a name. Pure.

Source: https://developer.hashicorp.com/consul/api-docs/agent/service and /check.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from mesh_agent.agent import fields as f
from mesh_agent.agent.definition import CheckDefinition, ServiceDefinition
from mesh_agent.agent.fields import Fields
from mesh_agent.agent.probes import wire
from mesh_agent.errors import InvalidRequest
from mesh_agent.model import Proxy, ServiceAddress, Status, Upstream, Weights

_KINDS = ("", "connect-proxy")
_EVERYWHERE = ("0.0.0.0", "::", "[::]")  # noqa: S104 (refused, not bound)
_SERVER_ONLY = ("CreateIndex", "ModifyIndex", "Namespace", "Partition", "Token", "EnterpriseMeta", "Locality")
_MAX_META = 64
_MAX_META_KEY, _MAX_META_VALUE = 128, 512
_META_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TIMEOUT_S = 10.0
_SCRIPT_TIMEOUT_S = 30.0


def service(value: Any, path: str = "") -> ServiceDefinition:
    """A service definition; InvalidRequest names the field that is wrong."""
    fields = Fields(value, path)
    name = fields.take("Name", f.name, "")
    found = _service(fields, name)
    fields.done()
    if not name:
        raise InvalidRequest(f"{path}: Missing service name" if path else "Missing service name")
    if found.kind == "connect-proxy" and (found.proxy is None or not found.proxy.destination_service):
        raise InvalidRequest("Proxy.DestinationServiceName must be non-empty for a service of kind connect-proxy")
    if found.kind == "connect-proxy" and not found.port:
        raise InvalidRequest("Port must be set for a service of kind connect-proxy")
    return found


def _service(fields: Fields, name: str) -> ServiceDefinition:
    at = f"{fields.path}." if fields.path else ""
    service_id = fields.take("ID", f.name, "")
    # Some clients send an empty object where they have no check.
    one: list[Any] = fields.take("Check", lambda found, _: [] if found == {} else [found], [])
    checks = [*fields.take("Checks", f.items, []), *one]
    connect = fields.take("Connect", lambda value, at: Fields(value, at), None)
    native, sidecar = False, None
    if connect is not None:
        native = connect.take("Native", f.flag, False)
        sidecar = connect.take("SidecarService", lambda value, at: _sidecar(value, at, name, service_id or name), None)
        connect.done()
    kind = fields.take("Kind", f.text, "")
    if kind not in _KINDS:
        raise InvalidRequest(f"Kind: {kind!r} is not supported; leave it out, or use connect-proxy")
    fields.ignore(*_SERVER_ONLY)
    return ServiceDefinition(
        name=name,
        id=service_id,
        tags=fields.take("Tags", f.texts, ()),
        address=fields.take("Address", _address, ""),
        port=fields.take("Port", f.port, 0),
        meta=fields.take("Meta", _meta, {}),
        kind=kind,
        proxy=fields.take("Proxy", _proxy, None),
        connect_native=native,
        weights=fields.take("Weights", _weights, Weights()),
        enable_tag_override=fields.take("EnableTagOverride", f.flag, False),
        tagged_addresses=fields.take("TaggedAddresses", _tagged, {}),
        checks=tuple(check(each, f"{at}Checks[{number}]", nested=True) for number, each in enumerate(checks)),
        sidecar=sidecar,
    )


def _address(value: Any, path: str) -> str:
    found = f.name(value, path)
    if found in _EVERYWHERE:
        raise InvalidRequest(
            f"{path}: Invalid service address: {found} is where a service listens, not where others reach it; leave it out for the node's address"
        )
    return found


def _sidecar(value: Any, path: str, parent: str, parent_id: str) -> ServiceDefinition:
    fields = Fields(value, path)
    name = fields.take("Name", f.name, "") or f"{parent}-sidecar-proxy"
    found = _service(fields, name)
    fields.done()
    sidecar_id = f"{parent_id}-sidecar-proxy"
    if found.id not in ("", sidecar_id):
        raise InvalidRequest(f"{path}.ID: a sidecar's id is always {sidecar_id!r}; leave it out")
    if found.sidecar is not None:
        raise InvalidRequest(f"{path}: a sidecar cannot have a sidecar of its own")
    proxy = found.proxy or Proxy(destination_service="")
    proxy = Proxy(
        destination_service=parent,
        destination_id=parent_id,
        local_address=proxy.local_address,
        local_port=proxy.local_port,
        mode=proxy.mode,
        upstreams=proxy.upstreams,
        config=proxy.config,
    )
    return ServiceDefinition(
        name=name,
        id=sidecar_id,
        tags=found.tags,
        address=found.address,
        port=found.port,
        meta=found.meta,
        kind="connect-proxy",
        proxy=proxy,
        weights=found.weights,
        tagged_addresses=found.tagged_addresses,
        checks=found.checks,
    )


def _proxy(value: Any, path: str) -> Proxy:
    fields = Fields(value, path)
    found = Proxy(
        destination_service=fields.take("DestinationServiceName", f.text, ""),
        destination_id=fields.take("DestinationServiceID", f.text, ""),
        local_address=fields.take("LocalServiceAddress", f.text, "127.0.0.1"),
        local_port=fields.take("LocalServicePort", f.port, 0),
        mode=fields.take("Mode", f.text, ""),
        upstreams=fields.take("Upstreams", _upstreams, ()),
        config=fields.take("Config", f.anything, {}),
    )
    fields.ignore("MeshGateway", "Expose", "TransparentProxy")
    fields.done()
    return found


def _upstreams(value: Any, path: str) -> tuple[Upstream, ...]:
    return tuple(_upstream(each, f"{path}[{at}]") for at, each in enumerate(f.items(value, path)))


def _upstream(value: Any, path: str) -> Upstream:
    fields = Fields(value, path)
    kind = fields.take("DestinationType", f.text, "service")
    if kind not in ("", "service"):
        raise InvalidRequest(f"{path}.DestinationType: {kind!r} is not supported; only service is")
    found = Upstream(
        destination_name=fields.take("DestinationName", f.text, ""),
        datacenter=fields.take("Datacenter", f.text, ""),
        local_bind_address=fields.take("LocalBindAddress", f.text, "127.0.0.1"),
        local_bind_port=fields.take("LocalBindPort", f.port, 0),
        config=fields.take("Config", f.anything, {}),
    )
    fields.ignore("MeshGateway", "DestinationNamespace", "DestinationPartition", "CentrallyConfigured")
    fields.done()
    if not found.destination_name:
        raise InvalidRequest(f"{path}.DestinationName must not be empty")
    if not found.local_bind_port:
        raise InvalidRequest(f"{path}.LocalBindPort must be given: the port on which the service reaches the upstream")
    return found


def _weights(value: Any, path: str) -> Weights:
    fields = Fields(value, path)
    found = Weights(passing=fields.take("Passing", f.number, 1), warning=fields.take("Warning", f.number, 1))
    fields.done()
    if not (1 <= found.passing <= 65535 and 0 <= found.warning <= 65535):
        raise InvalidRequest(f"{path}: passing must be 1 to 65535, warning 0 to 65535")
    return found


def _tagged(value: Any, path: str) -> dict[str, ServiceAddress]:
    found = {}
    for key, each in f.anything(value, path).items():
        fields = Fields(each, f"{path}.{key}")
        found[key] = ServiceAddress(
            address=fields.take("Address", f.text, ""),
            port=fields.take("Port", f.port, 0),
        )
        fields.done()
    return found


def _status(value: Any, path: str) -> Status:
    text = f.text(value, path)
    if not text:
        return Status.CRITICAL
    try:
        return Status(text)
    except ValueError:
        raise InvalidRequest(f"{path}: {text!r} is not passing, warning or critical") from None


def _meta(value: Any, path: str) -> dict[str, str]:
    found = f.mapping(value, path)
    if len(found) > _MAX_META:
        raise InvalidRequest(
            f"Invalid Service Meta: Node metadata cannot contain more than {_MAX_META} key/value pairs"
        )
    for key, text in found.items():
        wrong = _wrong_meta(key, text)
        if wrong:
            raise InvalidRequest(f"Invalid Service Meta: Couldn't load metadata pair ('{key}', '{text}'): {wrong}")
    return found


def _wrong_meta(key: str, text: str) -> str:
    if not key:
        return "Key cannot be blank"
    if not _META_KEY.fullmatch(key):
        return "Key contains invalid characters"
    if len(key) > _MAX_META_KEY:
        return f"Key is too long (limit: {_MAX_META_KEY} characters)"
    if key.startswith("consul-"):
        return "Key prefix 'consul-' is reserved for internal use"
    return f"Value is too long (limit: {_MAX_META_VALUE} characters)" if len(text) > _MAX_META_VALUE else ""


def _headers(value: Any, path: str) -> dict[str, list[str]]:
    found = {key: list(f.texts(each, f"{path}.{key}")) for key, each in f.anything(value, path).items()}
    for key, values in found.items():
        # Whoever can put a line break in here could put a second request in.
        if not _TOKEN.fullmatch(key) or not all(each.isprintable() for each in values):
            raise InvalidRequest(f"{path}.{key}: not an HTTP header")
    return found


def _method(value: Any, path: str) -> str:
    found = f.text(value, path).upper() or "GET"
    if not _TOKEN.fullmatch(found):
        raise InvalidRequest(f"{path}: {found!r} is not an HTTP method")
    return found


def _parsed(parse: Callable[[str, str], object]) -> Callable[[Any, str], str]:
    """A text that `parse` accepts, or none."""

    def take(value: Any, path: str) -> str:
        found = f.text(value, path)
        if found:
            parse(found, path)
        return found

    return take


def _grpc(value: Any, path: str) -> str:
    """`host:port` or `host:port/service`."""
    found = f.text(value, path)
    if found:
        wire.endpoint(found.partition("/")[0], path)
    return found


def check(value: Any, path: str = "", *, nested: bool = False) -> CheckDefinition:
    """A check definition; `nested` in a service it needs no name. InvalidRequest says what is wrong."""
    fields = Fields(value, path)
    found = CheckDefinition(
        id=fields.take("CheckID", f.name, "") or fields.take("ID", f.name, ""),
        name=fields.take("Name", f.name, ""),
        notes=fields.take("Notes", f.text, ""),
        service_id="" if nested else fields.take("ServiceID", f.text, ""),
        status=fields.take("Status", _status, Status.CRITICAL),
        ttl_s=fields.take("TTL", f.duration, 0.0),
        http=fields.take("HTTP", _parsed(wire.url), ""),
        method=fields.take("Method", _method, "GET"),
        header=fields.take("Header", _headers, {}),
        body=fields.take("Body", f.text, ""),
        tls_skip_verify=fields.take("TLSSkipVerify", f.flag, False),
        tcp=fields.take("TCP", _parsed(wire.endpoint), ""),
        udp=fields.take("UDP", _parsed(wire.endpoint), ""),
        grpc=fields.take("GRPC", _grpc, ""),
        grpc_use_tls=fields.take("GRPCUseTLS", f.flag, False),
        args=fields.take("Args", f.texts, ()) or fields.take("ScriptArgs", f.texts, ()),
        systemd_unit=fields.take("SystemdUnit", _parsed(wire.unit), ""),
        alias_node=fields.take("AliasNode", f.text, ""),
        alias_service=fields.take("AliasService", f.text, ""),
        interval_s=fields.take("Interval", f.duration, 0.0),
        timeout_s=fields.take("Timeout", f.duration, 0.0),
        success_before_passing=fields.take("SuccessBeforePassing", f.number, 0),
        failures_before_critical=fields.take("FailuresBeforeCritical", f.number, 0),
        deregister_after_s=fields.take("DeregisterCriticalServiceAfter", f.duration, 0.0),
        output_max_bytes=fields.take("OutputMaxSize", f.number, 0),
    )
    fields.ignore(*_SERVER_ONLY, "ID", "ScriptArgs")
    fields.done()
    _validate(found, path or "check", nested=nested)
    return found if found.timeout_s else msgspec.structs.replace(found, timeout_s=_default_timeout_s(found))


def _default_timeout_s(found: CheckDefinition) -> float:
    """Consul's: long enough, and over before the next run."""
    longest_s = _SCRIPT_TIMEOUT_S if found.kind == "script" else _TIMEOUT_S
    return min(longest_s, max(1.0, found.interval_s)) if found.interval_s else longest_s


def _validate(found: CheckDefinition, path: str, *, nested: bool) -> None:
    if not nested and not (found.name or found.id):
        raise InvalidRequest("Missing check name")
    kinds = [found.ttl_s, found.http, found.tcp, found.udp, found.grpc, found.args, found.systemd_unit]
    count = sum(bool(kind) for kind in kinds) + bool(found.alias_node or found.alias_service)
    if count == 0:
        raise InvalidRequest(
            f"{path}: a check needs one of TTL, HTTP, TCP, UDP, GRPC, Args, SystemdUnit, AliasNode or AliasService"
        )
    if count > 1:
        raise InvalidRequest(f"{path}: a check has exactly one kind, this one has {count}")
    if min(found.ttl_s, found.interval_s, found.timeout_s, found.deregister_after_s) < 0:
        raise InvalidRequest(
            f"{path}: TTL, Interval, Timeout and DeregisterCriticalServiceAfter must be positive durations"
        )
    if found.grpc and found.tls_skip_verify:
        raise InvalidRequest(f"{path}: TLSSkipVerify is not supported for gRPC checks; give the server a certificate")
    if found.kind not in ("ttl", "alias") and found.interval_s <= 0:
        raise InvalidRequest(f"{path}: Interval must be > 0 for a check of kind {found.kind}")
    if min(found.success_before_passing, found.failures_before_critical, found.output_max_bytes) < 0:
        raise InvalidRequest(
            f"{path}: SuccessBeforePassing, FailuresBeforeCritical and OutputMaxSize must not be negative"
        )


def file(value: Any) -> tuple[list[ServiceDefinition], list[CheckDefinition]]:
    """A file of definitions: `service`, `services`, `check`, `checks`."""
    fields = Fields(value, "")
    services = _one_or_more(fields, "service")
    checks = _one_or_more(fields, "check")
    fields.done()
    if not services and not checks:
        raise InvalidRequest("expected `service`, `services`, `check` or `checks`")
    return [service(each, at) for at, each in services], [check(each, at) for at, each in checks]


def _one_or_more(fields: Fields, name: str) -> list[tuple[str, Any]]:
    several: list[Any] = fields.take(f"{name}s", f.items, [])
    one: list[Any] = fields.take(name, lambda found, _: [found], [])
    return [(name, each) for each in one] + [(f"{name}s[{at}]", each) for at, each in enumerate(several)]
