"""`mesh version`, `mesh keygen`: small tools that need no agent."""

import base64
import platform
import secrets

import typer

from mesh_agent import __version__
from mesh_agent.cli.options import Output
from mesh_agent.cli.output import Format, dump, say


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("version")(version)
    app.command("keygen")(keygen)


def version(output: Output = Format.TABLE) -> None:
    """The version of this program and of the protocols that it speaks."""
    if output is Format.TABLE:
        say(f"mesh {__version__} (gossip protocol 2, understands 1 to 5; Python {platform.python_version()})")
    else:
        dump(
            {"version": __version__, "gossip": {"min": 1, "max": 5, "current": 2}, "python": platform.python_version()},
            output,
        )


def keygen() -> None:
    """A fresh 32-byte gossip key in base64."""
    say(base64.b64encode(secrets.token_bytes(32)).decode())
