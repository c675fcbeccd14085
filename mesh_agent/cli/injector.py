"""`mesh injector`: the webhook that makes pods members of the mesh."""

import asyncio
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mesh_agent import __version__
from mesh_agent.cli.output import say
from mesh_agent.clock import SystemClock
from mesh_agent.errors import ConfigError
from mesh_agent.injector.names import CA_FILE, TOKEN_FILE
from mesh_agent.injector.settings import InjectorSettings
from mesh_agent.telemetry import configure_logging

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("injector")(run)


def run(
    image: Annotated[str, typer.Option(envvar="MESH_INJECTOR_IMAGE", help="Image of the containers that pods get.")],
    namespace: Annotated[str, typer.Option(envvar="MESH_POD_NAMESPACE", help="Where the injector's Service is.")],
    node_ip: Annotated[str, typer.Option(envvar="MESH_NODE_IP", help="Address of this node's agent.")],
    service: Annotated[str, typer.Option(help="Name of the injector's Service.")] = "mesh-injector",
    configuration: Annotated[str, typer.Option(help="Its MutatingWebhookConfiguration.")] = "mesh-injector",
    settings: Annotated[
        str, typer.Option(envvar="MESH_INJECTOR_SETTINGS", help="Settings of injected pods, a JSON object.")
    ] = "{}",
    port: Annotated[int, typer.Option(min=0, max=65535, help="HTTPS port of the webhook.")] = 8443,
    operations_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of /healthz, /readyz, /metrics.")] = 8081,
    agent_port: Annotated[int, typer.Option(min=1, max=65535, help="The agent's port for pods.")] = 8504,
    token_file: Annotated[Path, typer.Option(help="Service account token of the audience `mesh`.")] = Path(TOKEN_FILE),
    ca_file: Annotated[Path, typer.Option(help="The trust bundle (PEM).")] = Path(CA_FILE),
    kubernetes_api: Annotated[str, typer.Option(help="URL of the API server; default: as a pod finds it.")] = "",
    kubernetes_ca_file: Annotated[Path, typer.Option(help="Roots of the API server.")] = _ACCOUNT / "ca.crt",
    kubernetes_token_file: Annotated[Path, typer.Option(help="Token for the API server.")] = _ACCOUNT / "token",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Answer the API server's admission reviews until SIGTERM (runs in a pod of the chart)."""
    # Here, not above: every other command would pay for what this one alone needs.
    from mesh_agent.injector.runner import Injector, Options, Peer, serve

    configure_logging(log_level, "auto")
    options = Options(
        agent=Peer(f"https://{_url_host(node_ip)}:{agent_port}", ca_file, token_file),
        api_server=Peer(kubernetes_api or _api_server(), kubernetes_ca_file, kubernetes_token_file),
        configuration=configuration,
        dns_names=(f"{service}.{namespace}.svc",),
        port=port,
        operations_port=operations_port,
    )
    pods = _settings(settings, InjectorSettings(image=image, version=__version__, agent_port=agent_port))
    asyncio.run(serve(Injector(pods, options, SystemClock(), random.Random())))  # noqa: S311 (spreads renewals)
    say("stopped")


def _settings(text: str, defaults: InjectorSettings) -> InjectorSettings:
    """The defaults with what the JSON object says otherwise."""
    try:
        given: dict[str, Any] = json.loads(text)
        return replace(defaults, **given)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"the injector's settings are wrong: {error}; known are {', '.join(_KNOWN)}") from error


_KNOWN = sorted(InjectorSettings.__dataclass_fields__)


def _api_server() -> str:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    return f"https://{_url_host(host)}:{os.environ.get('KUBERNETES_SERVICE_PORT', '443')}"


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
