"""What a tool may ask of the host while it runs.

from meshgate_toolhost.context import idempotency_key

def refund(order: str, amount: int) -> str:
    return payments.refund(order, amount, key=idempotency_key())
"""

from contextvars import ContextVar

_KEY: ContextVar[str | None] = ContextVar("meshgate_idempotency_key", default=None)


def idempotency_key() -> str | None:
    """The key of the call under way: the same whenever this call is run again; None outside a call."""
    return _KEY.get()


def set_idempotency_key(key: str) -> None:
    """For the host alone: sets the key in the current context."""
    _KEY.set(key)
