"""Writes the archive of a run: parts from the gateway into a .tar.gz that is the same for the same run."""

import base64
import gzip
import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from meshgate_audit.archive import FORMAT, Broken, Verified, run_digest, verify_archive

from meshgate_deploy.errors import IntegrityFailed, UsageError

RECORDS_PER_ANSWER = 500

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]

README = """\
Run {run_id}, exported from meshgate. This archive holds clear text: keep it as you would the data itself.

  run.json      the run's row
  steps.jsonl   its steps in order, one JSON object per line: model steps of the journal, and calls as the
                ledger has them. `given` and `gave` commit to the clear text: a payload's id, and
                HMAC-SHA-256(salt, bytes)
  texts.jsonl   where each clear text lies in text/, and the salt that belongs to it; `file` is null where
                the text itself was never kept
  text/         input, traceback, result, and for step 7 text/0007-given (prompt or arguments) and
                text/0007-gave (reply or result)
  audit.jsonl   the records from the run's first to its last. Records of other runs in between are here
                too: without them the chain could not be followed. None of them holds clear text
  export.json   digests of all these files, of run and steps, of the manifest as it was when this was
                exported, of the policies that decided; the hashes before and at the end of the records

To verify it all with the Python package meshgate_audit alone, no part of the mesh running:

  python -m meshgate_audit run-{run_id}.tar.gz

or the records by themselves, after unpacking, with both hashes from export.json:

  python -m meshgate_audit audit.jsonl --after SEQ:HASH --head SEQ:HASH

This shows that rows, clear text and records are what was recorded, and that no record between the
first and the last was changed or left out. It cannot show that these are the records of the gateway you
think of: find the hash of `head` in a log, or beside a later head, that was kept by somebody else.
"""


def write_archive(*, run_id: str, ask: Ask, path: Path, force: bool, manifest: bytes) -> Verified:
    """Fetches, writes and verifies; the file appears only when it holds.

    Raises:
        MeshError: what the gateway said, or what is wrong with what came.
    """
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.absolute().parent) as name:
        draft = Path(name) / "run.tar.gz"  # mkdtemp makes the folder 0700
        with _Writer(draft) as writer:
            _fill(writer, _Parts(run_id, ask), manifest)
        try:
            found = verify_archive(draft)
        except Broken as broken:
            raise IntegrityFailed(
                f"the export of {run_id} does not verify", why=str(broken),
                next_step="once more; if it stays so: meshgate audit verify",
            ) from broken  # fmt: skip
        _put(draft, path, force=force)
    return found


def _put(draft: Path, path: Path, *, force: bool) -> None:
    if force:
        draft.replace(path)
        return
    try:
        os.link(draft, path)
    except FileExistsError as error:
        raise UsageError(f"{path} is there already", next_step="another -o, or --force") from error


class _Writer:
    """A .tar.gz whose bytes depend on names and contents alone."""

    def __init__(self, path: Path) -> None:
        self.digests: dict[str, str] = {}
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._packed = gzip.GzipFile(filename="", fileobj=self._file, mode="wb", mtime=0)
        self._tar = tarfile.TarFile(fileobj=self._packed, mode="w", format=tarfile.USTAR_FORMAT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for part in (self._tar, self._packed, self._file):
            part.close()

    def add(self, name: str, data: bytes) -> None:
        """A file of the archive."""
        with tempfile.SpooledTemporaryFile(max_size=len(data) + 1) as file:
            file.write(data)
            self.add_file(name, file, len(data), hashlib.sha256(data).hexdigest())

    def add_file(self, name: str, file: Any, size: int, digest: str) -> None:
        """A file that is too large for the memory."""
        file.seek(0)
        about = tarfile.TarInfo(name)
        about.size, about.mode = size, 0o600
        self._tar.addfile(about, file)
        self.digests[name] = digest


@dataclass(slots=True)
class _Parts:
    """What the gateway gives out, part by part."""

    run_id: str
    ask: Ask
    first: dict[str, Any] = field(init=False)
    run_json: bytes = field(init=False)
    steps: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = self.ask("ExportRun", {"run_id": self.run_id})
        self.run_json = base64.b64decode(self.first["run_json"])

    def texts(self) -> Iterator[tuple[str, dict[str, Any], bytes]]:
        """Name, entry and bytes of each clear text; notes the steps on its way.

        Raises:
            IntegrityFailed: the run changed meanwhile.
        """
        run = json.loads(self.run_json)
        given = {text["payload"]: text for text in self.first["texts"]}
        for name in ("input", "traceback", "result"):
            if run[name] is not None:
                yield _text(f"text/{name}", given[run[name]["payload"]])
        following = int(self.first["next_step"])
        while following:
            part = self._whole(following)
            given = {text["payload"]: text for text in part["texts"]}
            for line in part["steps_json"]:
                self.steps.append(base64.b64decode(line))
                yield from _of_step(json.loads(self.steps[-1]), given)
            following = int(part["next_step"])
        if run_digest(self.run_json, self.steps) != self.first["digest"]:
            raise IntegrityFailed(
                f"{self.run_id} changed while it was exported",
                next_step=f"meshgate runs export {self.run_id}",
            )

    def _whole(self, from_step: int) -> dict[str, Any]:
        """A part; with the rest of its step, where that comes in pieces."""
        part = self.ask("ExportRun", {"run_id": self.run_id, "from_step": from_step})
        texts = {text["payload"]: text for text in part["texts"]}
        more = part
        while int(more["next_byte"]):
            place = {"from_step": more["next_step"], "from_byte": more["next_byte"]}
            more = self.ask("ExportRun", {"run_id": self.run_id, **place})
            for text in more["texts"]:
                known = texts.setdefault(text["payload"], text)
                if known is not text:
                    data = base64.b64decode(known["data"]) + base64.b64decode(text["data"])
                    known["data"] = base64.b64encode(data).decode()
        return {**part, "texts": list(texts.values()), "next_step": more["next_step"]}

    def records(self) -> Iterator[bytes]:
        """The records from the run's first to its last, with all in between."""
        after, last = int(self.first["first_record"]) - 1, int(self.first["last_record"])
        while after < last:
            request = {"after_seq": after, "limit": min(RECORDS_PER_ANSWER, last - after)}
            page = self.ask("QueryRecords", request)
            if not page["records_json"]:
                raise IntegrityFailed("the log ends before the run does", next_step="meshgate audit verify")
            yield from (base64.b64decode(body) for body in page["records_json"])
            after = int(page["last_seq"])


def _of_step(step: dict[str, Any], given: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bytes]]:
    for name in ("given", "gave"):
        if step[name] is not None:
            yield _text(f"text/{step['step']:04}-{name}", given[step[name]["payload"]])


def _text(name: str, text: dict[str, Any]) -> tuple[str, dict[str, Any], bytes]:
    salt, data = base64.b64decode(text["salt"]), base64.b64decode(text["data"])
    entry = {"file": name if text["kept"] else None, "payload": text["payload"], "salt": salt.hex()}
    return name, entry, data


def _fill(writer: _Writer, parts: _Parts, manifest: bytes) -> None:
    writer.add("README.txt", README.format(run_id=parts.run_id).encode())
    entries = []
    for file, entry, data in parts.texts():
        entries.append(entry)
        if entry["file"] is not None:
            writer.add(file, data)
    writer.add("run.json", parts.run_json + b"\n")
    writer.add("steps.jsonl", b"".join(line + b"\n" for line in parts.steps))
    writer.add("texts.jsonl", b"".join(_line(entry) for entry in entries))
    about = {
        "format": FORMAT,
        "run_id": parts.run_id,
        "digest": parts.first["digest"],
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        **_log(writer, parts),
    }
    writer.add("export.json", _line({**about, "files": dict(writer.digests)}))


def _log(writer: _Writer, parts: _Parts) -> dict[str, Any]:
    """Writes the records; the ends of their chain, and the policies that decided about the run."""
    digest, size, policies = hashlib.sha256(), 0, set()
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile() as file:
        for body in parts.records():
            file.write(body + b"\n")
            digest.update(body + b"\n")
            size += len(body) + 1
            last = json.loads(body)
            first = first or last
            if last["kind"] == "decision" and last["run_id"] == parts.run_id:
                policies.add(last["policy"]["digest"])
        writer.add_file("audit.jsonl", file, size, digest.hexdigest())
    return {
        "policies_sha256": sorted(policies),
        "after": {"seq": first["seq"] - 1, "hash": first["prev"]},
        "head": {"seq": last["seq"], "hash": last["hash"]},
    }


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"
