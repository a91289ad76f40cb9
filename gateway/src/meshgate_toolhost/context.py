"""What a tool may ask of the host while it runs.

from meshgate_toolhost.context import idempotency_key

def refund(order: str, amount: int) -> str:
    return payments.refund(order, amount, key=idempotency_key())
"""

from contextvars import ContextVar

HEADER = "Idempotency-Key"

_KEY: ContextVar[str | None] = ContextVar("meshgate_idempotency_key", default=None)


def idempotency_key() -> str | None:
    """The key of the call under way: the same whenever this call is run again; None outside a call."""
    return _KEY.get()


def idempotency_headers() -> dict[str, str]:
    """The key as a header of an HTTP request that changes something; empty outside a call.

    Not in quotes, as payment services take it, so that they know it by the same text as `reconcile` does.
    """
    key = _KEY.get()
    return {HEADER: key} if key else {}


def set_idempotency_key(key: str) -> None:
    """For the host alone: sets the key in the current context."""
    _KEY.set(key)
