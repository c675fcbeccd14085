"""Manifests of the services that the tests run in pods: the lab's demo service under a service account of its name."""

from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
NAMESPACE = "demo"
Manifest = dict[str, Any]


def namespace() -> list[Manifest]:
    """A namespace that takes part in the mesh, with the programs that its pods run."""
    labels = {"mesh.openmesh.io/inject": "enabled", "pod-security.kubernetes.io/enforce": "privileged"}
    programs = {
        "demo.py": (TOP / "roles/mesh_demo/files/demo.py").read_text(encoding="utf-8"),
        **{name: Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("load.py", "probed.py")},
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta("programs"), "data": programs},
    ]


def service(name: str, image: str, *, replicas: int = 1, node: str = "", port: int = 8080) -> list[Manifest]:
    """A Deployment of the demo service, its account and its Service."""
    probe = {"httpGet": {"path": "/health", "port": port}, "periodSeconds": 1, "failureThreshold": 30}
    command = ["python3", "/programs/demo.py", name, str(port), "0.0.0.0"]
    container = _container(image, command, port) | {"readinessProbe": probe}
    selector = {"matchLabels": {"app": name}}
    apart = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    template = {
        "metadata": {"labels": {"app": name}, "annotations": {"mesh.openmesh.io/service-protocol": "http"}},
        "spec": _pod(name, container, node)
        | {"terminationGracePeriodSeconds": 10, "topologySpreadConstraints": [apart | {"labelSelector": selector}]},
    }
    ports = [{"port": port, "targetPort": port}]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _meta(name)},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": _meta(name),
            "spec": {"selector": {"app": name}, "ports": ports},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": _meta(name),
            "spec": {"replicas": replicas, "selector": selector, "template": template},
        },
    ]


def probed(name: str, image: str) -> list[Manifest]:
    """A pod that its kubelet probes by TCP, HTTP, gRPC and a command, and its account."""
    every = {"periodSeconds": 1, "failureThreshold": 2}
    web, tcp, health = {"httpGet": {"path": "/", "port": 8080}}, {"tcpSocket": {"port": 8080}}, {"grpc": {"port": 8081}}
    container = _container(image, ["/opt/mesh/bin/python3", "/programs/probed.py"], 8080)
    probes = {
        "startupProbe": tcp | every | {"failureThreshold": 60},
        "livenessProbe": web | every,
        "readinessProbe": health | every,
    }
    command = {"exec": {"command": ["test", "-d", "/programs"]}}
    beside = container | {"name": "beside", "command": ["sleep", "3600"], "ports": [], "livenessProbe": command | every}
    pod = _pod(name, container | probes, "")
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _meta(name)},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": _meta(name) | {"labels": {"app": name}},
            "spec": pod | {"containers": [*pod["containers"], beside], "terminationGracePeriodSeconds": 1},
        },
    ]


def always_one(name: str) -> Manifest:
    """A drain waits rather than end the last pod of a service."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _meta(name),
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": name}}},
    }


def job(name: str, account: str, image: str, script: str, *, count: int, at_once: int, inject: bool = True) -> Manifest:
    """A Job of `count` pods that each run a Python script once."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", script],
    }
    annotations = {} if inject else {"mesh.openmesh.io/inject": "false"}
    template = {
        "metadata": {"labels": {"job": name}, "annotations": annotations},
        "spec": _pod(account, container, "") | {"restartPolicy": "Never"},
    }
    spec = {"completions": count, "parallelism": at_once, "backoffLimit": 0, "template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _meta(name), "spec": spec}


def intentions(destination: str, **sources: str) -> Manifest:
    """Who may (`allow`) or may not (`deny`) call a service."""
    rules = [{"name": name, "action": action} for name, action in sources.items()]
    return {
        "apiVersion": "mesh.openmesh.io/v1alpha1",
        "kind": "ServiceIntentions",
        "metadata": _meta(destination),
        "spec": {"destination": {"name": destination}, "sources": rules},
    }


def _container(image: str, command: list[str], port: int) -> Manifest:
    return {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "ports": [{"containerPort": port}],
        "volumeMounts": [{"name": "programs", "mountPath": "/programs"}],
    }


def _pod(account: str, container: Manifest, node: str) -> Manifest:
    volumes = [{"name": "programs", "configMap": {"name": "programs"}}]
    spec: Manifest = {
        "serviceAccountName": account,
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000},
        "containers": [container],
        "volumes": volumes,
    }
    return spec | ({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {})


def _meta(name: str) -> Manifest:
    return {"name": name, "namespace": NAMESPACE}
