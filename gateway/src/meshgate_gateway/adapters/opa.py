"""The policy port over OPA: a token from a file, and our own word for an engine that is away."""

from collections.abc import Mapping
from pathlib import Path

from meshgate_policies import errors
from meshgate_policies.engine import OpaEngine

from meshgate_gateway.errors import ListingMismatch, PolicyUnavailable
from meshgate_gateway.policy import ActivePolicy, Listing, PolicyPlace, parse_listing


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


def open_policy(place: PolicyPlace) -> ActivePolicy:
    """An engine behind a socket, with the listing of its bundle.

    Raises:
        PolicyUnavailable: the token cannot be read.
        ListingMismatch: the listing cannot be read, or is of another bundle.
    """
    listing = read_listing(place)
    try:
        token = Path(place.token_file).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise PolicyUnavailable(detail="the engine's token cannot be read") from error
    engine = Opa(socket_path=place.socket, token=token)
    return ActivePolicy(engine, place.revision, place.digest, listing)


def read_listing(place: PolicyPlace) -> Listing:
    """The listing that belongs to a bundle.

    Raises:
        ListingMismatch: it cannot be read, or is of another bundle.
    """
    try:
        text = Path(place.listing).read_bytes()
    except OSError as error:
        raise ListingMismatch(f"the listing cannot be read: {error}") from error
    return parse_listing(text, revision=place.revision, digest=place.digest)
