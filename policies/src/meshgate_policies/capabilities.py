"""What policies may use of OPA: a committed list, cut to what the OPA in use really has.

It is a list of what is allowed, so a built-in that a newer OPA brings stays out until someone
looks at it.
"""

import json
from pathlib import Path
from typing import Any

from meshgate_policies import resources
from meshgate_policies.command import Command, run
from meshgate_policies.errors import PolicyInvalid

_OUTSIDE = {"http.send", "net.lookup_ip_addr", "opa.runtime"}  # opa.runtime hands out the environment
_REMOTE_SCHEMA = {"json.match_schema", "json.verify_schema"}  # may fetch a remote $ref
_NOT_REPEATABLE = {
    "rand.intn",
    "time.now_ns",
    "uuid.rfc4122",
    "crypto.x509.parse_and_verify_certificates",  # looks at the clock
    "crypto.x509.parse_and_verify_certificates_with_options",
    "io.jwt.decode_verify",  # looks at the clock
}
_SECRETS = {
    "crypto.parse_private_keys",
    "crypto.x509.parse_keypair",
    "crypto.x509.parse_rsa_private_key",
    "io.jwt.encode_sign",
    "io.jwt.encode_sign_raw",
    "providers.aws.sign_req",
}
_TALKATIVE = {"print", "internal.print", "trace"}  # arguments in clear in OPA's log
_SOURCES = {"rego.parse_module"}

FORBIDDEN = frozenset(_OUTSIDE | _REMOTE_SCHEMA | _NOT_REPEATABLE | _SECRETS | _TALKATIVE | _SOURCES)

_PROSE = {"categories", "description"}


def without_forbidden(current: dict[str, Any]) -> dict[str, Any]:
    """An OPA's capabilities without what is forbidden, and without network hosts."""
    kept = [
        row for row in current["builtins"] if row["name"] not in FORBIDDEN and not row.get("nondeterministic")
    ]
    return {**current, "builtins": [_bare(row) for row in kept], "allow_net": []}


def of_opa(opa: Command) -> dict[str, Any]:
    """What this OPA can do.

    Raises:
        PolicyInvalid: OPA does not tell.
    """
    done = run(opa, "capabilities", "--current")
    if done.returncode != 0:
        raise PolicyInvalid(f"opa capabilities failed: {done.stderr[-500:]}")
    current: dict[str, Any] = json.loads(done.stdout)
    return current


def effective(opa: Command) -> str:
    """The committed capabilities, as JSON, less what this OPA lacks.

    Without the cut a policy could pass the check here and meet an unknown built-in at run time.
    """
    allowed = json.loads(resources.capabilities().read_text())
    current = of_opa(opa)
    names = {row["name"] for row in current["builtins"]}
    allowed["builtins"] = [row for row in allowed["builtins"] if row["name"] in names]
    for key in ("features", "future_keywords"):
        allowed[key] = [name for name in allowed.get(key, []) if name in current.get(key, [])]
    return json.dumps(allowed)


def write_effective(opa: Command, folder: Path) -> Path:
    """Writes `effective` into a folder, for OPA's `--capabilities`."""
    path = folder / "capabilities.json"
    path.write_text(effective(opa))
    return path


def _bare(value: Any) -> Any:
    """Names and types only."""
    if isinstance(value, dict):
        return {name: _bare(part) for name, part in value.items() if name not in _PROSE}
    return [_bare(part) for part in value] if isinstance(value, list) else value
