"""How an app's id becomes a Rego package."""

import re

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEYWORDS = frozenset(
    {
        "as", "contains", "default", "else", "every", "false", "if", "import", "in",
        "not", "null", "package", "some", "true", "with",
    }
)  # fmt: skip


def package_name(app: str) -> str:
    """Rego names have no dash: `refund-desk` is `refund_desk`."""
    return app.replace("-", "_")


def package_path(app: str, *, under: str = "mesh.agents") -> str:
    """The whole package: `mesh.agents.refund_desk`, or `mesh.agents["1st"]` where Rego needs quotes."""
    name = package_name(app)
    plain = _PLAIN.fullmatch(name) and name not in _KEYWORDS
    return f"{under}.{name}" if plain else f'{under}["{name}"]'
