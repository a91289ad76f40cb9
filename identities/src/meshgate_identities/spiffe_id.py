"""SPIFFE IDs. `SpiffeId.parse` is the only door; clauses cite the SPIFFE ID specification."""

import re
from dataclasses import dataclass

from meshgate_identities.errors import InvalidSpiffeId

MAX_ID_BYTES = 2048  # SPIFFE ID §2.3
MAX_TRUST_DOMAIN_BYTES = 255  # SPIFFE ID §2.1
SCHEME = "spiffe://"

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+")


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """One workload's name.

    Attributes:
        trust_domain: lower case, at most 255 bytes.
        path: starts with a slash, has no empty or dot segment. Never empty: a bare trust
            domain names an authority, not a workload.
    """

    trust_domain: str
    path: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}{self.path}"

    @property
    def app(self) -> str:
        """The last path segment: the app in `/ns/<namespace>/<app>`."""
        return self.path.rsplit("/", 1)[1]

    @property
    def namespace(self) -> str:
        """The namespace of `/ns/<namespace>/<app>`, empty for any other shape of path."""
        parts = self.path.split("/")
        return parts[2] if len(parts) == 4 and parts[1] == "ns" else ""  # noqa: PLR2004

    @classmethod
    def of_app(cls, *, trust_domain: str, namespace: str, app: str) -> "SpiffeId":
        """The ID that this mesh gives to an app.

        Raises:
            InvalidSpiffeId: a part is empty, holds a slash or another illegal character.
        """
        made = cls.parse(f"{SCHEME}{trust_domain}/ns/{namespace}/{app}")
        if (made.trust_domain, made.namespace, made.app) != (trust_domain, namespace, app):
            raise InvalidSpiffeId(str(made), "a part holds a slash")  # "a/b" would be another's name
        return made

    @classmethod
    def parse(cls, text: str) -> "SpiffeId":
        """Reads a SPIFFE ID strictly: no folding of case, no trimming, no percent decoding.

        Args:
            text: the raw URI as the certificate holds it.

        Raises:
            InvalidSpiffeId: names the clause.
        """
        if len(text.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
            raise InvalidSpiffeId(text, "§2.3: longer than 2048 bytes")
        if not text.startswith(SCHEME):
            raise InvalidSpiffeId(text, "§2: the scheme is not 'spiffe' in lower case")
        trust_domain, slash, rest = text.removeprefix(SCHEME).partition("/")
        _check_trust_domain(text, trust_domain)
        if not slash:
            raise InvalidSpiffeId(text, "X.509-SVID §4.1: a leaf needs a path")
        for segment in rest.split("/"):
            _check_segment(text, segment)
        return cls(trust_domain=trust_domain, path=f"/{rest}")


def _check_trust_domain(text: str, trust_domain: str) -> None:
    if not trust_domain:
        raise InvalidSpiffeId(text, "§2.1: the trust domain is empty")
    if len(trust_domain) > MAX_TRUST_DOMAIN_BYTES:
        raise InvalidSpiffeId(text, "§2.1: the trust domain is longer than 255 bytes")
    if not _TRUST_DOMAIN.fullmatch(trust_domain):  # fullmatch: `$` would let a newline through
        raise InvalidSpiffeId(text, "§2.1: the trust domain has a character outside a-z 0-9 . _ -")


def _check_segment(text: str, segment: str) -> None:
    if not segment:
        raise InvalidSpiffeId(text, "§2.2: an empty path segment or a trailing slash")
    if segment in (".", ".."):
        raise InvalidSpiffeId(text, "§2.2: a dot segment")
    if not _SEGMENT.fullmatch(segment):
        raise InvalidSpiffeId(text, "§2.2: a path character outside a-z A-Z 0-9 . _ -")
