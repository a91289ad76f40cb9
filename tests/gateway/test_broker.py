"""The gateway at its boundary: real mTLS, a programmed engine, hosts that play by the rules or not."""

import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku
from fakes.mesh import DENY, FakeMesh, call
from meshgate_identities.authority import DevelopmentAuthority
from meshgate_policies.engine import UNDEFINED
from meshgate_policies.errors import PolicyUnavailable
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc as rpc

ID = "spiffe://desk.example/ns/m/crew"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[FakeMesh]:
    """A fresh gateway with the run `r` of the app `crew` at attempt 1."""
    made = FakeMesh(tmp_path)
    made.start_run()
    yield made
    made.close()


def _refused(stub_call: object, request: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        stub_call(request, timeout=5)  # type: ignore[operator]
    return caught.value


def test_an_allowed_call_runs_once_and_is_recorded(mesh: FakeMesh) -> None:
    """Decision, take and outcome are recorded in this order, and the result comes back."""
    effects = mesh.serve_tools()
    answer = mesh.broker("crew").CallTool(call(), timeout=5)
    assert (answer.state, answer.result) == (pb.CALL_STATE_DONE, b"done")
    assert effects == [{"a": 1}]
    kinds = [r["kind"] for r in mesh.records() if r["call_id"] == answer.call_id]
    assert kinds == ["decision", "take", "outcome"]


def test_the_same_call_again_gets_the_same_answer(mesh: FakeMesh) -> None:
    """One effect, one decision, however often it is asked."""
    effects = mesh.serve_tools()
    crew = mesh.broker("crew")
    answers = {crew.CallTool(call(), timeout=5).SerializeToString() for _ in range(3)}
    assert len(answers) == 1
    assert len(effects) == 1
    assert len(mesh.records("decision")) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (DENY, "tool_not_granted"),
        (UNDEFINED, "policy_invalid"),
        ({"allow": "yes"}, "policy_invalid"),
        (None, "policy_invalid"),
    ],
)
def test_a_denied_call_never_leaves(mesh: FakeMesh, answer: object, reason: str) -> None:
    """Nothing is dispatched; the denial is recorded once and repeated word for word."""
    mesh.policy.answer = answer
    crew = mesh.broker("crew")
    first, second = crew.CallTool(call(), timeout=5), crew.CallTool(call(), timeout=5)
    assert first == second
    assert (first.state, list(first.reasons)) == (pb.CALL_STATE_DENIED, [reason])
    assert mesh.runtime.dispatched == []
    assert len(mesh.records("decision")) == 1


def test_no_verdict_is_unavailable_and_later_the_call_runs(mesh: FakeMesh) -> None:
    """An engine that is away denies nothing: the same key succeeds once it is back."""
    effects = mesh.serve_tools()
    mesh.policy.answer = PolicyUnavailable("away")
    error = _refused(mesh.broker("crew").CallTool, call())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert ("meshgate-reason", "policy_unavailable") in [(k, v) for k, v in error.trailing_metadata()]
    assert effects == []
    mesh.policy.answer = {"allow": True, "reasons": [], "approval": None, "obligations": {}}
    assert mesh.broker("crew").CallTool(call(), timeout=5).state == pb.CALL_STATE_DONE


BAD_ARGUMENTS = {
    "not JSON": b"{",
    "not an object": b"[1]",
    "duplicate key": b'{"a":1,"a":2}',
    "case variant": b'{"a":1,"A":2}',
    "NaN": b'{"a":NaN}',
    "extra key": b'{"a":1,"b":2}',
    "wrong type": b'{"a":"1"}',
    "missing": b"{}",
    "huge integer": b'{"a":9007199254740993}',
    "1 MB": b'{"a":1' + b" " * 1_000_000 + b"}",
    "depth 200": b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
    "not UTF-8": b'{"a":"\xff"}',
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_and_recorded(mesh: FakeMesh, name: str) -> None:
    """Each leaves one record, and neither policy nor host hears of it."""
    before = len(mesh.policy.inputs)
    answer = mesh.broker("crew").CallTool(call(BAD_ARGUMENTS[name]), timeout=5)
    assert (answer.state, list(answer.reasons)) == (pb.CALL_STATE_DENIED, ["arguments_invalid"])
    assert [r["reason"] for r in mesh.records("refusal")] == ["arguments_invalid"]
    assert not any(i["call"]["args"] for i in mesh.policy.inputs[before:])  # type: ignore[index]
    assert mesh.runtime.dispatched == []


def test_an_unknown_tool_is_refused_and_recorded(mesh: FakeMesh) -> None:
    """The tool id is exact: no folding, no guessing."""
    answer = mesh.broker("crew").CallTool(call(tool="host.Act"), timeout=5)
    assert list(answer.reasons) == ["tool_unknown"]
    assert len(mesh.records("refusal")) == 1


def test_same_key_with_other_arguments_is_refused(mesh: FakeMesh) -> None:
    """A key names one exact call."""
    mesh.serve_tools()
    crew = mesh.broker("crew")
    crew.CallTool(call(), timeout=5)
    assert _refused(crew.CallTool, call(b'{"a":2}')).code() is grpc.StatusCode.FAILED_PRECONDITION
    assert [r["reason"] for r in mesh.records("refusal")] == ["call_id_taken"]


@pytest.mark.parametrize(
    ("app", "changed", "reason"),
    [
        ("other", {}, "run_of_another_app"),
        ("crew", {"attempt": 0}, "superseded"),
        ("crew", {"attempt": 2}, "superseded"),
        ("crew", {"run_id": "none"}, "run_unknown"),
        ("crew", {"run_id": ""}, "run_required"),
        ("crew", {"step_key": ""}, "step_key_invalid"),
    ],
)
def test_a_call_needs_its_own_run_and_newest_attempt(
    mesh: FakeMesh, app: str, changed: dict[str, object], reason: str
) -> None:
    """Nobody acts in another's run, and a superseded attempt does not act at all."""
    _refused(mesh.broker(app).CallTool, call(**changed))
    assert [r["reason"] for r in mesh.records("refusal")] == [reason]
    assert mesh.runtime.dispatched == []


def test_identity_comes_from_the_certificate_only(mesh: FakeMesh) -> None:
    """Spoofed fields and metadata reach policy under `untrusted`, or not at all."""
    mesh.policy.answer = DENY
    mesh.broker("crew").CallTool(
        call(untrusted={"spiffe_id": "spiffe://desk.example/ns/m/admin"}),
        timeout=5,
        metadata=[("x-forwarded-client-cert", "URI=spiffe://desk.example/ns/m/admin")],
    )
    asked = next(i for i in mesh.policy.inputs if i["caller"].get("spiffe_id"))  # type: ignore[attr-defined]
    assert asked["caller"]["spiffe_id"] == ID  # type: ignore[index]


@pytest.mark.parametrize(
    ("uris", "options", "reason"),
    [
        ([ID, "spiffe://desk.example/ns/m/b"], {}, "two_uri_sans"),
        (["spiffe://other.example/ns/m/crew"], {}, "trust_domain_unknown"),
        ([ID], {"life": timedelta(days=1000)}, "life_too_long"),
        ([ID], {"eku": [Eku.CLIENT_AUTH]}, "extended_key_usage"),
        (["spiffe://desk.example/ns/m/stranger"], {}, "app_unknown"),
        (["spiffe://desk.example/ns/other/crew"], {}, "not_of_this_mesh"),
    ],
)
def test_a_bad_certificate_that_tls_accepts_is_recorded(
    mesh: FakeMesh, uris: list[str], options: dict[str, object], reason: str
) -> None:
    """Our own check refuses it, with one record."""
    stub = rpc.BrokerStub(mesh.bad_channel(*uris, **options))
    assert _refused(stub.CallTool, call()).code() is grpc.StatusCode.UNAUTHENTICATED
    assert [r["reason"] for r in mesh.records("authentication")] == [reason]


def test_the_handshake_refuses_strangers(mesh: FakeMesh, tmp_path: Path) -> None:
    """No certificate, another authority, an expired one: no handler runs, so nothing is recorded."""
    impostor = DevelopmentAuthority(directory=tmp_path / "x", trust_domain="desk.example")
    real, mesh.authority = mesh.authority, impostor
    foreign = mesh._svid("crew")
    mesh.authority = real
    expired = mesh.bad_channel(ID, starts=timedelta(hours=-3))
    for channel in (mesh.channel(pair=(None, None)), mesh.channel(pair=foreign), expired):
        error = _refused(rpc.BrokerStub(channel).CallTool, call())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert {r["kind"] for r in mesh.records()} == {"run"}


def _decided(mesh: FakeMesh) -> str:
    """A call that is reserved and not taken yet."""
    return str(mesh.broker("crew").CallTool(call(), timeout=5).call_id)


def _take(mesh: FakeMesh, app: str, call_id: str, instance: str = "i") -> object:
    return mesh.broker(app).TakeCall(pb.TakeCallRequest(call_id=call_id, host_instance=instance), timeout=5)


def test_pending_instead_of_a_held_thread(mesh: FakeMesh) -> None:
    """A call whose host is slow is answered PENDING."""
    assert mesh.broker("crew").CallTool(call(), timeout=5).state == pb.CALL_STATE_PENDING


@pytest.mark.parametrize("app", ["host2", "crew", "other"])
def test_only_the_tools_own_host_takes_a_call(mesh: FakeMesh, app: str) -> None:
    """Another host and an agent are refused, recorded, and learn nothing."""
    call_id = _decided(mesh)
    with pytest.raises(grpc.RpcError):
        _take(mesh, app, call_id)
    assert [r["reason"] for r in mesh.records("refusal")] == ["call_of_another_host"]


def test_a_call_that_was_never_decided_cannot_be_taken(mesh: FakeMesh) -> None:
    """A forged activity carries an id that nobody knows."""
    with pytest.raises(grpc.RpcError):
        _take(mesh, "host", "c" + "0" * 40)
    assert [r["reason"] for r in mesh.records("refusal")] == ["call_unknown"]


def test_a_finished_call_cannot_be_taken_again(mesh: FakeMesh) -> None:
    """A delivery after the end finds nothing to do."""
    effects = mesh.serve_tools()
    call_id = mesh.broker("crew").CallTool(call(), timeout=5).call_id
    with pytest.raises(grpc.RpcError):
        _take(mesh, "host", call_id)
    assert len(effects) == 1
    assert [r["reason"] for r in mesh.records("refusal")] == ["call_settled"]


def test_a_second_take_of_an_unkeyed_tool_is_unknown(mesh: FakeMesh) -> None:
    """Its effect may have happened: it neither runs again nor is called failed."""
    call_id = _decided(mesh)
    _take(mesh, "host", call_id, "first")
    with pytest.raises(grpc.RpcError):
        _take(mesh, "host", call_id, "second")
    assert mesh.broker("crew").CallTool(call(), timeout=5).state == pb.CALL_STATE_UNKNOWN


def test_a_reading_tool_may_be_taken_again(mesh: FakeMesh) -> None:
    """Reading twice does no harm; the take's number grows."""
    call_id = mesh.broker("crew").CallTool(call(tool="host.read"), timeout=5).call_id
    takes = [_take(mesh, "host", call_id, name).take for name in ("first", "second")]  # type: ignore[attr-defined]
    assert takes == [1, 2]


@pytest.mark.parametrize(("take", "instance"), [(1, "another"), (2, "i"), (0, "")])
def test_only_the_take_in_force_settles(mesh: FakeMesh, take: int, instance: str) -> None:
    """An outcome needs the take's number and the host instance that holds it."""
    call_id = _decided(mesh)
    _take(mesh, "host", call_id)
    result = pb.ToolResult(kind=pb.RESULT_KIND_TEXT, data=b"forged")
    request = pb.FinishCallRequest(call_id=call_id, take=take, host_instance=instance, result=result)
    assert _refused(mesh.broker("host").FinishCall, request).code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_dead_gateways_call_goes_on_under_the_next(mesh: FakeMesh) -> None:
    """Decided before the crash, dispatched after it: the caller's retry gets the one outcome."""
    call_id = _decided(mesh)
    mesh.gateway.close(0)
    mesh.gateway, mesh.port = mesh.start()
    effects = mesh.serve_tools()
    answer = mesh.broker("crew").CallTool(call(), timeout=5)
    assert (answer.call_id, answer.state, len(effects)) == (call_id, pb.CALL_STATE_DONE, 1)
    assert len(mesh.records("decision")) == 1


def test_admin_is_for_operators(mesh: FakeMesh) -> None:
    """An agent and a host are refused."""
    for app in ("crew", "host"):
        error = _refused(rpc.AdminStub(mesh.channel(app)).Status, pb.StatusRequest())
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED


def test_an_edited_record_is_found(mesh: FakeMesh) -> None:
    """The chain breaks where the store was written by somebody else."""
    admin = rpc.AdminStub(mesh.channel("operator"))
    assert admin.VerifyRecords(pb.VerifyRecordsRequest(), timeout=5).verified
    with sqlite3.connect(mesh.folder / "gateway.db") as database:
        database.execute("UPDATE records SET body = replace(body, 'attempt', 'attemp_') WHERE seq = 1")
    answer = admin.VerifyRecords(pb.VerifyRecordsRequest(), timeout=5)
    assert (answer.verified, answer.records) == (False, 0)


def test_clear_text_is_not_in_the_store(mesh: FakeMesh) -> None:
    """Arguments and results lie encrypted; records hold commitments."""
    mesh.serve_tools(effect=lambda _: "secret-result-text")
    mesh.broker("crew").CallTool(call(b'{"a":271828182}'), timeout=5)
    stored = b"".join(path.read_bytes() for path in mesh.folder.glob("gateway.db*"))
    assert b"secret-result-text" not in stored
    assert b"271828182" not in stored
