"""Failures of the gateway.

    GatewayError
    ├── Refused       the request is wrong or not the caller's to make; recorded, no effect
    │   ├── Malformed     it cannot be read
    │   ├── NotFound      it names nothing that exists
    │   └── Conflict      the state does not allow it (superseded, settled, other arguments)
    └── Unavailable   no verdict: store, engine, Dapr or ourselves; nothing ran

A denial by policy is a value (`decide.Deny`), not an exception.
"""


class GatewayError(Exception):
    """Root of the tree.

    Attributes:
        reason: stable id.
        detail: one line for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Refused(GatewayError):
    """Not the caller's to make."""


class Malformed(Refused):
    """Cannot be read."""


class NotFound(Refused):
    """Names nothing that exists."""


class Conflict(Refused):
    """The state does not allow it."""


class Unavailable(GatewayError):
    """No verdict; the caller asks again with the same key."""
