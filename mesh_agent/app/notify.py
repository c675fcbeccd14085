"""Tell systemd how we are: the sd_notify(3) protocol, one datagram to $NOTIFY_SOCKET; without the variable nothing happens."""

import os
import socket


def notify(state: str) -> None:
    """Send `state`, such as READY=1, RELOADING=1 or STOPPING=1."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
        peer.connect(address)
        peer.send(state.encode())
