"""`mesh controllers`: the trust bundle, services both ways, and config entries of a Kubernetes cluster."""

import asyncio
import os
import random
import socket
from pathlib import Path
from typing import Annotated

import typer

from mesh_agent.cli.output import say
from mesh_agent.clock import SystemClock
from mesh_agent.errors import ConfigError
from mesh_agent.injector.names import CA_FILE, TOKEN_FILE
from mesh_agent.telemetry import configure_logging

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("controllers")(run)


def run(
    namespace: Annotated[str, typer.Option(envvar="MESH_POD_NAMESPACE", help="Where the controllers run.")],
    cluster: Annotated[
        str, typer.Option(envvar="MESH_CLUSTER", help="Name of this cluster in the mesh; default: the datacenter.")
    ] = "",
    node_ip: Annotated[str, typer.Option(envvar="MESH_NODE_IP", help="Address of this node's agent.")] = "",
    identity: Annotated[str, typer.Option(envvar="MESH_POD_NAME", help="Which replica this is.")] = "",
    settings: Annotated[
        str, typer.Option(envvar="MESH_CONTROLLERS_SETTINGS", help="Settings of the areas, a JSON object.")
    ] = "{}",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of /healthz, /readyz, /metrics.")] = 8082,
    host: Annotated[str, typer.Option(help="Address to listen on; all if empty.")] = "",
    agent_port: Annotated[int, typer.Option(min=1, max=65535, help="The agent's port for pods.")] = 8504,
    agent: Annotated[str, typer.Option(help="URL of the agent, instead of --node-ip and --agent-port.")] = "",
    token_file: Annotated[Path, typer.Option(help="Service account token of the audience `mesh`.")] = Path(TOKEN_FILE),
    ca_file: Annotated[Path, typer.Option(help="The trust bundle (PEM).")] = Path(CA_FILE),
    kubernetes_api: Annotated[str, typer.Option(help="URL of the API server; default: as a pod finds it.")] = "",
    kubernetes_ca_file: Annotated[Path, typer.Option(help="Roots of the API server.")] = _ACCOUNT / "ca.crt",
    kubernetes_token_file: Annotated[Path, typer.Option(help="Token for the API server.")] = _ACCOUNT / "token",
    farewell: Annotated[
        str,
        typer.Option(
            help="Do not run, but remove what controllers made: `all`, or in the `cluster` but not the catalog."
        ),
    ] = "",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Keep cluster and mesh in agreement until SIGTERM (runs in a pod of the chart)."""
    # Here, not above: every other command would pay for what this one alone needs.
    from mesh_agent.controllers.client import Mesh
    from mesh_agent.controllers.farewell import take_leave
    from mesh_agent.controllers.runner import Controllers, serve
    from mesh_agent.controllers.server import Operations
    from mesh_agent.controllers.settings import load
    from mesh_agent.kubernetes.client import KubernetesApi

    configure_logging(log_level, "auto")
    found = load(settings, cluster=cluster, namespace=namespace, identity=identity or socket.gethostname())
    secure = not agent.startswith("http://")
    mesh = Mesh(
        agent or f"https://{_url_host(node_ip)}:{agent_port}",
        ca_file if secure else None,
        token_file if secure else None,
    )
    api = KubernetesApi(kubernetes_api or _api_server(), str(kubernetes_ca_file), str(kubernetes_token_file))

    async def closing() -> None:
        await mesh.close()
        await api.close()

    async def leave() -> None:
        try:
            asked = mesh if farewell == "all" else None
            if asked is not None and secure and not ca_file.exists():
                say(f"without {ca_file} controllers never asked an agent: there is nothing of theirs in the catalog")
                asked = None
            for done in (await take_leave(api, asked, found)).done:
                say(done)
        finally:
            await closing()

    async def work() -> None:
        controllers = Controllers(found, api, mesh, SystemClock(), random.Random())  # noqa: S311 (spreads retries)
        await serve(controllers, Operations(controllers.missing, controllers.metrics), port, host, closing)

    if farewell not in ("", "all", "cluster"):
        raise ConfigError(f"--farewell={farewell}: say `all` or `cluster`")
    asyncio.run(leave() if farewell else work())
    say("stopped")


def _api_server() -> str:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    return f"https://{_url_host(host)}:{os.environ.get('KUBERNETES_SERVICE_PORT', '443')}"


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
