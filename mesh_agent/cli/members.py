"""`mesh members`, `join`, `leave`, `force-leave`, `reload`, `info`, `keyring`: the agent itself and its pools."""

from typing import Annotated
from urllib.parse import quote

import typer

from mesh_agent.cli.options import Address, Output, api
from mesh_agent.cli.output import Format, dump, say, show

_STATUS = {0: "none", 1: "alive", 2: "leaving", 3: "left", 4: "failed"}
keyring = typer.Typer(no_args_is_help=True, help="Gossip encryption keys of the pools.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("members")(members)
    app.command("join")(join)
    app.command("leave")(leave)
    app.command("force-leave")(force_leave)
    app.command("reload")(reload)
    app.command("info")(info)
    app.add_typer(keyring, name="keyring")


def members(
    wan: Annotated[bool, typer.Option("--wan", help="The servers of all datacenters.")] = False,
    address: Address = "",
    output: Output = Format.TABLE,
) -> None:
    """List the members of the LAN (or WAN) pool."""
    found = api(address).get("/v1/agent/members", wan="1" if wan else "")
    rows = [
        {
            "Node": member["Name"],
            "Address": f"{member['Addr']}:{member['Port']}",
            "Status": _STATUS.get(member["Status"], str(member["Status"])),
            "Type": "server" if member["Tags"].get("role") == "consul" else "client",
            "Build": member["Tags"].get("build", "").partition(":")[0],
            "DC": member["Tags"].get("dc", ""),
        }
        for member in found
    ]
    rows.sort(key=lambda row: (row["DC"], row["Type"] != "server", row["Node"]))
    show(rows, ["Node", "Address", "Status", "Type", "Build", "DC"], output, found)


def join(
    target: Annotated[str, typer.Argument(help="Address of a member, host or host:port.")],
    wan: Annotated[bool, typer.Option("--wan", help="Join the WAN pool (servers).")] = False,
    address: Address = "",
) -> None:
    """Join a pool through one of its members."""
    api(address).put(f"/v1/agent/join/{quote(target, safe='')}", wan="1" if wan else "")
    say(f"joined {target}")


def leave(address: Address = "") -> None:
    """Leave the mesh gracefully and stop the agent."""
    api(address).put("/v1/agent/leave")
    say("the agent has left")


def force_leave(
    node: str,
    prune: Annotated[bool, typer.Option("--prune", help="Forget the member at once.")] = False,
    address: Address = "",
) -> None:
    """Declare a failed member as left, so that its services go away."""
    api(address).put(f"/v1/agent/force-leave/{quote(node, safe='')}", prune="1" if prune else "")
    say(f"{node} has been told off")


def reload(address: Address = "") -> None:
    """Read the service definitions of the agent's services_dir again."""
    api(address).put("/v1/agent/reload")
    say("reloaded")


def info(address: Address = "", output: Output = Format.YAML) -> None:
    """What the agent says of itself."""
    dump(api(address).get("/v1/agent/self"), output)


@keyring.command("list")
def keyring_list(address: Address = "", output: Output = Format.TABLE) -> None:
    """The keys in use in every pool, and how many members hold each."""
    found = api(address).get("/v1/operator/keyring")
    rows = [
        {
            "Pool": "WAN" if pool.get("WAN") else "LAN",
            "DC": pool.get("Datacenter", ""),
            "Key": _short(key),
            "Members": f"{count}/{pool.get('NumNodes', '?')}",
            "Primary": "primary" if key in pool.get("PrimaryKeys", {}) else "",
        }
        for pool in found
        for key, count in pool.get("Keys", {}).items()
    ]
    show(rows, ["Pool", "DC", "Key", "Members", "Primary"], output, found)


@keyring.command("install")
def keyring_install(key: str, address: Address = "") -> None:
    """Give every member a further key."""
    api(address).post("/v1/operator/keyring", {"Key": key})
    say("installed")


@keyring.command("use")
def keyring_use(key: str, address: Address = "") -> None:
    """Encrypt with this key from now on; it must be installed everywhere."""
    api(address).put("/v1/operator/keyring", {"Key": key})
    say("in use")


@keyring.command("remove")
def keyring_remove(key: str, address: Address = "") -> None:
    """Take a key that is not in use from every member."""
    api(address).delete("/v1/operator/keyring", {"Key": key})
    say("removed")


def _short(key: str) -> str:
    """Enough of a key to tell it from others, and no more: a terminal is no place for a secret."""
    return f"{key[:6]}…"
