"""Shell: asks the recursors, in order, over UDP and where needed TCP."""

import asyncio
import random
import struct
from collections.abc import Sequence

from mesh_agent.dns.recursion import Server, is_answer_to, is_final, is_truncated, parse_recursor
from mesh_agent.errors import Unreachable


class _OneAnswer(asyncio.DatagramProtocol):
    """Waits for the datagram that answers `query`; others (late, forged) are ignored."""

    def __init__(self, query: bytes, answer: asyncio.Future[bytes]) -> None:
        self._query = query
        self._answer = answer

    def datagram_received(self, data: bytes, addr: tuple[str | bytes, int]) -> None:
        if not self._answer.done() and is_answer_to(data, self._query):
            self._answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc)


class Recursor:
    """Forwards queries to other DNS servers. ConfigError if one of `recursors` is no address."""

    def __init__(self, recursors: Sequence[str], *, timeout_s: float, rng: random.Random) -> None:
        self.servers = [parse_recursor(text) for text in recursors]
        self._timeout_s = timeout_s
        self._rng = rng

    async def ask(self, query: bytes, *, tcp: bool) -> bytes:
        """The first useful answer, with the id of `query`. Each recursor gets `timeout_s`. Unreachable when none answers."""
        sent = self._rng.getrandbits(16).to_bytes(2, "big") + query[2:]
        fallback: bytes | None = None
        reasons: list[str] = []
        for server in self.servers:
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await self._ask_one(server, sent, tcp)
            except TimeoutError:
                reasons.append(f"{server} did not answer within {self._timeout_s:g} s")
            except (OSError, EOFError) as error:
                reasons.append(f"{server}: {error}")
            else:
                answer = query[:2] + answer[2:]
                if is_final(answer):
                    return answer
                fallback = answer
        if fallback is not None:
            return fallback
        raise Unreachable("no recursor answered: " + "; ".join(reasons))

    async def _ask_one(self, server: Server, query: bytes, tcp: bool) -> bytes:
        answer = await _over_udp(server, query)
        # A UDP client gets the truncated answer and comes again over TCP; a TCP client must have it whole.
        return await _over_tcp(server, query) if tcp and is_truncated(answer) else answer


async def _over_udp(server: Server, query: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _OneAnswer(query, answer), remote_addr=(server.host, server.port)
    )
    try:
        transport.sendto(query)
        return await answer
    finally:
        transport.close()


async def _over_tcp(server: Server, query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(struct.pack("!H", len(query)) + query)
        while True:
            size = int.from_bytes(await reader.readexactly(2), "big")
            answer = await reader.readexactly(size)
            if is_answer_to(answer, query):
                return answer
    finally:
        writer.close()
