"""Tools that write each effect to a file per order, and that a test can hold in mid-body."""

import time
from pathlib import Path

HERE = Path(__file__).parent


def _effect(order: str) -> None:
    from meshgate_toolhost.context import idempotency_key

    with (HERE / "effects" / order).open("a") as file:
        file.write(f"{idempotency_key()}\n")
    while (HERE / "hold" / order).exists():
        time.sleep(0.02)


def lookup(order: str) -> str:
    """Look an order up."""
    _effect(order)
    return f"{order} costs 20"


def pay(order: str) -> str:
    """Pay an order."""
    _effect(order)
    return f"{order} paid"
