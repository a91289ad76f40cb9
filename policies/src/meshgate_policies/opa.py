"""How an OPA server is started and looked at. Starting and stopping it is the supervisor's.

A new bundle is activated by a second OPA, started cold on a new socket and probed: an OPA that
watches its file activates what it never verified. Then a new engine takes the old one's place, and
the first OPA is stopped when its last answer is out.
"""

import hashlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshgate_policies import resources
from meshgate_policies.command import Command, argument_list
from meshgate_policies.engine import DECISION_TARGET, UNDEFINED, OpaEngine
from meshgate_policies.errors import PolicyInvalid, PolicyUnavailable
from meshgate_policies.judge import judge
from meshgate_policies.policy_input import CallerInput, CallInput, PolicyInput

READY_SECONDS = 10.0  # a cold start takes 0.1 s on an idle machine
PROBE_SECONDS = 2.0
POLL_SECONDS = 0.02
NO_TOOL: Final = "meshgate-probe.none"
_REFUSED: Final = http.client.UNAUTHORIZED


@dataclass(frozen=True, slots=True, kw_only=True)
class OpaProcess:
    """One OPA server on a Unix socket. Pure: nothing is started or written here.

    Attributes:
        opa: how OPA is called.
        socket_path: at most 107 bytes, in a folder that only we can enter.
        bundle: from `bundle.build`.
        authz: folder into which `authz_files` were written, one per process.
    """

    opa: Command
    socket_path: Path
    bundle: Path
    authz: Path

    def argv(self) -> list[str]:
        """Starts cold on its bundle; no network listener, no update check, tokens demanded."""
        return [
            *argument_list(self.opa), "run", "--server",
            "--bundle", str(self.bundle), str(self.authz),
            "--addr", f"unix://{self.socket_path}", "--unix-socket-perm", "600",
            "--authentication=token", "--authorization=basic",
            "--skip-version-check", "--log-level=error",
        ]  # fmt: skip

    def env(self) -> dict[str, str]:
        """The whole environment: flags can come from OPA_* variables, so none is inherited."""
        return {}


def authz_files(*, gateway_token: str, supervisor_token: str) -> dict[str, str]:
    """The guard's bundle: file name to text. Holds digests, no token.

    Raises:
        ValueError: a token is empty, or both are the same.
    """
    if not gateway_token or not supervisor_token or gateway_token == supervisor_token:
        raise ValueError("the gateway and the supervisor need a token each")
    digests = {
        "gateway_token_sha256": hashlib.sha256(gateway_token.encode()).hexdigest(),
        "supervisor_token_sha256": hashlib.sha256(supervisor_token.encode()).hexdigest(),
    }
    return {
        ".manifest": json.dumps({"roots": ["system/authz", "authz"]}),
        "authz.rego": (resources.library() / "authz" / "authz.rego").read_text(),
        "data.json": json.dumps({"authz": digests}),
    }


def write_authz(folder: Path, *, gateway_token: str, supervisor_token: str) -> Path:
    """Writes `authz_files` into a folder of mode 0700 and returns it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = authz_files(gateway_token=gateway_token, supervisor_token=supervisor_token)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def healthy(socket_path: Path, supervisor_token: str, *, timeout_seconds: float = 1.0) -> bool:
    """Whether an OPA answers on the socket. Says nothing about its bundle: `probe` does."""
    try:
        return _status(socket_path, supervisor_token, "GET", "/health", timeout_seconds) == http.client.OK
    except (OSError, http.client.HTTPException):
        return False


def probe(
    *,
    socket_path: Path,
    gateway_token: str,
    supervisor_token: str,
    ready_seconds: float = READY_SECONDS,
    alive: Callable[[], bool] = lambda: True,
) -> None:
    """Waits until a cold OPA is up, then shows that it decides and that it is guarded.

    Args:
        socket_path: of the new OPA.
        gateway_token: must reach the decision, and nothing else.
        supervisor_token: must reach health.
        ready_seconds: how long to wait for the first answer.
        alive: says whether the process still runs, so that a dead one is not waited for.

    Raises:
        PolicyUnavailable: it is not up in time, or a sample went wrong; do not switch to it.
    """
    deadline = time.monotonic() + ready_seconds
    while not healthy(socket_path, supervisor_token):
        if not alive():
            raise PolicyUnavailable("OPA ended before it was ready; its log says why")
        if time.monotonic() > deadline:
            raise PolicyUnavailable(f"OPA was not ready within {ready_seconds:g} s")
        time.sleep(POLL_SECONDS)
    _probe_decision(socket_path, gateway_token)
    try:
        _probe_guard(socket_path, gateway_token)
    except (OSError, http.client.HTTPException) as error:
        raise PolicyUnavailable(f"OPA stopped answering while it was probed: {error!r}") from error


def _probe_decision(socket_path: Path, gateway_token: str) -> None:
    """A caller nobody knows is denied for just that reason: the library is loaded, whole and strict."""
    engine = OpaEngine(socket_path=str(socket_path), token=gateway_token, timeout_seconds=PROBE_SECONDS)
    try:
        raw = engine.evaluate({"caller": {"app": ""}, "call": {"tool": "", "kind": "tool"}})
    finally:
        engine.close()
    verdict = judge(raw)
    if verdict.allow or verdict.reasons != ("no_policy_for_caller",):
        shown = "undefined" if raw is UNDEFINED else ", ".join(verdict.reasons)
        raise PolicyUnavailable(f"OPA decided a sample wrongly ({shown}): is this our bundle?")


def probe_callers(*, socket_path: Path, gateway_token: str, callers: Iterable[CallerInput]) -> None:
    """Shows that each caller gets a sound denial for a tool that nobody has.

    Args:
        socket_path: of an OPA that `probe` passed.
        gateway_token: reaches the decision.
        callers: the apps that call tools.

    Raises:
        PolicyInvalid: an app is allowed what does not exist, or answered with `policy_invalid`.
        PolicyUnavailable: OPA gave no answer.
    """
    engine = OpaEngine(socket_path=str(socket_path), token=gateway_token, timeout_seconds=PROBE_SECONDS)
    try:
        for caller in callers:
            verdict = judge(engine.evaluate(_sample(caller).to_wire()))
            if verdict.allow:
                raise PolicyInvalid(f"{caller.app} is allowed a tool that does not exist: does it grant all?")
            if "policy_invalid" in verdict.reasons:
                raise PolicyInvalid(f"every call of {caller.app} would be answered with policy_invalid")
    finally:
        engine.close()


def _sample(caller: CallerInput) -> PolicyInput:
    call = CallInput(
        tool=NO_TOOL, host="", effect="irreversible", kind="tool", args={}, args_sha256="0" * 64,
        definition_sha256="0" * 64,
    )  # fmt: skip
    return PolicyInput(
        caller=caller, call=call, run=None, delegation=(), approval=None, budget={},
        time="2000-01-01T00:00:00.000Z", untrusted={},
    )  # fmt: skip


def _probe_guard(socket_path: Path, gateway_token: str) -> None:
    for token, method, target in (
        ("", "POST", DECISION_TARGET),
        (gateway_token, "GET", "/v1/config"),
        (gateway_token, "GET", "/v1/policies"),
        (gateway_token, "GET", "/v1/data"),
        (gateway_token, "POST", "/v1/compile"),
    ):
        status = _status(socket_path, token, method, target, PROBE_SECONDS)
        if status != _REFUSED:
            raise PolicyUnavailable(f"OPA answers {method} {target} with {status}, {_REFUSED:d} was expected")


def _status(socket_path: Path, token: str, method: str, target: str, timeout_seconds: float) -> int:
    connection = _UnixConnection(str(socket_path), timeout_seconds)
    try:
        connection.request(method, target, headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status
    finally:
        connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a Unix socket, for the few requests where speed does not matter."""

    def __init__(self, path: str, timeout_seconds: float) -> None:
        super().__init__("opa", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        """Connects to the socket's path; the host name is never looked up."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
