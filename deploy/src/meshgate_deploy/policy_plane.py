"""The policies of a running mesh: which bundle, which engine on it, which listing; and which is in force.

Each bundle has an OPA of its own, started cold on a socket of its own with tokens of its own. What a
gateway is started with follows from `active` alone, so one that ends and comes back asks the right engine.
"""

import hashlib
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from meshgate_policies import bundle, listing, rego_tests
from meshgate_policies import opa as opa_server
from meshgate_policies.bundle import BundleInfo
from meshgate_policies.command import Command as Opa
from meshgate_policies.errors import PolicyUnavailable
from meshgate_policies.policy_input import CallerInput

from meshgate_deploy import delegations, policy_sources
from meshgate_deploy.errors import DependencyUnavailable, PolicyProblems, Problem
from meshgate_deploy.manifest import Manifest
from meshgate_deploy.policy_sources import Sources, told
from meshgate_deploy.processes import Command
from meshgate_deploy.services import Service, Start
from meshgate_deploy.state import State, new_token, write_private

Listing = Mapping[str, Sequence[str]]


def _unchanged(built: BundleInfo) -> None:
    """An OPA that starts, or starts again, reads the bundle from disk: it must be the one that was built.

    Raises:
        DependencyUnavailable: it is not, or is gone; no engine is better than another policy.
    """
    try:
        found = hashlib.sha256(built.path.read_bytes()).hexdigest()
    except OSError as error:
        raise DependencyUnavailable(
            f"the bundle of policy {built.revision} is gone", why=str(error)
        ) from error
    if found != built.sha256:
        raise DependencyUnavailable(
            f"the bundle of policy {built.revision} was changed on disk",
            why=f"{built.path} has digest {found[:12]}…, not {built.sha256[:12]}…",
            next_step="meshgate down, then meshgate up",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A bundle and the OPA that serves it.

    Attributes:
        listing: app to the tools it may call with some arguments; empty before `rehearse`.
    """

    built: BundleInfo
    service: Service
    folder: Path
    socket: Path
    gateway_token: str
    own_token: str
    listing: Listing

    @property
    def revision(self) -> str:
        """Names the sources it was built from."""
        return self.built.revision

    def place(self) -> dict[str, str]:
        """What a gateway needs to use it."""
        return {
            "socket": str(self.socket), "token_file": str(self.folder / "gateway.token"),
            "revision": self.built.revision, "digest": self.built.sha256,
            "listing": str(self.folder / "listing.json"),
        }  # fmt: skip


class PolicyPlane:
    """Builds, starts and rehearses policies; holds the one in force."""

    def __init__(self, *, manifest: Manifest, state: State, opa: Opa) -> None:
        self._manifest, self._state, self._opa = manifest, state, opa
        self.active: Policy | None = None

    def place(self) -> dict[str, str]:
        """What a gateway that starts now is told.

        Raises:
            RuntimeError: no policy was put in force yet.
        """
        if self.active is None:
            raise RuntimeError("a gateway before its policy")
        return self.active.place()

    def clean(self) -> None:
        """Removes what engines of an earlier start left; only before the first of this one."""
        for left in (self._state.generated / "policy").glob("*/"):
            rmtree(left, ignore_errors=True)

    def sources(self) -> AbstractContextManager[Sources]:
        """The project's policies as they are now, for `build` and `test` alike."""
        written = self._state.project / self._manifest.policies
        return policy_sources.read(written, private=self._state.generated / "policy")

    def build(self, sources: Sources) -> BundleInfo:
        """Checks policies and packs them.

        Raises:
            PolicyProblems: with file, line, and what to write instead.
            DependencyUnavailable: OPA cannot be run.
        """
        with told(sources):
            return bundle.build(
                user_policies=sources.folder,
                data=policy_data(self._manifest),
                out_dir=self._state.generated / "policy",
                opa=self._opa,
            )

    def test(self, sources: Sources) -> int:
        """Runs the Rego tests; returns how many of the project's there are.

        Raises:
            PolicyProblems: a test is red.
            DependencyUnavailable: OPA cannot be run.
        """
        with told(sources):
            report = rego_tests.run_tests(self._opa, sources.folder, data=policy_data(self._manifest))
        if report.red:
            named = sources.named
            raise PolicyProblems(
                [Problem(named(p.file), p.line, named(p.message), p.fix) for p in report.red]
            )
        return len(report.project)

    def engine(self, built: BundleInfo) -> Policy:
        """A policy whose service is not started yet."""
        folder = self._state.generated / "policy" / built.revision
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        socket = self._state.sockets / f"opa-{built.revision}.sock"
        gateway_token, own_token = new_token(folder / "gateway.token"), new_token(folder / "supervisor.token")
        authz = opa_server.write_authz(
            folder / "authz", gateway_token=gateway_token, supervisor_token=own_token
        )
        process = opa_server.OpaProcess(opa=self._opa, socket_path=socket, bundle=built.path, authz=authz)

        def ready() -> bool:
            if not opa_server.healthy(socket, own_token):
                return False
            try:
                opa_server.probe(socket_path=socket, gateway_token=gateway_token, supervisor_token=own_token)
            except PolicyUnavailable:
                return False
            return True

        def prepare(_fresh: bool) -> Start:  # noqa: FBT001 - the shape of Service.prepare
            _unchanged(built)
            socket.unlink(missing_ok=True)
            command = Command(
                name="opa", argv=tuple(process.argv()), env=process.env(), cwd=self._state.project,
                log=self._state.log("opa"), death_signal=signal.SIGKILL,
            )  # fmt: skip
            return Start(command=command, ready=ready)

        service = Service("opa", prepare, about=f"policy {built.revision}")
        return Policy(
            built=built, service=service, folder=folder, socket=socket, gateway_token=gateway_token,
            own_token=own_token, listing={},
        )  # fmt: skip

    def rehearse(self, policy: Policy, tools: Mapping[str, Mapping[str, Any]]) -> Policy:
        """Asks a started engine for a sample per app and for the listing, which is written down.

        Args:
            policy: whose service is up.
            tools: of the catalogue.

        Raises:
            UsageError: the policy is not sound for some app.
            DependencyUnavailable: the engine gave no answer.
        """
        callers = [self._caller(app) for app in self._manifest.runners]
        with told():
            opa_server.probe_callers(
                socket_path=policy.socket, gateway_token=policy.gateway_token, callers=callers
            )
            listed = listing.listing(
                socket_path=str(policy.socket), token=policy.own_token, callers=callers,
                tools=[_known(tool, entry) for tool, entry in tools.items()],
            )  # fmt: skip
        text = listing.document(revision=policy.revision, digest=policy.built.sha256, apps=listed)
        write_private(Path(policy.place()["listing"]), text)
        return replace(policy, listing=listed)

    def discard(self, policy: Policy) -> None:
        """Removes tokens, guard and listing of an engine that was stopped; the bundle stays."""
        policy.socket.unlink(missing_ok=True)
        rmtree(policy.folder, ignore_errors=True)

    def _caller(self, app: str) -> CallerInput:
        manifest = self._manifest
        return CallerInput(
            spiffe_id=manifest.spiffe_id(app), trust_domain=manifest.trust_domain, namespace=manifest.mesh,
            app=app,
        )  # fmt: skip


def policy_data(manifest: Manifest) -> dict[str, object]:
    """What policies may know of the manifest, as `data.mesh.manifest`."""
    return {
        "mesh": manifest.mesh,
        "trust_domain": manifest.trust_domain,
        "apps": {app: {"kind": kind} for app, kind in manifest.runners.items()},
        "tools": {name: {"effect": rule.effect} for name, rule in manifest.tools.items()}
        | {name: {"effect": entry["effect"]} for name, entry in delegations.entries(manifest).items()},
    }


def _known(tool: str, entry: Mapping[str, Any]) -> listing.KnownTool:
    return listing.KnownTool(
        tool=tool, host=entry["host"], effect=entry["effect"], kind=entry["kind"],
        definition_sha256=entry["definition_sha256"],
    )  # fmt: skip
