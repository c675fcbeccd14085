"""Packets captured from real serf agents decode, and what we encode again decodes to the same."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mesh_agent.gossip import layers, wire
from mesh_agent.gossip.keyring import Keyring

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "gossip_vectors.json").read_text())


def codec(vector: dict[str, Any]) -> layers.Codec:
    keyring = Keyring([base64.b64decode(vector["key"])]) if vector.get("key") else None
    return layers.Codec(keyring, os.urandom, compress_datagrams="compress" in vector["contains"])


def leaves(decoded: dict[str, Any]) -> list[dict[str, Any]]:
    """The innermost messages of a captured packet's decoding."""
    if decoded["type"] == "compound":
        return [leaf for part in decoded["parts"] for leaf in leaves(part)]
    return leaves(decoded["inner"]) if "inner" in decoded else [decoded]


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["kind"] == "packet"], ids=lambda v: str(v["id"]))
def test_a_captured_datagram_decodes_and_encodes_again(vector: dict[str, Any]) -> None:
    found = codec(vector).decode_packet(bytes.fromhex(vector["hex"]))
    wanted = leaves(vector["decoded"])
    names = {
        wire.Ping: "ping", wire.IndirectPing: "indirect-ping", wire.Ack: "ack", wire.Nack: "nack",
        wire.Suspect: "suspect", wire.Alive: "alive", wire.Dead: "dead", wire.User: "user",
    }  # fmt: skip
    assert [names[type(message)] for message in found] == [leaf["type"] for leaf in wanted]
    for message, leaf in zip(found, wanted, strict=True):
        for attribute, key in (
            ("node", "Node"),
            ("seq", "SeqNo"),
            ("incarnation", "Incarnation"),
            ("accuser", "From"),
            ("address", "Addr"),
        ):
            if hasattr(message, attribute) and key in leaf:
                assert getattr(message, attribute) == leaf[key]
    again = codec(vector).encode_packet([wire.encode(message) for message in found], crc="crc" in vector["contains"])
    assert codec(vector).decode_packet(again) == found


@pytest.mark.parametrize(
    "vector",
    [v for v in VECTORS if v["kind"] == "packet" and len(v["contains"]) == 1 and not v.get("key")],
    ids=lambda v: str(v["id"]),
)
def test_a_plain_single_message_encodes_to_the_very_same_bytes(vector: dict[str, Any]) -> None:
    datagram = bytes.fromhex(vector["hex"])
    (message,) = codec(vector).decode_packet(datagram)
    assert wire.encode(message) == datagram


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["kind"] == "stream"], ids=lambda v: str(v["id"]))
def test_a_captured_stream_decodes_only_when_whole_and_encodes_again(vector: dict[str, Any]) -> None:
    received = bytes.fromhex(vector["hex"])
    whole = codec(vector).decode_stream(received)
    assert whole is not None
    for cut in {1, 3, 7, len(received) // 2, len(received) - 1}:
        assert codec(vector).decode_stream(received[:cut]) is None
    if isinstance(whole, wire.PushPull):
        decoded = vector["decoded"]
        assert [entry.node for entry in whole.entries] == [node["Name"] for node in decoded["nodes"]]
        assert whole.join == decoded["header"]["Join"]
        assert codec(vector).decode_stream(codec(vector).encode_stream(wire.encode_push_pull(whole))) == whole
