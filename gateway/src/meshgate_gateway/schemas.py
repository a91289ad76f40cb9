"""A tool's JSON Schema, checked once at start. Schemas come from the operator, never from a call."""

from collections.abc import Mapping

import jsonschema
from jsonschema.protocols import Validator

from meshgate_gateway.errors import ConfigurationError
from meshgate_gateway.model import Tool


def validator(tool: Tool) -> Validator:
    """Local references only: a schema that points elsewhere is refused at start.

    Raises:
        ConfigurationError: names the tool.
    """
    schema = {key: _plain(inner) for key, inner in tool.schema.items()}
    if _remote(schema):
        raise ConfigurationError(f"tool {tool.id}: its schema refers to another document")
    cls = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        cls.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ConfigurationError(f"tool {tool.id}: its schema is not valid: {error.message}") from error
    return cls(schema)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _remote(value: object) -> bool:
    if isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            return True
        return any(_remote(inner) for inner in value.values())
    return isinstance(value, list) and any(_remote(inner) for inner in value)
