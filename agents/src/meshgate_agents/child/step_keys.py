"""Deterministic keys of steps: the same program gives the same keys in every attempt. Pure."""

from __future__ import annotations

import hashlib
import json
import threading


class StepKeys:
    """Counts equal calls of one process; nothing that CrewAI draws at random enters a key.

    This version knows one scope, the program. Kickoff, task and agent scopes and turns come with
    durable runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}

    def next(self, kind: str, subject: str, content: object) -> str:
        """The key of the next step of that kind, subject and content."""
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        digest = _digest("program", kind, subject, text)
        with self._lock:
            occurrence = self._seen[digest] = self._seen.get(digest, 0) + 1
        return _digest(digest, str(occurrence))


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return digest.hexdigest()
