"""The two containers and three volumes that an injected pod gets. Pure."""

from typing import Any

from mesh_agent.injector import names
from mesh_agent.injector.settings import InjectorSettings

_SECCOMP = {"type": "RuntimeDefault"}


def init_container(settings: InjectorSettings, probes: str, exclusions: dict[str, str]) -> dict[str, Any]:
    """`mesh-init`: loads the capture rules, or fails and so keeps the pod from starting; proves who the pod is and writes Envoy's bootstrap."""
    return {
        "name": names.INIT_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["mesh"],
        "args": ["sidecar", "init"],
        "env": [
            _from_field(names.ENV_NODE_IP, "status.hostIP"),
            _from_field(names.ENV_POD_NAME, "metadata.name"),
            _from_field(names.ENV_POD_UID, "metadata.uid"),
            _from_field(names.ENV_POD_NAMESPACE, "metadata.namespace"),
            _from_field(names.ENV_POD_IP, "status.podIP"),
            _env(names.ENV_AGENT_PORT, str(settings.agent_port)),
            _env(names.ENV_XDS_PORT, str(settings.xds_port)),
            _env(names.ENV_TOKEN_FILE, names.TOKEN_FILE),
            _env(names.ENV_CA_FILE, names.CA_FILE),
            _env(names.ENV_PROBES, probes),
            *(_env(name, value) for name, value in exclusions.items() if value),
        ],
        "resources": settings.init_resources,
        "securityContext": {
            # Rules can be loaded by root alone; the group is Envoy's, which must read the bootstrap.
            "runAsUser": 0,
            "runAsGroup": names.SIDECAR_GID,
            "runAsNonRoot": False,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
            "seccompProfile": _SECCOMP,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": names.MESH_VOLUME, "mountPath": names.MESH_DIRECTORY},
            {"name": names.TOKEN_VOLUME, "mountPath": names.TOKEN_DIRECTORY, "readOnly": True},
            {"name": names.CA_VOLUME, "mountPath": names.CA_DIRECTORY, "readOnly": True},
        ],
    }


def sidecar_container(settings: InjectorSettings) -> dict[str, Any]:
    """`mesh-sidecar`: Envoy alone, as a native sidecar: it starts before the application and ends after it, and jobs finish."""
    ready = {"httpGet": {"path": names.READY_PATH, "port": names.READY_PORT}, "timeoutSeconds": 2}
    return {
        "name": names.SIDECAR_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",
        "command": ["envoy"],
        "args": [
            "--config-path",
            names.BOOTSTRAP_FILE,
            # An intention that is taken away ends its connections now (docs/adr/0002).
            "--drain-time-s",
            "0",
            "--disable-hot-restart",
            *(("--concurrency", str(settings.concurrency)) if settings.concurrency else ()),
            "--log-level",
            settings.log_level,
            "--file-flush-interval-msec",
            "1000",
        ],
        "ports": [{"name": "mesh-public", "containerPort": names.PUBLIC_PORT, "protocol": "TCP"}],
        "startupProbe": {**ready, "periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": {**ready, "periodSeconds": 5, "failureThreshold": 2},
        "resources": settings.sidecar_resources,
        "securityContext": {
            "runAsUser": names.SIDECAR_UID,
            "runAsGroup": names.SIDECAR_GID,
            "runAsNonRoot": True,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": _SECCOMP,
        },
        "volumeMounts": [
            {"name": names.MESH_VOLUME, "mountPath": names.MESH_DIRECTORY, "readOnly": True},
            {"name": names.CA_VOLUME, "mountPath": names.CA_DIRECTORY, "readOnly": True},
        ],
    }


def volumes(settings: InjectorSettings) -> list[dict[str, Any]]:
    """The memory volume of the two containers, the token that proves the pod, the trust bundle. A pod waits until the bundle is there."""
    token = {
        "audience": names.TOKEN_AUDIENCE,
        "expirationSeconds": settings.token_ttl_s,
        "path": names.TOKEN_FILE.rpartition("/")[2],
    }
    return [
        {"name": names.MESH_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}},
        {"name": names.TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": names.CA_VOLUME, "configMap": {"name": names.CA_CONFIG_MAP}},
    ]


def _env(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "value": value}


def _from_field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
