"""Services of the mesh as Services of the cluster: names (ExternalName) that lead into the mesh's DNS. Pure.

They are in one namespace, the own datacenter's under their own name, those of another one with `-<datacenter>` at the end. A Service that controllers did
not make is never changed; services that came from a cluster are not sent back to one.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mesh_agent.controllers.objects import (
    MANAGED_BY,
    MANAGER,
    PREFIX,
    Create,
    Json,
    Replace,
    Step,
    annotations_of,
    changed,
    deletion,
    is_leaving,
    is_ours,
    name_of,
)
from mesh_agent.controllers.settings import ToKubernetes, matches
from mesh_agent.controllers.to_mesh import TAG

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?\Z")
SOURCE_DATACENTER = f"{PREFIX}source-datacenter"
SOURCE_SERVICE = f"{PREFIX}source-service"


class Source(NamedTuple):
    """A service of a datacenter."""

    datacenter: str
    service: str


class Plan(NamedTuple):
    """Steps, and names that are taken by Services of others or that Kubernetes cannot have."""

    steps: list[Step]
    foreign: list[str]
    impossible: list[str]


def wanted(known: Mapping[str, Mapping[str, list[str]]], own: str, settings: ToKubernetes) -> dict[str, Source]:
    """Name of a Service -> the service that it stands for; `known` is `/v1/catalog/services` of each datacenter."""
    found: dict[str, Source] = {}
    for datacenter in sorted(known, key=lambda each: (each != own, each)):
        suffix = "" if datacenter == own else f"-{datacenter}"
        for service, tags in sorted(known[datacenter].items()):
            if TAG not in tags and not matches(service, settings.exclude):
                found.setdefault(f"{service}{suffix}".lower(), Source(datacenter, service))
    return found


def plan(known: Mapping[str, Mapping[str, list[str]]], held: Iterable[Json], own: str, settings: ToKubernetes) -> Plan:
    """Steps until the namespace's Services agree with `known`. A datacenter that is not in it could not be asked: what stands for its services stays."""
    by_name = {name_of(each): each for each in held}
    goal = wanted(known, own, settings)
    followed = {own, *settings.datacenters}
    steps: list[Step] = []
    foreign, impossible = [], []
    for name, source in sorted(goal.items()):
        present = by_name.get(name)
        if not _NAME.match(name):
            impossible.append(name)
        elif present is None:
            steps.append(Create(_path(settings.namespace), _service(name, source, settings)))
        elif not is_ours(present):
            foreign.append(name)
        elif not is_leaving(present):
            steps += _kept(present, source, settings)
    for name, present in sorted(by_name.items()):
        datacenter = annotations_of(present).get(SOURCE_DATACENTER, "")
        unanswered = datacenter in followed and datacenter not in known
        if name not in goal and is_ours(present) and not unanswered and not is_leaving(present):
            steps.append(deletion(_path(settings.namespace, name), present))
    return Plan(steps, foreign, impossible)


def _path(namespace: str, name: str = "") -> str:
    collection = f"/api/v1/namespaces/{namespace}/services"
    return f"{collection}/{name}" if name else collection


def _annotations(source: Source) -> dict[str, str]:
    return {SOURCE_DATACENTER: source.datacenter, SOURCE_SERVICE: source.service}


def _external_name(source: Source, settings: ToKubernetes) -> str:
    return f"{source.service}.service.{source.datacenter}.{settings.domain}".lower()


def _service(name: str, source: Source, settings: ToKubernetes) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": settings.namespace,
            "labels": {MANAGED_BY: MANAGER},
            "annotations": _annotations(source),
        },
        "spec": {"type": "ExternalName", "externalName": _external_name(source, settings)},
    }


def _kept(present: Json, source: Source, settings: ToKubernetes) -> list[Step]:
    spec, wanted_annotations = present["spec"], _annotations(source)
    if (
        spec.get("type") == "ExternalName"
        and spec.get("externalName") == _external_name(source, settings)
        and wanted_annotations.items() <= annotations_of(present).items()
    ):
        return []
    metadata = {**present["metadata"], "annotations": {**annotations_of(present), **wanted_annotations}}
    body = changed(
        present, metadata=metadata, spec={"type": "ExternalName", "externalName": _external_name(source, settings)}
    )
    return [Replace(_path(settings.namespace, name_of(present)), body)]
