"""What a tool may return."""

import datetime as dt
import enum
import json
import math

import pytest
from meshgate_toolhost.errors import ResultNotJson, ResultTooLarge
from meshgate_toolhost.model import ResultKind
from meshgate_toolhost.results import encode
from pydantic import BaseModel


class Model(BaseModel):
    when: dt.date


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize("value", [None, True, 0, 2**70, 1.5, [], [1, [None]], {"a": {"b": [1]}}, {}])
def test_json_values_come_back_equal(value):
    """JSON in, the same JSON out."""
    result = encode(value)
    assert result.kind is ResultKind.JSON
    assert json.loads(result.data) == value


def test_text_is_text():
    """A str is text, the empty one too."""
    assert encode("").kind is ResultKind.TEXT
    assert encode("null").data == b"null"


def test_models_are_written_by_their_schema_wherever_they_are():
    """A pydantic model, alone or in a list."""
    model = Model(when=dt.date(2026, 1, 2))
    assert json.loads(encode(model).data) == {"when": "2026-01-02"}
    assert json.loads(encode({"all": [model]}).data) == {"all": [{"when": "2026-01-02"}]}


def test_a_tuple_comes_back_as_a_list():
    """The one conversion that is made."""
    assert json.loads(encode((1, 2)).data) == [1, 2]


def cycle():
    """A list that holds itself."""
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        object(),
        b"bytes",
        {1, 2},
        {1: "a"},
        {"a": object()},
        math.nan,
        [math.inf],
        "\ud800",
        ["\ud800"],
        dt.date(2026, 1, 1),
        Colour.RED,
        cycle(),
        (x for x in ()),
    ],
    ids=[
        *("object", "bytes", "set", "int-key", "object-in-dict", "nan", "infinity"),
        *("surrogate", "surrogate-in-list", "date", "enum", "cycle", "generator"),
    ],
)
def test_anything_else_is_no_result(value):
    """Never its repr."""
    with pytest.raises(ResultNotJson):
        encode(value)


def test_the_limit_is_in_bytes():
    """The encoded size counts."""
    assert encode("ü" * 5, limit_bytes=10).data == ("ü" * 5).encode()
    with pytest.raises(ResultTooLarge) as caught:
        encode("ü" * 6, limit_bytes=10)
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (12, 10)
