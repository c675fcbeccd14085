"""Options that many commands share."""

from typing import Annotated

import typer

from mesh_agent.cli.api import AgentApi, connection_from_environment
from mesh_agent.cli.output import Format

Output = Annotated[Format, typer.Option("--output", "-o", envvar="MESH_OUTPUT", help="How to print the result.")]
Address = Annotated[
    str,
    typer.Option(
        "--http-addr", help="The agent's HTTP address [env: MESH_HTTP_ADDR, CONSUL_HTTP_ADDR; default 127.0.0.1:8500]."
    ),
]
Datacenter = Annotated[str, typer.Option("--datacenter", "-d", help="Ask this datacenter instead of the agent's own.")]


def api(address: str, datacenter: str = "") -> AgentApi:
    """The agent that the options name."""
    return AgentApi(connection_from_environment(address, datacenter))
