"""The policy port over OPA: a token from a file, and our own word for an engine that is away."""

from collections.abc import Mapping
from pathlib import Path

from meshgate_policies import errors
from meshgate_policies.engine import OpaEngine

from meshgate_gateway.errors import PolicyUnavailable
from meshgate_gateway.policy import PolicyEngine


class Opa:
    """Implements `policy.PolicyEngine`."""

    def __init__(self, *, socket_path: str, token: str) -> None:
        self._engine = OpaEngine(socket_path=socket_path, token=token)

    def evaluate(self, policy_input: Mapping[str, object]) -> object:
        """The raw answer."""
        try:
            return self._engine.evaluate(policy_input)
        except errors.PolicyUnavailable as error:
            raise PolicyUnavailable(detail=str(error)) from error


def open_engine(socket_path: str, token_file: str) -> PolicyEngine:
    """An engine behind a socket.

    Raises:
        PolicyUnavailable: the token cannot be read.
    """
    try:
        token = Path(token_file).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise PolicyUnavailable(detail="the engine's token cannot be read") from error
    return Opa(socket_path=socket_path, token=token)
