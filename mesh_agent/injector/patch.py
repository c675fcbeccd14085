"""What the injector does to a pod. Pure: `patch(pod, settings)` says which operations make the pod a member of the mesh.

A second pass changes nothing; when another webhook added a container in between, that container is treated like the others. What cannot work is refused
with a reason that says what to change, because a pod that starts outside the mesh would talk in plaintext.
"""

from typing import Any

from mesh_agent.errors import InvalidRequest
from mesh_agent.injector import names
from mesh_agent.injector.containers import init_container, sidecar_container, volumes
from mesh_agent.injector.json_patch import JsonPatchOp, diff
from mesh_agent.injector.probes import ProbePorts, declared_ports, redirect
from mesh_agent.injector.settings import InjectorSettings, Pod
from mesh_agent.kubernetes import annotations

_OURS = (names.INIT_CONTAINER, names.SIDECAR_CONTAINER)
_OUR_VOLUMES = (names.MESH_VOLUME, names.TOKEN_VOLUME, names.CA_VOLUME)
Containers = list[dict[str, Any]]  # containers as JSON


def patch(pod: Pod, settings: InjectorSettings) -> list[JsonPatchOp]:
    """The operations that inject `pod`; InvalidRequest if it cannot be a member of the mesh as it is."""
    return diff(pod, injected(pod, settings))


def injected(pod: Pod, settings: InjectorSettings) -> Pod:
    """The pod as a member of the mesh."""
    spec = pod["spec"]
    wishes = annotations.read(pod["metadata"].get("annotations") or {})
    _check_pod(spec)
    annotations.service_of(spec.get("serviceAccountName") or "", wishes)
    _check_names(pod)
    ours = {each["name"]: each for each in spec.get("initContainers") or () if each["name"] in _OURS}
    inits = [each for each in spec.get("initContainers") or () if each["name"] not in _OURS]
    _check_users(spec, [*inits, *spec["containers"]])
    ports = ProbePorts(settings.probe_ports_from, frozenset(wishes.exclude_inbound_ports), _known_probes(ours))
    inits = [redirect(each, ports) for each in inits]
    apps = [_drained(redirect(each, ports), spec, settings) for each in spec["containers"]]
    _check_ports([*inits, *apps], ports)
    _check_service_port(wishes.port, apps)
    first = _with_probes(ours.get(names.INIT_CONTAINER), ports) or init_container(
        settings, ports.text(), _exclusions(wishes)
    )
    second = ours.get(names.SIDECAR_CONTAINER) or sidecar_container(settings)
    return {
        **pod,
        "metadata": _marked(pod["metadata"], settings),
        "spec": {
            **spec,
            "initContainers": [first, second, *inits],
            "containers": apps,
            "volumes": _with_volumes(spec.get("volumes") or [], settings),
        },
    }


def _marked(metadata: dict[str, Any], settings: InjectorSettings) -> dict[str, Any]:
    status = {names.ANNOTATION_STATUS: f"injected by mesh {settings.version}"}
    return {
        **metadata,
        "labels": {**(metadata.get("labels") or {}), annotations.INJECTED: "true"},
        "annotations": {**status, **(metadata.get("annotations") or {})},
    }


def _exclusions(wishes: annotations.Wishes) -> dict[str, str]:
    return {
        names.ENV_EXCLUDE_OUTBOUND_CIDRS: ",".join(wishes.exclude_outbound_cidrs),
        names.ENV_EXCLUDE_OUTBOUND_PORTS: ",".join(map(str, wishes.exclude_outbound_ports)),
        names.ENV_EXCLUDE_INBOUND_PORTS: ",".join(map(str, wishes.exclude_inbound_ports)),
    }


def _with_volumes(found: list[dict[str, Any]], settings: InjectorSettings) -> list[dict[str, Any]]:
    known = {each["name"] for each in found}
    return [*found, *(each for each in volumes(settings) if each["name"] not in known)]


def _drained(container: dict[str, Any], spec: dict[str, Any], settings: InjectorSettings) -> dict[str, Any]:
    """The application goes on for a moment after the pod was told to end, unless it has a hook of its own."""
    grace_s = spec.get("terminationGracePeriodSeconds")
    seconds = min(settings.pre_stop_sleep_s, 30 if grace_s is None else int(grace_s))
    lifecycle = container.get("lifecycle") or {}
    if seconds <= 0 or "preStop" in lifecycle:
        return container
    return {**container, "lifecycle": {**lifecycle, "preStop": {"sleep": {"seconds": seconds}}}}


def _known_probes(ours: dict[str, dict[str, Any]]) -> str:
    env = ours.get(names.INIT_CONTAINER, {}).get("env") or ()
    return next((each.get("value", "") for each in env if each["name"] == names.ENV_PROBES), "")


def _with_probes(container: dict[str, Any] | None, ports: ProbePorts) -> dict[str, Any] | None:
    """The init container of an earlier pass (with what the API server filled in), told of probes that came since."""
    if container is None or _known_probes({names.INIT_CONTAINER: container}) == ports.text():
        return container
    env = [{**each, "value": ports.text()} if each["name"] == names.ENV_PROBES else each for each in container["env"]]
    return {**container, "env": env}


# what cannot be


def _check_pod(spec: dict[str, Any]) -> None:
    if not spec.get("containers"):
        raise InvalidRequest("spec.containers is empty; a pod has at least one container")
    if spec.get("hostNetwork"):
        raise InvalidRequest(
            "a pod with hostNetwork cannot be captured; register its service with the node's agent instead, "
            'or annotate the pod with mesh.openmesh.io/inject: "false"'
        )
    if (spec.get("os") or {}).get("name") == "windows":
        raise InvalidRequest('pods on Windows cannot be injected; annotate this one mesh.openmesh.io/inject: "false"')


def _check_names(pod: Pod) -> None:
    """Names that belong to the mesh may only be there when an earlier pass put them there."""
    if names.ANNOTATION_STATUS in (pod["metadata"].get("annotations") or {}):
        inits = {each["name"] for each in pod["spec"].get("initContainers") or ()}
        if not inits.issuperset(_OURS):
            raise InvalidRequest(
                f"the annotation {names.ANNOTATION_STATUS} is the injector's; remove it from the manifest"
            )
        return
    spec = pod["spec"]
    for kind, reserved in (("initContainers", _OURS), ("containers", _OURS), ("volumes", _OUR_VOLUMES)):
        for each in spec.get(kind) or ():
            if each["name"] in reserved:
                raise InvalidRequest(f"the name {each['name']!r} in spec.{kind} is the mesh's; use another")


def _check_users(spec: dict[str, Any], containers: Containers) -> None:
    """Traffic of Envoy's user is not captured: nobody else may be it."""
    for container in containers:
        own = (container.get("securityContext") or {}).get("runAsUser")
        user = own if own is not None else (spec.get("securityContext") or {}).get("runAsUser")
        if user == names.SIDECAR_UID:
            raise InvalidRequest(
                f"container {container['name']!r} runs as user {user}, which is the sidecar's; set another runAsUser"
            )
        if any(mount.get("name") in _OUR_VOLUMES for mount in container.get("volumeMounts") or ()):
            raise InvalidRequest(
                f"container {container['name']!r} mounts a volume of the mesh; it is the sidecar's alone"
            )


def _check_ports(containers: Containers, ports: ProbePorts) -> None:
    reserved = {*names.RESERVED_PORTS, *ports.ports}
    for name, port in declared_ports(containers):
        if port in reserved:
            raise InvalidRequest(
                f"port {port} of container {name!r} is the mesh's; let the application listen on another"
            )


def _check_service_port(port: str, containers: Containers) -> None:
    declared = [each for container in containers for each in container.get("ports") or ()]
    named = {each.get("name") for each in declared if each.get("protocol", "TCP") == "TCP"}
    if port and not port.isdecimal() and port not in named:
        raise InvalidRequest(
            f"annotation {annotations.PREFIX}service-port: no container has a TCP port named {port!r}; "
            "add it to a container's ports or give a number"
        )
