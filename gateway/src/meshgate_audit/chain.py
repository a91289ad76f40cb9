"""Canonical record bytes and the hash chain that binds them in order.

A record is a JSON object whose `seq` counts from 1, whose `prev` is the hash of the record
before it, and whose `hash` covers every other field. A chain shows edits, insertions and cuts
in the middle. It cannot show a tail that was cut off: for that, compare with a head that was
kept elsewhere (`verify(..., head=...)`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

GENESIS = "0" * 64
_DOMAIN = b"meshgate.record.v1\x00"
_PLAIN = frozenset({str, int, bool, type(None)})
# ASCII keys sort alike by code point and by UTF-16 unit, so sort_keys gives RFC 8785 order.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Head:
    """The newest record of a chain: its number and its hash."""

    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verifier found. `problem` is empty when the chain holds."""

    records: int
    head: Head
    problem: str

    @property
    def verified(self) -> bool:
        """True when no fault was found."""
        return not self.problem


def canonical(value: object) -> bytes:
    """RFC 8785 bytes of a record. Floats are refused: records never need them.

    Raises:
        ValueError: for a float, a key that is not ASCII text, or a lone surrogate.
    """
    _check(value)
    return _ENCODER.encode(value).encode()


def _check(value: object) -> None:
    if type(value) in _PLAIN:  # nearly every value: nothing more to ask, and this is done for each
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not (isinstance(key, str) and key.isascii()):
                raise ValueError("the keys of a record are ASCII text")
            _check(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check(inner)
    elif not (value is None or isinstance(value, str | int)):
        raise ValueError("a record holds text, whole numbers, booleans, null, lists and objects only")


def seal(body: Mapping[str, object], *, after: Head) -> tuple[Head, bytes]:
    """Appends a record to a chain: numbers it, links it and hashes it.

    Args:
        body: the record without `seq`, `prev` and `hash`.
        after: the head so far; `Head(0, GENESIS)` for the first record.

    Returns:
        The new head and the canonical bytes of the whole record.
    """
    linked = {**body, "seq": after.seq + 1, "prev": after.hash}
    digest = record_hash(linked)
    # Checked as `linked`; the hash that is added is hex.
    return Head(after.seq + 1, digest), _ENCODER.encode({**linked, "hash": digest}).encode()


def record_hash(linked: Mapping[str, object]) -> str:
    """Hash of a record that has `seq` and `prev` and has no `hash`; 64 hex digits."""
    return hashlib.sha256(_DOMAIN + canonical(linked)).hexdigest()


def verify(
    lines: Iterable[bytes], *, after: Head = Head(0, GENESIS), head: Head | None = None
) -> Verification:
    """Checks a chain from one end to the other.

    Args:
        lines: records in order, each the bytes of one JSON object.
        after: the head before the first line.
        head: a head known from elsewhere; without it a cut-off tail goes unnoticed.

    Returns:
        What was found; the first problem stops the check.
    """
    count = 0
    for line in lines:
        after, problem = _step(line, after)
        if problem:
            return Verification(count, after, problem)
        count += 1
        if head is not None and after.seq == head.seq and after.hash != head.hash:
            return Verification(count, after, f"record {after.seq} is not the one the known head names")
    if head is not None and after.seq < head.seq:
        return Verification(count, after, f"the log ends at record {after.seq}, the known head is {head.seq}")
    return Verification(count, after, "")


def _step(line: bytes, after: Head) -> tuple[Head, str]:  # noqa: PLR0911 - one return per fault
    expected = after.seq + 1
    try:
        record = json.loads(line)
    except ValueError:
        return after, f"record {expected} is not JSON"
    if not isinstance(record, dict):
        return after, f"record {expected} is not an object"
    claimed = record.pop("hash", None)
    if record.get("seq") != expected:
        return after, f"record {expected} is missing or out of order"
    if record.get("prev") != after.hash:
        return after, f"record {expected} does not follow the one before it"
    try:
        actual = record_hash(record)
    except (ValueError, RecursionError):
        return after, f"record {expected} cannot be hashed"
    if claimed != actual:
        return after, f"record {expected} was changed: its hash does not fit"
    return Head(expected, actual), ""
