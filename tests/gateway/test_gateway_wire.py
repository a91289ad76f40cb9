"""Over real mTLS: statuses, reasons, certificates, health, admin, unknown methods."""

import dataclasses
import json
import threading
import time
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from fakes.gateway_parts import ProgrammedPolicy, deny
from fakes.gateway_wire import DOMAIN, MESH, Wire, odd_certificate, serve
from gateway.conftest import CATALOGUE
from meshgate_wire import broker_pb2 as pb

DESK = f"spiffe://{DOMAIN}/ns/{MESH}/desk"


@pytest.fixture
def wire(tmp_path: Path):
    made = serve(tmp_path, CATALOGUE)
    made.await_serving(True)
    yield made
    made.close()


def request(**changed) -> pb.CallToolRequest:
    fields = {
        "run_id": "run-1",
        "attempt": 1,
        "step_key": "0" * 32,
        "tool": "orders.refund",
        "arguments_json": b'{"order":"A","amount":5}',
        "scope": "5c" * 32,
        **changed,
    }
    return pb.CallToolRequest(**fields)


def begin(wire: Wire, app: str = "desk") -> None:
    runs = wire.runs(app)
    runs.StartRun(pb.StartRunRequest(run_id="run-1", input_json=b"{}"))
    started = runs.StartAttempt(pb.StartAttemptRequest(run_id="run-1", launcher_instance="l"))
    assert started.attempt == 1


def failure(call, *args, **kwargs) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, timeout=10, **kwargs)
    trailing = dict(caught.value.trailing_metadata() or ())
    return caught.value.code(), trailing.get("meshgate-reason", "")


def records(wire: Wire, **query) -> list[dict]:
    found = wire.admin().QueryRecords(pb.QueryRecordsRequest(**query)).records_json
    return [json.loads(record) for record in found]


def listed(wire: Wire, app: str = "desk") -> list[str]:
    return [tool.tool for tool in wire.broker(app).ListTools(pb.ListToolsRequest()).tools]


def activation(wire: Wire, name: str, **changed: str) -> pb.ActivatePolicyRequest:
    """A request for policy r2 and a listing, of r2 unless told otherwise."""
    listing = {"revision": "r2", "digest": "d2", "apps": {"desk": ["orders.refund"]}, **changed}
    path = wire.directory / f"{name}.json"
    path.write_text(json.dumps(listing))
    return pb.ActivatePolicyRequest(
        socket_path=name, revision="r2", digest="d2", operator="ann:1000", listing_file=str(path)
    )


def test_a_call_over_mtls(wire) -> None:
    """Allowed, denied, listed: the three answers an agent gets; a listing asks no engine."""
    begin(wire)
    broker = wire.broker("desk")
    answer = broker.CallTool(request())
    assert (answer.state, answer.kind) == (pb.CALL_STATE_DONE, pb.RESULT_KIND_TEXT)
    assert json.loads(answer.result) == {"order": "A", "amount": 5}
    wire.policy.answer = deny("tool_not_granted")
    denied = broker.CallTool(request(step_key="1" * 32))
    assert (denied.state, list(denied.reasons)) == (pb.CALL_STATE_DENIED, ["tool_not_granted"])
    wire.policy.away = True
    assert listed(wire) == ["orders.lookup"]
    assert listed(wire, "rival") == []


def test_in_band_claims_change_nothing(wire) -> None:
    """A spoofed identity in metadata or body is not looked at."""
    begin(wire)
    spoof = (("dapr-caller-app-id", "nightly"), ("x-forwarded-client-cert", f"URI={DESK}"))
    answer = wire.broker("rival").CallTool
    assert failure(answer, request(untrusted={"role": DESK}), metadata=spoof) == (
        grpc.StatusCode.NOT_FOUND,
        "run_unknown",
    )
    (refusal,) = records(wire, kind="refusal")
    assert refusal["caller"].endswith("/rival")


def test_a_spoofed_identity_is_recorded_as_a_claim_and_decided_as_the_certificate(wire) -> None:
    """The policy and the record have the caller of the certificate; what it says of itself stands apart."""
    begin(wire)
    nightly = DESK.replace("/desk/desk", "/desk/nightly")
    spoof = (("dapr-caller-app-id", "nightly"), ("x-forwarded-client-cert", f"URI={nightly}"))
    call = wire.broker("desk").CallTool
    answer = call(request(untrusted={"role": nightly, "caller": nightly}), metadata=spoof)
    assert answer.state == pb.CALL_STATE_DONE
    (asked,) = [asked for asked in wire.policy.asked if asked["call"]["tool"] == "orders.refund"]
    assert asked["caller"]["spiffe_id"] == DESK
    (decision,) = records(wire, kind="decision")
    assert (decision["caller"], decision["untrusted"]["caller"]) == (DESK, nightly)
    assert "nightly" not in json.dumps({**asked, "untrusted": {}})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (b"nonsense", "arguments_not_json"),
        (b'{"order":"A","amount":1,"amount":9999}', "arguments_duplicate_key"),
        (b'{"order":"A","amount":NaN}', "arguments_not_finite"),
        (b'{"order":"A","amount":1,"card":"x"}', "arguments_invalid"),
        (b'{"order":"A","amount":"1"}', "arguments_invalid"),
        (b'{"order":"' + b"x" * 1_048_576 + b'","amount":1}', "arguments_too_large"),
        (b'{"order":' + b"[" * 200 + b"]" * 200 + b',"amount":1}', "arguments_too_deep"),
    ],
)
def test_malformed_arguments_over_the_wire(wire, arguments, reason) -> None:
    """Denied with a stable reason and one record, however often they are sent; nothing ran."""
    begin(wire)
    call = wire.broker("desk").CallTool
    first, again = call(request(arguments_json=arguments)), call(request(arguments_json=arguments))
    assert (first.state, list(first.reasons)) == (pb.CALL_STATE_DENIED, [reason])
    assert again == first
    (refusal,) = records(wire, kind="refusal")
    assert (refusal["reason"], refusal["caller"], refusal["call_id"]) == (reason, DESK, first.call_id)
    assert wire.runtime.effects == []


def test_a_message_over_the_limit_reaches_no_handler(wire) -> None:
    """The library refuses what is over its limit: nothing ran, and as nothing of ours saw it, no record."""
    begin(wire)
    huge = b'{"order":"' + b"x" * 5_000_000 + b'","amount":1}'
    code, _ = failure(wire.broker("desk").CallTool, request(arguments_json=huge))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert records(wire, kind="refusal") == records(wire, kind="decision") == []
    assert wire.runtime.effects == []


def test_one_key_is_one_call_over_the_wire(wire) -> None:
    """Other arguments or another tool under a used key: refused and recorded, the outcome stands."""
    begin(wire)
    call = wire.broker("desk").CallTool
    first = call(request())
    for changed in (request(arguments_json=b'{"order":"A","amount":6}'), request(tool="orders.keyed")):
        assert failure(call, changed) == (grpc.StatusCode.FAILED_PRECONDITION, "call_changed")
    assert [(r["reason"], r["call_id"]) for r in records(wire, kind="refusal")] == [
        ("call_changed", first.call_id)
    ] * 2
    assert call(request()) == first
    assert wire.runtime.effects == [first.call_id]


def test_another_callers_call_is_out_of_reach_over_the_wire(wire) -> None:
    """Its run and key, and its call id at TakeCall and FinishCall: refused, recorded, no second effect."""
    begin(wire)
    call_id = wire.broker("desk").CallTool(request()).call_id
    rival = wire.broker("rival")
    assert failure(rival.CallTool, request()) == (grpc.StatusCode.NOT_FOUND, "run_unknown")
    take = pb.TakeCallRequest(call_id=call_id, host_instance="i")
    finish = pb.FinishCallRequest(
        call_id=call_id, take=1, host_instance="i", result=pb.ToolResult(kind=pb.RESULT_KIND_TEXT, data=b"x")
    )
    for ask, message in ((rival.TakeCall, take), (rival.FinishCall, finish)):
        assert failure(ask, message) == (grpc.StatusCode.PERMISSION_DENIED, "call_not_owned")
    rivals = [r["reason"] for r in records(wire, kind="refusal") if r["caller"].endswith("/rival")]
    assert rivals == ["run_unknown", "call_not_owned", "call_not_owned"]
    key = "01890a5d-ac96-774b-bcce-b302099a8057"
    own = wire.broker("nightly").CallTool(request(run_id="", attempt=0, step_key=key)).call_id
    assert own != call_id
    assert wire.runtime.effects == [call_id, own]


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        ({"uris": [DESK, DESK + "2"]}, "two_uri_sans"),
        ({"uris": [DESK], "usages": [ExtendedKeyUsageOID.CLIENT_AUTH]}, "extended_key_usage"),
        ({"uris": [DESK], "days": 1000}, "life_too_long"),
        ({"uris": ["spiffe://nowhere.example/ns/desk/desk"]}, "trust_domain_unknown"),
        ({"uris": ["spiffe://desk.example/ns/desk/../desk"]}, "spiffe_id_invalid"),
    ],
)
def test_certificates_that_pass_the_handshake_and_are_refused(wire, certificate, reason) -> None:
    """Each is UNAUTHENTICATED with one record; no handler acted."""
    channel = wire.channel(pair=odd_certificate(wire.directory, **certificate))
    call = channel.unary_unary(
        "/meshgate.broker.v1.Broker/CallTool",
        request_serializer=pb.CallToolRequest.SerializeToString,
        response_deserializer=pb.CallToolResponse.FromString,
    )
    assert failure(call, request()) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    assert [record["reason"] for record in records(wire, kind="authentication")] == [reason]


def test_a_trusted_foreign_authority_cannot_name_our_apps(wire) -> None:
    """The chain is checked against the bundle of the domain the leaf names."""
    channel = wire.channel(pair=odd_certificate(wire.other_directory, uris=[DESK]))
    call = channel.unary_unary(
        "/meshgate.broker.v1.Runs/StartRun",
        request_serializer=pb.StartRunRequest.SerializeToString,
        response_deserializer=pb.StartRunResponse.FromString,
    )
    assert failure(call, pb.StartRunRequest()) == (grpc.StatusCode.UNAUTHENTICATED, "chain")
    assert len(records(wire, kind="authentication")) == 1


def test_what_the_handshake_refuses_reaches_no_handler(wire, tmp_path) -> None:
    """No certificate, another root, expired: connection refused, nothing recorded."""
    from meshgate_identities.authority import DevelopmentAuthority

    DevelopmentAuthority(directory=tmp_path / "third", trust_domain=DOMAIN)
    pairs = [
        None,
        odd_certificate(tmp_path / "third", uris=[DESK]),
        odd_certificate(wire.directory, uris=[DESK], days=-0.5, age_days=1),
    ]
    for pair in pairs:
        call = wire.channel(pair=pair).unary_unary(
            "/meshgate.broker.v1.Broker/CallTool",
            request_serializer=pb.CallToolRequest.SerializeToString,
            response_deserializer=pb.CallToolResponse.FromString,
        )
        assert failure(call, request()) == (grpc.StatusCode.UNAVAILABLE, "")
    assert records(wire, kind="authentication") == []
    assert records(wire, kind="refusal") == []


def test_only_the_operator_is_served_by_admin(wire) -> None:
    """Agents, hosts and programs are refused and recorded."""
    for app in ("desk", "orders", "nightly", "gateway"):
        code, reason = failure(wire.admin(app).Status, pb.StatusRequest())
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert reason in ("admin_not_permitted", "caller_unknown")
        ordered = failure(wire.admin(app).StartRun, pb.AdminStartRunRequest(app="nightly", run_id="r"))
        assert ordered == (code, reason)
    assert len(records(wire, kind="refusal")) == 8


def test_an_unknown_method_is_recorded(wire) -> None:
    """A method we do not have is UNIMPLEMENTED and one record."""
    call = wire.channel("desk").unary_unary("/meshgate.broker.v1.Broker/RunShell")
    assert failure(call, b"") == (grpc.StatusCode.UNIMPLEMENTED, "method_unknown")
    (refusal,) = records(wire, kind="refusal")
    assert refusal["detail"] == "/meshgate.broker.v1.Broker/RunShell"


def test_unavailable_carries_its_reason_and_shows_in_health(wire) -> None:
    """Engine or store away: UNAVAILABLE with the reason, NOT_SERVING, and back by itself."""
    begin(wire)
    broker = wire.broker("desk")
    wire.policy.away = True
    assert failure(broker.CallTool, request()) == (grpc.StatusCode.UNAVAILABLE, "policy_unavailable")
    assert not wire.serving()
    wire.policy.away = False
    wire.await_serving(True)
    wire.store.fail_before = True
    assert failure(broker.CallTool, request()) == (grpc.StatusCode.UNAVAILABLE, "store_unavailable")
    assert not wire.serving()
    away = wire.admin().Status(pb.StatusRequest())
    assert (away.ready, list(away.not_ready_reasons)) == (False, ["store_unavailable"])
    assert wire.runtime.effects == []
    wire.store.fail_before = False
    wire.await_serving(True)
    assert broker.CallTool(request()).state == pb.CALL_STATE_DONE
    assert len(wire.runtime.effects) == 1


def test_a_bug_is_internal_without_detail_and_recorded(wire, caplog) -> None:
    """An error we do not know is INTERNAL, says nothing, and nothing ran; the log has its class and place."""
    begin(wire)

    def bug(_):
        raise KeyError("secret detail") from ValueError("secret cause")

    wire.policy.answer = bug
    assert failure(wire.broker("desk").CallTool, request()) == (
        grpc.StatusCode.INTERNAL,
        "internal_error",
    )
    assert wire.runtime.effects == []
    assert [record["reason"] for record in records(wire, kind="refusal")] == ["internal_error"]
    assert "secret" not in caplog.text
    assert "KeyError at test_gateway_wire.py:" in caplog.text
    assert "caused by ValueError" in caplog.text


def test_hosts_take_and_finish_over_the_wire(wire) -> None:
    """The exact canonical bytes, the key and the digest; then the outcome wakes the caller."""
    begin(wire)
    wire.runtime.held = True
    broker, host = wire.broker("desk"), wire.broker("orders")
    raw = b'{ "amount": 5.0, "order": "A" }'
    pending = broker.CallTool(request(arguments_json=raw))
    assert pending.state == pb.CALL_STATE_PENDING
    taken = host.TakeCall(pb.TakeCallRequest(call_id=pending.call_id, host_instance="i"))
    assert taken.arguments_json == b'{"amount":5,"order":"A"}'
    assert (taken.take, taken.idempotency_key, taken.taken_before) == (1, pending.call_id, False)
    assert taken.deadline_unix_ms > time.time() * 1000
    done = pb.FinishCallRequest(
        call_id=pending.call_id,
        take=1,
        host_instance="i",
        result=pb.ToolResult(kind=pb.RESULT_KIND_JSON, data=b'{"ok":true}'),
    )
    nothing = pb.FinishCallRequest(call_id=pending.call_id, take=1, host_instance="i")
    assert failure(host.FinishCall, nothing) == (grpc.StatusCode.INVALID_ARGUMENT, "outcome_missing")
    assert failure(broker.FinishCall, done) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "call_not_owned",
    )
    assert host.FinishCall(done).state == pb.CALL_STATE_DONE
    answer = broker.CallTool(request(arguments_json=raw))
    assert (answer.kind, answer.result) == (pb.RESULT_KIND_JSON, b'{"ok":true}')


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        (pb.RESULT_KIND_TEXT, b"x" * 3_500_000, "result_too_large"),
        (pb.RESULT_KIND_JSON, b"{'no': json}", "result_invalid"),
        (pb.RESULT_KIND_TEXT, b"\xff", "result_invalid"),
    ],
)
def test_an_outcome_that_is_not_what_it_says_is_refused(wire, kind, data, reason) -> None:
    """Too large, no JSON, no text: refused and recorded; the call stays open for a true outcome."""
    begin(wire)
    wire.runtime.held = True
    call_id = wire.broker("desk").CallTool(request()).call_id
    host = wire.broker("orders")
    host.TakeCall(pb.TakeCallRequest(call_id=call_id, host_instance="i"))

    def outcome(kind: int, data: bytes) -> pb.FinishCallRequest:
        result = pb.ToolResult(kind=kind, data=data)
        return pb.FinishCallRequest(call_id=call_id, take=1, host_instance="i", result=result)

    assert failure(host.FinishCall, outcome(kind, data)) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert [record["reason"] for record in records(wire, kind="refusal")] == [reason]
    assert host.FinishCall(outcome(pb.RESULT_KIND_TEXT, b"paid")).state == pb.CALL_STATE_DONE


def test_a_policy_is_activated_whole_and_on_record(wire) -> None:
    """An engine that gives no decision is refused; a good one is recorded, then in force."""
    begin(wire)
    wire.engines["bad"] = ProgrammedPolicy({"allow": "yes"})
    wire.engines["good"] = ProgrammedPolicy(deny("frozen"))
    admin = wire.admin()
    assert failure(admin.ActivatePolicy, activation(wire, "bad")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "policy_invalid",
    )
    assert admin.Status(pb.StatusRequest()).policy_revision == "r1"
    assert listed(wire) == ["orders.lookup"]
    assert admin.ActivatePolicy(activation(wire, "good")).revision == "r2"
    assert listed(wire) == ["orders.refund"]
    assert list(wire.broker("desk").CallTool(request()).reasons) == ["frozen"]
    (record,) = records(wire, kind="policy")
    assert (record["revision"], record["operator"]) == ("r2", "ann:1000")
    assert records(wire, kind="decision")[0]["policy"] == {"revision": "r2", "digest": "d2"}


@pytest.mark.parametrize(
    "changed", [{"revision": "r1"}, {"digest": "d1"}, {"apps": ["desk"]}, {"apps": {"desk": None}}]
)
def test_a_listing_of_another_policy_is_refused(wire, changed) -> None:
    """Revision and digest must be the policy's; the old policy and its listing stay."""
    wire.engines["new"] = ProgrammedPolicy()
    request_ = activation(wire, "new", **changed)
    assert failure(wire.admin().ActivatePolicy, request_) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "listing_mismatch",
    )
    missing = pb.ActivatePolicyRequest(socket_path="new", revision="r2", digest="d2")
    assert failure(wire.admin().ActivatePolicy, missing)[1] == "listing_mismatch"
    assert wire.admin().Status(pb.StatusRequest()).policy_revision == "r1"
    assert (listed(wire), records(wire, kind="policy")) == (["orders.lookup"], [])


def test_the_operator_sees_runs_calls_records_and_their_proof(wire) -> None:
    """Status, ListRuns, ListCalls, QueryRecords and VerifyRecords agree."""
    begin(wire)
    call_id = wire.broker("desk").CallTool(request()).call_id
    runs = wire.runs("desk")
    assert runs.Heartbeat(pb.HeartbeatRequest(run_id="run-1", attempt=1, steps=3)).state == "running"
    end = pb.FinishRunRequest(run_id="run-1", attempt=1, state="completed")
    assert runs.FinishRun(end).state == runs.FinishRun(end).state == "completed"
    admin = wire.admin()
    status = admin.Status(pb.StatusRequest())
    assert (status.ready, dict(status.calls_by_state)) == (True, {"done": 1})
    (row,) = admin.ListRuns(pb.ListRunsRequest()).runs
    assert (row.run_id, row.state, row.app) == ("run-1", "completed", DESK)
    (listed,) = admin.ListCalls(pb.ListCallsRequest(run_id="run-1")).calls
    assert (listed.call_id, listed.state) == (call_id, "done")
    assert len(records(wire, call_id=call_id)) == 3
    verified = admin.VerifyRecords(pb.VerifyRecordsRequest())
    assert (verified.verified, verified.records) == (True, status.records)


def test_waiting_callers_never_hold_all_threads(wire) -> None:
    """With every waiting place taken the next call is PENDING at once, and others are served."""
    begin(wire)
    wire.runtime.held = True
    broker = wire.broker("desk")
    states = []
    threads = [
        threading.Thread(
            target=lambda n=n: states.append(broker.CallTool(request(step_key=f"{n:032x}")).state)
        )
        for n in range(24)
    ]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states == [pb.CALL_STATE_PENDING] * 24
    assert time.monotonic() - begun < 24 * 0.2
    assert timedelta(seconds=time.monotonic() - begun) < timedelta(seconds=10)


def test_a_silent_run_is_shown_as_suspect_and_stored_as_it_is(wire) -> None:
    """In the list and alone; derived when it is read."""
    begin(wire)
    before = wire.store.read(lambda tables: tables.runs.get("run-1"))
    silent = dataclasses.replace(before, heartbeat_ms=before.heartbeat_ms - 3_600_000)
    assert wire.store.write(lambda tables: tables.runs.move(before, silent))
    admin = wire.admin()
    assert [run.state for run in admin.ListRuns(pb.ListRunsRequest()).runs] == ["suspect"]
    assert admin.ShowRun(pb.ShowRunRequest(run_id="run-1")).run.state == "suspect"
    assert wire.store.read(lambda tables: tables.runs.get("run-1")).state == "running"


def test_the_task_of_a_call_crosses_the_wire(wire) -> None:
    """A repeat through the real door is answered with the first outcome."""
    begin(wire)
    first, second = (wire.broker("desk").CallTool(request(step_key=n * 32, task="e" * 64)) for n in "12")
    assert (second.state, second.result) == (pb.CALL_STATE_DONE, first.result)
    assert wire.runtime.effects == [first.call_id]
