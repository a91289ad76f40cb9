"""`meshgate demo`: the refund desk in a private folder, from an empty state to a verified log."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from meshgate_wire import broker_pb2 as pb

from meshgate_deploy import runtime
from meshgate_deploy.demo_services import model, seed
from meshgate_deploy.demo_services.http_json import JsonServer
from meshgate_deploy.errors import UserError
from meshgate_deploy.manifest import load
from meshgate_deploy.supervisor import Supervisor, bring_up

Say = Callable[[str], None]
PORT_SECONDS = 10.0
RPC_SECONDS = 10.0


def run_demo(
    *, seed: int, say: Say, quiet: bool, change: Callable[[Path], None] | None = None
) -> dict[str, Any]:
    """Runs the whole story once.

    Args:
        seed: draws the desk.
        say: gets progress lines.
        quiet: nothing but progress; otherwise tables go to stdout.
        change: edits the project's copy before it starts, for tests.

    Returns:
        The object that `meshgate demo --json` prints.
    """
    binaries = runtime.find_or_install(progress=say)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="meshgate-demo-"))
    project = folder / "refund_desk"
    shutil.copytree(_example(), project, ignore=shutil.ignore_patterns("__pycache__", ".meshgate", "data"))
    desk = _seed(seed, project)
    if change:
        change(project)
    book = folder / "payment-book.jsonl"
    with _services(folder, book):
        supervisor = bring_up(
            lambda: Supervisor(
                project=project, manifest=load(project / "meshgate.yaml"), binaries=binaries, say=say
            )
        )
        try:
            status = _run_crew(supervisor, folder)
            result = _result(supervisor, status, desk, book)
        finally:
            supervisor.down()
    result["seconds"] = round(time.monotonic() - began, 2)
    if not quiet:
        _tell(result, book, folder)
    return {key: value for key, value in result.items() if not key.startswith("_")}


def _seed(number: int, project: Path) -> seed.Desk:
    desk = seed.draw(number)
    seed.write(desk, project / "data")
    return desk


def _example() -> Path:
    packaged = Path(__file__).parent / "_examples" / "refund_desk"
    return (
        packaged if packaged.is_dir() else Path(__file__).parents[3] / "agents" / "examples" / "refund_desk"
    )


@contextlib.contextmanager
def _services(folder: Path, book: Path) -> Iterator[None]:
    """The payment service as a process, and the scripted model unless the user brings one."""
    key, port_file = secrets.token_hex(16), folder / "payment-port"
    before = dict(os.environ)
    os.environ["PAYMENT_KEY"] = key
    scripted = JsonServer(model.handle)
    if not (os.environ.get("OPENAI_BASE_URL") and os.environ.get("OPENAI_API_KEY")):
        scripted.start()
        os.environ["OPENAI_BASE_URL"] = f"http://127.0.0.1:{scripted.port}/v1"
        os.environ["OPENAI_API_KEY"] = "scripted"
    argv = [sys.executable, "-m", "meshgate_deploy.demo_services.payment", str(book), str(port_file)]
    payment = subprocess.Popen(argv)
    try:
        deadline = time.monotonic() + PORT_SECONDS
        while not (port_file.exists() and port_file.read_text()):
            if payment.poll() is not None or time.monotonic() > deadline:
                raise UserError("the payment service did not start", why="see above", fix="run it again")
            time.sleep(0.02)
        os.environ["PAYMENT_URL"] = f"http://127.0.0.1:{port_file.read_text()}"
        yield
    finally:
        payment.kill()
        payment.wait()
        os.environ.clear()
        os.environ.update(before)


def _run_crew(supervisor: Supervisor, folder: Path) -> int:
    """The crew's own entry point, unchanged; its output goes to a file."""
    with (folder / "crew.out").open("wb") as output, open(os.devnull, "rb") as nothing:  # noqa: PTH123
        streams = (nothing.fileno(), output.fileno(), output.fileno())
        managed = supervisor.run("desk", [sys.executable, "main.py"], stdio=streams)
        status = managed.popen.wait()
        supervisor.finish_run(managed)
    return status


def _result(supervisor: Supervisor, status: int, desk: seed.Desk, book: Path) -> dict[str, Any]:
    admin = supervisor.admin()
    found = admin.QueryRecords(pb.QueryRecordsRequest(kind="decision"), timeout=RPC_SECONDS)
    decisions = [json.loads(record) for record in found.records_json]
    verified = admin.VerifyRecords(pb.VerifyRecordsRequest(), timeout=RPC_SECONDS)
    allowed = sum(decision["verdict"] == "allow" for decision in decisions)
    paid = Counter(_paid(book))
    expected = Counter(desk.expected_book())
    doubled = sum(count - 1 for count in paid.values() if count > 1)
    missing = sum((expected - paid).values())
    good = status == 0 and verified.verified and not doubled and paid == expected
    apps = ["gateway", *supervisor.manifest.apps()]
    return {
        "status": "ok" if good else "failed",
        "seconds": 0.0,
        "apps": [{"name": app, "spiffe_id": str(supervisor.spiffe_id(app))} for app in apps],
        "calls": len(decisions),
        "allowed": allowed,
        "denied": len(decisions) - allowed,
        "effects": {
            "expected": sum(expected.values()),
            "seen": sum(paid.values()),
            "doubled": doubled,
            "missing": missing,
        },
        "audit": {"records": verified.records, "verified": verified.verified},
        "_decisions": decisions,
    }


def _paid(book: Path) -> list[tuple[str, int, str]]:
    rows = [json.loads(line) for line in book.read_text().splitlines()] if book.exists() else []
    return [(row["order_id"], row["amount"], row["card"]) for row in rows]


def _tell(result: dict[str, Any], book: Path, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("decision", "tool", "verdict", "reasons", box=None, title="Decisions", title_justify="left")
    for row in result["_decisions"]:
        colour = "green" if row["verdict"] == "allow" else "red"
        verdict = f"[{colour}]{row['verdict']}[/{colour}]"
        table.add_row(row["decision_id"], row["tool"], verdict, ", ".join(row["reasons"]))
    console.print(table)
    paid = Table("order", "amount", "card", box=None, title="Payment book", title_justify="left")
    for order, amount, card in _paid(book):
        paid.add_row(order, str(amount), card)
    console.print(paid)
    denied, effects, audit = result["denied"], result["effects"], result["audit"]
    console.print(
        f"{result['calls']} calls, {denied} refused; {effects['seen']} of {effects['expected']} refunds paid,"
        f" {effects['doubled']} doubled; {audit['records']} audit records, "
        f"{'verified' if audit['verified'] else 'BROKEN'}; {result['seconds']} s"
    )
    console.print(
        f"The crew said: {folder / 'crew.out'}   Logs: {folder / 'refund_desk' / '.meshgate' / 'logs'}"
    )
