"""Clear text in one place: encrypted under a key outside the store, committed to with a salt."""

import hmac
import secrets
import time
import zlib
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshgate_gateway.errors import ConfigurationError, StoreUnavailable
from meshgate_gateway.model import Sealed
from meshgate_gateway.store import PayloadRow, Tables

KEY_BYTES = 32
_NONCE_BYTES = 12  # NIST SP 800-38D §8.2
_SALT_BYTES = 32
COMPRESS_FROM_BYTES = 4096  # below a page it saves nothing


def load_key(path: Path) -> bytes:
    """32 raw bytes or 64 hex digits.

    Raises:
        ConfigurationError: missing or of another size.
    """
    try:
        data = path.read_bytes()
        key = data if len(data) == KEY_BYTES else bytes.fromhex(data.decode().strip())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the payload key {path} cannot be read") from error
    if len(key) != KEY_BYTES:
        raise ConfigurationError(f"the payload key {path} is not {KEY_BYTES} bytes")
    return key


def commitment(salt: bytes, data: bytes) -> str:
    """HMAC-SHA-256(salt, data), hex: proves equality to who holds the salt, tells nothing else."""
    return hmac.digest(salt, data, "sha256").hex()


class Vault:
    """Seals and opens payloads. Safe for threads."""

    def __init__(self, *, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._likeness_key = hmac.digest(key, b"meshgate likeness v1", "sha256")

    def put(self, tables: Tables, data: bytes, *, keep: bool = True) -> Sealed:
        """Stores `data` encrypted; with `keep=False` only its commitment."""
        payload_id = _new_id()
        salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
        codec = "zlib" if len(data) >= COMPRESS_FROM_BYTES else "raw"
        packed = zlib.compress(data, 1) if codec == "zlib" else data
        sealed = self._cipher.encrypt(nonce, packed, payload_id.encode()) if keep else None
        tables.payloads.put(PayloadRow(payload_id, codec, salt, nonce, sealed))
        return Sealed(payload_id, commitment(salt, data), len(data))

    def get(self, tables: Tables, sealed: Sealed) -> bytes:
        """The clear text again.

        Raises:
            StoreUnavailable: it was erased, or does not decrypt under our key.
        """
        row = tables.payloads.get(sealed.payload_id)
        if row is None or row.data is None:
            raise StoreUnavailable(detail=f"payload {sealed.payload_id} is not there")
        try:
            packed = self._cipher.decrypt(row.nonce, row.data, row.id.encode())
            data = _unpacked(packed, sealed.size_bytes) if row.codec == "zlib" else packed
        except (InvalidTag, zlib.error) as error:
            raise StoreUnavailable(detail=f"payload {sealed.payload_id} does not decrypt") from error
        if not hmac.compare_digest(commitment(row.salt, data), sealed.commitment):
            raise StoreUnavailable(detail=f"payload {sealed.payload_id} is not what was committed to")
        return data

    def salt(self, tables: Tables, sealed: Sealed) -> bytes:
        """What proves to others that a clear text is the one that was committed to; empty once erased."""
        row = tables.payloads.get(sealed.payload_id)
        return b"" if row is None else row.salt

    def kept(self, tables: Tables, sealed: Sealed) -> bool:
        """False when only the commitment is there."""
        row = tables.payloads.get(sealed.payload_id)
        return row is not None and row.data is not None

    def likeness(self, *parts: bytes) -> str:
        """Equal for equal parts; tells nothing to who does not hold the key."""
        joined = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return commitment(self._likeness_key, joined)

    def matches(self, tables: Tables, sealed: Sealed, data: bytes) -> bool:
        """True when `data` is what was sealed; needs the salt only."""
        row = tables.payloads.get(sealed.payload_id)
        return row is not None and hmac.compare_digest(commitment(row.salt, data), sealed.commitment)


def _new_id() -> str:
    """32 hex digits that sort by when they were made: what a step stores then lies on a few pages.

    Nothing depends on the order; 80 bits of it are random.
    """
    milliseconds = time.time_ns() // 1_000_000 % (1 << 48)
    return f"{milliseconds:012x}{secrets.token_hex(10)}"


def _unpacked(packed: bytes, size_bytes: int) -> bytes:
    """At most as much as was sealed: what a codec claims is not believed."""
    return zlib.decompressobj().decompress(packed, size_bytes + 1)
