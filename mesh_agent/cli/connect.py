"""`mesh intention`, `mesh ca`: who may talk to whom, and who vouches for them."""

from typing import Annotated
from urllib.parse import quote

import typer

from mesh_agent.cli.options import Address, Output, api
from mesh_agent.cli.output import Format, say, show

intention = typer.Typer(no_args_is_help=True, help="Which service may talk to which.")
ca = typer.Typer(no_args_is_help=True, help="The certificate authority and identities.")
_COLUMNS = ["Source", "Destination", "Action", "Precedence", "Description"]


def register(app: typer.Typer) -> None:
    """Add the groups."""
    app.add_typer(intention, name="intention")
    app.add_typer(ca, name="ca")


def _row(found: dict[str, object]) -> dict[str, object]:
    return {
        "Source": found["SourceName"],
        "Destination": found["DestinationName"],
        "Action": found["Action"],
        "Precedence": found.get("Precedence", ""),
        "Description": found.get("Description", ""),
    }


@intention.command("list")
def intention_list(address: Address = "", output: Output = Format.TABLE) -> None:
    """Every intention, the most specific first."""
    found = api(address).get("/v1/connect/intentions")
    show([_row(entry) for entry in found], _COLUMNS, output, found)


def _put(source: str, destination: str, action: str, description: str, address: str) -> None:
    body = {"SourceName": source, "DestinationName": destination, "Action": action, "Description": description}
    api(address).put("/v1/connect/intentions/exact", body, source=source, destination=destination)
    say(f"{source} → {destination}: {action}")


@intention.command("allow")
def intention_allow(
    source: str, destination: str, description: Annotated[str, typer.Option(help="Why.")] = "", address: Address = ""
) -> None:
    """Let SOURCE talk to DESTINATION (either may be '*')."""
    _put(source, destination, "allow", description, address)


@intention.command("deny")
def intention_deny(
    source: str, destination: str, description: Annotated[str, typer.Option(help="Why.")] = "", address: Address = ""
) -> None:
    """Refuse SOURCE to talk to DESTINATION (either may be '*')."""
    _put(source, destination, "deny", description, address)


@intention.command("delete")
def intention_delete(source: str, destination: str, address: Address = "") -> None:
    """Forget what was said of a pair; a more general intention or the default decides then."""
    api(address).delete("/v1/connect/intentions/exact", source=source, destination=destination)
    say(f"{source} → {destination}: deleted")


@intention.command("check")
def intention_check(source: str, destination: str, address: Address = "") -> None:
    """Would a connection be allowed? Exit code 0 yes, 1 no."""
    allowed = api(address).get("/v1/connect/intentions/check", source=source, destination=destination)["Allowed"]
    say("allowed" if allowed else "denied")
    raise typer.Exit(0 if allowed else 1)


@intention.command("match")
def intention_match(
    name: str,
    by: Annotated[str, typer.Option(help="source or destination")] = "destination",
    address: Address = "",
    output: Output = Format.TABLE,
) -> None:
    """Intentions that bear on a service."""
    found = api(address).get("/v1/connect/intentions/match", by=by, name=name)
    show([_row(entry) for entries in found.values() for entry in entries or []], _COLUMNS, output, found)


@ca.command("roots")
def ca_roots(address: Address = "", output: Output = Format.TABLE) -> None:
    """The trust bundle: the roots of all datacenters."""
    found = api(address).get("/v1/connect/ca/roots")
    rows = [
        {
            **root,
            "Active": "active" if root["Active"] else "",
            "Fingerprint": root.get("RootCertFingerprint", root["ID"]),
        }
        for root in found["Roots"]
    ]
    show(rows, ["Name", "Active", "NotAfter", "Fingerprint"], output, found)


@ca.command("leaf")
def ca_leaf(service: str, address: Address = "", output: Output = Format.YAML) -> None:
    """The certificate that this agent holds for a service (its private key is not printed)."""
    found = api(address).get(f"/v1/agent/connect/ca/leaf/{quote(service, safe='')}")
    found.pop("PrivateKeyPEM", None)
    rows = [{"Identity": found["ServiceURI"], **found}]
    show(rows, ["Identity", "SerialNumber", "ValidAfter", "ValidBefore"], output, found)
