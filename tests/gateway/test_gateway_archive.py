"""A run's archive over real mTLS, what its verifier finds, and what a purge leaves."""

import base64
import hashlib
import hmac
import io
import json
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.gateway_parts import ALLOW, deny
from fakes.gateway_wire import Wire, serve
from gateway.conftest import CATALOGUE
from google.protobuf import json_format
from meshgate_audit.archive import Broken, Verified, run_digest, verify_archive
from meshgate_deploy.archive_commands import _digest
from meshgate_deploy.archive_file import write_archive
from meshgate_deploy.errors import IntegrityFailed, UsageError
from meshgate_gateway import archive
from meshgate_wire import broker_pb2 as pb

Files = dict[str, bytes]


@pytest.fixture
def wire(tmp_path: Path):
    """A run of two replies, a refund, its repeat and a denied call, which is over."""
    made = serve(tmp_path, CATALOGUE)
    made.await_serving(True)
    work(made, "run-1")
    yield made
    made.close()


def key(name: str) -> str:
    """A key or a scope."""
    return hashlib.sha256(name.encode()).hexdigest()


def work(wire: Wire, run_id: str, *, ended: bool = True) -> None:
    """Plays the run."""
    runs = wire.runs("desk")
    runs.StartRun(pb.StartRunRequest(run_id=run_id, input_json=b'{"app":"desk","command":["true"]}'))
    runs.StartAttempt(pb.StartAttemptRequest(run_id=run_id, launcher_instance="l1"))
    append(wire, run_id, "m0", 0)
    call(wire, run_id, "pay", 1)
    append(wire, run_id, "m1", 1)
    call(wire, run_id, "pay again", 2)
    wire.policy.answer = deny("tool_not_granted")
    call(wire, run_id, "denied", 2, amount=7)
    wire.policy.answer = ALLOW
    if ended:
        end = pb.FinishRunRequest(run_id=run_id, attempt=1, state="failed", traceback=b"Traceback: oh")
        runs.FinishRun(end)


def append(wire: Wire, run_id: str, name: str, turn: int, *, size: int = 0) -> None:
    """Records a reply."""
    reply = {"reply": {"type": "text", "value": name + "x" * size}, "trace": {}}
    wire.runs("desk").AppendStep(
        pb.AppendStepRequest(
            run_id=run_id, attempt=1,
            step=pb.Step(key=key(name), scope=key("scope"), turn=turn, kind="model"),
            request_json=b'{"messages":[]}', reply_json=json.dumps(reply).encode(),
        )
    )  # fmt: skip


def call(wire: Wire, run_id: str, name: str, turn: int, amount: int = 5) -> pb.CallToolResponse:
    """A tool call of the one task."""
    return wire.broker("desk").CallTool(
        pb.CallToolRequest(
            run_id=run_id, attempt=1, step_key=key(name), tool="orders.refund", scope=key("scope"), turn=turn,
            task=key("task"), arguments_json=json.dumps({"order": "A-17", "amount": amount}).encode(),
        )
    )  # fmt: skip


def asking(wire: Wire, app: str = "operator") -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    """Asks as the command line does."""

    def ask(method: str, request: dict[str, Any]) -> dict[str, Any]:
        message = json_format.ParseDict(request, getattr(pb, f"{method}Request")())
        answer = getattr(wire.admin(app), method)(message, timeout=30)
        return json_format.MessageToDict(
            answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    return ask


def export(wire: Wire, path: Path, run_id: str = "run-1", *, force: bool = False) -> Verified:
    """Writes an archive."""
    return write_archive(run_id=run_id, ask=asking(wire), path=path, force=force, manifest=b"apiVersion: x")


def files_of(path: Path) -> Files:
    """What an archive holds."""
    with tarfile.open(path) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]


def refusal(ask: Callable[[], object]) -> str:
    """The reason of a refusal."""
    with pytest.raises(grpc.RpcError) as caught:
        ask()
    return dict(caught.value.trailing_metadata())["meshgate-reason"]


def test_an_archive_holds_everything_and_verifies_alone(wire, tmp_path) -> None:
    """Readable by its owner only, and checked by a process that has nothing of the mesh."""
    path = tmp_path / "run.tar.gz"
    found = export(wire, path)
    assert (found.run_id, found.steps) == ("run-1", 5)
    assert path.stat().st_mode & 0o777 == 0o600
    files = files_of(path)
    rows = [json.loads(line) for line in files["steps.jsonl"].splitlines()]
    assert [row.get("state", "replied") for row in rows] == ["replied", "done", "replied", "done", "denied"]
    assert rows[3]["repeats"] == rows[1]["call_id"]
    assert json.loads(files["text/0002-given"]) == {"amount": 5, "order": "A-17"}
    assert json.loads(files["text/0001-gave"])["reply"]["value"] == "m0"
    assert files["text/traceback"] == b"Traceback: oh"
    assert json.loads(files["text/input"]) == {"app": "desk", "command": ["true"]}
    assert b"A-17" not in files["audit.jsonl"] + files["steps.jsonl"] + files["run.json"]
    about = json.loads(files["export.json"])
    assert about["manifest_sha256"] == hashlib.sha256(b"apiVersion: x").hexdigest()
    assert about["policies_sha256"] == ["sha256:1"]
    assert b"python -m meshgate_audit run-run-1.tar.gz" in files["README.txt"]
    alone = subprocess.run(
        [sys.executable, "-m", "meshgate_audit", str(path)], check=False, capture_output=True, text=True
    )
    assert alone.returncode == 0
    assert alone.stdout.startswith("verified run run-1: 5 steps")


def test_the_readmes_second_way_works_too(wire, tmp_path) -> None:
    """The records by themselves, between the two hashes of export.json."""
    path, log = tmp_path / "run.tar.gz", tmp_path / "audit.jsonl"
    export(wire, path)
    files = files_of(path)
    about = json.loads(files["export.json"])
    log.write_bytes(files["audit.jsonl"])
    ends = [f"--{name}={about[name]['seq']}:{about[name]['hash']}" for name in ("after", "head")]
    command = [sys.executable, "-m", "meshgate_audit", str(log), *ends]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    log.write_bytes(files["audit.jsonl"].replace(b'"allow":false', b'"allow":true'))
    assert subprocess.run(command, check=False, capture_output=True).returncode == 6


def test_the_same_run_gives_the_same_bytes(wire, tmp_path) -> None:
    """Also after others did something, and though the first export is on record."""
    export(wire, tmp_path / "a.tar.gz")
    work(wire, "other")
    export(wire, tmp_path / "b.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()


def test_a_file_that_is_there_is_not_written_over(wire, tmp_path) -> None:
    """Unless it is said; a link in its place is replaced, not followed."""
    path, target = tmp_path / "run.tar.gz", tmp_path / "target"
    target.write_text("mine")
    path.symlink_to(target)
    with pytest.raises(UsageError):
        export(wire, path)
    export(wire, path, force=True)
    assert target.read_text() == "mine"
    assert not path.is_symlink()
    assert not list(tmp_path.glob(".export-*"))


def test_large_steps_come_in_parts(wire, tmp_path) -> None:
    """Replies near the limit, and more than one message holds."""
    work(wire, "large", ended=False)
    for turn in range(2, 5):
        append(wire, "large", f"big {turn}", turn, size=3_000_000)
    end = pb.FinishRunRequest(run_id="large", attempt=1, state="completed")
    wire.runs("desk").FinishRun(end)
    assert export(wire, tmp_path / "run.tar.gz", "large").steps == 8
    assert len(files_of(tmp_path / "run.tar.gz")["text/0008-gave"]) > 3_000_000


def test_a_step_that_no_message_holds_comes_in_pieces(wire, tmp_path, monkeypatch) -> None:
    """The same archive, whatever a part may hold; no part holds more, and each piece is on record."""
    work(wire, "large", ended=False)
    append(wire, "large", "big", 2, size=10_000)
    wire.runs("desk").FinishRun(pb.FinishRunRequest(run_id="large", attempt=1, state="completed"))
    export(wire, tmp_path / "whole.tar.gz", "large")
    sizes: list[int] = []
    monkeypatch.setattr(archive, "PART_BYTES", 2_000)
    ask = asking(wire)

    def measured(method: str, request: dict[str, Any]) -> dict[str, Any]:
        answer = ask(method, request)
        if method == "ExportRun" and request.get("from_step"):
            sizes.append(json_format.ParseDict(answer, pb.ExportRunResponse()).ByteSize())
        return answer

    path = tmp_path / "pieces.tar.gz"
    write_archive(run_id="large", ask=measured, path=path, force=False, manifest=b"apiVersion: x")
    assert path.read_bytes() == (tmp_path / "whole.tar.gz").read_bytes()
    assert len(sizes) > 7
    assert max(sizes) < 2_000 + 1_500  # a row comes whole, and the digest
    page = asking(wire)("QueryRecords", {"kind": "lifecycle", "limit": 1000})
    events = [json.loads(base64.b64decode(body))["event"] for body in page["records_json"]]
    assert events.count("run_exported") == 2 + 1 + len(sizes)


def test_rows_count_as_much_as_texts(wire, monkeypatch) -> None:
    """A run of refused calls has rows and hardly a text: its parts are bounded all the same."""
    monkeypatch.setattr(archive, "PART_BYTES", 1_500)
    part = asking(wire)("ExportRun", {"run_id": "run-1", "from_step": 1})
    assert len(part["steps_json"]) < 5
    assert part["next_step"] == len(part["steps_json"]) + 1


def test_a_run_under_way_is_exported_as_it_is(wire, tmp_path) -> None:
    """Also with a call whose arguments nobody may keep: they are not in the store, so not in the archive."""
    work(wire, "busy", ended=False)
    wire.broker("desk").CallTool(
        pb.CallToolRequest(
            run_id="busy", attempt=1, step_key=key("odd"), tool="orders.refund", scope=key("scope"), turn=3,
            arguments_json=b'{"order": "secret", "amount": NaN}',
        )
    )  # fmt: skip
    path = tmp_path / "run.tar.gz"
    assert export(wire, path, "busy").steps == 6
    files = files_of(path)
    assert json.loads(files["run.json"])["state"] == "running"
    assert "text/0006-given" not in files
    assert not any(b"secret" in data for data in files.values())


def test_who_took_clear_text_out_is_recorded_first(wire, tmp_path) -> None:
    """By name; without the record nothing leaves; an app gets nothing at all."""
    answer = asking(wire)("ExportRun", {"run_id": "run-1", "operator": "ann"})
    page = asking(wire)("QueryRecords", {"kind": "lifecycle", "limit": 1000})
    bodies = [json.loads(base64.b64decode(body)) for body in page["records_json"]]
    record = bodies[-1]
    assert (record["event"], record["exported_run"], record["operator"]) == ("run_exported", "run-1", "ann")
    assert record["digest"] == answer["digest"]
    asking(wire)("ExportRun", {"run_id": "run-1", "operator": "eve", "from_step": 3})
    page = asking(wire)("QueryRecords", {"kind": "lifecycle", "limit": 1000})
    later = [json.loads(base64.b64decode(body)) for body in page["records_json"]][len(bodies) :]
    assert [(one["event"], one["operator"], one["from_step"]) for one in later] == [
        ("run_exported", "eve", 3)
    ]
    wire.store.fail_before = True
    assert refusal(lambda: asking(wire)("ExportRun", {"run_id": "run-1"})) == "store_unavailable"
    wire.store.fail_before = False
    assert refusal(lambda: asking(wire, "desk")("ExportRun", {"run_id": "run-1"})) == "admin_not_permitted"
    assert refusal(lambda: asking(wire, "desk")("PurgeRun", {"run_id": "run-1"})) == "admin_not_permitted"
    assert refusal(lambda: asking(wire)("ExportRun", {"run_id": "nowhere"})) == "run_unknown"


# What somebody who holds an archive may try.


def rewrite(path: Path, files: Files, *, mended: bool = True) -> None:
    """Packs files again; `mended` also puts right every digest that needs no key and no chain."""
    if mended:
        about = json.loads(files["export.json"])
        about["digest"] = run_digest(files["run.json"].rstrip(b"\n"), files["steps.jsonl"].splitlines())
        about["files"] = {
            name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != "export.json"
        }
        files["export.json"] = json.dumps(about).encode()
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def text_changed(files: Files) -> None:
    """Another amount in a call's arguments."""
    files["text/0002-given"] = files["text/0002-given"].replace(b"5", b"9")


def row_changed(files: Files) -> None:
    """The same, with the row's commitment put right."""
    text_changed(files)
    entry = next(json.loads(line) for line in files["texts.jsonl"].splitlines() if b"0002-given" in line)
    fit = hmac.digest(bytes.fromhex(entry["salt"]), files["text/0002-given"], "sha256").hex()
    lines = files["steps.jsonl"].splitlines()
    row = json.loads(lines[1])
    row["given"]["hmac_sha256"] = fit
    lines[1] = json.dumps(row).encode()
    files["steps.jsonl"] = b"\n".join(lines) + b"\n"


def changed_step(number: int, **fields: object) -> Callable[[Files], None]:
    """Another word in a row."""

    def change(files: Files) -> None:
        lines = files["steps.jsonl"].splitlines()
        lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **fields}).encode()
        files["steps.jsonl"] = b"\n".join(lines) + b"\n"

    return change


def call_stands_in(files: Files) -> None:
    """The second payment is a copy of the first, under its own key."""
    lines = files["steps.jsonl"].splitlines()
    first, second = json.loads(lines[1]), json.loads(lines[3])
    kept = {name: second[name] for name in ("step", "step_key", "turn", "created")}
    lines[3] = json.dumps({**first, **kept}).encode()
    files["steps.jsonl"] = b"\n".join(lines) + b"\n"
    texts = [json.loads(line) for line in files["texts.jsonl"].splitlines()]
    lost = (second["given"]["payload"], second["gave"]["payload"])
    for gone in [text for text in texts if text["payload"] in lost]:
        texts.remove(gone)
        files.pop(gone["file"], None)
    files["texts.jsonl"] = b"".join(json.dumps(text).encode() + b"\n" for text in texts)


def input_changed(files: Files) -> None:
    """Another command was ordered, and the run's commitment put right."""
    files["text/input"] = files["text/input"].replace(b"true", b"evil")
    entry = next(json.loads(line) for line in files["texts.jsonl"].splitlines() if b"text/input" in line)
    run = json.loads(files["run.json"])
    fit = hmac.digest(bytes.fromhex(entry["salt"]), files["text/input"], "sha256").hex()
    run["input"]["hmac_sha256"] = fit
    files["run.json"] = json.dumps(run).encode()


def step_left_out(files: Files) -> None:
    """The denied call never was."""
    lines = files["steps.jsonl"].splitlines()[:-1]
    files["steps.jsonl"] = b"\n".join(lines) + b"\n"
    gone = json.loads(next(line for line in files["texts.jsonl"].splitlines() if b"0005-given" in line))
    del files[gone["file"]]
    kept = [line for line in files["texts.jsonl"].splitlines() if b"0005-given" not in line]
    files["texts.jsonl"] = b"\n".join(kept) + b"\n"


def run_completed(files: Files) -> None:
    """It did not fail."""
    files["run.json"] = files["run.json"].replace(b'"failed"', b'"completed"')


def record_changed(files: Files) -> None:
    """The denial was none."""
    files["audit.jsonl"] = files["audit.jsonl"].replace(b'"allow":false', b'"allow":true')


def last_record_changed(files: Files) -> None:
    """Of the record that nothing follows, a word that no row has."""
    lines = files["audit.jsonl"].splitlines()
    lines[-1] = json.dumps({**json.loads(lines[-1]), "gateway": "another"}).encode()
    files["audit.jsonl"] = b"\n".join(lines) + b"\n"


def record_cut(files: Files) -> None:
    """A record less in the middle."""
    lines = files["audit.jsonl"].splitlines()
    files["audit.jsonl"] = b"\n".join(lines[:3] + lines[4:]) + b"\n"


def tail_cut(files: Files) -> None:
    """A record less at the end."""
    files["audit.jsonl"] = b"\n".join(files["audit.jsonl"].splitlines()[:-1]) + b"\n"


def text_missing(files: Files) -> None:
    """A clear text less."""
    del files["text/0003-gave"]


def text_unlisted(files: Files) -> None:
    """A clear text that was said never to have been kept."""
    del files["text/0003-gave"]
    files["texts.jsonl"] = files["texts.jsonl"].replace(b'"text/0003-gave"', b"null")


def text_unnamed(files: Files) -> None:
    """A clear text and its entry less."""
    del files["text/0003-gave"]
    kept = [line for line in files["texts.jsonl"].splitlines() if b"0003-gave" not in line]
    files["texts.jsonl"] = b"\n".join(kept) + b"\n"


def file_added(files: Files) -> None:
    """A file of another name."""
    files["../../etc/cron.d/x"] = b"* * * * * root true\n"


TRIED = (
    text_changed, row_changed, changed_step(5, state="done"), changed_step(2, state="failed"),
    changed_step(1, copied=True), step_left_out, changed_step(2, tool="orders.lookup"),
    changed_step(2, host_instance="another"), changed_step(2, decision_id="D-0"),
    call_stands_in, input_changed, run_completed, record_changed,
    last_record_changed, record_cut, tail_cut,
    text_missing, text_unlisted, text_unnamed, file_added,
)  # fmt: skip


@pytest.mark.parametrize("change", TRIED)
def test_what_was_changed_does_not_verify(wire, tmp_path, change) -> None:
    """Though every digest that can be put right was put right."""
    path = tmp_path / "run.tar.gz"
    export(wire, path)
    files = files_of(path)
    rewrite(path, files)
    verify_archive(path)
    change(files)
    rewrite(path, files)
    with pytest.raises(Broken):
        verify_archive(path)


def test_a_file_that_export_json_does_not_name_is_found(wire, tmp_path) -> None:
    """A README that says something else, without the digests put right."""
    path = tmp_path / "run.tar.gz"
    export(wire, path)
    files = files_of(path)
    files["README.txt"] = b"all is well"
    rewrite(path, files, mended=False)
    with pytest.raises(Broken, match=r"README\.txt"):
        verify_archive(path)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\x1f\x8b\x08\x00"])
def test_what_is_no_archive_is_told_so(tmp_path, data) -> None:
    """Status 6, one line."""
    path = tmp_path / "run.tar.gz"
    path.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "meshgate_audit", str(path)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 6
    assert done.stdout.startswith("NOT VERIFIED: not an archive of a run")


# The end of clear text.


def purge(wire: Wire, run_id: str = "run-1", **how: object) -> dict[str, Any]:
    """Purges a run."""
    return asking(wire)("PurgeRun", {"run_id": run_id, "operator": "ann", **how})


def kept(wire: Wire) -> int:
    """How many payloads the store holds."""
    with sqlite3.connect(wire.directory.parent / "g.db") as db:
        return int(db.execute("SELECT count(*) FROM payloads").fetchone()[0])


def test_a_purge_needs_an_export_of_the_run_as_it_is(wire, tmp_path) -> None:
    """Or the word that there is none; neither, both, another run's and an older one's are refused."""
    path = tmp_path / "run.tar.gz"
    found = export(wire, path)
    work(wire, "other")
    other = export(wire, tmp_path / "other.tar.gz", "other")
    before = kept(wire)
    assert refusal(lambda: purge(wire)) == "purge_invalid"
    assert refusal(lambda: purge(wire, digest=found.digest, without_export=True)) == "purge_invalid"
    assert refusal(lambda: purge(wire, digest=other.digest)) == "export_stale"
    with pytest.raises(IntegrityFailed, match="is of other"):
        _digest(tmp_path / "other.tar.gz", "run-1")
    assert kept(wire) == before
    assert purge(wire, digest=_digest(path, "run-1"))["deleted"] == 10
    assert kept(wire) == before - 10


def test_an_archive_that_does_not_verify_purges_nothing(wire, tmp_path) -> None:
    """Its digest is not even looked at."""
    path = tmp_path / "run.tar.gz"
    export(wire, path)
    files = files_of(path)
    text_changed(files)
    rewrite(path, files)
    with pytest.raises(IntegrityFailed, match="does not verify"):
        _digest(path, "run-1")


def test_a_purge_leaves_what_must_not_be_forgotten(wire) -> None:
    """Run, calls and records stay, marked and by name; clear text, salts and journal are gone."""
    calls = asking(wire)("ListCalls", {"run_id": "run-1"})["calls"]
    purge(wire, without_export=True)
    shown = asking(wire)("ShowRun", {"run_id": "run-1"})
    assert shown["run"]["purged"]
    assert shown["run"]["state"] == "failed"
    assert (shown["input_json"], shown["traceback"]) == ("", "")
    assert [(row["input"], row["output"], row["step"]["kind"]) for row in shown["steps"]] == [
        ("", "", "tool")
    ] * 3
    assert asking(wire)("ListCalls", {"run_id": "run-1"})["calls"] == calls
    assert kept(wire) == 0
    assert asking(wire)("VerifyRecords", {})["verified"]
    page = asking(wire)("QueryRecords", {"run_id": "run-1", "limit": 1000})
    record = json.loads(base64.b64decode(page["records_json"][-1]))
    assert (record["event"], record["operator"], record["exported"]) == ("run_purged", "ann", False)


def test_a_purged_run_cannot_come_back(wire) -> None:
    """Its id stays taken, no effect happens under it, and nothing is made out of it."""
    purge(wire, without_export=True)
    runs, effects = wire.runs("desk"), list(wire.runtime.effects)
    start = pb.StartRunRequest(run_id="run-1", input_json=b'{"app":"desk","command":["true"]}')
    assert refusal(lambda: runs.StartRun(start)) == "run_purged"
    attempt = pb.StartAttemptRequest(run_id="run-1", launcher_instance="l2")
    assert refusal(lambda: runs.StartAttempt(attempt)) == "run_ended"
    assert refusal(lambda: call(wire, "run-1", "pay", 1)) == "run_ended"
    journal = pb.ReadJournalRequest(run_id="run-1", attempt=0)
    assert refusal(lambda: list(runs.ReadJournal(journal))) == "run_purged"
    for origin, steps in (("fork", 1), ("rerun", 0)):
        order = {"run_id": "run-1", "new_run_id": "new", "origin": origin, "steps": steps}
        assert refusal(lambda order=order: asking(wire)("BranchRun", order)) == "run_purged"
    assert refusal(lambda: asking(wire)("ExportRun", {"run_id": "run-1"})) == "run_purged"
    assert refusal(lambda: purge(wire, without_export=True)) == "run_purged"
    assert wire.runtime.effects == effects


def test_a_run_that_is_not_over_or_not_settled_keeps_its_text(wire) -> None:
    """Its clear text is needed still: by the run, or by who has to say how a call ended."""
    work(wire, "busy", ended=False)
    assert refusal(lambda: purge(wire, "busy", without_export=True)) == "run_not_ended"
    wire.runtime.held = True
    call(wire, "busy", "lost", 3, amount=9)
    (lost,) = [
        row for row in asking(wire)("ListCalls", {"run_id": "busy"})["calls"] if row["state"] == "reserved"
    ]
    wire.gateway.hosts.take(wire.runtime.present("orders"), call_id=lost["call_id"], host_instance="gone")
    wire.runs("desk").FinishRun(pb.FinishRunRequest(run_id="busy", attempt=1, state="failed"))
    assert refusal(lambda: purge(wire, "busy", without_export=True)) == "step_not_settled"


def test_a_fork_keeps_what_it_shares(wire, tmp_path) -> None:
    """The purge of either leaves the other whole; with the last of them the shared text goes."""
    order = {"run_id": "run-1", "new_run_id": "fork-1", "origin": "fork", "steps": 3}
    asking(wire)("BranchRun", order)
    asking(wire)(
        "BranchRun", {**order, "run_id": "run-1", "new_run_id": "again", "origin": "rerun", "steps": 0}
    )
    for run_id in ("fork-1", "again"):
        asking(wire)("ControlRun", {"run_id": run_id, "action": "cancel"})
    done = purge(wire, without_export=True)
    assert (done["deleted"], done["shared"]) == (4, 6)
    shown = asking(wire)("ShowRun", {"run_id": "run-1"})["steps"]
    assert {row["input"] + row["output"] for row in shown} == {""}
    assert export(wire, tmp_path / "fork.tar.gz", "fork-1").steps == 3
    done = purge(wire, "fork-1", without_export=True)
    assert (done["deleted"], done["shared"]) == (7, 0)
    assert purge(wire, "again", without_export=True)["deleted"] == 1
    assert kept(wire) == 0
