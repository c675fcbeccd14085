"""Gossip encryption: AES-GCM with a ring of keys, the first of which encrypts. Layout of a block: version u8, nonce 12, ciphertext, tag 16.

Version 1 (sent) has no padding, version 0 (accepted) is padded to 16 bytes as in PKCS #7. AES-128, 192 or 256 by the length of the key.
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh_agent.errors import InvalidRequest, RemoteProtocolError

OVERHEAD = 29
_NONCE, _TAG = 12, 16


class Keyring:
    """An ordered list of keys; the first is the primary key."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys = list(dict.fromkeys(keys))
        if not self._keys:
            raise InvalidRequest("a keyring needs at least one key")
        for key in self._keys:
            _check(key)
        self._ciphers = {key: AESGCM(key) for key in self._keys}

    @classmethod
    def from_base64(cls, keys: Iterable[str]) -> "Keyring":
        """A ring of keys in base64."""
        return cls(decode_key(key) for key in keys)

    @classmethod
    def from_json(cls, text: str) -> "Keyring":
        """A ring as serf and Consul keep it in a file: a JSON array of base64, primary first."""
        try:
            keys = json.loads(text)
        except ValueError as error:
            raise InvalidRequest(f"not a keyring file: {error}") from error
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise InvalidRequest("not a keyring file: expected a JSON array of base64 keys")
        return cls.from_base64(keys)

    def to_json(self) -> str:
        """The ring for a file."""
        return json.dumps(self.keys(), indent=2) + "\n"

    def keys(self) -> list[str]:
        """Every key in base64, primary first."""
        return [base64.b64encode(key).decode() for key in self._keys]

    @property
    def primary(self) -> str:
        """The key that encrypts, in base64."""
        return base64.b64encode(self._keys[0]).decode()

    def install(self, key: bytes) -> None:
        """Accept one more key."""
        _check(key)
        if key not in self._ciphers:
            self._keys.append(key)
            self._ciphers[key] = AESGCM(key)

    def use(self, key: bytes) -> None:
        """Encrypt with a key that is in the ring."""
        if key not in self._ciphers:
            raise InvalidRequest("Requested key is not in the keyring")
        self._keys.remove(key)
        self._keys.insert(0, key)

    def remove(self, key: bytes) -> None:
        """Forget a key that is not the primary one; an unknown key is no error."""
        if key == self._keys[0]:
            raise InvalidRequest("Removing the primary key is not allowed")
        if key in self._ciphers:
            self._keys.remove(key)
            del self._ciphers[key]

    def encrypt(self, plain: bytes, associated: bytes, random_bytes: Callable[[int], bytes]) -> bytes:
        """A version 1 block under the primary key."""
        nonce = random_bytes(_NONCE)
        return b"\x01" + nonce + self._ciphers[self._keys[0]].encrypt(nonce, plain, associated)

    def decrypt(self, block: bytes, associated: bytes) -> bytes:
        """What a block holds; RemoteProtocolError if no key opens it."""
        if len(block) < 1 + _NONCE + _TAG or block[0] not in (0, 1):
            raise RemoteProtocolError("not an encrypted message")
        for key in self._keys:
            try:
                plain = self._ciphers[key].decrypt(block[1 : 1 + _NONCE], block[1 + _NONCE :], associated)
            except InvalidTag:
                continue
            return plain if block[0] == 1 else _unpad(plain)
        raise RemoteProtocolError("no key of the keyring opens this message")


def decode_key(text: str) -> bytes:
    """A key from base64; InvalidRequest if it is none."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"the key is not valid base64: {error}") from error
    _check(key)
    return key


def _check(key: bytes) -> None:
    if len(key) not in (16, 24, 32):
        raise InvalidRequest(f"a key is 16, 24 or 32 bytes long, not {len(key)}; `mesh keygen` makes one")


def _unpad(plain: bytes) -> bytes:
    size = plain[-1] if plain else 0
    if not 1 <= size <= 16 or size > len(plain):
        raise RemoteProtocolError("broken padding")
    return plain[:-size]
