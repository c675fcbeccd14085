"""A cluster's API server, an agent of its node, and the controllers between them, for tests."""

import asyncio
import contextlib
import json
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from mesh_agent.clock import SystemClock
from mesh_agent.controllers.client import Mesh
from mesh_agent.controllers.runner import Controllers
from mesh_agent.controllers.settings import load
from mesh_agent.errors import MeshError, NotFound
from mesh_agent.http.client import HttpClient
from mesh_agent.kubernetes.client import KubernetesApi
from tests.support.agents import AgentProcess, Cluster, environment, until
from tests.support.charts import render
from tests.support.kube_api import KubeApiServer, ensure
from tests.support.kubernetes_objects import Json
from tests.support.ports import free_port

SYSTEM = "mesh-system"
GROUP = "/apis/mesh.openmesh.io/v1alpha1"
LEASE_S = 5.0
"""A holder gives up after 60 % of it without news: time enough for a busy machine to write a lease."""
RULES = render(settings=("controllers.toKubernetes.enabled=true",))
"""The controllers of the tests may do what the chart allows them, and no more."""


class Town:
    """`kube` is the API server, `agent` the (server) agent of dc1 with port 8504 open to the controllers' account."""

    def __init__(self, kube: KubeApiServer, cluster: Cluster, agent: AgentProcess, directory: Path) -> None:
        self.kube, self.cluster, self.agent = kube, cluster, agent
        self.directory = directory
        self.token_file, self.ca_file = directory / "controllers.token", directory / "roots.pem"
        self.account_file = directory / "account.token"
        self.api: KubernetesApi = KubernetesApi(kube.url, str(kube.ca_file), str(kube.token_file))

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, kube: KubeApiServer, directory: Path, *, client: bool = False) -> AsyncIterator["Town"]:
        """With the agent running: a server, or a client of one."""
        token_file = directory / "agent.token"
        token_file.write_text(kube.token_file.read_text())
        cluster = Cluster(directory)
        settings = {
            "kubernetes.api": kube.url,
            "kubernetes.ca_file": str(kube.ca_file),
            "kubernetes.token_file": str(token_file),
            "kubernetes.controllers": [f"{SYSTEM}/mesh-controller"],
        }
        agent = cluster.add("dc1-s1", "dc1", 1, server=True, **({} if client else settings))
        if client:
            agent = cluster.add("dc1-c1", "dc1", 2, **settings)
        town = cls(kube, cluster, agent, directory)
        try:
            await cluster.start()
            await town._introduce()
            yield town
        finally:
            await cluster.stop()
            await town.api.close()

    async def _introduce(self) -> None:
        """What the role and the kubelet give the controllers' pod: the first trust bundle, and a token of the audience `mesh`."""
        answer = await self.agent.get("/v1/connect/ca/roots?pem")
        self.ca_file.write_bytes(answer.body)
        self.token_file.write_text(await self.kube.account_token(SYSTEM, "mesh-controller", "mesh"))
        self.account_file.write_text(await self.kube.account_token(SYSTEM, "mesh-controller"))
        await self.namespace("mesh-services")
        for rule in RULES.of("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"):
            if "controller" in rule["metadata"]["name"]:
                await ensure(self.api, _rules_path(rule), rule)

    # controllers

    @contextlib.asynccontextmanager
    async def controllers(self, name: str = "one", **settings: Any) -> AsyncIterator[Controllers]:
        """Controllers of this process, from here to the end of the block."""
        given = load(
            json.dumps({"lease_s": LEASE_S, "resync_s": 5.0} | settings), cluster="c1", namespace=SYSTEM, identity=name
        )
        mesh = Mesh(f"https://{self.agent.address}:8504", self.ca_file, self.token_file)
        api = KubernetesApi(self.kube.url, str(self.kube.ca_file), str(self.account_file))
        found = Controllers(given, api, mesh, SystemClock(), random.Random(7))
        stopping = asyncio.Event()
        running = asyncio.create_task(found.run(stopping))
        try:
            yield found
        finally:
            stopping.set()
            await running
            await mesh.close()
            await api.close()

    def process(self, name: str, **settings: Any) -> "ControllersProcess":
        """Controllers as the program that the chart starts."""
        return ControllersProcess(self, name, settings)

    # the cluster

    async def namespace(self, name: str, **labels: str) -> None:
        """A namespace with exactly these labels (dots and slashes are written as given by the caller's dict)."""
        found = await ensure(self.api, "/api/v1/namespaces", {"metadata": {"name": name}})
        kept = {key: value for key, value in (found["metadata"].get("labels") or {}).items() if "inject" not in key}
        await self.api.request(
            "PUT", f"/api/v1/namespaces/{name}", found | {"metadata": found["metadata"] | {"labels": kept | labels}}
        )

    async def create(self, collection: str, body: Json) -> Json:
        """POST."""
        return await self.api.request("POST", collection, body)

    async def patch(self, path: str, change: Json) -> Json:
        """Merge a change."""
        return await self.api.request("PATCH", path, change, content_type="application/merge-patch+json")

    async def delete(self, path: str) -> None:
        """DELETE."""
        await self.api.request("DELETE", path)

    async def get(self, path: str) -> Json | None:
        """GET; None if there is no such object."""
        try:
            return await self.api.request("GET", path)
        except NotFound:
            return None

    async def service(self, name: str, *addresses: str, namespace: str = "shop", **annotations: str) -> None:
        """A Service that is synced, with an EndpointSlice of these ready addresses."""
        await self.namespace(namespace)
        meta = {"name": name, "annotations": {"mesh.openmesh.io/service-sync": "true", **annotations}}
        spec = {"ports": [{"name": "http", "port": 80}]}
        await self.create(f"/api/v1/namespaces/{namespace}/services", {"metadata": meta, "spec": spec})
        slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        labels = {"kubernetes.io/service-name": name}
        body = {
            "metadata": {"name": name, "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [_endpoint(each) for each in addresses],
        }
        await self.create(slices, body)

    async def scale(self, name: str, *addresses: str, namespace: str = "shop") -> None:
        """Other endpoints of a Service."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}"
        await self.patch(path, {"endpoints": [_endpoint(each) for each in addresses]})

    # the mesh

    async def instances(self, name: str) -> dict[str, int]:
        """Address of each instance that the catalog has -> the revision at which it was registered."""
        found = await self.agent.json(f"/v1/catalog/service/{name}")
        return {each["ServiceAddress"]: each["CreateIndex"] for each in found}

    async def until_instances(self, name: str, *addresses: str) -> dict[str, int]:
        """Wait until exactly these are there."""

        async def so() -> dict[str, int] | None:
            found = await self.instances(name)
            return found if set(found) == set(addresses) else None

        if not addresses:
            await until(lambda: self._none(name), f"{name} is gone")
            return {}
        result: dict[str, int] = await until(so, f"{name} is at {addresses}")
        return result

    async def _none(self, name: str) -> bool:
        return not await self.instances(name)

    async def until_status(self, path: str, status: str, reason: str = "") -> Json:
        """Wait until a custom resource's condition Synced is that; returns the condition."""

        async def so() -> Json | None:
            found = await self.get(path) or {}
            condition = next(iter((found.get("status") or {}).get("conditions") or []), {})
            now = condition.get("observedGeneration") == found.get("metadata", {}).get("generation")
            return condition if now and condition.get("status") == status and reason in condition["reason"] else None

        result: Json = await until(so, f"{path} is Synced={status} {reason}")
        return result

    async def until_gone(self, path: str) -> None:
        """Wait until there is no such object."""

        async def so() -> bool:
            return await self.get(path) is None

        await until(so, f"{path} is gone")

    async def until_there(self, path: str, condition: Callable[[Json], Any] = lambda found: True) -> Json:
        """Wait until there is such an object of which the condition holds."""

        async def so() -> Json | None:
            found = await self.get(path)
            return found if found is not None and condition(found) else None

        result: Json = await until(so, f"{path} is there and right")
        return result


class ControllersProcess:
    """`mesh controllers` as a process."""

    def __init__(self, town: Town, name: str, settings: dict[str, Any]) -> None:
        self._town, self.name = town, name
        self.port = free_port()
        self.log = town.directory / f"controllers-{name}.log"
        self._settings = json.dumps({"lease_s": LEASE_S, "resync_s": 5.0} | settings)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> "ControllersProcess":
        """Start it."""
        town = self._town
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "mesh_agent", "controllers", "--cluster", "c1", "--namespace", SYSTEM),
                *("--identity", self.name, "--port", str(self.port), "--host", "127.0.0.1"),
                *("--agent", f"https://{town.agent.address}:8504"),
                *("--token-file", str(town.token_file), "--ca-file", str(town.ca_file)),
                *("--kubernetes-api", town.kube.url, "--kubernetes-ca-file", str(town.kube.ca_file)),
                *("--kubernetes-token-file", str(town.account_file)),
                env=environment(MESH_CONTROLLERS_SETTINGS=self._settings),
                stdout=log,
                stderr=log,
            )
        return self

    async def send(self, number: int) -> None:
        """Signal it, if it still runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()

    async def ask(self, path: str) -> tuple[int, str]:
        """A page of its operations port; (0, "") while it does not answer."""
        client = HttpClient()
        try:
            answer = await client.request("GET", f"http://127.0.0.1:{self.port}", path, timeout_s=20.0)
        except MeshError:
            return 0, ""
        finally:
            await client.close()
        return answer.status, answer.body.decode()


def _rules_path(rule: Json) -> str:
    namespace = rule["metadata"].get("namespace")
    return (
        "/apis/rbac.authorization.k8s.io/v1/"
        + (f"namespaces/{namespace}/" if namespace else "")
        + f"{rule['kind'].lower()}s"
    )


def _endpoint(address: str) -> Json:
    return {"addresses": [address], "conditions": {"ready": True}, "nodeName": "n1"}
