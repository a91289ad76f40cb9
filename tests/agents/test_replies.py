"""The journal's form of what CrewAI's own providers return, built as their code does; no SDK is needed."""

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from meshgate_agents.child.call_ids import without_addresses
from meshgate_agents.child.model_journal import ModelCall
from meshgate_agents.child.replies import NoForm, decode, encode
from meshgate_agents.child.scopes import Scope
from pydantic import BaseModel, ConfigDict


def there_and_back(reply: Any, expected: Any = None) -> Any:
    form = json.loads(json.dumps(encode(reply, expected=expected), allow_nan=False))
    return decode(form, expected=expected)


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a class under the name that an SDK gives it."""

    def put(module: str, given: type) -> type:
        names = module.split(".")
        for depth in range(1, len(names) + 1):
            name = ".".join(names[:depth])
            if name not in sys.modules or depth == len(names):
                monkeypatch.setitem(sys.modules, name, ModuleType(name))
        given.__module__ = module
        setattr(sys.modules[module], given.__qualname__, given)
        return given

    return put


class _Call(BaseModel):
    id: str | None = None
    name: str | None = None
    args: dict[str, Any] | None = None


def test_a_gemini_part_comes_back_with_its_signature(sdk: Any) -> None:
    """Gemini's provider returns `Part` objects, and sends them back to the model as they are."""

    class Part(BaseModel):
        model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
        function_call: _Call | None = None
        text: str | None = None
        thought_signature: bytes | None = None

    Part.__qualname__ = "Part"
    made = sdk("google.genai.types", Part)
    part = made(
        function_call=_Call(name="refund", args={"order": "1"}), thought_signature=b"\x00\xff\xfb\xfe"
    )
    (again,) = there_and_back([part])
    assert type(again) is made
    assert again == part


def test_bedrock_and_streamed_calls_are_plain() -> None:
    """Bedrock's Converse gives dicts; streams of Azure and OpenAI, and OpenAI's Responses give dicts too."""
    bedrock = [{"toolUseId": "t1", "name": "refund", "input": {"order": "1", "amount": 5.5}}]
    azure = [{"id": "a", "type": "function", "function": {"name": "refund", "arguments": "{}"}}]
    responses = [{"id": "fc_1", "call_id": "call_1", "name": "refund", "arguments": "{}"}]
    for reply in (bedrock, azure, responses):
        assert there_and_back(reply) == reply


def test_an_azure_call_keeps_what_crewai_reads() -> None:
    """Azure's class has OpenAI's shape."""
    call = SimpleNamespace(
        id="a", type="function", function=SimpleNamespace(name="refund", arguments='{"order": "1"}')
    )
    (again,) = there_and_back([call])
    assert (again.id, again.function.name, again.function.arguments) == ("a", "refund", '{"order": "1"}')


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("anthropic.types.tool_use_block", "ToolUseBlock"),
        ("anthropic.types.beta.beta_tool_use_block", "BetaToolUseBlock"),
    ],
)
def test_an_anthropic_block_comes_back(sdk: Any, module: str, name: str) -> None:
    """As its own class."""

    class Block(BaseModel):
        id: str
        input: object
        name: str
        type: str

    Block.__qualname__ = name
    made = sdk(module, Block)
    block = made(id="t", input={"order": "1"}, name="refund", type="tool_use")
    (again,) = there_and_back([block])
    assert type(again) is made
    assert again == block


def test_a_new_block_of_anthropic_shape_has_a_stand_in() -> None:
    """CrewAI takes any object of that shape for a tool use, whatever its class."""
    from crewai.utilities.agent_utils import extract_tool_call_info, is_tool_call_list

    block = SimpleNamespace(type="tool_use", id="t", name="refund", input={"order": "1"})
    again = there_and_back([block])
    assert is_tool_call_list(again)
    assert extract_tool_call_info(again[0]) == extract_tool_call_info(block)


def test_what_is_no_json_within_a_shape_is_refused() -> None:
    """Nothing is kept that would come back as something else."""
    with pytest.raises(NoForm):
        encode([SimpleNamespace(type="tool_use", id="t", name="n", input={"when": object()})], expected=None)


def test_the_result_of_openai_responses_comes_back() -> None:
    """CrewAI's own dataclass, when built-in tools' outputs are asked for."""
    from crewai.llms.providers.openai.completion import ResponsesAPIResult

    result = ResponsesAPIResult(text="found", function_calls=[{"id": "a"}], response_id="resp_1")
    again = there_and_back(result)
    assert type(again) is ResponsesAPIResult
    assert again == result


class Asked(BaseModel):
    paid: int


def test_the_object_that_was_asked_for_comes_back_as_its_class() -> None:
    """Each provider validates structured output into the call's own class; another class is refused."""
    assert there_and_back(Asked(paid=1), Asked) == Asked(paid=1)
    with pytest.raises(NoForm):
        encode(Asked(paid=1), expected=None)
    with pytest.raises(NoForm):
        decode({"type": "model", "value": {"paid": 1}}, expected=None)


def test_made_up_call_ids_are_told_by_their_place() -> None:
    """Two attempts have other addresses in their prompts; which call an answer belongs to is kept."""

    def prompt(first: int, second: int) -> list[str]:
        calls = [{"id": f"call_{number}", "type": "function"} for number in (first, second)]
        answers = [{"role": "tool", "tool_call_id": f"call_{number}"} for number in (second, first)]
        said = {"role": "user", "content": f'"id":"call_{second}"'}
        return [json.dumps(one, separators=(",", ":")) for one in ({"tool_calls": calls}, *answers, said)]

    one, other = prompt(140022216902336, 140022225295040), prompt(139903216902336, 139903225295040)
    assert without_addresses(one)[:3] == without_addresses(other)[:3]
    assert without_addresses(one)[3] == one[3]  # a text is a text
    assert without_addresses(one)[1] != without_addresses(one)[2]
    given = ['{"id":"call_AbC123456789"}', '{"id":"call_1"}']
    assert without_addresses(given) == given


def test_a_prompt_with_made_up_call_ids_is_the_same_step() -> None:
    """In another process the same call of Gemini's has another address."""

    def key(address: int) -> object:
        messages = [{"role": "tool", "tool_call_id": f"call_{address}", "content": "done"}]
        return ModelCall(SimpleNamespace(model="gemini"), Scope(path=("p",)), (messages,), {}).step["key"]

    assert key(140022216902336) == key(139903225295040)


def test_models_asked_side_by_side_have_no_order() -> None:
    """In a save's scope the second call has one key, whether the first one was answered by then or not."""

    def key(scope: Scope, content: str) -> object:
        return ModelCall(SimpleNamespace(model="m"), scope, (content,), {}).step["key"]

    early, late = Scope(path=("save",), ordered=False), Scope(path=("save",), ordered=False)
    key(early, "one")
    key(late, "one")
    late.replied()
    assert key(early, "two") == key(late, "two")
