"""One record links to the one before it. An edited, removed or inserted record breaks the chain.

A chain alone does not notice a tail that was cut off: signed checkpoints are a later part.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One entry as it is stored.

    Attributes:
        seq: 1 for the first, no gaps.
        body: the exact bytes that were hashed, JSON with `seq` and `prev` inside.
        hash: hex SHA-256 of the body.
    """

    seq: int
    body: bytes
    hash: str


def link(seq: int, prev: str, fields: Mapping[str, object]) -> AuditRecord:
    """Makes the record that follows `prev`. Every field lies inside the hash."""
    content = {**fields, "seq": seq, "prev": prev}
    body = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return AuditRecord(seq, body, hashlib.sha256(body).hexdigest())


def verify(records: Iterable[AuditRecord]) -> tuple[int, str | None]:
    """Walks the chain from its start.

    Returns:
        How many records were good, and the first problem or None.
    """
    prev, expected = GENESIS, 1
    for record in records:
        if hashlib.sha256(record.body).hexdigest() != record.hash:
            return expected - 1, f"record {record.seq} was edited"
        content = json.loads(record.body)
        if content.get("seq") != expected or record.seq != expected:
            return expected - 1, f"record {expected} is missing"
        if content.get("prev") != prev:
            return expected - 1, f"record {record.seq} does not follow the one before it"
        prev, expected = record.hash, expected + 1
    return expected - 1, None
