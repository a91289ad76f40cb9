"""Writes what is generated and committed: `python -m meshgate_policies.generate OPA`."""

import json
import sys
from pathlib import Path

from meshgate_policies import capabilities, policy_input, resources


def schema_text() -> str:
    """`schemas/input.json`."""
    return json.dumps(policy_input.input_schema(), indent=2) + "\n"


def capabilities_text(current: dict[str, object]) -> str:
    """`capabilities.json`, a line per built-in."""
    kept = capabilities.without_forbidden(current)
    rows = ",\n".join(json.dumps(row, sort_keys=True) for row in kept.pop("builtins"))
    rest = json.dumps(kept, sort_keys=True)
    return f'{rest[:-1]}, "builtins": [\n{rows}\n]}}\n'


def main() -> None:
    """Writes both files into the checkout."""
    resources.input_schema().write_text(schema_text())
    current = capabilities.of_opa(Path(sys.argv[1]))
    resources.capabilities().write_text(capabilities_text(current))


if __name__ == "__main__":
    main()
