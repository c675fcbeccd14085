"""Which services a transparent proxy follows: what intentions allow, in every datacenter."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from mesh_agent.model import Action, Node, Service
from mesh_agent.xds.naming import CLUSTER, LISTENER, OUTBOUND
from mesh_agent.xds.runner import FollowedProxy
from mesh_agent.xds.transparent import TRANSPARENT
from tests.support.catalog import ViewWriter
from tests.support.sidecars import Town, eventually
from tests.support.xds import opened, proxy

NEAR, FAR = "api.default.dc1.internal.mesh.test", "api.default.dc2.internal.mesh.test"


class Names:
    """Names of services, as the catalog tells them: a question waits until the answer is another one."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {"dc1": [], "dc2": []}
        self.index = 1
        self.changed = asyncio.Event()

    def add(self, datacenter: str, name: str) -> None:
        self.known[datacenter] = [*self.known[datacenter], name]
        self.index += 1
        self.changed.set()

    async def ask(self, datacenter: str, index: int) -> tuple[list[str], int]:
        while index == self.index:
            await self.changed.wait()
            self.changed.clear()
        return self.known[datacenter], self.index


class Web:
    """The followed proxy of `web`."""

    def __init__(self, town: Town) -> None:
        self.followed: FollowedProxy = town.configs.follow("web-sidecar-proxy", lambda: None)

    def clusters(self) -> set[str]:
        snapshot = self.followed.snapshot
        return set() if snapshot is None else set(snapshot.table(CLUSTER).resources) - {"local_app", "inbound"}

    def dialled(self) -> set[tuple[str, str]]:
        """(port, address) of everything that leads somewhere."""
        assert self.followed.snapshot is not None
        found = opened(self.followed.snapshot.table(LISTENER).resources[OUTBOUND])["filter_chain_matcher"]
        ports = found.get("matcher_tree", {}).get("exact_match_map", {}).get("map", {})
        return {
            (port, address)
            for port, inner in ports.items()
            for address in inner["matcher"]["matcher_tree"]["exact_match_map"]["map"]
        }


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture
async def town(tmp_path: Path, names: Names) -> AsyncIterator[Town]:
    found = Town(tmp_path, names=names.ask)
    async with found.following():
        plain = proxy("web")
        assert plain.proxy is not None
        found.registrations.put(
            msgspec.structs.replace(plain, proxy=msgspec.structs.replace(plain.proxy, mode=TRANSPARENT))
        )
        api(found.catalog, 5)
        api(found.far, 9)
        yield found


def api(catalog: ViewWriter, number: int) -> None:
    """An instance of api with its sidecar."""
    node = Node(name=f"n{number}", address=f"10.0.0.{number}")
    catalog.put(node, Service(id="api", name="api", node=node.name, port=8080))
    catalog.put(msgspec.structs.replace(proxy("api"), node=node.name))


async def test_an_allow_reaches_the_service_in_every_datacenter_and_a_deny_ends_that(town: Town) -> None:
    web = Web(town)
    await eventually(lambda: web.followed.snapshot, "there is a snapshot")
    assert (web.clusters(), web.dialled()) == (set(), set())
    town.intend("web", "api", Action.ALLOW)
    await eventually(lambda: web.clusters() == {NEAR, FAR}, "both datacenters are reached")
    await eventually(lambda: web.dialled() == {("8080", "10.0.0.5"), ("8080", "10.0.0.9")}, "both are dialled")
    api(town.catalog, 6)
    await eventually(lambda: ("8080", "10.0.0.6") in web.dialled(), "a new instance is dialled")
    town.intend("web", "api", Action.DENY)
    await eventually(lambda: (web.clusters(), web.dialled()) == (set(), set()), "nothing is left")


async def test_a_datacenter_that_is_cut_off_holds_up_nobody(town: Town) -> None:
    town.reader.cut["dc2"] = "no path"
    web = Web(town)
    await eventually(lambda: web.followed.snapshot, "there is a snapshot")
    before = asyncio.get_running_loop().time()
    town.intend("web", "api", Action.ALLOW)
    await eventually(lambda: web.dialled() == {("8080", "10.0.0.5")}, "the own datacenter is reached")
    assert asyncio.get_running_loop().time() - before < 0.15, "without waiting for the other one"
    del town.reader.cut["dc2"]
    await eventually(lambda: ("8080", "10.0.0.9") in web.dialled(), "and it is filled in later")


async def test_a_wildcard_reaches_what_there_is_and_what_comes(town: Town, names: Names) -> None:
    names.add("dc1", "api-sidecar-proxy")
    names.add("dc1", "consul")
    town.intend("web", "*", Action.ALLOW)
    web = Web(town)
    await eventually(lambda: web.followed.snapshot, "there is a snapshot")
    assert web.clusters() == set()
    names.add("dc1", "api")
    await eventually(lambda: web.clusters() == {NEAR}, "the service is reached where it is")
    names.add("dc2", "api")
    await eventually(lambda: web.clusters() == {NEAR, FAR}, "and where it comes")
    town.intend("web", "api", Action.DENY)
    await eventually(lambda: web.clusters() == set(), "an exception counts")
