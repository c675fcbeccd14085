"""Ports that a process of a test will listen on later."""

import itertools
import secrets
import socket

_FIRST, _LAST = 20000, 32000
"""Below the ports that the kernel gives to clients: nobody's outgoing connection takes one between here and its use."""
_numbers = itertools.cycle(range(_FIRST, _LAST))
for _ in range(secrets.randbelow(_LAST - _FIRST)):  # two runs on one machine begin at different places
    next(_numbers)


def free_port() -> int:
    """A TCP port of loopback on which nobody listens, and which this run gives out once."""
    for port in _numbers:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable")
