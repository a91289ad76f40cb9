"""The engine against real OPA processes and against servers that misbehave."""

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes.opa_servers import (
    GATEWAY_TOKEN,
    SUPERVISOR_TOKEN,
    answer,
    ask,
    read_request,
    run_opa,
)
from meshgate_policies import opa
from meshgate_policies.engine import UNDEFINED, OpaEngine
from meshgate_policies.errors import PolicyUnavailable
from meshgate_policies.judge import INVALID, judge

TIMEOUT_SECONDS = 0.5
GOOD = {"allow": True, "approval": None, "obligations": {}, "reasons": []}


def _engine(server, timeout_seconds=TIMEOUT_SECONDS):
    return OpaEngine(socket_path=str(server.path), token=GATEWAY_TOKEN, timeout_seconds=timeout_seconds)


def _deny_after(seconds, engine):
    started = time.monotonic()
    with pytest.raises(PolicyUnavailable):
        engine.evaluate(ask("desk", "orders.lookup"))
    assert time.monotonic() - started < seconds


@pytest.mark.parametrize(
    ("question", "reasons"),
    [
        (ask("desk", "orders.lookup"), ()),
        (ask("desk", "orders.refund", amount=50), ()),
        (ask("desk", "orders.refund", amount=51), ("approval_required",)),
        (ask("desk", "orders.refund"), ("tool_not_granted",)),
        (ask("desk", "orders.purge"), ("tool_not_granted",)),
        (ask("desk", "orders.lookup", day="sunday"), ("closed_today",)),
        (ask("stranger", "orders.lookup"), ("no_policy_for_caller",)),
        (ask("desk/allow", "orders.lookup"), ("no_policy_for_caller",)),
        ({"untrusted": ask("desk", "orders.lookup")}, ("kind_unknown", "no_policy_for_caller")),
    ],
)
def test_decisions_of_a_real_opa(running_opa, question, reasons):
    """Grants, narrowed grants, denials and strangers, through the real engine and the strict judge."""
    verdict = judge(running_opa.engine().evaluate(question))
    assert verdict.reasons == reasons
    assert verdict.allow == (not reasons)


def test_failing_builtin_in_a_deny_rule_denies(running_opa):
    """A deny rule that cannot be evaluated is no reason to allow."""
    raw = running_opa.engine().evaluate(ask("desk", "orders.lookup", address="not an address"))
    assert raw is UNDEFINED
    assert judge(raw) == INVALID


def test_contradicting_rules_deny(opa_binary, tmp_path):
    """Two rules that give different values are the policy's answer: invalid, not unavailable."""
    desk = (
        'package mesh.agents.desk\n\nallow contains "orders.lookup" if level == 1\n\n'
        "level := 1 if input.call.args.a\n\nlevel := 2 if input.call.args.b\n"
    )
    with run_opa(opa_binary, tmp_path, desk=desk) as running:
        engine = running.engine()
        assert judge(engine.evaluate(ask("desk", "orders.lookup", a=1))).allow
        assert judge(engine.evaluate(ask("desk", "orders.lookup", a=1, b=1))) == INVALID


def test_large_arguments_are_decided(running_opa):
    """A megabyte of arguments fits the deadline."""
    verdict = judge(running_opa.engine().evaluate(ask("desk", "orders.lookup", text="x" * 1_000_000)))
    assert verdict.allow


@pytest.mark.parametrize("token", [GATEWAY_TOKEN, SUPERVISOR_TOKEN, "another", ""])
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/config"),
        ("GET", "/v1/policies"),
        ("GET", "/v1/data"),
        ("GET", "/v1/status"),
        ("POST", "/v1/data"),
        ("POST", "/v1/data/meshgate"),
        ("POST", "/v1/data/system/authz"),
        ("POST", "/v1/data/meshgate/decision"),
        ("POST", "/v1/data/meshgate/decision?strict-builtin-errors=true&explain=full"),
        ("POST", "/v1/data/meshgate/decision/allow?strict-builtin-errors=true"),
        ("POST", "/v1/query"),
        ("POST", "/v1/compile"),
        ("POST", "/"),
        ("PUT", "/v1/policies/x"),
        ("PATCH", "/v1/data"),
        ("DELETE", "/v1/policies/x"),
        ("GET", "/metrics"),
    ],
)
def test_opa_answers_nothing_but_the_decision(running_opa, token, method, target):
    """No token of ours, nor another, reaches anything beside the decision path."""
    status = opa._status(running_opa.socket_path, token, method, target, 5.0)
    assert status == 401


def test_only_the_supervisor_reads_health(running_opa):
    """Health is the supervisor's; the gateway learns by asking."""
    assert opa.healthy(running_opa.socket_path, SUPERVISOR_TOKEN)
    assert not opa.healthy(running_opa.socket_path, GATEWAY_TOKEN)


def test_another_token_gets_no_verdict(running_opa):
    """A refused token is no denial: nothing was evaluated."""
    with pytest.raises(PolicyUnavailable):
        running_opa.engine(token="another").evaluate(ask("desk", "orders.lookup"))


def test_socket_is_ours_alone(running_opa):
    """The socket's mode lets no other user in."""
    assert running_opa.socket_path.stat().st_mode & 0o777 == 0o600


def test_stopped_opa_is_unavailable_within_the_timeout(opa_binary, tmp_path):
    """SIGSTOP costs one timeout, on a kept connection and on a new one; SIGCONT heals."""
    with run_opa(opa_binary, tmp_path) as running:
        engine = running.engine(timeout_seconds=TIMEOUT_SECONDS)
        assert judge(engine.evaluate(ask("desk", "orders.lookup"))).allow
        running.signal(signal.SIGSTOP)
        _deny_after(TIMEOUT_SECONDS * 1.8, engine)
        _deny_after(TIMEOUT_SECONDS * 1.8, engine)
        running.signal(signal.SIGCONT)
        running.probe()
        assert judge(running.engine().evaluate(ask("desk", "orders.lookup"))).allow


def test_killed_opa_is_unavailable_and_its_successor_answers(opa_binary, tmp_path):
    """A kept connection to a dead OPA is noticed; a new OPA on the same socket serves the same engine."""
    with run_opa(opa_binary, tmp_path) as running:
        engine = running.engine()
        assert judge(engine.evaluate(ask("desk", "orders.lookup"))).allow
        running.signal(signal.SIGKILL)
        running.process.wait(timeout=10)
        _deny_after(1.0, engine)
    (tmp_path / "opa.sock").unlink(missing_ok=True)
    with run_opa(opa_binary, tmp_path):
        assert judge(engine.evaluate(ask("desk", "orders.lookup"))).allow


def test_second_opa_starts_cold_beside_the_first(opa_binary, tmp_path):
    """A new bundle is a new process on a new socket; the old one goes on with its own until it is stopped."""
    question = ask("desk", "orders.refund", amount=70)
    with run_opa(opa_binary, tmp_path) as blue:
        with run_opa(opa_binary, tmp_path, socket_name="green.sock", refund=100) as green:
            assert blue.info.revision != green.info.revision
            assert judge(blue.engine().evaluate(question)).reasons == ("approval_required",)
            assert judge(green.engine().evaluate(question)).allow
        assert judge(blue.engine().evaluate(question)).reasons == ("approval_required",)


def test_threads_get_their_own_answers(running_opa):
    """Interleaved questions on many threads and one engine: each gets its own verdict."""
    engine = running_opa.engine()

    def one(number: int) -> bool:
        amount = number % 100
        verdict = judge(engine.evaluate(ask("desk", "orders.refund", amount=amount)))
        return verdict.allow == (amount <= 50)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(2000)))


def _serving(respond):
    """A server that answers every request on a connection with what `respond` gives for it."""

    def serve(connection: socket.socket) -> None:
        while True:
            connection.sendall(respond(read_request(connection)))

    return serve


def _health_then(status, body):
    """Healthy; every other request gets this."""

    def respond(request: bytes) -> bytes:
        return answer(b"{}") if request.startswith(b"GET /health") else answer(body, status=status)

    return _serving(respond)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{}", "undefined"),
        (b'{"result": {"allow": true}}', "policy_invalid"),
        (json.dumps({"result": GOOD}).encode(), "wrongly"),
        (
            json.dumps({"result": {**GOOD, "allow": False, "reasons": ["no_policy_for_caller"]}}).encode(),
            "401 was expected",
        ),
    ],
)
def test_probe_refuses_what_is_not_our_guarded_library(fake_opa, body, says):
    """Undefined, mistyped or generous answers, or an open API, keep an OPA from being switched to."""
    server = fake_opa(_health_then("200 OK", body))
    with pytest.raises(PolicyUnavailable, match=says):
        opa.probe(
            socket_path=server.path,
            gateway_token=GATEWAY_TOKEN,
            supervisor_token=SUPERVISOR_TOKEN,
            ready_seconds=5,
        )


def test_probe_does_not_wait_for_a_dead_process(tmp_path):
    """An OPA that ended, for example on a bad bundle, is told at once."""
    with pytest.raises(PolicyUnavailable, match="ended"):
        opa.probe(
            socket_path=tmp_path / "none.sock", gateway_token="g", supervisor_token="s", alive=lambda: False
        )


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"result": null}',
        b'{"result": true}',
        b'{"result": {"allow": "yes", "approval": null, "obligations": {}, "reasons": []}}',
        b'{"result": {"allow": true}}',
        b'{"result": {"allow": true, "approval": null, "obligations": {}, "reasons": [], "extra": 1}}',
    ],
)
def test_ill_formed_answers_are_denials(fake_opa, body):
    """OPA answered, so this is a verdict: denied, `policy_invalid`."""
    server = fake_opa(_serving(lambda _: answer(body)))
    assert judge(_engine(server).evaluate({})) == INVALID


@pytest.mark.parametrize(
    "response",
    [
        answer(b'{"result": {}}', status="401 Unauthorized"),
        answer(b'{"result": {}}', status="404 Not Found"),
        answer(b"oops", status="500 Internal Server Error"),
        answer(b'{"code": "internal_error"}', status="500 Internal Server Error"),
        answer(b'{"errors": [{"code": "eval_cancel_error"}]}', status="500 Internal Server Error"),
        answer(b"not json"),
        answer(b"[1]"),
        answer(b'{"result": {"allow": true'),
        answer(b"[" * 100_000),
        b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}}XX",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000,
    ],
)
def test_answers_that_are_none_are_unavailable(fake_opa, response):
    """Refused, broken, cut off or endless: no verdict was given."""
    server = fake_opa(_serving(lambda _: response))
    _deny_after(TIMEOUT_SECONDS * 1.8, _engine(server))


def test_chunked_answers_are_read(fake_opa):
    """Go sends large answers in chunks."""
    text = json.dumps({"result": GOOD}).encode()
    parts = [text[:7], text[7:]]
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    server = fake_opa(_serving(lambda _: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body))
    engine = _engine(server)
    assert judge(engine.evaluate({})).allow
    assert judge(engine.evaluate({})).allow
    assert server.connections == 1


def test_dripping_server_costs_one_timeout(fake_opa):
    """The deadline is for the whole answer: a byte now and then does not prolong it."""
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        while not stop.wait(0.02):
            connection.sendall(b"H")

    server = fake_opa(serve)
    _deny_after(TIMEOUT_SECONDS * 1.8, _engine(server))
    stop.set()


def test_idle_connection_closed_by_the_server_is_opened_again(fake_opa):
    """A kept connection that the server closed costs nothing: the question is asked again, once."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer(json.dumps({"result": GOOD}).encode()))

    server = fake_opa(serve)
    engine = _engine(server)
    for number in range(1, 4):
        assert judge(engine.evaluate({})).allow
        assert server.connections == number


def test_timeout_and_cut_answers_are_never_asked_again(fake_opa):
    """On a kept connection, an answer that began or a hang is not repeated."""
    asked: list[bytes] = []

    def respond(request: bytes) -> bytes:
        asked.append(request)
        return answer(json.dumps({"result": GOOD}).encode()) if len(asked) == 1 else b"HTTP/1.1 200"

    def cut(connection: socket.socket) -> None:
        for _ in range(2):
            connection.sendall(respond(read_request(connection)))

    server = fake_opa(cut)
    engine = _engine(server)
    assert judge(engine.evaluate({})).allow
    _deny_after(TIMEOUT_SECONDS * 1.8, engine)
    assert (len(asked), server.connections) == (2, 1)


def test_answer_of_a_late_server_meets_no_other_question(fake_opa):
    """After a timeout the connection is dropped, so its late answer is never taken for the next one's."""
    release = threading.Event()
    first = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        if not first.is_set():
            first.set()
            release.wait(10)
            connection.sendall(answer(json.dumps({"result": GOOD}).encode()))
        else:
            connection.sendall(answer(b"{}"))

    server = fake_opa(serve)
    engine = _engine(server)
    _deny_after(TIMEOUT_SECONDS * 1.8, engine)
    release.set()
    assert engine.evaluate({}) is UNDEFINED


@pytest.mark.parametrize("token", ["two words", "line\r\nX: y", "ünïcode", ""])
def test_token_cannot_write_headers(token):
    """A token file with anything but one printable word is refused before a connection exists."""
    with pytest.raises(ValueError, match="token"):
        OpaEngine(socket_path="/nowhere", token=token)


def test_input_cannot_choose_the_target(fake_opa):
    """The request line is constant, whatever the input holds."""
    seen: list[bytes] = []

    def respond(request: bytes) -> bytes:
        seen.append(request.split(b"\r\n", 1)[0])
        return answer(b"{}")

    server = fake_opa(_serving(respond))
    _engine(server).evaluate(ask("x HTTP/1.1\r\nGET /v1/config", "../../system/authz", path="/v1/data"))
    assert seen == [b"POST /v1/data/meshgate/decision?strict-builtin-errors=true HTTP/1.1"]
