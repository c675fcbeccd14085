"""Running sidecars follow the protocol that config entries give their services, in both directions and without a restart."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from mesh_agent.catalog import keys
from mesh_agent.model import Action, ConfigEntry, Federated
from tests.support.callers import Closed, Line, http_app
from tests.support.sidecars import DC, Town, until

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with Town(tmp_path) as found:
        yield found


async def test_running_sidecars_follow_the_protocol_of_their_services(town: Town) -> None:
    async with http_app("api") as app:
        api, web = town.register("api", app_port=app), town.register("web", calls=("api",))
        town.intend("web", "api", Action.ALLOW)
        envoys = [await town.envoy(each) for each in (api, web)]
        pids = [each.process.pid for each in envoys if each.process is not None]
        assert web.proxy is not None
        port = web.proxy.upstreams[0].local_bind_port
        await until(lambda: answers(port, with_caller=False), "as plain TCP the application does not see who asks")

        write(town, ConfigEntry(kind="service-defaults", name="api", settings={"Protocol": "http"}))
        await until(lambda: answers(port, with_caller=True), "as HTTP it does")
        town.intend("web", "api", Action.DENY)
        await until(lambda: answers(port, with_caller=False, status=403), "each request is judged")
        town.intend("web", "api", Action.ALLOW)
        await until(lambda: answers(port, with_caller=True), "and allowed again")

        forget(town, "service-defaults", "api")
        await until(lambda: answers(port, with_caller=False), "back to plain TCP")
        write(town, ConfigEntry(kind="proxy-defaults", name="global", settings={"Config": {"protocol": "http2"}}))
        write(town, ConfigEntry(kind="service-defaults", name="api", settings={"Protocol": "http"}))
        await until(
            lambda: answers(port, with_caller=True), "what is said of the service counts before what is said of all"
        )
        assert [
            each.process.pid for each in envoys if each.process is not None and each.process.returncode is None
        ] == pids


def write(town: Town, entry: ConfigEntry) -> None:
    envelope = Federated(stamp=(1, 0, DC), value=msgspec.to_builtins(entry))
    town.federated({keys.config_entry(entry.kind, entry.name): envelope})


def forget(town: Town, kind: str, name: str) -> None:
    town.federated({}, (keys.config_entry(kind, name),))


async def answers(port: int, *, with_caller: bool, status: int = 200) -> bool:
    """Whether a new connection's request has this status, and the application saw (or not) who asks."""
    try:
        line = await Line.to(port)
        found, body = await line.get()
    except Closed:
        return False
    line.close()
    headers = body.get("headers", {}) if isinstance(body, dict) else {}
    return found == status and ("x-forwarded-client-cert" in headers) == with_caller
