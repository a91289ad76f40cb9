"""Where the Rego, the schema and the reasons' pages lie: in an installed wheel, else in the checkout."""

from pathlib import Path


def _root() -> Path:
    packaged = Path(__file__).parent / "_rego"
    return packaged if packaged.is_dir() else Path(__file__).parents[2]


def library() -> Path:
    """The folder of our decision folders."""
    return _root() / "lib"


def input_schema() -> Path:
    """The JSON Schema of `input`, generated from `policy_input`."""
    return _root() / "schemas" / "input.json"


def capabilities() -> Path:
    """What policies may use of OPA."""
    return _root() / "capabilities.json"


def reason_page(reason: str) -> Path:
    """The page of a reason id; it exists for every reason of ours, not for the user's own."""
    return _root() / "reasons" / f"{reason}.md"
