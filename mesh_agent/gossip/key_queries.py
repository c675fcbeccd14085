"""Queries about the keyring: what is asked of each member, what it answers, and what all of them said. Pure. Fields and numbers are serf's: append only."""

from collections import Counter
from dataclasses import dataclass

from mesh_agent.errors import RemoteProtocolError
from mesh_agent.gossip.effects import QueryResponse
from mesh_agent.gossip.fields import items, pack, raw, text, to_text, unpack
from mesh_agent.gossip.serf_wire import KEY_REQUEST, KEY_RESPONSE


def encode_key_request(key: bytes) -> bytes:
    """Payload of a key query."""
    return bytes([KEY_REQUEST]) + pack({"Key": key})


def decode_key_request(payload: bytes) -> bytes:
    """The key of a key query."""
    if payload[:1] != bytes([KEY_REQUEST]):
        raise RemoteProtocolError("not a key request")
    return raw(unpack(payload[1:]), "Key")


def encode_keys(keys: list[str], primary: str, largest_bytes: int) -> bytes:
    """Answer to a question for the keys: as many as fit, and a word if they are not all."""
    for count in range(len(keys), -1, -1):
        note = "" if count == len(keys) else f"truncated key list response, showing first {count} of {len(keys)} keys"
        answer = encode_key_response(result=True, message=note, keys=keys[:count], primary=primary)
        if len(answer) <= largest_bytes:
            break
    return answer


def encode_key_response(*, result: bool, message: str = "", keys: list[str] | None = None, primary: str = "") -> bytes:
    """Answer to a key query."""
    return bytes([KEY_RESPONSE]) + pack(
        {"Result": result, "Message": message, "Keys": keys or None, "PrimaryKey": primary}
    )


@dataclass(frozen=True, slots=True)
class KeyResponse:
    """What one member says of its keyring."""

    result: bool
    message: str
    keys: tuple[str, ...]
    primary: str


def decode_key_response(payload: bytes) -> KeyResponse:
    """Read an answer to a key query."""
    if payload[:1] != bytes([KEY_RESPONSE]):
        raise RemoteProtocolError("not a key response")
    fields = unpack(payload[1:])
    keys = tuple(to_text(key) for key in items(fields, "Keys"))
    return KeyResponse(bool(fields.get("Result")), text(fields, "Message"), keys, text(fields, "PrimaryKey"))


@dataclass(frozen=True, slots=True)
class KeyringAnswer:
    """Members asked and heard, errors by member, and per key how many have it, or have it as primary."""

    members: int
    heard: int
    errors: dict[str, str]
    keys: dict[str, int]
    primary_keys: dict[str, int]


def tally(members: int, responses: list[QueryResponse]) -> KeyringAnswer:
    """Count the answers of `members` members; one that cannot be read is an error of its sender."""
    errors: dict[str, str] = {}
    keys: Counter[str] = Counter()
    primary_keys: Counter[str] = Counter()
    for response in responses:
        try:
            said = decode_key_response(response.payload)
        except RemoteProtocolError as error:
            errors[response.node] = str(error)
            continue
        if not said.result:
            errors[response.node] = said.message
        keys.update(said.keys)
        if said.primary:
            primary_keys[said.primary] += 1
    return KeyringAnswer(members, len(responses), errors, dict(keys), dict(primary_keys))
