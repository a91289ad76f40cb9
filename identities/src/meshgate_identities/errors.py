"""Failures of the identity layer.

IdentityError
├── InvalidSpiffeId        text that is no SPIFFE ID, with the clause it breaks
├── AuthenticationFailed   a peer whose certificate proves nothing
├── IdentityUnavailable    this process has no valid SVID now
├── InvalidEntry           a registration entry that must not be used
└── AuthorityUnusable      the development root on disk is not one to issue from
"""


class IdentityError(Exception):
    """Root of the tree."""


class InvalidSpiffeId(IdentityError):
    """The text is no SPIFFE ID.

    Attributes:
        text: what was presented.
        clause: the rule of the SPIFFE ID specification that it breaks.
    """

    def __init__(self, text: str, clause: str) -> None:
        super().__init__(f"{text[:256]!r} is no SPIFFE ID: {clause}")
        self.text = text
        self.clause = clause


class AuthenticationFailed(IdentityError):
    """A peer's certificate does not prove an identity.

    Attributes:
        reason: stable id, such as `two_uri_sans`.
        detail: one line for the record; may quote the certificate.
    """

    def __init__(self, *, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class IdentityUnavailable(IdentityError):
    """No unexpired SVID is at hand: the Workload API is away or refuses this process."""


class InvalidEntry(IdentityError):
    """A registration entry is ill-formed or contradicts another. The message names the field."""


class AuthorityUnusable(IdentityError):
    """The root on disk cannot issue. The message says which file and what to do."""
