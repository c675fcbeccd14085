"""Shell: follows the pods of this node into the local agent, and knows which of them may ask for a configuration.

What the API server last said counts until it says otherwise: while it cannot be reached nothing is registered and nothing is taken away. Pods of an
earlier run of this agent are registered still; the first list decides which of them are gone.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from mesh_agent.agent.definition import ServiceDefinition
from mesh_agent.agent.local_state import service_model
from mesh_agent.agent.sidecars import with_proxy
from mesh_agent.config.settings import KubernetesConfig
from mesh_agent.errors import InvalidRequest, MeshError, PermissionDenied
from mesh_agent.kubernetes.client import Gone, KubernetesApi, Object
from mesh_agent.kubernetes.pods import Pod, api_server, is_injected, read_pod
from mesh_agent.kubernetes.session import is_session_of, session_of
from mesh_agent.model import Service
from mesh_agent.telemetry import Metrics

log = logging.getLogger(__name__)

Stop = Callable[[], None]
_RETRY_S = (0.2, 10.0)
_PODS, _SERVICES = "/api/v1/pods", "/api/v1/services"


class Agent(Protocol):
    """The local agent, as far as pods are concerned."""

    async def follow_pods(self, services: Iterable[ServiceDefinition]) -> dict[str, str]:
        """Make these the services of this node's pods."""
        ...

    def proxy(self, service_id: str) -> Service | None:
        """The registration of a sidecar proxy."""
        ...

    def services(self) -> list[Service]:
        """Everything that is registered here."""
        ...

    def listen(self, listener: Callable[[], None]) -> Stop:
        """Call `listener()` after each change."""
        ...


class Mirror:
    """A collection of the API server, kept in memory. `objects` are by namespace and name; `synced` after the first whole list."""

    def __init__(
        self,
        api: KubernetesApi,
        path: str,
        query: Mapping[str, str],
        on_change: Callable[[], None],
        rng: random.Random,
        keep: Callable[[Object], Object] = lambda found: found,
    ) -> None:
        """`keep` gives the part of an object that is worth its memory; name and namespace belong to it."""
        self._keep = keep
        self.objects: dict[tuple[str, str], Object] = {}
        self.synced = False
        self._api, self._path, self._query = api, path, query
        self._on_change = on_change
        self._rng = rng
        self._complaint = ""

    @property
    def name(self) -> str:
        """Of the collection."""
        return self._path.rpartition("/")[2]

    @property
    def followed(self) -> bool:
        """Whether what is known is what there is."""
        return self.synced and not self._complaint

    async def run(self) -> None:
        """List, watch, and list again whenever the watch breaks, for ever."""
        pause_s, longest_s = _RETRY_S
        while True:
            try:
                version = await self._list()
                pause_s = _RETRY_S[0]
                while True:
                    version = await self._watch(version)
            except Gone as error:
                log.info("%s is listed anew: %s", self._path, error)
                pause_s = _RETRY_S[0]
            except MeshError as error:
                self._complain(str(error))
            except (
                KeyError,
                TypeError,
                ValueError,
            ) as error:  # JSON, but not what the API promises: a proxy between, perhaps
                self._complain(f"the answer is not one of Kubernetes: {error!r}")
            await asyncio.sleep(pause_s * (0.5 + self._rng.random()))
            pause_s = min(longest_s, pause_s * 2)

    def _complain(self, reason: str) -> None:
        if not self._complaint:
            log.warning("%s cannot be followed; what is known counts until it can be: %s", self._path, reason)
        self._complaint = reason

    async def _list(self) -> str:
        objects, version = await self._api.list_all(self._path, self._query)
        if self._complaint:
            log.info("%s is followed again", self._path)
        self._complaint = ""
        self.objects = {_key(each): self._keep(each) for each in objects}
        self.synced = True
        self._on_change()
        return version

    async def _watch(self, version: str) -> str:
        async for event in self._api.watch(self._path, version, self._query):
            found = event["object"]
            version = str(found["metadata"]["resourceVersion"])
            if event["type"] == "BOOKMARK":
                continue
            if event["type"] == "DELETED":
                self.objects.pop(_key(found), None)
            else:
                self.objects[_key(found)] = self._keep(found)
            self._on_change()
        return version


def _key(found: Object) -> tuple[str, str]:
    metadata = found["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _slim(found: Object) -> Object:
    """Without what is large and means nothing here."""
    found["metadata"].pop("managedFields", None)
    return found


class NodePods:
    """The injected pods of this node. Also the `LocalProxies` of their sidecars: a pod that is leaving keeps its configuration to its end."""

    def __init__(
        self,
        settings: KubernetesConfig,
        node: str,
        cluster: str,
        api: KubernetesApi,
        agent: Agent,
        secret: bytes,
        rng: random.Random,
        metrics: Metrics | None = None,
    ) -> None:
        self._settings, self._node, self._cluster = settings, node, cluster
        self._agent = agent
        self._secret = secret
        self._pods: dict[str, Pod] = {}
        self._refused: dict[str, str] = {}
        self._leaving: dict[str, Service] = {}
        self._listeners: list[Callable[[], None]] = []
        self._changed = asyncio.Event()
        self._mirrors = (
            Mirror(api, _PODS, {"fieldSelector": f"spec.nodeName={node}"}, self._changed.set, rng),
            Mirror(api, _SERVICES, {}, self._changed.set, rng),
        )
        self._told: list[ServiceDefinition] | None = None
        self._unregistered: dict[str, str] = {}
        self._registered: frozenset[str] = frozenset()
        if metrics is not None:
            metrics.describe("mesh_kubernetes_pods", "Injected pods of this node, by what became of them.")
            metrics.describe(
                "mesh_kubernetes_followed", "Whether a collection of the API server is followed right now."
            )
            metrics.collect(self._gauges)

    async def run(self) -> None:
        """Follow, for ever."""
        self._agent.listen(self._notice)
        async with asyncio.TaskGroup() as group:
            for mirror in self._mirrors:
                group.create_task(mirror.run())
            while True:
                await self._changed.wait()
                self._changed.clear()
                if all(mirror.synced for mirror in self._mirrors):
                    await self._take_over()

    async def _take_over(self) -> None:
        pods, services = self._mirrors
        known, self._refused = self._refused, {}
        self._read(list(pods.objects.values()), list(services.objects.values()))
        owners = self._owners()
        for uid, reason in self._refused.items():
            if known.get(uid) != reason:
                log.error("%s", reason)
        self._leaving = {pod.proxy_id: proxy for pod in owners if pod.leaving and (proxy := self._proxy_of(pod))}
        wanted = [pod.definition for pod in owners if pod.definition is not None and not pod.leaving]
        for listener in tuple(self._listeners):
            listener()
        if wanted != self._told or self._unregistered or self._lost():  # what was in a pod's way may have gone
            known, self._told = self._unregistered, wanted
            self._unregistered = await self._agent.follow_pods(wanted)
            for service_id, reason in self._unregistered.items():
                if known.get(service_id) != reason:
                    log.error("pod of %s is not registered: %s", service_id, reason)

    def _lost(self) -> bool:
        """Whether somebody took the registration of a pod away, or its sidecar's."""
        wanted = [each for each in self._told or () if each.service_id not in self._unregistered]
        sidecars = [each.sidecar for each in wanted if each.sidecar is not None]
        return not {each.service_id for each in (*wanted, *sidecars)} <= self._registered

    def _notice(self) -> None:
        """What others register or take away here may concern a pod."""
        registered = frozenset(each.id for each in self._agent.services())
        if registered != self._registered:
            self._registered = registered
            if self._unregistered or self._lost():
                self._changed.set()

    def _read(self, pods: list[Object], services: list[Object]) -> None:
        self._pods = {}
        passthrough = api_server(services)
        by_namespace: dict[str, list[Object]] = {}
        for each in services:
            by_namespace.setdefault(each["metadata"]["namespace"], []).append(each)
        for each in filter(is_injected, pods):
            metadata = each["metadata"]
            try:
                if self._settings.namespaces and metadata["namespace"] not in self._settings.namespaces:
                    raise InvalidRequest("its namespace is not among kubernetes.namespaces of this agent's settings")
                beside = by_namespace.get(metadata["namespace"], [])
                pod = read_pod(each, beside, cluster=self._cluster, passthrough=passthrough)
                self._pods[pod.uid] = pod
            except InvalidRequest as error:
                self._refuse(metadata["uid"], metadata["namespace"], metadata["name"], str(error))

    def _refuse(self, uid: str, namespace: str, name: str, reason: str) -> None:
        self._refused[uid] = f"pod {namespace}/{name} is not in the mesh: {reason}"
        self._pods.pop(uid, None)

    def _owners(self) -> list[Pod]:
        """One pod for each proxy id: pods of the same name and service in two namespaces cannot both have it; the elder does."""
        found: dict[str, Pod] = {}
        for pod in sorted(self._pods.values(), key=lambda each: (each.leaving, each.created, each.uid)):
            owner = found.setdefault(pod.proxy_id, pod)
            if owner is not pod:
                reason = f"pod {owner.namespace}/{owner.name} of this node has its id {pod.proxy_id!r} already"
                self._refuse(pod.uid, pod.namespace, pod.name, reason)
        return list(found.values())

    def _proxy_of(self, pod: Pod) -> Service | None:
        if pod.definition is None or pod.definition.sidecar is None:
            return None
        return service_model(with_proxy(pod.definition, pod.definition.sidecar), self._node)

    def _gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        leaving = sum(pod.leaving for pod in self._pods.values())
        for state, count in (
            ("member", len(self._pods) - leaving),
            ("leaving", leaving),
            ("refused", len(self._refused)),
        ):
            yield "mesh_kubernetes_pods", {"state": state}, float(count)
        for mirror in self._mirrors:
            yield "mesh_kubernetes_followed", {"collection": mirror.name}, float(mirror.followed)

    # who may ask

    async def verified(self, uid: str, *, account: str, name: str, patience_s: float = 5.0) -> Pod:
        """The pod that a token was issued for; waits a little for the API server to tell of it. PermissionDenied if it is not here."""
        seen = asyncio.Event()
        stop = self.listen(seen.set)
        try:
            async with asyncio.timeout(patience_s):
                while uid not in self._pods and uid not in self._refused:
                    await seen.wait()
                    seen.clear()
        except TimeoutError:
            raise PermissionDenied(f"pod {name} ({uid}) is not an injected pod of this node") from None
        finally:
            stop()
        if uid in self._refused:
            raise PermissionDenied(self._refused[uid])
        pod = self._pods[uid]
        if f"{pod.namespace}/{pod.account}" != account or pod.name != name:
            raise PermissionDenied(f"the token is of {account}, pod {name}; the pod with this uid is another one")
        if not self._is_own(pod):
            raise PermissionDenied(f"pod {account}, {name}: its id {pod.proxy_id!r} is taken by another service here")
        return pod

    def _is_own(self, pod: Pod) -> bool:
        """Whether what is registered under the id of the pod's proxy, if anything is, stands for this pod: ids are made of names, and names are chosen."""
        found = self.proxy(pod.proxy_id)
        return found is None or found.meta.get("pod-uid") == pod.uid

    def session(self, pod: Pod) -> str:
        """The session of a verified pod."""
        return session_of(self._secret, pod.uid)

    def admit(self, metadata: Mapping[str, str], proxy_id: str) -> Callable[[], bool]:
        """Whether this is the proxy of a pod of this node, which has its session; PermissionDenied if not. The result says whether it still is."""
        uid, session = metadata.get("mesh-pod", ""), metadata.get("mesh-session", "")
        if not uid or not is_session_of(self._secret, uid, session):
            raise PermissionDenied(f"proxy {proxy_id!r} shows no session of a pod of this node")

        def admitted() -> bool:
            pod = self._pods.get(uid)
            return pod is not None and pod.proxy_id == proxy_id and self._is_own(pod)

        if not admitted():
            raise PermissionDenied(
                f"proxy {proxy_id!r} is not that of pod {uid}, or the pod is not on this node any more"
            )
        return admitted

    # `LocalProxies`

    def proxy(self, service_id: str) -> Service | None:
        """The registration of a sidecar proxy."""
        return self._agent.proxy(service_id) or self._leaving.get(service_id)

    def services(self) -> list[Service]:
        """Everything that is registered here."""
        return self._agent.services()

    def listen(self, listener: Callable[[], None]) -> Stop:
        """Call `listener()` after each change."""
        self._listeners.append(listener)
        stop_agent = self._agent.listen(listener)

        def stop() -> None:
            stop_agent()
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop
