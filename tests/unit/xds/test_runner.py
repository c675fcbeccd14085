"""What marks a proxy's configuration as stale, and what it waits for."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from mesh_agent.catalog import keys
from mesh_agent.errors import NotFound, Unreachable
from mesh_agent.model import Action, ConfigEntry, Federated, Node, Service, Upstream
from mesh_agent.xds.naming import CLUSTER, ENDPOINTS, EXTENSION, INTENTIONS, LISTENER, SECRET
from mesh_agent.xds.runner import FollowedProxy, ProxyConfigs
from tests.support.sidecars import DC, Town, eventually
from tests.support.xds import opened, proxy

CALLS = (
    Upstream(destination_name="db", local_bind_port=1),
    Upstream(destination_name="db", datacenter="dc2", local_bind_port=2),
)
FAR = "db.default.dc2.internal.mesh.test"
NEAR = "db.default.dc1.internal.mesh.test"


class Follower:
    """A stream that only counts how often it was woken."""

    def __init__(self, configs: ProxyConfigs, proxy_id: str) -> None:
        self.woken = 0
        self._configs, self._proxy_id = configs, proxy_id
        self.followed: FollowedProxy = configs.follow(proxy_id, self.wake)

    def wake(self) -> None:
        self.woken += 1

    def leave(self) -> None:
        self._configs.leave(self._proxy_id, self.wake)

    async def ready(self) -> "Follower":
        await eventually(lambda: self.followed.snapshot, "there is a snapshot")
        return self

    def endpoints(self, cluster: str) -> int:
        """How many endpoints a cluster has in the newest snapshot."""
        assert self.followed.snapshot is not None
        found = opened(self.followed.snapshot.table(ENDPOINTS).resources[cluster])
        return sum(len(each["lb_endpoints"]) for each in found.get("endpoints", []))


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    """A node whose ADS server is not started; dc2 is another datacenter."""
    found = Town(tmp_path)
    async with found.following():
        found.registrations.put(proxy("web", upstreams=CALLS))
        yield found


def db(datacenter: str, number: int) -> tuple[Node, Service]:
    """An endpoint of db on a node of its own."""
    node = Node(name=f"{datacenter}-{number}", address=f"10.0.0.{number}")
    return node, msgspec.structs.replace(proxy("db"), node=node.name)


async def test_a_proxy_is_configured_once_everything_is_known(town: Town) -> None:
    web = await Follower(town.configs, "web-sidecar-proxy").ready()
    assert web.woken == 1
    assert web.followed.snapshot is not None
    assert {SECRET, CLUSTER, LISTENER} <= set(web.followed.snapshot.tables)
    assert web.endpoints(NEAR) == web.endpoints(FAR) == 0


async def test_many_changes_in_one_turn_make_one_snapshot(town: Town) -> None:
    web = await Follower(town.configs, "web-sidecar-proxy").ready()
    for number in range(1, 6):
        town.catalog.put(*db(DC, number))
    town.intend("job", "web", Action.ALLOW)
    town.leafs.renew("web")
    assert web.woken == 1
    await asyncio.sleep(0)
    assert web.woken == 2
    assert web.endpoints(NEAR) == 5


async def test_a_change_that_means_nothing_to_a_proxy_does_not_wake_it(town: Town) -> None:
    web = await Follower(town.configs, "web-sidecar-proxy").ready()
    town.intend("a", "b", Action.ALLOW)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert web.woken == 1


async def test_a_config_entry_changes_the_protocol_of_a_running_proxy(town: Town) -> None:
    web = await Follower(town.configs, "web-sidecar-proxy").ready()
    assert web.followed.snapshot is not None
    assert not web.followed.snapshot.table(EXTENSION).resources
    defaults = ConfigEntry(kind="service-defaults", name="web", settings={"Protocol": "http"})
    envelope = Federated(stamp=(1, 0, DC), value=msgspec.to_builtins(defaults))
    town.federated({keys.config_entry(defaults.kind, defaults.name): envelope})
    await eventually(lambda: web.woken == 2, "the proxy is told")
    assert set(web.followed.snapshot.table(EXTENSION).resources) == {INTENTIONS}
    town.federated({}, (keys.config_entry(defaults.kind, defaults.name),))
    await eventually(lambda: web.woken == 3, "the proxy is told again")
    assert not web.followed.snapshot.table(EXTENSION).resources


async def test_endpoints_of_a_datacenter_that_is_cut_off_stay(town: Town) -> None:
    town.far.put(*db("dc2", 1))
    web = await Follower(town.configs, "web-sidecar-proxy").ready()
    assert web.endpoints(FAR) == 1
    town.reader.cut["dc2"] = "cut"
    town.catalog.put(*db(DC, 1))
    await eventually(lambda: web.endpoints(NEAR) == 1, "the own datacenter goes on")
    assert web.endpoints(FAR) == 1


async def test_an_upstream_that_cannot_be_found_holds_up_nobody_and_is_filled_in_later(town: Town) -> None:
    town.reader.cut["dc2"] = "no path"
    town.far.put(*db("dc2", 1))
    town.catalog.put(*db(DC, 1))
    web = await Follower(town.configs, "web-sidecar-proxy").ready()
    assert (web.endpoints(NEAR), web.endpoints(FAR)) == (1, 0)
    del town.reader.cut["dc2"]
    await eventually(lambda: web.endpoints(FAR) == 1, "it was asked again")


async def test_a_changed_registration_changes_the_upstreams(town: Town) -> None:
    web = await Follower(town.configs, "web-sidecar-proxy").ready()
    town.registrations.put(proxy("web", upstreams=CALLS[:1]))
    await eventually(lambda: web.woken == 2, "it was made anew")
    assert web.followed.snapshot is not None
    assert list(web.followed.snapshot.table(ENDPOINTS).resources) == [NEAR]
    assert not town.far.view.has_listeners(), "nobody listens for what is not called any more"
    town.registrations.put(proxy("web", upstreams=CALLS))
    await eventually(lambda: web.woken == 3, "it was made anew again")
    assert list(web.followed.snapshot.table(ENDPOINTS).resources) == [NEAR, FAR]


async def test_a_registration_of_which_nothing_can_be_made_leaves_the_last_configuration(
    town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    web = await Follower(town.configs, "web-sidecar-proxy").ready()
    before = web.followed.snapshot
    town.registrations.put(proxy("web", config={"bind_port": "eighty"}))
    await eventually(lambda: "mesh_xds_failed_builds_total" in town.metrics.prometheus(), "it is counted")
    assert web.followed.snapshot is before
    assert "none can be made of its registration" in caplog.text


async def test_a_leaf_that_cannot_be_had_yet_is_asked_for_again(town: Town) -> None:
    town.leafs.failing = Unreachable("no server")
    web = Follower(town.configs, "web-sidecar-proxy")
    await eventually(lambda: town.leafs.refused, "it was asked for")
    assert web.followed.snapshot is None
    town.leafs.failing = None
    await web.ready()


async def test_the_last_stream_that_leaves_ends_the_following(town: Town) -> None:
    first = await Follower(town.configs, "web-sidecar-proxy").ready()
    second = Follower(town.configs, "web-sidecar-proxy")
    assert second.followed is first.followed
    first.leave()
    assert town.catalog.view.has_listeners()
    second.leave()
    assert not town.catalog.view.has_listeners()
    assert not town.far.view.has_listeners()


async def test_an_unknown_proxy_is_not_followed(town: Town) -> None:
    with pytest.raises(NotFound, match=r"connect\.sidecar_service"):
        Follower(town.configs, "nobody")


async def test_another_service_under_the_id_of_a_proxy_gets_nothing_of_the_first(town: Town) -> None:
    web = await Follower(town.configs, "web-sidecar-proxy").ready()
    town.registrations.put(msgspec.structs.replace(proxy("shop"), id="web-sidecar-proxy"))
    assert web.followed.gone
    assert web.woken == 2
    shop = Follower(town.configs, "web-sidecar-proxy")
    assert shop.followed is not web.followed
    assert shop.followed.snapshot is None
    await shop.ready()
    assert shop.followed.leaf is not None
    assert shop.followed.leaf.certificate_pem == (await town.leafs.leaf("shop")).certificate_pem


async def test_a_deregistered_proxy_is_gone(town: Town) -> None:
    web = await Follower(town.configs, "web-sidecar-proxy").ready()
    town.registrations.delete("web-sidecar-proxy")
    assert web.followed.gone
    assert web.woken == 2
    web.leave()
