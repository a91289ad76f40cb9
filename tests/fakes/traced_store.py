"""Writes to a store while strace looks on: `ack NAME` on stdout once a write has been acknowledged.

Arguments: the store's path, how many threads, how many writes of each, `readers` or `alone`. A refused
write is told as `refused NAME`; then the gateway's own health probes until it is ready again.
"""

import os
import sys
import threading
from pathlib import Path

from meshgate_gateway.adapters.sqlite_store import SqliteStore
from meshgate_gateway.errors import StoreUnavailable
from meshgate_gateway.health import Health
from meshgate_gateway.model import AuditRecord
from meshgate_gateway.store import PayloadRow


def say(text: str) -> None:
    """One line, in one system call."""
    os.write(1, f"{text}\n".encode())


def work(name: str):
    """A record, and clear text that it belongs to, in one transaction."""

    def do(tables) -> None:
        tables.records.append(AuditRecord("note", {"name": name}))
        tables.payloads.put(PayloadRow(name, "none", b"s", b"n", name.encode() * 6000))

    return do


def write(store: SqliteStore, health: Health, name: str) -> None:
    """One write; after a fault, until the gateway is ready again."""
    try:
        store.write(work(name))
    except StoreUnavailable as error:
        health.fault(error.reason)
        say(f"refused {name}")
        while health.reasons:
            health.probe()
        return
    say(f"ack {name}")


def main() -> None:
    """Writes as told."""
    path, threads, writes, readers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    store = SqliteStore(path=path)
    health = Health(
        probes={"store_unavailable": store.probe},
        publish=lambda ready: say(f"{'' if ready else 'not '}ready"),
    )
    health.probe()

    def several(thread: int) -> None:
        for number in range(writes):
            write(store, health, f"{thread}-{number}")
            if readers == "readers":
                store.read(lambda tables: tables.records.head())

    if threads == 1:
        several(0)
        return
    workers = [threading.Thread(target=several, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
    os._exit(0)  # as when it is killed: nothing is closed
