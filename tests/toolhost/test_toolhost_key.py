"""The key of a call as an HTTP tool sends it."""

from contextvars import copy_context

from meshgate_toolhost import context

TOOLS = '''
    from http.client import HTTPConnection
    from meshgate_toolhost.context import idempotency_headers

    def refund(order: str, port: int) -> str:
        """Give money back over HTTP."""
        bank = HTTPConnection("127.0.0.1", port, timeout=20)
        bank.request("POST", "/refunds", body=order, headers=idempotency_headers())
        return bank.getresponse().read().decode()
'''


def test_the_key_reaches_the_service(start, project, bank) -> None:
    """One header, the same whenever the call is run again, another for another call."""
    module = project.write(TOOLS)
    host = start(project.load(f"{module}:refund"))
    arguments = {"order": "A1", "port": bank.server_port}
    call_id = host.put("orders.refund", arguments, idempotent=True)
    host.invoker.invoke(call_id)
    host.call("orders.refund", arguments)
    assert bank.keys[0] == call_id
    assert len(set(bank.keys)) == 2


def test_outside_of_a_call_there_is_no_header() -> None:
    """The same function works in a plain program."""
    assert copy_context().run(context.idempotency_headers) == {}
