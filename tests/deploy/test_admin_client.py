"""The operator's client: which methods it has, and in whose name it speaks."""

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from meshgate_deploy.admin_client import METHODS, Operator
from meshgate_deploy.errors import Denied, MeshError
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc as services


class Admin(services.AdminServicer):
    """Remembers who spoke."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.refusal = ""

    def ControlRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.said.append(request.operator)
        return pb.ControlRunResponse()

    def ResolveCall(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.refusal:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refusal)
        self.said.append(request.operator)
        return pb.ResolveCallResponse()

    def ActivatePolicy(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.said.append(request.operator)
        return pb.ActivatePolicyResponse()

    def Status(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.StatusResponse(ready=True)


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Operator, Admin]]:
    """A client whose channel leads to a fake without TLS."""
    fake = Admin()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    services.add_AdminServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setattr(Operator, "_channel", lambda _: grpc.insecure_channel(f"127.0.0.1:{port}"))
    yield Operator(authority=None, manifest=None, target=lambda: ""), fake
    server.stop(0).wait()


@pytest.mark.parametrize("method", ["ControlRun", "ResolveCall", "ActivatePolicy"])
def test_a_word_that_changes_something_is_signed_by_who_speaks(admin, monkeypatch, method) -> None:
    """Whatever name the request came with; the record is of the person at the control socket."""
    monkeypatch.setattr("meshgate_deploy.admin_client._person", lambda: "ada (uid 7)")
    client, fake = admin
    client.call(method, {"operator": "mallory"})
    assert fake.said == ["ada (uid 7)"]


def test_no_other_method_is_called(admin) -> None:
    """Names come from the control socket: only the operator's own lead anywhere."""
    client, fake = admin
    assert client.call("Status", {})["ready"]
    for name in ("CallTool", "__init__", "Nothing", ""):
        with pytest.raises(Denied):
            client.call(name, {})
    assert fake.said == []


def test_every_method_of_the_service_is_reachable() -> None:
    """A new one is decided on: it is listed here, or it is not the operator's."""
    assert set(METHODS) == {method.name for method in pb.DESCRIPTOR.services_by_name["Admin"].methods}


@pytest.mark.parametrize(
    ("refusal", "status", "what"),
    [
        ("input_duplicate_key", 2, "an object of the input has a key twice"),
        ("input_too_large: 1048577 bytes", 2, "the input is larger than 1 MiB"),
        ("run_purged: r", 1, "its clear text was purged"),
        ("result_invalid: not json", 2, "the result is not what it is said to be"),
        ("something_new: why", 1, "the gateway did not accept ResolveCall"),
    ],
)
def test_a_refusal_is_told_in_a_sentence(admin, refusal, status, what) -> None:
    """With what the gateway adds to it as the reason, a next step, and the exit code of its kind."""
    client, fake = admin
    fake.refusal = refusal
    with pytest.raises(MeshError) as caught:
        client.call("ResolveCall", {})
    assert what in caught.value.what
    assert refusal.partition(": ")[2] in caught.value.why
    assert caught.value.next_step
    assert caught.value.exit_code == status
