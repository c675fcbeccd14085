"""Consul's JSON of services and checks, read strictly: an unknown field or a wrong type is a mistake with a name. Pure.

Source: https://developer.hashicorp.com/consul/api-docs/agent/service and /check.
"""

from typing import Any

from mesh_agent.agent import fields as f
from mesh_agent.agent.definition import CheckDefinition, ServiceDefinition
from mesh_agent.agent.fields import Fields
from mesh_agent.errors import InvalidRequest
from mesh_agent.model import Proxy, ServiceAddress, Status, Upstream, Weights

_KINDS = ("", "connect-proxy")
_SERVER_ONLY = ("CreateIndex", "ModifyIndex", "Namespace", "Partition", "Token", "EnterpriseMeta", "Locality")
_MIN_DEREGISTER_S = 60.0


def service(value: Any, path: str = "") -> ServiceDefinition:
    """A service definition; InvalidRequest names the field that is wrong."""
    fields = Fields(value, path)
    name = fields.take("Name", f.text, "")
    found = _service(fields, name)
    fields.done()
    if not name:
        raise InvalidRequest("Missing service name")
    if found.kind == "connect-proxy" and (found.proxy is None or not found.proxy.destination_service):
        raise InvalidRequest("Proxy.DestinationServiceName must be non-empty for a service of kind connect-proxy")
    return found


def _service(fields: Fields, name: str) -> ServiceDefinition:
    service_id = fields.take("ID", f.text, "")
    checks: list[Any] = [*fields.take("Checks", f.items, []), *fields.take("Check", lambda one, _: [one], [])]
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
        address=fields.take("Address", f.text, ""),
        port=fields.take("Port", f.port, 0),
        meta=fields.take("Meta", f.mapping, {}),
        kind=kind,
        proxy=fields.take("Proxy", _proxy, None),
        connect_native=native,
        weights=fields.take("Weights", _weights, Weights()),
        enable_tag_override=fields.take("EnableTagOverride", f.flag, False),
        tagged_addresses=fields.take("TaggedAddresses", _tagged, {}),
        checks=tuple(check(each, f"Checks[{at}]", nested=True) for at, each in enumerate(checks)),
        sidecar=sidecar,
    )


def _sidecar(value: Any, path: str, parent: str, parent_id: str) -> ServiceDefinition:
    fields = Fields(value, path)
    name = fields.take("Name", f.text, "") or f"{parent}-sidecar-proxy"
    found = _service(fields, name)
    fields.done()
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
        id=found.id or f"{parent_id}-sidecar-proxy",
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


def _headers(value: Any, path: str) -> dict[str, list[str]]:
    return {key: list(f.texts(each, f"{path}.{key}")) for key, each in f.anything(value, path).items()}


def check(value: Any, path: str = "", *, nested: bool = False) -> CheckDefinition:
    """A check definition; `nested` in a service it needs no name. InvalidRequest says what is wrong."""
    fields = Fields(value, path)
    found = CheckDefinition(
        id=fields.take("CheckID", f.text, "") or fields.take("ID", f.text, ""),
        name=fields.take("Name", f.text, ""),
        notes=fields.take("Notes", f.text, ""),
        service_id="" if nested else fields.take("ServiceID", f.text, ""),
        status=fields.take("Status", _status, Status.CRITICAL),
        ttl_s=fields.take("TTL", f.duration, 0.0),
        http=fields.take("HTTP", f.text, ""),
        method=fields.take("Method", f.text, "GET").upper() or "GET",
        header=fields.take("Header", _headers, {}),
        body=fields.take("Body", f.text, ""),
        tls_skip_verify=fields.take("TLSSkipVerify", f.flag, False),
        tcp=fields.take("TCP", f.text, ""),
        udp=fields.take("UDP", f.text, ""),
        grpc=fields.take("GRPC", f.text, ""),
        grpc_use_tls=fields.take("GRPCUseTLS", f.flag, False),
        args=fields.take("Args", f.texts, ()) or fields.take("ScriptArgs", f.texts, ()),
        systemd_unit=fields.take("SystemdUnit", f.text, ""),
        alias_node=fields.take("AliasNode", f.text, ""),
        alias_service=fields.take("AliasService", f.text, ""),
        interval_s=fields.take("Interval", f.duration, 0.0),
        timeout_s=fields.take("Timeout", f.duration, 10.0),
        success_before_passing=fields.take("SuccessBeforePassing", f.number, 0),
        failures_before_critical=fields.take("FailuresBeforeCritical", f.number, 0),
        deregister_after_s=fields.take("DeregisterCriticalServiceAfter", f.duration, 0.0),
    )
    fields.ignore(*_SERVER_ONLY, "ID", "ScriptArgs")
    fields.done()
    _validate(found, path or "check", nested=nested)
    return found


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
    if found.ttl_s < 0 or found.interval_s < 0 or found.timeout_s <= 0:
        raise InvalidRequest(f"{path}: TTL, Interval and Timeout must be positive durations")
    if found.kind not in ("ttl", "alias") and found.interval_s <= 0:
        raise InvalidRequest(f"{path}: Interval must be > 0 for a check of kind {found.kind}")
    if found.success_before_passing < 0 or found.failures_before_critical < 0:
        raise InvalidRequest(f"{path}: SuccessBeforePassing and FailuresBeforeCritical must not be negative")


def file(value: Any, path: str) -> tuple[list[ServiceDefinition], list[CheckDefinition]]:
    """A file of definitions: `service`, `services`, `check`, `checks`."""
    fields = Fields(value, "")
    services: list[Any] = [*fields.take("services", f.items, []), *fields.take("service", lambda one, _: [one], [])]
    checks: list[Any] = [*fields.take("checks", f.items, []), *fields.take("check", lambda one, _: [one], [])]
    fields.done()
    if not services and not checks:
        raise InvalidRequest(f"{path}: expected `service`, `services`, `check` or `checks`")
    return [service(each) for each in services], [check(each) for each in checks]


def deregister_after(seconds: float) -> float:
    """Consul's lower bound for DeregisterCriticalServiceAfter; 0 stays off."""
    return max(_MIN_DEREGISTER_S, seconds) if seconds > 0 else 0.0
