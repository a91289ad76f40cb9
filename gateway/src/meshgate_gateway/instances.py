"""A gateway's name in the store: its log and its sweep belong to it while its lease runs."""

import secrets

from meshgate_gateway.errors import StoreUnavailable
from meshgate_gateway.store import Store, Tables

LEASE_MS = 10_000  # by the store's clock
RENEW_SECONDS = 3.0  # three tries within one lease
MAX_INSTANCES = 64


class Instance:
    """Claims the first free name; `held` turns False when a renewal finds it gone."""

    def __init__(self, *, store: Store) -> None:
        self._store = store
        self._holder = secrets.token_hex(16)
        self.name = self._store.write(self._first_free)
        self.held = True

    def _first_free(self, tables: Tables) -> str:
        for number in range(MAX_INSTANCES):
            name = f"gateway-{number}"
            if tables.instances.claim(name=name, holder=self._holder, lease_ms=LEASE_MS):
                return name
        raise StoreUnavailable(detail=f"all {MAX_INSTANCES} gateway names are held")

    def renew(self) -> bool:
        """Extends the lease, or takes the name back if nobody else has it."""
        self.held = self._store.write(
            lambda tables: tables.instances.claim(name=self.name, holder=self._holder, lease_ms=LEASE_MS)
        )
        return self.held

    def release(self) -> None:
        """Gives the name back at once."""
        self.held = False
        self._store.write(lambda tables: tables.instances.release(name=self.name, holder=self._holder))
