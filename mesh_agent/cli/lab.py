"""`mesh lab`: several systemd hosts in several datacenters on this machine."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mesh_agent.cli.options import Output
from mesh_agent.cli.output import Format, say, show
from mesh_agent.errors import InvalidRequest
from mesh_agent.lab.lab import Lab
from mesh_agent.lab.spec import read

app = typer.Typer(no_args_is_help=True, help="A lab of systemd hosts in several datacenters on this machine.")
wan_app = typer.Typer(no_args_is_help=True, help="The WAN between the datacenters.")
app.add_typer(wan_app, name="wan")

Inventory = Annotated[
    Path, typer.Option("--inventory", "-i", envvar="MESH_LAB_INVENTORY", help="Ansible inventory of the lab.")
]
Name = Annotated[str, typer.Option("--name", envvar="MESH_LAB_NAME", help="Name of the lab.")]
Between = Annotated[
    tuple[str, str] | None, typer.Option("--between", help="Only the link between these two datacenters.")
]
_INVENTORY = Path("inventory/lab")


def _lab(inventory: Path, name: str) -> Lab:
    return Lab(name, read(inventory), say)


@app.command()
def up(
    hosts: Annotated[
        list[str] | None, typer.Argument(help="Only these; default: all but those that wait to be named.")
    ] = None,
    inventory: Inventory = _INVENTORY,
    name: Name = "lab",
) -> None:
    """Boot hosts; what runs already is left alone."""
    _lab(inventory, name).up(hosts or ())


@app.command()
def down(inventory: Inventory = _INVENTORY, name: Name = "lab") -> None:
    """Power off and remove everything."""
    _lab(inventory, name).down()
    say("nothing is left of the lab")


@app.command()
def status(inventory: Inventory = _INVENTORY, name: Name = "lab", output: Output = Format.TABLE) -> None:
    """Hosts and their state."""
    show(_lab(inventory, name).status(), ["host", "datacenter", "address", "state", "pid"], output)


@app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec_(
    host: Annotated[str, typer.Argument(help="A host, or @dc1 for the router of a datacenter.")],
    command: Annotated[list[str], typer.Argument(help="What to run.")],
    inventory: Inventory = _INVENTORY,
    name: Name = "lab",
) -> None:
    """Run a command in a host, with its exit code and this terminal's input and output."""
    line = [*_lab(inventory, name).enter(host), *(command[1:] if command[0] == "--" else command)]
    os.execvp(line[0], line)  # noqa: S606 (no shell is wanted)


@app.command()
def crash(host: str, inventory: Inventory = _INVENTORY, name: Name = "lab") -> None:
    """Power loss of a host; its disk stays."""
    _lab(inventory, name).crash(host)
    say(f"{host} has no power")


@app.command()
def start(host: str, inventory: Inventory = _INVENTORY, name: Name = "lab") -> None:
    """Power on a host that is off."""
    seconds = _lab(inventory, name).start(host)
    say(f"{host} booted in {seconds:.1f} s" if seconds else f"{host} is running")


@wan_app.command("show")
def wan_show(inventory: Inventory = _INVENTORY, name: Name = "lab", output: Output = Format.TABLE) -> None:
    """Links and what they do to packets."""
    rows = [{"link": link, **state} for link, state in _lab(inventory, name).links().items()]
    show(rows, ["link", "up", "delay_ms", "jitter_ms", "loss_pct", "rate_kbit"], output)


@wan_app.command()
def cut(inventory: Inventory = _INVENTORY, name: Name = "lab", between: Between = None) -> None:
    """Take the links down: errors at once."""
    _lab(inventory, name).wan("cut", between=between)


@wan_app.command()
def drop(inventory: Inventory = _INVENTORY, name: Name = "lab", between: Between = None) -> None:
    """Lose every packet in silence: a partition."""
    _lab(inventory, name).wan("drop", between=between)


@wan_app.command()
def heal(inventory: Inventory = _INVENTORY, name: Name = "lab", between: Between = None) -> None:
    """Links as new."""
    _lab(inventory, name).wan("heal", between=between)


def _set(what: str, value: float, inventory: Path, name: str, between: tuple[str, str] | None) -> None:
    if value < 0 or (what == "loss" and value > 100):
        raise InvalidRequest(f"{what} must not be negative" if value < 0 else "loss is a percentage, 0 to 100")
    _lab(inventory, name).wan(what, value, between)


@wan_app.command()
def delay(ms: float, inventory: Inventory = _INVENTORY, name: Name = "lab", between: Between = None) -> None:
    """One-way delay in milliseconds."""
    _set("delay", ms, inventory, name, between)


@wan_app.command()
def jitter(ms: float, inventory: Inventory = _INVENTORY, name: Name = "lab", between: Between = None) -> None:
    """Jitter around the delay, in milliseconds."""
    _set("jitter", ms, inventory, name, between)


@wan_app.command()
def loss(percent: float, inventory: Inventory = _INVENTORY, name: Name = "lab", between: Between = None) -> None:
    """Loss in per cent."""
    _set("loss", percent, inventory, name, between)


@wan_app.command()
def rate(kbit: float, inventory: Inventory = _INVENTORY, name: Name = "lab", between: Between = None) -> None:
    """Rate in kbit/s, 0 for none."""
    _set("rate", kbit, inventory, name, between)
