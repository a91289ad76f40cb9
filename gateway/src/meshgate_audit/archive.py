"""Verifies a run's archive (`meshgate runs export`) without any running part.

What is checked: every file is the one that `export.json` names; the records are an unbroken part
of the chain; every clear text is the one that its row commits to; every step has its records and
they say the same of it; every record of a step has its step; the run's last recorded state is
its own. What is not: that the part of the chain belongs to the log of a gateway you trust. For
that, find its last hash in a head or a log that was kept elsewhere.
"""

import contextlib
import gzip
import hashlib
import hmac
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from meshgate_audit.chain import Head, Verification, verify

MAX_TEXT_BYTES = 8_388_608  # the gateway takes no clear text of more than 3 MiB
CHUNK_BYTES = 1_048_576
FORMAT = 1
DATA_FILES = ("run.json", "steps.jsonl", "texts.jsonl", "audit.jsonl", "README.txt")
RUN_TEXTS = ("input", "traceback", "result")
# Fields that a step and the records of its decision and outcome share.
DECIDED = ("step_key", "tool", "host", "effect", "definition_sha256", "decision_id")
SETTLED = ("state", "caller", "take", "host_instance", "result_kind", "error_class")
TEXT_FILE = re.compile(r"text/[a-z0-9-]{1,40}\Z")
_DOMAIN = b"meshgate.run.v1\x00"

Row = dict[str, Any]


class Broken(Exception):
    """The archive is not what it says; the text tells where."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What an archive that holds proves: which run, as it was when, and which part of the log."""

    run_id: str
    digest: str
    steps: int
    records: int
    head: Head


def run_digest(run_json: bytes, steps_json: Iterable[bytes]) -> str:
    """SHA-256, hex, of a run and all its steps; of clear text it covers the commitments."""
    digest = hashlib.sha256(_DOMAIN)
    for line in (run_json, *steps_json):
        digest.update(len(line).to_bytes(8, "big") + line)
    return digest.hexdigest()


def verify_archive(path: Path) -> Verified:
    """Checks one archive; nothing is unpacked.

    Raises:
        Broken: with the first thing that is wrong.
    """
    try:
        contents = _read(path)
        return _checked(path, contents)
    except (OSError, EOFError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise Broken(f"not an archive of a run: {type(error).__name__}: {error}") from error


@dataclass(slots=True)
class _Contents:
    """What the archive holds besides its clear texts and its records, and the digest of every file."""

    digests: dict[str, str] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)

    def lines(self, name: str) -> list[bytes]:
        return self.small[name].splitlines()


@contextlib.contextmanager
def _members(path: Path) -> Iterator[Iterator[tuple[str, int, IO[bytes]]]]:
    with gzip.open(path) as packed, tarfile.open(fileobj=packed, mode="r|") as tar:

        def each() -> Iterator[tuple[str, int, IO[bytes]]]:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                if file is None:
                    raise Broken(f"{member.name} is no file")
                yield member.name, member.size, file

        yield each()


def _read(path: Path) -> _Contents:
    found = _Contents()
    with _members(path) as members:
        for name, size, file in members:
            if name in found.digests:
                raise Broken(f"{name} is there twice")
            known = name in DATA_FILES or name == "export.json" or TEXT_FILE.match(name)
            if not known or (TEXT_FILE.match(name) and size > MAX_TEXT_BYTES):
                raise Broken(f"{name} does not belong here")
            keep = name.endswith((".json", ".jsonl")) and name != "audit.jsonl" and "/" not in name
            digest, kept = hashlib.sha256(), []
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                if keep:
                    kept.append(chunk)
            found.digests[name] = digest.hexdigest()
            if keep:
                found.small[name] = b"".join(kept)
    return found


def _checked(path: Path, contents: _Contents) -> Verified:
    about: Row = json.loads(contents.small["export.json"])
    if about["format"] != FORMAT:
        raise Broken(f"format {about['format']}; this verifier knows {FORMAT}")
    files = {name: digest for name, digest in contents.digests.items() if name != "export.json"}
    if files != about["files"]:
        odd = sorted(
            name for name in files.keys() | about["files"] if files.get(name) != about["files"].get(name)
        )
        raise Broken(f"{odd[0]} is missing, or not the file that was exported")
    run_json, steps_json = contents.small["run.json"].rstrip(b"\n"), contents.lines("steps.jsonl")
    if run_digest(run_json, steps_json) != about["digest"]:
        raise Broken("run.json and steps.jsonl are not what export.json names")
    run, steps = json.loads(run_json), [json.loads(line) for line in steps_json]
    if run["run_id"] != about["run_id"] or [step["step"] for step in steps] != list(range(1, len(steps) + 1)):
        raise Broken("the run is another one, or its steps are not all there")
    unkept = {str(step["given"]["payload"]) for step in steps if step.get("state") == "denied"}
    _check_texts(path, contents, _sealed(run, steps), unkept)
    after, head = (Head(int(about[name]["seq"]), str(about[name]["hash"])) for name in ("after", "head"))
    log = _Log(str(run["run_id"]))
    found = _verify_log(path, log, after, head)
    problem = found.problem or ("" if found.head == head else "it does not end where export.json says")
    if problem:
        raise Broken(f"audit.jsonl: {problem}")
    log.compare(run, steps)
    return Verified(str(run["run_id"]), str(about["digest"]), len(steps), found.records, found.head)


def _sealed(run: Row, steps: list[Row]) -> dict[str, Row]:
    """Every commitment of the rows, by payload."""
    found = [run["input"], run["traceback"], run["result"]]
    for step in steps:
        found += [step["given"], step["gave"]]
    return {str(sealed["payload"]): sealed for sealed in found if sealed is not None}


def _check_texts(path: Path, contents: _Contents, wanted: dict[str, Row], unkept: set[str]) -> None:
    """Each clear text fits the commitment of its row; only of refused arguments there may be none."""
    listed: dict[str, Row] = {}
    missing = set(wanted)
    for line in contents.lines("texts.jsonl"):
        entry: Row = json.loads(line)
        missing.discard(str(entry["payload"]))
        if entry["file"] is not None:
            listed[str(entry["file"])] = entry
        elif entry["payload"] not in unkept:
            raise Broken(f"the clear text {entry['payload']} was kept, and is not here")
    if missing:
        raise Broken(f"the clear text {min(missing)} is missing")
    texts = {name for name in contents.digests if TEXT_FILE.match(name)}
    if texts != set(listed):
        raise Broken(f"{min(texts ^ set(listed))} is not in texts.jsonl, or not there")
    with _members(path) as members:
        for name, _, file in members:
            if name in listed:
                entry = listed[name]
                sealed = wanted.get(str(entry["payload"]))
                actual = hmac.digest(bytes.fromhex(entry["salt"]), file.read(), "sha256").hex()
                if sealed is None or not hmac.compare_digest(actual, str(sealed["hmac_sha256"])):
                    raise Broken(f"{name} is not the text that was committed to")


def _verify_log(path: Path, log: "_Log", after: Head, head: Head) -> Verification:
    with _members(path) as members:
        for name, _, file in members:
            if name == "audit.jsonl":
                return verify(log.noting(file), after=after, head=head)
    raise Broken("audit.jsonl is missing")


class _Log:
    """What the records say of one run."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._state = ""
        self._models: dict[str, Row] = {}
        self._copies: dict[str, Row] = {}
        self._asked: dict[str, Row] = {}
        self._outcomes: dict[str, Row] = {}
        self._texts: Row = {}

    def noting(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Hands lines on and keeps what is about the run."""
        for line in lines:
            record = json.loads(line)
            if isinstance(record, dict) and record.get("run_id") == self._run_id:
                self._note(record)
            yield line

    def _note(self, record: Row) -> None:
        kind = record.get("kind")
        if kind == "lifecycle" and "state" in record:
            self._state = str(record["state"])
            self._texts |= {name: record[name] for name in RUN_TEXTS if name in record}
        elif kind == "step":
            self._models[record["step_key"]] = record
        elif kind == "copy":
            self._copies[record["step_key"]] = record
        elif kind in ("decision", "refusal") and record.get("arguments"):
            self._asked[record["call_id"]] = record
        elif kind == "outcome":
            self._outcomes[record["call_id"]] = record

    def compare(self, run: Row, steps: list[Row]) -> None:
        """Rows and records say the same, and neither has what the other lacks.

        Raises:
            Broken: the first difference.
        """
        if self._state != run["state"]:
            raise Broken(f"the run is {run['state']}, its last record says {self._state or 'nothing'}")
        for name, committed in self._texts.items():
            if run[name] != committed:
                raise Broken(f"the run's record commits to another {name}")
        keys = [step["step_key"] for step in steps]
        ids = [step["call_id"] for step in steps if step["kind"] == "tool"]
        if len(keys) != len(set(keys)) or len(ids) != len(set(ids)):
            raise Broken("a step is there twice")
        left = {*self._models, *self._copies, *(record["step_key"] for record in self._asked.values())}
        for step in steps:
            self._compare_step(step)
            left.discard(step["step_key"])
        if left:
            raise Broken(f"there is a record of the step {min(left)[:16]}, which is not among the steps")

    def _compare_step(self, step: Row) -> None:
        name = f"step {step['step']}"
        if step["copied"]:
            record = self._copies.get(step["step_key"])
            self._same(name, record, (("given", "given"), ("gave", "gave")), step)
            if record is not None and step["kind"] == "tool" and record["state"] != step["state"]:
                raise Broken(f"{name}: its record says {record['state']}")
        elif step["kind"] == "model":
            record = self._models.get(step["step_key"])
            fields = (("request", "given"), ("reply", "gave"), ("turn", "turn"), ("attempt", "attempt"))
            self._same(name, record, fields, step)
        else:
            pairs = (("arguments", "given"), *((field, field) for field in DECIDED))
            self._same(name, self._asked.get(step["call_id"]), pairs, step)
            self._compare_outcome(name, step)

    def _compare_outcome(self, name: str, step: Row) -> None:
        outcome = self._outcomes.get(step["call_id"])
        if step["state"] in ("done", "failed", "unknown"):
            pairs = (("result", "gave"), *((field, field) for field in SETTLED))
            self._same(name, outcome, pairs, step)
        elif outcome is not None:
            raise Broken(f"{name} is {step['state']}, its record says {outcome['state']}")

    @staticmethod
    def _same(name: str, record: Row | None, pairs: tuple[tuple[str, str], ...], step: Row) -> None:
        if record is None:
            raise Broken(f"{name} has no record")
        for recorded, stored in pairs:
            if record[recorded] != step[stored]:
                raise Broken(f"{name}: its record has another {recorded}")
