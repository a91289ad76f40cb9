"""The payment service: keeps its own book of what took effect, and knows nothing of agents.

`python -m meshgate_deploy.refund_desk.payments --book FILE --ready-file FILE`, with the key that
callers must show in PAYMENT_KEY.
"""

import argparse
import hmac
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meshgate_deploy.refund_desk.loopback import Answer, LoopbackServer, Request, serve_until_parent_is_gone
from meshgate_deploy.refund_desk.seed import Payment

MAX_AMOUNT = 1e9  # far above any order; keeps a sum of cents exact in a float
_TABLE = """
CREATE TABLE IF NOT EXISTS book (
    number INTEGER PRIMARY KEY,
    order_id TEXT NOT NULL,
    cents INTEGER NOT NULL,
    card TEXT NOT NULL,
    idempotency_key TEXT UNIQUE
)"""


class PaymentService:
    """Pays, and writes each payment down before it answers.

    A request with an `Idempotency-Key` that the book holds gets the first payment's answer and has
    no effect of its own; without the header every request is a payment.
    """

    def __init__(self, *, book: Path, key: str) -> None:
        self._key = key
        self._lock = threading.Lock()
        self._database = sqlite3.connect(book, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute(_TABLE)

    def respond(self, request: Request) -> Answer:
        """Answers one HTTP request."""
        shown = request.headers.get("authorization", "")
        if not hmac.compare_digest(shown.encode(), f"Bearer {self._key}".encode()):
            return 401, {"error": "the payment key is wrong"}
        if (request.method, request.path) != ("POST", "/refunds"):
            return 404, {"error": "no such path"}
        try:
            payment = _payment(request.body)
        except (KeyError, TypeError, ValueError) as error:
            return 422, {"error": f"not a refund: {error}"}
        return 200, self._pay(payment, request.headers.get("idempotency-key"))

    def _pay(self, payment: Payment, key: str | None) -> dict[str, Any]:
        with self._lock:
            earlier = self._database.execute(
                "SELECT number, order_id, cents, card FROM book WHERE idempotency_key = ?", (key,)
            ).fetchone()
            if earlier:
                return _answer(earlier[0], Payment(*earlier[1:]))
            number = self._database.execute(
                "INSERT INTO book (order_id, cents, card, idempotency_key) VALUES (?, ?, ?, ?)",
                (payment.order_id, payment.cents, payment.card, key),
            ).lastrowid
        return _answer(number, payment)


def read_book(book: Path) -> list[Payment]:
    """Every payment, in the order in which they were made."""
    database = sqlite3.connect(f"file:{book}?mode=ro", uri=True)
    try:
        rows = database.execute("SELECT order_id, cents, card FROM book ORDER BY number").fetchall()
    finally:
        database.close()
    return [Payment(*row) for row in rows]


def _payment(body: Any) -> Payment:
    amount = body["amount"]
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < MAX_AMOUNT:
        raise ValueError("amount is no sum of money")
    return Payment(str(body["order_id"]), round(amount * 100), str(body.get("card", "original")))


def _answer(number: int | None, payment: Payment) -> dict[str, Any]:
    return {
        "refund": f"R-{number}",
        "order_id": payment.order_id,
        "amount": payment.cents / 100,
        "card": payment.card,
        "status": "paid",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until the parent is gone."""
    parser = argparse.ArgumentParser(description="The refund desk's payment service.")
    parser.add_argument("--book", type=Path, required=True)
    parser.add_argument("--ready-file", type=Path, required=True)
    options = parser.parse_args(arguments)
    service = PaymentService(book=options.book, key=os.environ["PAYMENT_KEY"])
    serve_until_parent_is_gone(LoopbackServer(service.respond), ready_file=options.ready_file)


if __name__ == "__main__":
    main()
