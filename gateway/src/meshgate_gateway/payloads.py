"""Clear text, encrypted at rest under a key outside the store; elsewhere only a commitment."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshgate_gateway.errors import Unavailable
from meshgate_gateway.store import Transaction

SALT_BYTES = 32
NONCE_BYTES = 12  # AES-GCM's


@dataclass(frozen=True, slots=True)
class Commitment:
    """What records hold instead of clear text: the payload's id and HMAC-SHA-256(salt, bytes)."""

    payload_id: str
    hmac_sha256: str


class Payloads:
    """The `payloads` table. Erasing a row erases the text; the commitment still stands."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def put(self, tx: Transaction, data: bytes, codec: str = "raw") -> Commitment:
        """Stores bytes under a random id in the caller's transaction."""
        payload_id = "p" + secrets.token_hex(16)
        salt, nonce = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, data, payload_id.encode())
        tx.execute("INSERT INTO payloads VALUES (?, ?, ?, ?, ?)", (payload_id, codec, salt, nonce, sealed))
        return Commitment(payload_id, hmac.new(salt, data, hashlib.sha256).hexdigest())

    def get(self, tx: Transaction, payload_id: str) -> bytes:
        """The bytes of one id.

        Raises:
            Unavailable: erased, edited, or under another key.
        """
        rows = tx.execute("SELECT nonce, ciphertext FROM payloads WHERE id = ?", (payload_id,))
        if not rows:
            raise Unavailable("payload_missing", f"payload {payload_id} is not there")
        try:
            return self._cipher.decrypt(rows[0][0], rows[0][1], payload_id.encode())
        except InvalidTag as error:
            raise Unavailable("payload_unreadable", f"payload {payload_id} does not decrypt") from error
