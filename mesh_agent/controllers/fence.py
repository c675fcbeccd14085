"""A replica that slept through its lease wakes up in the middle of a round: its next write is refused here, before anything is sent. Pure."""

from collections.abc import Callable
from typing import Any

from mesh_agent.controllers.areas import Cluster, Mesh
from mesh_agent.controllers.objects import Json
from mesh_agent.errors import StoreConflict

Allowed = Callable[[], bool]
"""Whether this replica may write now."""


def _check(allowed: Allowed) -> None:
    if not allowed():
        raise StoreConflict("this replica does not hold the lease any more")


class FencedCluster:
    """Writes to the cluster only while it is allowed."""

    def __init__(self, cluster: Cluster, allowed: Allowed) -> None:
        self._cluster, self._allowed = cluster, allowed

    async def request(self, method: str, path: str, body: Json | None = None) -> Json:
        """One request."""
        if method != "GET":
            _check(self._allowed)
        return await self._cluster.request(method, path, body)


class FencedMesh:
    """Writes to the mesh only while it is allowed."""

    def __init__(self, mesh: Mesh, allowed: Allowed) -> None:
        self._mesh, self._allowed = mesh, allowed

    async def get(self, path: str, **query: str) -> Any:  # JSON
        """GET."""
        return await self._mesh.get(path, **query)

    async def put(self, path: str, value: object = None, **query: str) -> Any:  # JSON
        """PUT."""
        _check(self._allowed)
        return await self._mesh.put(path, value, **query)

    async def delete(self, path: str, **query: str) -> Any:  # JSON
        """DELETE."""
        _check(self._allowed)
        return await self._mesh.delete(path, **query)
