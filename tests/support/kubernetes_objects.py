"""Objects of Kubernetes as JSON, for tests."""

from typing import Any

Json = dict[str, Any]


def meta(name: str, namespace: str = "", **more: Any) -> Json:
    """metadata."""
    found = {"name": name, "uid": f"uid-{namespace}-{name}", "resourceVersion": "7"}
    return found | ({"namespace": namespace} if namespace else {}) | more


def namespace(name: str, **more: Any) -> Json:
    """A Namespace."""
    return {"metadata": meta(name, **more)}


def config_map(name: str, where: str, data: dict[str, str], **more: Any) -> Json:
    """A ConfigMap."""
    return {"metadata": meta(name, where, **more), "data": data}


def service(name: str, where: str = "shop", *, annotations: dict[str, str] | None = None, **spec: Any) -> Json:
    """A Service with one port called http, unless `spec` says otherwise; `status` is taken from it."""
    status = spec.pop("status", {})
    made = {"type": "ClusterIP", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]} | spec
    return {"metadata": meta(name, where, annotations=annotations or {}), "spec": made, "status": status}


def endpoint(*addresses: str, ready: bool | None = True, node: str = "n1") -> Json:
    """An endpoint of a slice."""
    return {"addresses": list(addresses), "conditions": {} if ready is None else {"ready": ready}, "nodeName": node}


def endpoint_slice(of: str, *endpoints: Json, where: str = "shop", kind: str = "IPv4", name: str = "") -> Json:
    """An EndpointSlice whose port http is 8080."""
    labels = {"kubernetes.io/service-name": of}
    return {
        "metadata": meta(name or f"{of}-slice", where, labels=labels),
        "addressType": kind,
        "endpoints": list(endpoints),
        "ports": [{"name": "http", "port": 8080}],
    }


def node(name: str, internal: str = "", external: str = "") -> Json:
    """A Node."""
    addresses = [("Hostname", name), ("InternalIP", internal), ("ExternalIP", external)]
    return {
        "metadata": meta(name),
        "status": {"addresses": [{"type": kind, "address": each} for kind, each in addresses if each]},
    }
