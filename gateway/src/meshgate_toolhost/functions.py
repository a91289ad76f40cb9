"""Plain Python functions as tools: the schema comes from the type hints, pydantic checks the arguments."""

import asyncio
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, create_model

from meshgate_toolhost.errors import ToolNotLoadable
from meshgate_toolhost.model import Arguments, Schema

_NOT_NAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A function with what a caller needs to know of it."""

    function: Callable[..., object]
    parameters: dict[str, str]
    arguments_model: type[BaseModel]
    description: str
    schema: Schema
    result_schema: Schema | None

    @classmethod
    def of(cls, function: Callable[..., object], written: object) -> "FunctionTool":
        """Reads signature, hints and docstring.

        Raises:
            ToolNotLoadable: a hint that cannot be read, or a parameter that has no name for callers.
        """
        try:
            hints = typing.get_type_hints(function, include_extras=True)
            parameters = inspect.signature(function).parameters
        except (NameError, TypeError, ValueError) as error:
            raise ToolNotLoadable(written, f"its type hints cannot be read: {error}") from error
        fields: dict[str, object] = {}
        names: dict[str, str] = {}
        for name, parameter in parameters.items():
            if parameter.kind in _NOT_NAMED:
                raise ToolNotLoadable(written, f"parameter {name!r} cannot be given by name")
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            # A name of our own, so that `schema` or `_x` do not meet pydantic's own attributes.
            field = f"argument_{name}"
            fields[field] = (hints.get(name, typing.Any), Field(default=default, alias=name, title=name))
            names[name] = field
        try:
            model: type[BaseModel] = create_model(  # type: ignore[call-overload]
                getattr(function, "__name__", "arguments"), __config__=ConfigDict(extra="forbid"), **fields
            )
            schema = model.model_json_schema()
        except PydanticUserError as error:
            raise ToolNotLoadable(written, f"a parameter's type has no JSON Schema: {error}") from error
        result = hints.get("return")
        is_model = isinstance(result, type) and issubclass(result, BaseModel)
        return cls(
            function=function,
            parameters=names,
            arguments_model=model,
            description=inspect.getdoc(function) or "",
            schema=schema,
            result_schema=result.model_json_schema(mode="serialization") if is_model and result else None,
        )

    def run(self, arguments: Arguments) -> object:
        """Checks the arguments and calls the function.

        Raises:
            ValueError: arguments that do not fit (pydantic's).
            Exception: what the function raises.
        """
        checked = self.arguments_model.model_validate(arguments)
        result = self.function(**{name: getattr(checked, field) for name, field in self.parameters.items()})
        return asyncio.run(result) if inspect.iscoroutine(result) else result
