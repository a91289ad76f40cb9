"""A tool."""


def refund(order: str) -> str:
    """Pay an order back."""
    return order
