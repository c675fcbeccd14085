"""`mesh config`: settings of services that hold in every datacenter."""

import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
import yaml

from mesh_agent.cli.options import Address, Output, api
from mesh_agent.cli.output import Format, dump, say, show
from mesh_agent.errors import ConfigError, MeshError

config = typer.Typer(no_args_is_help=True, help="Config entries: settings of services that hold in every datacenter.")
Kind = Annotated[str, typer.Option("--kind", "-k", help="proxy-defaults, service-defaults or service-intentions.")]
Name = Annotated[str, typer.Option("--name", "-n", help="Name of the entry: the service, or global.")]
Cas = Annotated[bool, typer.Option("--cas", help="Only if the entry has --modify-index.")]
Index = Annotated[int, typer.Option("--modify-index", help="With --cas: ModifyIndex of the entry, 0 for none.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(config, name="config")


@config.command("list")
def config_list(kind: Kind, address: Address = "", output: Output = Format.TABLE) -> None:
    """Every entry of a kind."""
    found = api(address).get(f"/v1/config/{quote(kind, safe='')}")
    show(found, ["Name", "ModifyIndex"], output, found)


@config.command("read")
def config_read(kind: Kind, name: Name, address: Address = "", output: Output = Format.JSON) -> None:
    """One entry."""
    dump(api(address).get(f"/v1/config/{quote(kind, safe='')}/{quote(name, safe='')}"), output)


@config.command("write")
def config_write(
    file: Annotated[str, typer.Argument(help="JSON or YAML file; - for standard input.")],
    cas: Cas = False,
    modify_index: Index = 0,
    address: Address = "",
) -> None:
    """Add or replace an entry."""
    entry = _read(file)
    query = {"cas": str(modify_index)} if cas else {}
    if api(address).put("/v1/config", entry, **query) is not True:
        raise MeshError(f"not written: the entry is not at --modify-index {modify_index} any more; read it again")
    say(f"Config entry written: {entry.get('Kind', entry.get('kind'))}/{entry.get('Name', entry.get('name', ''))}")


@config.command("delete")
def config_delete(kind: Kind, name: Name, cas: Cas = False, modify_index: Index = 0, address: Address = "") -> None:
    """Forget an entry."""
    query = {"cas": str(modify_index)} if cas else {}
    if api(address).delete(f"/v1/config/{quote(kind, safe='')}/{quote(name, safe='')}", **query) is False:
        raise MeshError(f"not deleted: the entry is not at --modify-index {modify_index} any more; read it again")
    say(f"Config entry deleted: {kind}/{name}")


def _read(file: str) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        entry = yaml.safe_load(text)  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {error}") from error
    if not isinstance(entry, dict):
        raise ConfigError(f"{file}: a config entry is an object with Kind and Name")
    return entry
