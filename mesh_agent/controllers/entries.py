"""The area of config entries: custom resources are written to the mesh, and told what became of them."""

from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote

from mesh_agent.controllers import config_sync
from mesh_agent.controllers.areas import Cluster, Mesh, Objects, Report, missing
from mesh_agent.controllers.config_sync import GROUP, KINDS, VERSION, Decision, Kind, Outcome, Remove, Write
from mesh_agent.controllers.objects import Json, is_leaving, name_of, namespace_of
from mesh_agent.controllers.settings import Settings
from mesh_agent.errors import InvalidRequest, MeshError, StoreConflict

_UNREACHABLE = Outcome(False, "MeshUnreachable", "the mesh cannot be asked now; the controllers' log says why")


class EntriesArea:
    """Custom resources as config entries."""

    name = "config-entries"

    def __init__(
        self,
        cluster: Cluster,
        mesh: Mesh,
        resources: Mapping[str, Objects],
        settings: Settings,
        wall: Callable[[], float],
    ) -> None:
        """`resources` by plural."""
        self._cluster, self._mesh, self._resources = cluster, mesh, resources
        self._settings, self._wall = settings, wall

    def awaits(self) -> list[str]:
        """What has not been listed yet."""
        return missing(self._resources, {})

    async def round(self) -> Report:
        """One round."""
        report = Report()
        for kind in KINDS:
            resources = [{**_typed(kind), **each} for each in self._resources[kind.plural].objects.values()]
            await report.attempt(self._round(kind, sorted(resources, key=_age), report))
        return report.finish()

    async def _round(self, kind: Kind, resources: list[Json], report: Report) -> None:
        try:
            entries = {each["Name"]: each for each in await self._mesh.get(f"/v1/config/{kind.entry}")}
        except MeshError:
            await self._tell_waiting(kind, resources)
            raise
        for resource in resources:
            decision = config_sync.decide(kind, resource, entries, self._settings.cluster)
            await report.attempt(self._carry_out(kind, resource, decision, report))
        for gone in config_sync.orphans(kind, resources, entries, self._settings.cluster):
            await report.attempt(self._remove(gone), f"deleted {gone.kind}/{gone.name}: no resource asks for it")

    async def _tell_waiting(self, kind: Kind, resources: Iterable[Json]) -> None:
        """Resources that wait to be synced say why; the status of the others is as true as it was."""
        for each in resources:
            if config_sync.is_waiting(each) and not is_leaving(each):
                await self._tell(kind, each, _UNREACHABLE, wrote=False)

    async def _carry_out(self, kind: Kind, resource: Json, decision: Decision, report: Report) -> None:
        path = config_sync.path_of(kind, resource)
        what = f"{kind.resource} {namespace_of(resource)}/{name_of(resource)}"
        if decision.add_finalizer:
            resource = await self._cluster.request("PUT", path, config_sync.with_finalizer(resource, present=True))
        outcome = await self._change(decision)
        if not outcome.synced:
            report.problems.append(f"{what}: {outcome.message}")
        elif decision.change is not None:
            verb = "deleted" if isinstance(decision.change, Remove) else "wrote"
            report.done.append(f"{verb} the entry of {what}")
        if decision.release:
            await self._cluster.request("PUT", path, config_sync.with_finalizer(resource, present=False))
        elif not is_leaving(resource):
            await self._tell(kind, resource, outcome, wrote=decision.change is not None and outcome.synced)

    async def _change(self, decision: Decision) -> Outcome:
        change = decision.change
        if isinstance(change, Remove):
            await self._remove(change)
        elif isinstance(change, Write):
            try:
                written = await self._mesh.put("/v1/config", change.body, cas=str(change.cas))
            except InvalidRequest as error:
                return Outcome(False, "Refused", str(error))
            if written is not True:
                raise StoreConflict(f"{change.body['Kind']}/{change.body['Name']} changed while it was looked at")
        return decision.outcome

    async def _remove(self, gone: Remove) -> None:
        path = f"/v1/config/{gone.kind}/{quote(gone.name, safe='')}"
        if await self._mesh.delete(path, cas=str(gone.cas)) is not True:
            raise StoreConflict(f"{gone.kind}/{gone.name} changed while it was looked at")

    async def _tell(self, kind: Kind, resource: Json, outcome: Outcome, *, wrote: bool) -> None:
        told = config_sync.with_status(resource, outcome, self._wall(), wrote=wrote)
        if told is not None:
            await self._cluster.request("PUT", f"{config_sync.path_of(kind, resource)}/status", told)


def _typed(kind: Kind) -> Json:
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind.resource}


def _age(resource: Json) -> tuple[str, str, str]:
    """The elder of two resources that want the same entry has it."""
    return str(resource["metadata"].get("creationTimestamp", "")), namespace_of(resource), name_of(resource)
