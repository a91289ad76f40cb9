"""The payment service and the obedient model at their HTTP boundary."""

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from meshgate_deploy.refund_desk import payments, seed, stage
from meshgate_deploy.refund_desk.seed import Payment
from meshgate_deploy.refund_desk.stage import Stage


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A staged example with running services."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
            patch.delenv(name, raising=False)
        with stage.staged(tmp_path_factory.mktemp("stage") / "desk", seed=1) as staged:
            yield staged


def _post(url: str, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        shown = {name.replace("_", "-"): value for name, value in headers.items()}
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, text, {"Content-Type": "application/json", **shown})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def _pay(desk: Stage, body: Any, **headers: str) -> tuple[int, Any]:
    key = {"Authorization": f"Bearer {desk.env['PAYMENT_KEY']}"}
    return _post(desk.env["PAYMENT_URL"], "/refunds", body, **{**key, **headers})


def _ask(desk: Stage, body: Any) -> tuple[int, Any]:
    return _post(desk.env["OPENAI_BASE_URL"].removesuffix("/v1"), "/v1/chat/completions", body)


def test_a_payment_is_in_the_book_when_it_is_answered(desk: Stage) -> None:
    """Two equal requests are two payments: the service cannot know better."""
    before = len(payments.read_book(desk.book))
    body = {"order_id": "O-1", "amount": 12.34}
    assert [_pay(desk, body)[0] for _ in range(2)] == [200, 200]
    assert payments.read_book(desk.book)[before:] == [Payment("O-1", 1234)] * 2


def test_an_idempotency_key_pays_once(desk: Stage) -> None:
    """The second request gets the first answer and leaves no line."""
    before = len(payments.read_book(desk.book))
    body = {"order_id": "O-2", "amount": 5}
    first, second = (_pay(desk, body, Idempotency_Key="k") for _ in range(2))
    assert first == second
    assert payments.read_book(desk.book)[before:] == [Payment("O-2", 500)]


@pytest.mark.parametrize(
    "body", [{}, [], *({"order_id": "O-1", "amount": amount} for amount in ("5", True, -1, 0, 1e12, None))]
)
def test_what_is_no_refund_is_refused(desk: Stage, body: Any) -> None:
    """Nothing reaches the book."""
    before = payments.read_book(desk.book)
    assert _pay(desk, body)[0] == 422
    assert payments.read_book(desk.book) == before


def test_the_payment_key_is_needed(desk: Stage) -> None:
    """No key, a wrong key, the withheld text: 401."""
    body = {"order_id": "O-1", "amount": 5}
    for shown in ("", "Bearer wrong", "Bearer meshgate:withheld"):
        assert _pay(desk, body, Authorization=shown)[0] == 401


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"messages": [{}]},
        {"messages": [], "stream": True},
        {"messages": [{"role": "tool"}]},
        b"no json",
    ],
)
def test_the_model_answers_nonsense_with_400(desk: Stage, body: Any) -> None:
    """A malformed request is an error of the asker, not an end of the server."""
    assert _ask(desk, body)[0] == 400


def test_the_model_calls_only_what_it_is_offered(desk: Stage) -> None:
    """Without functions it says so; with some it calls by their names."""
    user = {"role": "user", "content": "List the open tickets."}
    status, answer = _ask(desk, {"messages": [user]})
    assert (status, answer["choices"][0]["finish_reason"]) == (200, "stop")
    function = {"name": "list_tickets", "parameters": {"type": "object", "properties": {}}}
    _, answer = _ask(desk, {"messages": [user], "tools": [{"type": "function", "function": function}]})
    call = answer["choices"][0]["message"]["tool_calls"][0]
    assert (call["function"], answer["choices"][0]["finish_reason"]) == (
        {"name": "list_tickets", "arguments": "{}"},
        "tool_calls",
    )


def test_an_answer_is_one_write(desk: Stage) -> None:
    """Headers and body arrive together, so no delayed acknowledgement is waited for."""
    host, port = desk.env["OPENAI_BASE_URL"].removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({"messages": []}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(head + body)
        first = sock.recv(65_536)
    announced, _, text = first.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(text)}".encode() in announced


def test_a_service_ends_with_its_parent(tmp_path: Path) -> None:
    """When standard input ends, however that came, the process ends."""
    ready = tmp_path / "ready"
    command = [sys.executable, "-m", "meshgate_deploy.refund_desk.model", "--ready-file", str(ready)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == 0


def test_the_copy_is_private_and_complete(desk: Stage) -> None:
    """Tickets, orders and secrets are there; what holds secrets is for the owner only."""
    assert {f"tickets/{path.name}" for path in (desk.project / "tickets").iterdir()} == {
        ticket.path for ticket in desk.story.tickets
    }
    assert (desk.project / "orders.db").is_file()
    assert desk.project.stat().st_mode & 0o077 == 0
    for name in (".env", seed.SECRETS_FILE):
        assert (desk.project / name).stat().st_mode & 0o077 == 0


def test_one_half_of_a_model_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key alone that lies in the environment sends nothing anywhere."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert stage.users_model() == {}
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert set(stage.users_model()) >= {"OPENAI_BASE_URL", "OPENAI_API_KEY"}
