"""`mesh agent`, `mesh validate`: start an agent, or say what is wrong with its settings."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mesh_agent.cli.output import say
from mesh_agent.config import load

FLAGS_VARIABLE = "MESH_CONFIG_FILE_FLAGS"
"""How `mesh agent` hands its flags to the process that it becomes: JSON."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("agent")(run)
    app.command("validate")(validate)


def run(
    config_file: Annotated[
        Path | None, typer.Option("--config-file", "-c", envvar="MESH_CONFIG_FILE", help="Settings (TOML).")
    ] = None,
    dev: Annotated[
        bool, typer.Option("--dev", help="Development alone: one process, memory store, loopback, no encryption.")
    ] = False,
    server: Annotated[bool | None, typer.Option("--server/--client", help="Hold the store, or not.")] = None,
    node_name: Annotated[str | None, typer.Option("--node-name")] = None,
    datacenter: Annotated[str | None, typer.Option("--datacenter")] = None,
    data_dir: Annotated[str | None, typer.Option("--data-dir")] = None,
    bind_addr: Annotated[str | None, typer.Option("--bind-addr", help="Where peers reach this agent.")] = None,
    client_addr: Annotated[str | None, typer.Option("--client-addr", help="Where HTTP and DNS listen.")] = None,
    retry_join: Annotated[
        list[str] | None, typer.Option("--retry-join", help="A LAN member to join; repeatable.")
    ] = None,
    retry_join_wan: Annotated[
        list[str] | None, typer.Option("--retry-join-wan", help="A server elsewhere; repeatable.")
    ] = None,
    log_level: Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, KEY=VALUE (ports.http=8510); repeatable.")
    ] = None,
) -> None:
    """Run an agent in the foreground until SIGTERM or Ctrl-C."""
    flags: dict[str, object] = {
        key: value
        for key, value in {
            "server": server,
            "node_name": node_name,
            "datacenter": datacenter,
            "data_dir": data_dir,
            "bind_addr": bind_addr,
            "client_addr": client_addr,
            "retry_join": retry_join or None,
            "retry_join_wan": retry_join_wan or None,
            "telemetry.log_level": log_level,
        }.items()
        if value is not None
    }
    for setting in settings or []:
        key, separator, text = setting.partition("=")
        if not separator:
            raise typer.BadParameter(f"{setting!r} is not KEY=VALUE", param_hint="--set")
        flags[key.strip()] = _value(text)
    given = {"config_file": None if config_file is None else str(config_file), "dev": dev, "flags": flags}
    # The agent replaces this process: it must not carry the command line's libraries in its memory for months.
    os.environ[FLAGS_VARIABLE] = json.dumps(given)
    os.execv(sys.executable, [sys.executable, "-m", "mesh_agent.app"])  # noqa: S606 (no shell is wanted)


def validate(file: Annotated[Path, typer.Argument(help="Settings (TOML).")]) -> None:
    """Check a settings file; says the key of the first mistake and exits with 2."""
    load(file, {}, {})
    say(f"{file}: valid")


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
