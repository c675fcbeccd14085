"""Controllers between a real API server and a real agent. Restarts, lost watches and crashes between two writes never deregister or double anything."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mesh_agent.controllers.config_sync import FINALIZER
from mesh_agent.controllers.objects import MANAGED_BY, MANAGER
from mesh_agent.injector.names import CA_CONFIG_MAP, CA_KEY
from tests.support.agents import until
from tests.support.controllers import GROUP, SYSTEM, Town
from tests.support.kube_api import KubeApiServer
from tests.support.kubernetes_objects import Json

pytestmark = [pytest.mark.timeout(240), pytest.mark.kubernetes]
INJECT = {"mesh.openmesh.io/inject": "enabled"}
INTENTIONS = f"{GROUP}/namespaces/shop/serviceintentions"
DEFAULTS = f"{GROUP}/namespaces/shop/servicedefaults"


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeApiServer]:
    """An API server for the tests of this module."""
    server = KubeApiServer(tmp_path_factory.mktemp("kube"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
async def town(kube: KubeApiServer, tmp_path: Path) -> AsyncIterator[Town]:
    """An empty cluster with an agent."""
    await kube.apply_crds()
    await kube.wipe()
    async with Town.of(kube, tmp_path) as found:
        await found.namespace("shop")
        yield found


@pytest.fixture(params=["server", "client"])
async def any_town(request: pytest.FixtureRequest, kube: KubeApiServer, tmp_path: Path) -> AsyncIterator[Town]:
    """The same where the node's agent is a server, and where it is a client."""
    await kube.apply_crds()
    await kube.wipe()
    async with Town.of(kube, tmp_path, client=request.param == "client") as found:
        await found.namespace("shop")
        yield found


def bundle(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/{CA_CONFIG_MAP}"


async def roots(town: Town) -> str:
    found = await town.agent.json("/v1/connect/ca/roots")
    return "".join(each["RootCert"].strip() + "\n" for each in found["Roots"])


# the trust bundle


async def test_the_trust_bundle_follows_namespaces_and_roots(town: Town) -> None:
    await town.namespace("shop", **INJECT)
    async with town.controllers():
        held = await town.until_there(bundle("shop"))
        assert held["data"] == {CA_KEY: await roots(town)}
        await town.until_there(bundle(SYSTEM))
        await town.patch(bundle("shop"), {"data": {CA_KEY: "forged"}})
        pem = await roots(town)
        await town.until_there(bundle("shop"), lambda found: found["data"][CA_KEY] == pem)
        await town.namespace("shop")
        await town.until_gone(bundle("shop"))
        assert await town.get(bundle(SYSTEM)) is not None


async def test_a_pod_that_was_injected_by_its_annotation_brings_the_bundle(town: Town) -> None:
    labels = {"mesh.openmesh.io/injected": "true"}
    spec = {"containers": [{"name": "app", "image": "app"}]}
    async with town.controllers():
        await town.until_there(bundle(SYSTEM))
        assert await town.get(bundle("shop")) is None
        await town.create("/api/v1/namespaces/shop/pods", {"metadata": {"name": "web", "labels": labels}, "spec": spec})
        await town.until_there(bundle("shop"))
        await town.delete("/api/v1/namespaces/shop/pods/web?gracePeriodSeconds=0")
        await town.until_gone(bundle("shop"))


# services of the cluster in the mesh


async def test_services_are_registered_follow_their_endpoints_and_are_found_by_dns(town: Town) -> None:
    await town.service("web", "10.1.0.1")
    async with town.controllers():
        first = await town.until_instances("web-shop", "10.1.0.1")
        await town.scale("web", *(f"10.1.0.{each}" for each in range(1, 21)))
        found = await town.until_instances("web-shop", *(f"10.1.0.{each}" for each in range(1, 21)))
        assert found["10.1.0.1"] == first["10.1.0.1"], "what was there was not registered anew"
        await town.scale("web", "10.1.0.20")
        await town.until_instances("web-shop", "10.1.0.20")
        assert await town.agent.addresses("web-shop.service.mesh") == ["10.1.0.20"]
        await town.delete("/api/v1/namespaces/shop/services/web")
        await town.until_instances("web-shop")


async def test_a_restart_deregisters_nothing_and_catches_up(any_town: Town) -> None:
    town = any_town
    await town.service("web", "10.1.0.1", "10.1.0.2")
    await town.service("api", "10.1.1.1")
    async with town.controllers():
        await town.until_instances("web-shop", "10.1.0.1", "10.1.0.2")
        before = await town.until_instances("api-shop", "10.1.1.1")
    await town.scale("web", "10.1.0.2", "10.1.0.3")
    assert set(await town.instances("web-shop")) == {"10.1.0.1", "10.1.0.2"}, "nobody looks after it now"
    async with town.controllers("two"):
        await town.until_instances("web-shop", "10.1.0.2", "10.1.0.3")
        assert await town.instances("api-shop") == before


async def test_the_api_server_may_be_away_and_come_back_changed(town: Town) -> None:
    await town.service("web", "10.1.0.1", "10.1.0.2")
    async with town.controllers():
        before = await town.until_instances("web-shop", "10.1.0.1", "10.1.0.2")
        await asyncio.to_thread(town.kube.stop_api, kill=True)
        try:
            index = (await town.agent.get("/v1/catalog/service/web-shop")).header("X-Consul-Index")
            waited = await town.agent.get(f"/v1/catalog/service/web-shop?index={index}&wait=5s", timeout_s=20)
            assert waited.header("X-Consul-Index") == index, "nothing changed while the cluster could not be asked"
        finally:
            await asyncio.to_thread(town.kube.start_api)
        await town.scale("web", "10.1.0.2", "10.1.0.3")
        after = await town.until_instances("web-shop", "10.1.0.2", "10.1.0.3")
        assert after["10.1.0.2"] == before["10.1.0.2"]


async def test_a_crash_in_the_middle_of_registering_leaves_the_rest_to_the_next(town: Town) -> None:
    addresses = [f"10.1.{each // 200}.{each % 200 + 1}" for each in range(400)]
    await town.service("web", *addresses)
    first = await town.process("one").start()
    try:

        async def some() -> dict[str, int] | None:
            found = await town.instances("web-shop")
            return found if found else None

        await until(some, "some are registered")
    finally:
        await first.stop(signal.SIGKILL)
    before = await town.instances("web-shop")
    second = await town.process("two").start()
    try:
        after = await town.until_instances("web-shop", *addresses)
    finally:
        assert await second.stop() == 0
    assert {each: after[each] for each in before} == before, "what was registered before the crash was left as it was"


async def test_a_service_that_somebody_else_registered_is_left_alone(town: Town) -> None:
    await town.service("web", "10.1.0.1")
    async with town.controllers():
        await town.until_instances("web-shop", "10.1.0.1")
        await town.agent.put(
            "/v1/catalog/register",
            {
                "Node": "k8s-c1",
                "Address": "127.0.0.1",
                "SkipNodeUpdate": True,
                "Service": {"Service": "mine", "Port": 1},
            },
        )
        await town.agent.put(
            "/v1/catalog/register",
            {"Node": "other", "Address": "10.9.9.9", "Service": {"Service": "web-shop", "Port": 1}},
        )
        await town.delete("/api/v1/namespaces/shop/services/web")
        await town.until_instances("web-shop", "")
        assert [each["Node"] for each in await town.agent.json("/v1/catalog/service/web-shop")] == ["other"]
        assert [each["Node"] for each in await town.agent.json("/v1/catalog/service/mine")] == ["k8s-c1"]


async def test_an_instance_that_is_lost_in_the_mesh_comes_back(town: Town) -> None:
    await town.service("web", "10.1.0.1")
    async with town.controllers():
        await town.until_instances("web-shop", "10.1.0.1")
        await town.agent.put("/v1/catalog/deregister", {"Node": "k8s-c1"})
        await town.until_instances("web-shop", "10.1.0.1")


# two replicas


async def test_another_replica_takes_over_and_nobody_notices(town: Town) -> None:
    await town.service("web", "10.1.0.1")
    one = await town.process("one").start()
    two = town.process("two")
    try:
        before = await town.until_instances("web-shop", "10.1.0.1")
        await two.start()

        async def waits() -> bool:
            return (
                await two.ask("/readyz") == (200, "ok")
                and "mesh_controllers_leading 0" in (await two.ask("/metrics"))[1]
            )

        await until(waits, "the second waits for the lease and is ready to")
        await one.stop(signal.SIGKILL)
        await town.scale("web", "10.1.0.1", "10.1.0.2")
        after = await town.until_instances("web-shop", "10.1.0.1", "10.1.0.2")
        assert after["10.1.0.1"] == before["10.1.0.1"]

        async def counted() -> bool:
            return 'mesh_controllers_changes_total{area="to-mesh"} 1\n' in (await two.ask("/metrics"))[1]

        await until(counted, "the second has made the one change that there was to make")
        assert "mesh_controllers_leading 1" in (await two.ask("/metrics"))[1]
        assert await two.ask("/healthz") == (200, "ok")
        assert await two.ask("/readyz") == (200, "ok")
    finally:
        await one.stop(signal.SIGKILL)
        assert await two.stop() == 0
    lease = await town.get(f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/mesh-controllers")
    assert lease is not None
    assert lease["spec"].get("holderIdentity", "") == "", "a replica that ends gives the lease back"


async def test_a_replica_that_slept_through_its_lease_does_no_harm_when_it_wakes(town: Town) -> None:
    """One replica is frozen in the middle of registering; another takes over; then the first goes on where it was."""
    many = [f"10.1.{each // 200}.{each % 200 + 1}" for each in range(400)]
    await town.service("web", *many)
    one, two = await town.process("one").start(), town.process("two")
    try:
        await until(lambda: town.instances("web-shop"), "the first begins")
        await one.send(signal.SIGSTOP)
        await two.start()
        await town.scale("web", "10.2.0.1")
        after = await town.until_instances("web-shop", "10.2.0.1")
        await one.send(signal.SIGCONT)

        async def waits() -> bool:
            return "mesh_controllers_leading 0" in (await one.ask("/metrics"))[1]

        await until(waits, "the first has noticed")
        assert await town.instances("web-shop") == after
        assert "mesh_controllers_leading 1" in (await two.ask("/metrics"))[1]
    finally:
        await one.send(signal.SIGCONT)
        await one.stop(signal.SIGKILL)
        assert await two.stop() == 0


# services of the mesh in the cluster


async def test_services_of_the_mesh_are_names_in_the_cluster(any_town: Town) -> None:
    town = any_town
    services = "/api/v1/namespaces/mesh-services/services"
    foreign: Json = {"metadata": {"name": "taken"}, "spec": {"ports": [{"port": 80}]}}
    await town.create(services, foreign)
    for name in ("db", "taken"):
        await town.agent.put("/v1/agent/service/register", {"Name": name, "Port": 1})
    await town.service("web", "10.1.0.1")
    async with town.controllers(to_kubernetes={"enabled": True}):
        found = await town.until_there(f"{services}/db")
        assert found["spec"]["externalName"] == "db.service.dc1.mesh"
        assert found["metadata"]["labels"] == {MANAGED_BY: MANAGER}
        await town.patch(f"{services}/db", {"spec": {"externalName": "elsewhere.example"}})
        await town.until_there(f"{services}/db", lambda each: each["spec"]["externalName"] == "db.service.dc1.mesh")
        await town.until_instances("web-shop", "10.1.0.1")
        await town.agent.put("/v1/agent/service/deregister/db")
        await town.until_gone(f"{services}/db")
        await town.agent.put("/v1/agent/service/deregister/taken")
        assert (await town.get(f"{services}/taken") or {})["spec"]["ports"][0]["port"] == 80
        names = [each["metadata"]["name"] for each in (await town.api.list_all(services))[0]]
        assert names == ["taken"], "neither what came from a cluster nor what nobody calls by this road"


async def test_a_datacenter_that_is_cut_off_takes_no_names_away(town: Town) -> None:
    services = "/api/v1/namespaces/mesh-services/services"
    far = town.cluster.add("dc2-s1", "dc2", 1, server=True)
    await far.start()
    await far.put("/v1/agent/service/register", {"Name": "db", "Port": 1})
    async with town.controllers(to_kubernetes={"enabled": True, "datacenters": ["dc2"]}):
        found = await town.until_there(f"{services}/db-dc2")
        assert found["spec"]["externalName"] == "db.service.dc2.mesh"
        await far.signal(signal.SIGSTOP)
        await until(lambda: _cannot_be_asked(town), "dc2 is cut off")
        await town.agent.put("/v1/agent/service/register", {"Name": "late", "Port": 1})
        await town.until_there(f"{services}/late")
        assert await town.get(f"{services}/db-dc2") == found
        await far.signal(signal.SIGCONT)
        await far.put("/v1/agent/service/deregister/db")
        await town.until_gone(f"{services}/db-dc2")


async def _cannot_be_asked(town: Town) -> bool:
    return (await town.agent.get("/v1/catalog/services?dc=dc2")).status == 500


# config entries


def intentions(name: str, destination: str, *sources: str, **more: Any) -> Json:
    return {
        "apiVersion": "mesh.openmesh.io/v1alpha1",
        "kind": "ServiceIntentions",
        "metadata": {"name": name, **more},
        "spec": {
            "destination": {"name": destination},
            "sources": [{"name": each, "action": "allow"} for each in sources],
        },
    }


async def allowed(town: Town) -> set[str]:
    found = await town.agent.json("/v1/connect/intentions")
    return {f"{each['SourceName']}>{each['DestinationName']}" for each in found if each["Action"] == "allow"}


async def until_allowed(town: Town, *wanted: str) -> None:
    async def so() -> bool:
        return await allowed(town) == set(wanted)

    await until(so, f"allowed: {wanted}")


async def test_a_resource_is_an_entry_from_its_creation_to_its_end(any_town: Town) -> None:
    town = any_town
    async with town.controllers():
        await town.create(INTENTIONS, intentions("api-callers", "api", "web", "job"))
        condition = await town.until_status(f"{INTENTIONS}/api-callers", "True", "Synced")
        assert condition["message"]
        await until_allowed(town, "web>api", "job>api")
        found = await town.get(f"{INTENTIONS}/api-callers")
        assert found is not None
        assert found["metadata"]["finalizers"] == [FINALIZER]
        assert found["status"]["lastSyncedTime"]

        await town.agent.put("/v1/connect/intentions/exact?source=other&destination=api", {"Action": "allow"})
        await until_allowed(town, "web>api", "job>api")

        await town.patch(f"{INTENTIONS}/api-callers", {"spec": {"sources": [{"name": "web", "action": "deny"}]}})
        await until_allowed(town)
        await town.patch(
            f"{INTENTIONS}/api-callers",
            {"spec": {"destination": {"name": "db"}, "sources": [{"name": "web", "action": "allow"}]}},
        )
        await until_allowed(town, "web>db")
        await until(lambda: _has_no_entry(town, "api"), "the entry of the former destination goes")
        await town.until_status(f"{INTENTIONS}/api-callers", "True")

        await town.delete(f"{INTENTIONS}/api-callers")
        await town.until_gone(f"{INTENTIONS}/api-callers")
        await until_allowed(town)


async def test_a_status_that_is_told_is_not_told_again(town: Town) -> None:
    async with town.controllers(resync_s=0.2) as controllers:
        await town.create(
            DEFAULTS, {**_typed("ServiceDefaults"), "metadata": {"name": "api"}, "spec": {"protocol": "http"}}
        )
        await town.until_status(f"{DEFAULTS}/api", "True")
        before = await town.get(f"{DEFAULTS}/api")
        index = (await town.agent.json("/v1/config/service-defaults/api"))["ModifyIndex"]

        def rounds() -> float:
            return _counted(
                controllers.metrics.prometheus(), 'mesh_controllers_rounds_total{area="config-entries",result="done"}'
            )

        began = rounds()
        await until(lambda: rounds() > began + 5, "five more looks")
        assert await town.get(f"{DEFAULTS}/api") == before
        assert (await town.agent.json("/v1/config/service-defaults/api"))["ModifyIndex"] == index


async def test_an_entry_of_somebody_else_stays_and_the_resource_says_so(town: Town) -> None:
    await town.agent.put("/v1/config", {"Kind": "service-defaults", "Name": "api", "Protocol": "tcp"})
    async with town.controllers():
        await town.create(
            DEFAULTS, {**_typed("ServiceDefaults"), "metadata": {"name": "api"}, "spec": {"protocol": "http"}}
        )
        condition = await town.until_status(f"{DEFAULTS}/api", "False", "ExternallyManaged")
        assert "migrate-entry" in condition["message"]
        assert (await town.agent.json("/v1/config/service-defaults/api"))["Protocol"] == "tcp"
        await town.agent.call("DELETE", "/v1/config/service-defaults/api")
        await town.until_status(f"{DEFAULTS}/api", "True")
        assert (await town.agent.json("/v1/config/service-defaults/api"))["Protocol"] == "http"


async def test_what_this_mesh_does_not_do_is_refused_in_the_status(town: Town) -> None:
    async with town.controllers():
        spec = {"protocol": "http", "meshGateway": {"mode": "local"}}
        await town.create(DEFAULTS, {**_typed("ServiceDefaults"), "metadata": {"name": "api"}, "spec": spec})
        condition = await town.until_status(f"{DEFAULTS}/api", "False", "InvalidSpec")
        assert "not supported" in condition["message"]
        assert (await town.agent.get("/v1/config/service-defaults/api")).status == 404
        await town.delete(f"{DEFAULTS}/api")
        await town.until_gone(f"{DEFAULTS}/api")


async def test_a_resource_that_no_list_can_be_read_with_costs_the_others_nothing(town: Town) -> None:
    deep = msgspec.Raw(b"[" * 3000 + b"]" * 3000)
    bad = {**_typed("ServiceDefaults"), "metadata": {"name": "bad"}, "spec": {"protocol": "http", "x": deep}}
    await town.create(DEFAULTS, bad)
    async with town.controllers():
        await town.until_status(f"{DEFAULTS}/bad", "False", "InvalidSpec")
        good = {**_typed("ServiceDefaults"), "metadata": {"name": "api"}, "spec": {"protocol": "http"}}
        await town.create(DEFAULTS, good)
        await town.until_status(f"{DEFAULTS}/api", "True", "Synced")
        for name in ("bad", "api"):
            await town.delete(f"{DEFAULTS}/{name}")
            await town.until_gone(f"{DEFAULTS}/{name}")


async def test_a_mesh_that_cannot_be_asked_is_told_and_waited_for(town: Town) -> None:
    async with town.controllers():
        await town.create(INTENTIONS, intentions("first", "api", "web"))
        await town.until_status(f"{INTENTIONS}/first", "True")
        await town.agent.signal(signal.SIGKILL)
        await town.create(INTENTIONS, intentions("second", "db", "web"))
        await town.until_status(f"{INTENTIONS}/second", "False", "MeshUnreachable")
        await town.until_status(f"{INTENTIONS}/first", "True")
        await town.agent.start()
        await town.until_status(f"{INTENTIONS}/second", "True")
        await until_allowed(town, "web>api", "web>db")


async def test_a_crash_between_finalizer_entry_and_status_is_made_good(town: Town) -> None:
    half = intentions("half", "api", "web", finalizers=[FINALIZER])
    await town.create(INTENTIONS, half)
    owner = {"external-source": "kubernetes", "k8s-cluster": "c1", "k8s-namespace": "shop"}
    for name, meta in (("api", owner | {"k8s-name": "half"}), ("ghost", owner | {"k8s-name": "ghost"})):
        sources = [{"Name": "web", "Action": "allow"}]
        await town.agent.put(
            "/v1/config", {"Kind": "service-intentions", "Name": name, "Sources": sources, "Meta": meta}
        )
    index = (await town.agent.json("/v1/config/service-intentions/api"))["ModifyIndex"]
    async with town.controllers():
        await town.until_status(f"{INTENTIONS}/half", "True")
        await until_allowed(town, "web>api")
        assert (await town.agent.json("/v1/config/service-intentions/api"))["ModifyIndex"] == index
    await town.delete(f"{INTENTIONS}/half")
    assert await town.get(f"{INTENTIONS}/half") is not None, "it waits for its entry to be taken away"
    await town.agent.call("DELETE", "/v1/config/service-intentions/api")
    async with town.controllers("two"):
        await town.until_gone(f"{INTENTIONS}/half")


async def _has_no_entry(town: Town, destination: str) -> bool:
    return (await town.agent.get(f"/v1/config/service-intentions/{destination}")).status == 404


def _typed(kind: str) -> Json:
    return {"apiVersion": "mesh.openmesh.io/v1alpha1", "kind": kind}


def _counted(text: str, series: str) -> float:
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(series)), 0.0)
