"""How OPA is called: the server's arguments, and one-shot commands."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from meshgate_policies.engine import UnixConnection
from meshgate_policies.errors import PolicyInvalid

COMMAND_SECONDS = 60
# They reach outside, or hand the environment to policy, or give no two equal answers.
FORBIDDEN_BUILTINS = frozenset(
    {
        "http.send",
        "opa.runtime",
        "net.lookup_ip_addr",
        "rand.intn",
        "uuid.rfc4122",
        "trace",
        "rego.parse_module",
    }
)


def server_argv(*, opa: Sequence[str], socket_path: Path, bundle: Path) -> list[str]:
    """Starts cold on one bundle, on a socket that only we may open, with token authentication."""
    return [
        *opa, "run", "--server", "--bundle", str(bundle), "--addr", f"unix://{socket_path}",
        "--unix-socket-perm", "600", "--authentication=token", "--authorization=basic",
        "--disable-telemetry", "--log-level=error", "--skip-known-schema-check",
    ]  # fmt: skip


def healthy(socket_path: Path, supervisor_token: str) -> bool:
    """Whether an OPA answers on the socket."""
    connection = UnixConnection(str(socket_path), 1.0)
    try:
        connection.request("GET", "/health", headers={"Authorization": f"Bearer {supervisor_token}"})
        return connection.getresponse().status == 200  # noqa: PLR2004 - HTTP OK
    except OSError:
        return False
    finally:
        connection.close()


def run(opa: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs one OPA command; the caller judges its status."""
    return subprocess.run(
        [*opa, *arguments], check=False, capture_output=True, text=True, timeout=COMMAND_SECONDS
    )


def capabilities(opa: Sequence[str]) -> str:
    """This OPA's capabilities without the forbidden built-ins, as JSON.

    Raises:
        PolicyInvalid: OPA does not tell them.
    """
    done = run(opa, "capabilities", "--current")
    if done.returncode != 0:
        raise PolicyInvalid(f"opa capabilities failed: {done.stderr[-500:]}")
    known = json.loads(done.stdout)
    known["builtins"] = [b for b in known["builtins"] if b["name"] not in FORBIDDEN_BUILTINS]
    known["allow_net"] = []
    return json.dumps(known)
