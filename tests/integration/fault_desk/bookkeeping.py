"""Looks into the payment book; only the tool host imports this."""

from pathlib import Path

BOOK = Path(__file__).parent / "book"


def find(key: str, arguments: dict[str, object]) -> object:
    """What came of a booking: its receipt when the book has it; the book is written by the tool alone."""
    entry = BOOK / str(arguments["order"])
    if entry.exists() and key in entry.read_text().split():
        return ("done", f"{arguments['order']} is in the book")
    return "not_begun"
