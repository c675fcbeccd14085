"""The trust bundle in every namespace that takes part in the mesh: what its pods believe before they have talked to anybody. Pure.

A namespace takes part by its label, or by an injected pod: one that asked for it by annotation waits for the bundle before it starts. The name of the
ConfigMap belongs to the mesh: whatever it holds is made to be the mesh's roots. It goes away with the label and the last such pod, but only if
controllers made it.
"""

from collections.abc import Iterable

from mesh_agent.controllers.objects import (
    MANAGED_BY,
    MANAGER,
    Create,
    Json,
    Replace,
    Step,
    changed,
    deletion,
    is_leaving,
    is_ours,
    labels_of,
    name_of,
    namespace_of,
    said,
    switch,
)
from mesh_agent.controllers.settings import matches
from mesh_agent.injector.names import CA_CONFIG_MAP, CA_KEY


def takes_part(namespace: Json) -> bool:
    """Whether pods of a namespace may be injected."""
    return switch(said(labels_of(namespace), "inject", "connect-inject"), default=False)


def plan(
    namespaces: Iterable[Json],
    pods: Iterable[Json],
    config_maps: Iterable[Json],
    roots: str,
    others: tuple[str, ...],
) -> list[Step]:
    """Steps until each namespace that takes part has `roots` (PEM), and no other has a bundle of ours.

    `pods` are the injected ones, `config_maps` those of the bundle's name, `others` patterns of further namespaces. Without roots nothing is changed: an
    empty bundle would cut everybody off.
    """
    held = {namespace_of(each): each for each in config_maps}
    inhabited = {namespace_of(each) for each in pods}
    wanted = [
        name_of(each)
        for each in namespaces
        if not is_leaving(each) and (takes_part(each) or name_of(each) in inhabited or matches(name_of(each), others))
    ]
    steps: list[Step] = []
    if roots:
        for name in sorted(wanted):
            steps += _kept(name, held.get(name), roots)
    for name in sorted(set(held) - set(wanted)):
        if is_ours(held[name]) and not is_leaving(held[name]):
            steps.append(deletion(_path(name, CA_CONFIG_MAP), held[name]))
    return steps


def _path(namespace: str, name: str = "") -> str:
    collection = f"/api/v1/namespaces/{namespace}/configmaps"
    return f"{collection}/{name}" if name else collection


def _kept(namespace: str, held: Json | None, roots: str) -> list[Step]:
    if held is None:
        meta = {"name": CA_CONFIG_MAP, "namespace": namespace, "labels": {MANAGED_BY: MANAGER}}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {CA_KEY: roots}}
        return [Create(_path(namespace), body)]
    if (held.get("data") or {}).get(CA_KEY) == roots:
        return []
    body = changed(held, data={**(held.get("data") or {}), CA_KEY: roots})
    return [Replace(_path(namespace, CA_CONFIG_MAP), body)]
