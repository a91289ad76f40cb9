"""What a tool may know of the call it serves."""

from contextvars import ContextVar

_key: ContextVar[str] = ContextVar("meshgate_idempotency_key", default="")


def idempotency_key() -> str:
    """The call's stable key, to hand to a back end that takes one; empty outside a call."""
    return _key.get()


def set_idempotency_key(key: str) -> None:
    """Sets the key for the code that runs in this context."""
    _key.set(key)
