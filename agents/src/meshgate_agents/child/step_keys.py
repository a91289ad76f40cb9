"""Step keys: the same step of the same program has the same key in every attempt. Pure.

A key is a hash of (scope, turn, kind, content, occurrence). Nothing that is drawn at random or
that depends on the order of arrival enters.
"""

import hashlib
from collections.abc import Iterable

VERSION = b"meshgate.step.v1"


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 over length-prefixed parts, so that no two lists of parts collide by joining.

    Returns:
        64 lower-case hex digits.
    """
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.hexdigest()


def content_digest(*, subject: str, content: bytes) -> str:
    """What a step is about: `subject` names the tool or model, `content` its canonical input."""
    return digest([subject.encode("utf-8", "surrogatepass"), content])


def step_key(*, scope: Iterable[str], turn: int, kind: str, content: str, occurrence: str) -> str:
    """The key of one step.

    Args:
        scope: openings from the program down, each a stable text.
        turn: model replies so far in the scope.
        kind: `tool`, `model` or `delegate`, or what is done with memory.
        content: from `content_digest`.
        occurrence: tells equal steps of a turn apart: the model's tool-call id where there is
            one, else the position among the equal ones.

    Returns:
        64 lower-case hex digits.
    """
    path = [opening.encode("utf-8", "surrogatepass") for opening in scope]
    return digest(
        [
            VERSION,
            str(len(path)).encode(),
            *path,
            str(turn).encode(),
            kind.encode(),
            content.encode(),
            occurrence.encode("utf-8", "surrogatepass"),
        ]
    )
