"""Tools that write each effect to a file per order, and that a test can hold in mid-body."""

import time
from pathlib import Path

HERE = Path(__file__).parent
POLL_SECONDS = 0.02


def _effect(order: str) -> None:
    """One line: the idempotency key under which this body ran."""
    from meshgate_toolhost.context import idempotency_key

    with (HERE / "effects" / order).open("a") as file:
        file.write(f"{idempotency_key()}\n")
    while (HERE / "hold" / order).exists():
        time.sleep(POLL_SECONDS)


def lookup(order: str) -> str:
    """Look an order up."""
    _effect(order)
    return f"{order} costs 20"


def keyed(order: str) -> str:
    """Pay an order under its key."""
    _effect(order)
    return f"{order} keyed"


def pay(order: str) -> str:
    """Pay an order."""
    _effect(order)
    return f"{order} paid"


def book(order: str) -> str:
    """Pay by an entry in the payment book, which a test can hold before and after it."""
    from meshgate_toolhost.context import idempotency_key

    _effect(order)
    with (HERE / "book" / order).open("a") as file:
        file.write(f"{idempotency_key()}\n")
    while (HERE / "hold" / f"{order}-booked").exists():
        time.sleep(POLL_SECONDS)
    return f"{order} booked"


def broken(order: str) -> str:
    """Raise."""
    _effect(order)
    raise ValueError(f"no such order {order}")


def big(order: str) -> str:
    """Return 10 MB."""
    _effect(order)
    return "x" * 10_000_000


def slow(order: str) -> str:
    """Read, and not in time."""
    _effect(order)
    return f"{order} at last"


def stuck(order: str) -> str:
    """Pay, and not in time."""
    _effect(order)
    return f"{order} paid at last"
