"""What a disk holds at a moment of a traced run: the synced bytes, and of later writes what chance left.

A sync makes durable what was written before it began. After one that failed, the kernel counts its
pages as clean: what they held reaches the disk only when it is written again. Removed files are gone
at once. Not modelled: folders that were not synced; the shared memory file, which is never read back.
"""

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("traced_store.py")
CALLS = "openat,pwrite64,write,fdatasync,fsync,ftruncate,unlink"
SECTOR = 512  # the least a disk writes whole
_LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def strace() -> str:
    """strace, installed when it is missing and may be."""
    if shutil.which("strace") is None and shutil.which("apt-get") and os.getuid() == 0:
        subprocess.run(["apt-get", "install", "-y", "-qq", "strace"], check=False, capture_output=True)
    found = shutil.which("strace")
    if found is None or subprocess.run([found, "-o", os.devnull, "true"], check=False).returncode != 0:
        pytest.skip("needs strace and the right to trace: apt-get install strace")
    return found


def traced(folder: Path, *arguments: str, inject: str = "") -> list[str]:
    """Runs the writer on `folder/g.db` and gives strace's lines."""
    log = folder / "trace"
    options = ["-e", f"inject={inject}"] if inject else ["--seccomp-bpf"]
    subprocess.run(
        [strace(), "-f", "-y", "-xx", "-s", "65536", "-e", f"trace={CALLS}", *options, "-o", str(log),
         sys.executable, str(SCRIPT), str(folder / "g.db"), *arguments],
        check=True, capture_output=True, timeout=100,
    )  # fmt: skip
    return log.read_text().splitlines()


def decoded(text: str) -> bytes:
    """A quoted text of strace's, all in hex."""
    found = _TEXT.search(text)
    return bytes.fromhex(found[1].replace("\\x", "")) if found else b""


@dataclass
class File:
    """One file: what programs see, what is on disk, and what was written since."""

    seen: bytearray = field(default_factory=bytearray)
    disk: bytearray | None = None
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: cut to that length


def apply(image: bytearray, offset: int, data: bytes | None) -> None:
    """One write, or one cut."""
    size = offset if data is None else offset + len(data)
    image.extend(bytes(max(0, size - len(image))))
    if data is None:
        del image[offset:]
    else:
        image[offset:size] = data


class Disk:
    """Follows a trace line by line."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.resolve())
        self.files: dict[str, File] = {}
        self.acknowledged: set[str] = set()
        self.said: list[str] = []
        self.failed_syncs = 0
        self._open: dict[str, tuple[str, int]] = {}

    def step(self, line: str) -> None:
        """One line of the trace: a call, its beginning, or its end."""
        found = _LINE.match(line)
        if found is None:
            return
        pid, resumed, name, rest = found.groups()
        if resumed:
            begun, mark = self._open.pop(pid)
            self._ended(resumed, begun, rest, mark)
            return
        if name == "write":  # an acknowledgement counts from its beginning on
            self._said(rest)
            name = "said"
        path = self._path(rest)
        mark = len(self.files[path].pending) if path in self.files else 0
        if rest.endswith("<unfinished ...>"):
            self._open[pid] = (rest, mark)
        else:
            self._ended(name, rest, rest, mark)

    def _path(self, rest: str) -> str:
        found = re.match(r"\d+<((?:\\x[0-9a-f]{2}|[^>])*)>", rest)
        text = found[1] if found else ""
        path = bytes.fromhex(text.replace("\\x", "")).decode() if text.startswith("\\x") else text
        return path if path.startswith(self._folder) and not path.endswith("-shm") else ""

    def _said(self, rest: str) -> None:
        text = decoded(rest).decode("utf-8", "replace")
        if rest.startswith("1<"):
            self.said += text.splitlines()
            self.acknowledged |= {word.removeprefix("ack ") for word in self.said[-3:] if word[:4] == "ack "}

    def _ended(self, name: str, given: str, end: str, mark: int) -> None:
        status = end.rpartition(" = ")[2]
        worked = not status.startswith("-1")
        if name == "unlink" and worked:
            self.files.pop(decoded(given).decode(), None)
            return
        path = self._path(given)
        if not path:
            return
        file = self.files.setdefault(path, File())
        if name in ("fdatasync", "fsync"):
            self._synced(file, mark, worked=worked)
        elif worked and name in ("pwrite64", "ftruncate"):
            numbers = [int(n) for n in re.findall(r", (\d+)", _TEXT.sub('""', given))]
            change = (numbers[-1], decoded(given) if name == "pwrite64" else None)
            apply(file.seen, *change)
            file.pending.append(change)

    def _synced(self, file: File, mark: int, *, worked: bool) -> None:
        """What was written before it began is on disk, or never will be by a sync alone."""
        if worked:
            file.disk = file.disk if file.disk is not None else bytearray()
            for change in file.pending[:mark]:
                apply(file.disk, *change)
        else:
            self.failed_syncs += 1
        del file.pending[:mark]

    def cut(self, folder: Path, chance: random.Random | None) -> Path:
        """Writes down what is left after a power cut; with `chance` some unsynced sectors too."""
        folder.mkdir()
        for path, file in self.files.items():
            image = None if file.disk is None else bytearray(file.disk)
            for offset, data in file.pending if chance else ():
                if image is not None and chance is not None:
                    for at, part in _torn(offset, data, chance):
                        apply(image, at, part)
            if image is not None:
                (folder / Path(path).name).write_bytes(image)
        return folder / "g.db"


def _torn(offset: int, data: bytes | None, chance: random.Random) -> Iterator[tuple[int, bytes | None]]:
    """The sectors of one write that reached the disk."""
    if data is None:
        if chance.random() < 0.5:
            yield offset, None
        return
    at = offset
    while at < offset + len(data):
        until = min((at // SECTOR + 1) * SECTOR, offset + len(data))
        if chance.random() < 0.5:
            yield at, data[at - offset : until - offset]
        at = until
