"""Three kinds of tools at one payment service: one reads, one takes the key, one must not run twice."""

from desk_client import ask


def _call(tool: str, order: str, *, keyed: bool = False) -> str:
    """First a quote, which is no effect, then the thing itself."""
    from meshgate_toolhost.context import idempotency_key

    call = idempotency_key()
    ask("quote", tool=tool, order=order, call=call)
    return str(ask("serve", key=call if keyed else None, tool=tool, order=order, call=call)["text"])


def look(order: str) -> str:
    """Look an order up."""
    return _call("look", order)


def keyed(order: str) -> str:
    """Pay an order under its key."""
    return _call("keyed", order, keyed=True)


def pay(order: str) -> str:
    """Pay an order."""
    return _call("pay", order)
