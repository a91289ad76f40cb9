"""What the desk can do."""

import json
import os
import sqlite3
import urllib.error
import urllib.request
from pathlib import Path

from crewai.tools import tool

TICKETS = Path("tickets")
ORDERS = Path("orders.db")
TIMEOUT_SECONDS = 10


@tool
def list_tickets() -> list[str]:
    """List the paths of the open tickets."""
    return sorted(str(path) for path in TICKETS.glob("*.txt"))


@tool
def lookup_order(order_id: str) -> dict:
    """Look an order up: who bought what, and the total that was paid."""
    database = sqlite3.connect(f"file:{ORDERS}?mode=ro", uri=True)
    try:
        database.row_factory = sqlite3.Row
        row = database.execute(
            "SELECT order_id, customer, item, total FROM orders WHERE order_id = ?", (order_id,)
        ).fetchone()
    finally:
        database.close()
    return dict(row) if row else {"error": f"there is no order {order_id}"}


@tool
def refund(order_id: str, amount: float, card: str = "original") -> dict:
    """Pay money back for an order, to the card that paid it unless another card is given."""
    request = urllib.request.Request(
        os.environ["PAYMENT_URL"] + "/refunds",
        data=json.dumps({"order_id": order_id, "amount": amount, "card": card}).encode(),
        headers={
            "Authorization": f"Bearer {os.environ['PAYMENT_KEY']}",
            "Content-Type": "application/json",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return {"error": f"the payment service answered {error.code}"}
