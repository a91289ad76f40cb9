"""Which store a manifest may name, and what else the processes that use it need. Pure."""

from collections.abc import Mapping
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlencode, urlsplit

SQLITE = "sqlite"
SCHEME = "postgresql"
# What the gateway and the sidecars get for the database, by the name that psycopg has for it. libpq and
# Dapr's driver read the variables. No agent and no tool host gets them.
VARIABLES = {
    "PGPASSWORD": "password",
    "PGPASSFILE": "passfile",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCERT": "sslcert",
    "PGSSLKEY": "sslkey",
}
DAPR_USER = "MESHGATE_DAPR_PGUSER"  # a role of the sidecars' own, that cannot touch the gateway's tables
DAPR_PASSWORD = "MESHGATE_DAPR_PGPASSWORD"  # noqa: S105 - a variable's name
_SECRET_PARAMETERS = ("password", "sslpassword")
# What libpq and Dapr's driver understand alike, and what cannot lead elsewhere unseen.
_PARAMETERS = frozenset(
    ("host", "port", "dbname", "user", "sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs")
)
_VERIFIED = ("verify-ca", "verify-full")
_LOCAL = ("", "localhost", "127.0.0.1", "::1")
_DAPR_PARAMETERS = {"application_name": "meshgate-dapr", "connect_timeout": "3", "synchronous_commit": "on"}


def is_postgresql(store: str) -> bool:
    """True for a URL of PostgreSQL's."""
    return store.startswith(f"{SCHEME}://")


def problem(store: str) -> tuple[str, str] | None:
    """What is wrong with a manifest's `store` and what to write instead; shows no password."""
    if store == SQLITE:
        return None
    if not is_postgresql(store):
        shown = store.partition(":")[0]
        return f"store {shown!r} is not supported", f"{SQLITE}, or {SCHEME}://USER@HOST/DATABASE"
    if "#" in store or any(not letter.isprintable() or letter.isspace() for letter in store):
        # What a URL's fragment is to one reader is a host's name to libpq.
        return "the store's URL has a '#', a space or a control character", f"{SCHEME}://USER@HOST/DATABASE"
    try:
        url = urlsplit(store)
        parameters = parse_qs(url.query, strict_parsing=bool(url.query), keep_blank_values=True)
        without = _shown(url)
    except ValueError:
        return "the store's URL is not one", f"{SCHEME}://USER@HOST/DATABASE"
    if url.password is not None or any(name in parameters for name in _SECRET_PARAMETERS):
        fix = f"{without}, and PGPASSWORD in `.env` or the shell"
        return "the store's URL holds a password; a manifest holds none", fix
    return _wrong_way(url, parameters, without)


def _wrong_way(url: SplitResult, parameters: Mapping[str, list[str]], without: str) -> tuple[str, str] | None:
    odd = sorted(name for name, values in parameters.items() if name not in _PARAMETERS or len(values) > 1)
    if odd:
        message = f"the store's URL has a parameter {odd[0]!r} that it may not have"
        return message, f"once each at most: {', '.join(sorted(_PARAMETERS))}"
    hosts = [url.hostname or "", *parameters.get("host", [""])[0].split(",")]
    remote = [host for host in hosts if host not in _LOCAL and not host.startswith("/")]
    if remote and parameters.get("sslmode", [""])[0] not in _VERIFIED:
        message = f"the way to the store on {remote[0]} is not verified TLS"
        return message, f"{without}?sslmode=verify-full"
    return None


def shown(store: str) -> str:
    """A valid URL as people are told it."""
    return _shown(urlsplit(store))


def for_dapr(store: str) -> tuple[str, str]:
    """A valid URL as Dapr's component takes it, and the user, who goes into PGUSER.

    A user inside the URL would make the component set an empty password, which hides PGPASSWORD.
    """
    url = urlsplit(store)
    parameters = {name: values[0] for name, values in parse_qs(url.query).items()}
    user = parameters.pop("user", unquote(url.username or ""))
    place = url.netloc.rpartition("@")[2]
    query = urlencode({**parameters, **_DAPR_PARAMETERS}, quote_via=quote)
    return f"{SCHEME}://{place}{url.path}?{query}", user


def _shown(url: SplitResult) -> str:
    """The URL without its password and parameters."""
    place = url.netloc.rpartition("@")[2]
    user = f"{url.username}@" if url.username else ""
    return f"{SCHEME}://{user}{place}{url.path}"
