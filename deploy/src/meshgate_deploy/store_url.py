"""Which store a manifest may name, and what else its gateway needs for it. Pure."""

from urllib.parse import SplitResult, parse_qs, urlsplit

SQLITE = "sqlite"
SCHEME = "postgresql"
# What the gateway's process gets for the database; libpq reads them. Nobody else gets them.
VARIABLES = ("PGPASSWORD", "PGPASSFILE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY")
_SECRET_PARAMETERS = ("password", "sslpassword")
_VERIFIED = ("verify-ca", "verify-full")
_LOCAL = ("", "localhost", "127.0.0.1", "::1")


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
    try:
        url = urlsplit(store)
        parameters = parse_qs(url.query, strict_parsing=bool(url.query))
        without = _shown(url)
    except ValueError:
        return "the store's URL is not one", f"{SCHEME}://USER@HOST/DATABASE"
    if url.password is not None or any(name in parameters for name in _SECRET_PARAMETERS):
        fix = f"{without}, and PGPASSWORD in `.env` or the shell"
        return "the store's URL holds a password; a manifest holds none", fix
    hosts = [url.hostname or "", *",".join(parameters.get("host", ())).split(",")]
    remote = [host for host in hosts if host not in _LOCAL and not host.startswith("/")]
    if remote and parameters.get("sslmode", [""])[-1] not in _VERIFIED:
        message = f"the way to the store on {remote[0]} is not verified TLS"
        return message, f"{without}?sslmode=verify-full"
    return None


def _shown(url: SplitResult) -> str:
    """The URL without its password and parameters."""
    place = url.netloc.rpartition("@")[2]
    user = f"{url.username}@" if url.username else ""
    return f"{SCHEME}://{user}{place}{url.path}"
