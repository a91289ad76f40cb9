"""Which certificates the processes of an app hold now. Issues none, and shows no key."""

from datetime import datetime
from typing import Any

from meshgate_identities.describe import describe
from meshgate_identities.errors import InvalidSpiffeId
from meshgate_identities.spiffe_id import SCHEME, SpiffeId
from meshgate_identities.workload_api import WorkloadApiServer

from meshgate_deploy.errors import DependencyUnavailable, NotFound, UsageError
from meshgate_deploy.manifest import Manifest

FIELDS = (
    "pid", "serial", "not_before", "not_after", "key_type", "issuer", "sha256", "chain_length",
)  # fmt: skip


def held(manifest: Manifest, workload_api: WorkloadApiServer, wanted: str) -> dict[str, Any]:
    """The answer for an app or a SPIFFE ID: each of its processes has a certificate of its own.

    Raises:
        NotFound: the mesh has no such app.
        UsageError: it begins as a SPIFFE ID does and is none.
        DependencyUnavailable: no process of the app holds a certificate now.
    """
    app = _app(manifest, wanted)
    name = SpiffeId.parse(manifest.spiffe_id(app))
    found = workload_api.held(name)
    if not found:
        raise DependencyUnavailable(
            f"no process of {app} holds a certificate now",
            why="none of them runs, or it has not asked for one yet",
            next_step="meshgate ps",
        )
    return {
        "app": app,
        "spiffe_id": str(name),
        "trust_domain": name.trust_domain,
        "processes": len(found),
        "certificates": [_row(pid, chain) for pid, chain in sorted(found.items())],
    }


def _app(manifest: Manifest, wanted: str) -> str:
    names = {manifest.spiffe_id(app): app for app in manifest.apps}
    if wanted in manifest.apps:
        return wanted
    if wanted.startswith(SCHEME):
        try:
            SpiffeId.parse(wanted)
        except InvalidSpiffeId as error:
            raise UsageError(
                f"{wanted!r} is no SPIFFE ID", why=str(error), next_step="meshgate ps shows those of the apps"
            ) from error
        if wanted in names:
            return names[wanted]
    raise NotFound(
        f"the mesh has no app {wanted!r}",
        why="its apps are " + ", ".join(manifest.apps),
        next_step="meshgate id show with one of them, or with its SPIFFE ID as meshgate ps shows it",
    )


def _row(pid: int, chain: bytes) -> dict[str, Any]:
    told = describe(chain)
    values = (
        pid, told.serial_hex, _moment(told.not_before), _moment(told.not_after), told.key_type, told.issuer,
        told.sha256, told.chain_length,
    )  # fmt: skip
    return dict(zip(FIELDS, values, strict=True))


def _moment(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
