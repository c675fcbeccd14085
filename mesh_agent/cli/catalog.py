"""`mesh services`, `mesh catalog`, `mesh health`: what runs where, and how it is."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from mesh_agent.cli.options import Address, Datacenter, Output, api
from mesh_agent.cli.output import Format, say, show
from mesh_agent.errors import InvalidRequest

services = typer.Typer(no_args_is_help=True, help="Services of this node.")
catalog = typer.Typer(no_args_is_help=True, help="What the datacenter knows.")
health = typer.Typer(no_args_is_help=True, help="Health of nodes and services.")
_CHECK_COLUMNS = ["Node", "CheckID", "Name", "Status", "ServiceName", "Output"]


def register(app: typer.Typer) -> None:
    """Add the groups."""
    app.add_typer(services, name="services")
    app.add_typer(catalog, name="catalog")
    app.add_typer(health, name="health")


@services.command("list")
def services_list(address: Address = "", output: Output = Format.TABLE) -> None:
    """Services registered with this agent."""
    found = api(address).get("/v1/agent/services")
    rows = [{**service, "Tags": service.get("Tags") or []} for _, service in sorted(found.items())]
    show(rows, ["ID", "Service", "Address", "Port", "Tags", "Kind"], output, found)


@services.command("register")
def services_register(
    file: Annotated[
        Path | None, typer.Argument(help="Definition as JSON, Consul's shape; - or nothing reads standard input.")
    ] = None,
    name: Annotated[str, typer.Option(help="Instead of a file: the name of the service.")] = "",
    port: Annotated[int, typer.Option(help="Its port.")] = 0,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; repeatable.")] = None,
    address: Address = "",
) -> None:
    """Register services with this agent."""
    for definition in [{"Name": name, "Port": port, "Tags": tag or []}] if name else _definitions(file):
        api(address).put("/v1/agent/service/register", definition)
        say(f"registered {definition.get('Name') or definition.get('name')}")


@services.command("deregister")
def services_deregister(service_id: str, address: Address = "") -> None:
    """Take a service away from this agent."""
    api(address).put(f"/v1/agent/service/deregister/{quote(service_id, safe='')}")
    say(f"deregistered {service_id}")


def _definitions(file: Path | None) -> list[dict[str, Any]]:  # JSON objects as the user wrote them
    try:
        text = sys.stdin.read() if file is None or str(file) == "-" else file.read_text(encoding="utf-8")
        tree = json.loads(text)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{file or 'standard input'}: {error}") from error
    if not isinstance(tree, dict):
        raise InvalidRequest(f"{file or 'standard input'}: expected a JSON object, a service definition")
    found = tree.get("services") or [tree.get("service", tree)]
    return list(found)


@catalog.command("datacenters")
def catalog_datacenters(address: Address = "", output: Output = Format.TABLE) -> None:
    """Every datacenter that can be reached, the nearest first."""
    found = api(address).get("/v1/catalog/datacenters")
    show([{"Datacenter": name} for name in found], ["Datacenter"], output, found)


@catalog.command("nodes")
def catalog_nodes(address: Address = "", datacenter: Datacenter = "", output: Output = Format.TABLE) -> None:
    """Every node."""
    found = api(address, datacenter).get("/v1/catalog/nodes")
    show(found, ["Node", "Address", "ID", "Datacenter"], output)


@catalog.command("services")
def catalog_services(address: Address = "", datacenter: Datacenter = "", output: Output = Format.TABLE) -> None:
    """Every service name with its tags."""
    found = api(address, datacenter).get("/v1/catalog/services")
    show([{"Service": name, "Tags": tags} for name, tags in found.items()], ["Service", "Tags"], output, found)


@catalog.command("service")
def catalog_service(
    name: str, address: Address = "", datacenter: Datacenter = "", output: Output = Format.TABLE
) -> None:
    """Where a service runs."""
    found = api(address, datacenter).get(f"/v1/catalog/service/{quote(name, safe='')}")
    rows = [{**row, "ServiceAddress": row.get("ServiceAddress") or row["Address"]} for row in found]
    show(rows, ["Node", "ServiceID", "ServiceAddress", "ServicePort", "ServiceTags"], output, found)


@health.command("service")
def health_service(
    name: str,
    passing: Annotated[bool, typer.Option("--passing", help="Only instances whose checks all pass.")] = False,
    address: Address = "",
    datacenter: Datacenter = "",
    output: Output = Format.TABLE,
) -> None:
    """Instances of a service with their worst status."""
    found = api(address, datacenter).get(f"/v1/health/service/{quote(name, safe='')}", passing="1" if passing else "")
    show([_health_row(entry) for entry in found], ["Node", "ID", "Address", "Port", "Status"], output, found)


def _health_row(entry: dict[str, Any]) -> dict[str, object]:  # an element of Consul's /v1/health/service
    worst = max(
        (check["Status"] for check in entry["Checks"]), key=["passing", "warning", "critical"].index, default="passing"
    )
    service, node = entry["Service"], entry["Node"]
    return {
        "Node": node["Node"],
        "ID": service["ID"],
        "Address": service["Address"] or node["Address"],
        "Port": service["Port"],
        "Status": worst,
    }


@health.command("node")
def health_node(name: str, address: Address = "", datacenter: Datacenter = "", output: Output = Format.TABLE) -> None:
    """Checks of a node and of its services."""
    show(api(address, datacenter).get(f"/v1/health/node/{quote(name, safe='')}"), _CHECK_COLUMNS, output)


@health.command("checks")
def health_checks(name: str, address: Address = "", datacenter: Datacenter = "", output: Output = Format.TABLE) -> None:
    """Checks of a service."""
    show(api(address, datacenter).get(f"/v1/health/checks/{quote(name, safe='')}"), _CHECK_COLUMNS, output)


@health.command("state")
def health_state(state: str, address: Address = "", datacenter: Datacenter = "", output: Output = Format.TABLE) -> None:
    """Checks with a status: passing, warning, critical, or any."""
    show(api(address, datacenter).get(f"/v1/health/state/{quote(state, safe='')}"), _CHECK_COLUMNS, output)
