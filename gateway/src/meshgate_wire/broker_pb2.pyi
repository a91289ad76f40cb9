from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CallState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CALL_STATE_UNSPECIFIED: _ClassVar[CallState]
    CALL_STATE_PENDING: _ClassVar[CallState]
    CALL_STATE_DONE: _ClassVar[CallState]
    CALL_STATE_FAILED: _ClassVar[CallState]
    CALL_STATE_DENIED: _ClassVar[CallState]
    CALL_STATE_UNKNOWN: _ClassVar[CallState]
    CALL_STATE_RUN: _ClassVar[CallState]

class ResultKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESULT_KIND_UNSPECIFIED: _ClassVar[ResultKind]
    RESULT_KIND_TEXT: _ClassVar[ResultKind]
    RESULT_KIND_JSON: _ClassVar[ResultKind]
CALL_STATE_UNSPECIFIED: CallState
CALL_STATE_PENDING: CallState
CALL_STATE_DONE: CallState
CALL_STATE_FAILED: CallState
CALL_STATE_DENIED: CallState
CALL_STATE_UNKNOWN: CallState
CALL_STATE_RUN: CallState
RESULT_KIND_UNSPECIFIED: ResultKind
RESULT_KIND_TEXT: ResultKind
RESULT_KIND_JSON: ResultKind

class CallToolRequest(_message.Message):
    __slots__ = ("run_id", "attempt", "step_key", "tool", "arguments_json", "deadline_ms", "untrusted", "scope", "turn", "task", "left_out")
    class UntrustedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STEP_KEY_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    UNTRUSTED_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    attempt: int
    step_key: str
    tool: str
    arguments_json: bytes
    deadline_ms: int
    untrusted: _containers.ScalarMap[str, str]
    scope: str
    turn: int
    task: str
    left_out: str
    def __init__(self, run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., step_key: _Optional[str] = ..., tool: _Optional[str] = ..., arguments_json: _Optional[bytes] = ..., deadline_ms: _Optional[int] = ..., untrusted: _Optional[_Mapping[str, str]] = ..., scope: _Optional[str] = ..., turn: _Optional[int] = ..., task: _Optional[str] = ..., left_out: _Optional[str] = ...) -> None: ...

class CallToolResponse(_message.Message):
    __slots__ = ("call_id", "state", "decision_id", "reasons", "kind", "result", "error_class", "message", "arguments_json", "take")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_CLASS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    TAKE_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    state: CallState
    decision_id: str
    reasons: _containers.RepeatedScalarFieldContainer[str]
    kind: ResultKind
    result: bytes
    error_class: str
    message: str
    arguments_json: bytes
    take: int
    def __init__(self, call_id: _Optional[str] = ..., state: _Optional[_Union[CallState, str]] = ..., decision_id: _Optional[str] = ..., reasons: _Optional[_Iterable[str]] = ..., kind: _Optional[_Union[ResultKind, str]] = ..., result: _Optional[bytes] = ..., error_class: _Optional[str] = ..., message: _Optional[str] = ..., arguments_json: _Optional[bytes] = ..., take: _Optional[int] = ...) -> None: ...

class TakeCallRequest(_message.Message):
    __slots__ = ("call_id", "host_instance")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    host_instance: str
    def __init__(self, call_id: _Optional[str] = ..., host_instance: _Optional[str] = ...) -> None: ...

class TakeCallResponse(_message.Message):
    __slots__ = ("take", "tool", "arguments_json", "definition_sha256", "deadline_unix_ms", "idempotency_key", "taken_before", "effect", "idempotent", "ambiguous", "may_begin")
    TAKE_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_SHA256_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    TAKEN_BEFORE_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENT_FIELD_NUMBER: _ClassVar[int]
    AMBIGUOUS_FIELD_NUMBER: _ClassVar[int]
    MAY_BEGIN_FIELD_NUMBER: _ClassVar[int]
    take: int
    tool: str
    arguments_json: bytes
    definition_sha256: str
    deadline_unix_ms: int
    idempotency_key: str
    taken_before: bool
    effect: str
    idempotent: bool
    ambiguous: bool
    may_begin: bool
    def __init__(self, take: _Optional[int] = ..., tool: _Optional[str] = ..., arguments_json: _Optional[bytes] = ..., definition_sha256: _Optional[str] = ..., deadline_unix_ms: _Optional[int] = ..., idempotency_key: _Optional[str] = ..., taken_before: _Optional[bool] = ..., effect: _Optional[str] = ..., idempotent: _Optional[bool] = ..., ambiguous: _Optional[bool] = ..., may_begin: _Optional[bool] = ...) -> None: ...

class FinishCallRequest(_message.Message):
    __slots__ = ("call_id", "take", "host_instance", "result", "failure", "reconciled")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TAKE_FIELD_NUMBER: _ClassVar[int]
    HOST_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    RECONCILED_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    take: int
    host_instance: str
    result: ToolResult
    failure: ToolFailure
    reconciled: bool
    def __init__(self, call_id: _Optional[str] = ..., take: _Optional[int] = ..., host_instance: _Optional[str] = ..., result: _Optional[_Union[ToolResult, _Mapping]] = ..., failure: _Optional[_Union[ToolFailure, _Mapping]] = ..., reconciled: _Optional[bool] = ...) -> None: ...

class ToolResult(_message.Message):
    __slots__ = ("kind", "data")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    kind: ResultKind
    data: bytes
    def __init__(self, kind: _Optional[_Union[ResultKind, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ToolFailure(_message.Message):
    __slots__ = ("error_class", "message", "ambiguous")
    ERROR_CLASS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    AMBIGUOUS_FIELD_NUMBER: _ClassVar[int]
    error_class: str
    message: str
    ambiguous: bool
    def __init__(self, error_class: _Optional[str] = ..., message: _Optional[str] = ..., ambiguous: _Optional[bool] = ...) -> None: ...

class FinishCallResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: CallState
    def __init__(self, state: _Optional[_Union[CallState, str]] = ...) -> None: ...

class FinishOwnCallRequest(_message.Message):
    __slots__ = ("call_id", "attempt", "take", "result", "failure")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TAKE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    attempt: int
    take: int
    result: ToolResult
    failure: ToolFailure
    def __init__(self, call_id: _Optional[str] = ..., attempt: _Optional[int] = ..., take: _Optional[int] = ..., result: _Optional[_Union[ToolResult, _Mapping]] = ..., failure: _Optional[_Union[ToolFailure, _Mapping]] = ...) -> None: ...

class ListToolsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListToolsResponse(_message.Message):
    __slots__ = ("tools",)
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    tools: _containers.RepeatedCompositeFieldContainer[ToolDescription]
    def __init__(self, tools: _Optional[_Iterable[_Union[ToolDescription, _Mapping]]] = ...) -> None: ...

class ToolDescription(_message.Message):
    __slots__ = ("tool", "description", "arguments_schema_json", "definition_sha256", "effect")
    TOOL_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_SCHEMA_JSON_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_SHA256_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    tool: str
    description: str
    arguments_schema_json: str
    definition_sha256: str
    effect: str
    def __init__(self, tool: _Optional[str] = ..., description: _Optional[str] = ..., arguments_schema_json: _Optional[str] = ..., definition_sha256: _Optional[str] = ..., effect: _Optional[str] = ...) -> None: ...

class StartRunRequest(_message.Message):
    __slots__ = ("run_id", "input_json")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_JSON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    input_json: bytes
    def __init__(self, run_id: _Optional[str] = ..., input_json: _Optional[bytes] = ...) -> None: ...

class StartRunResponse(_message.Message):
    __slots__ = ("run_id", "state", "failures", "attempt")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    state: str
    failures: int
    attempt: int
    def __init__(self, run_id: _Optional[str] = ..., state: _Optional[str] = ..., failures: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class ReadRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class ReadRunResponse(_message.Message):
    __slots__ = ("state", "forsaken", "input_json", "failures", "attempt", "lost")
    STATE_FIELD_NUMBER: _ClassVar[int]
    FORSAKEN_FIELD_NUMBER: _ClassVar[int]
    INPUT_JSON_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    state: str
    forsaken: bool
    input_json: bytes
    failures: int
    attempt: int
    lost: int
    def __init__(self, state: _Optional[str] = ..., forsaken: _Optional[bool] = ..., input_json: _Optional[bytes] = ..., failures: _Optional[int] = ..., attempt: _Optional[int] = ..., lost: _Optional[int] = ...) -> None: ...

class StartAttemptRequest(_message.Message):
    __slots__ = ("run_id", "launcher_instance", "after")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    LAUNCHER_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    launcher_instance: str
    after: int
    def __init__(self, run_id: _Optional[str] = ..., launcher_instance: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class StartAttemptResponse(_message.Message):
    __slots__ = ("attempt", "failures", "first")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    failures: int
    first: bool
    def __init__(self, attempt: _Optional[int] = ..., failures: _Optional[int] = ..., first: _Optional[bool] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("key", "scope", "turn", "kind")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    key: str
    scope: str
    turn: int
    kind: str
    def __init__(self, key: _Optional[str] = ..., scope: _Optional[str] = ..., turn: _Optional[int] = ..., kind: _Optional[str] = ...) -> None: ...

class ReadJournalRequest(_message.Message):
    __slots__ = ("run_id", "attempt")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    attempt: int
    def __init__(self, run_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class JournalEntry(_message.Message):
    __slots__ = ("step", "reply_json", "answer", "effect_of")
    STEP_FIELD_NUMBER: _ClassVar[int]
    REPLY_JSON_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    EFFECT_OF_FIELD_NUMBER: _ClassVar[int]
    step: Step
    reply_json: bytes
    answer: CallToolResponse
    effect_of: str
    def __init__(self, step: _Optional[_Union[Step, _Mapping]] = ..., reply_json: _Optional[bytes] = ..., answer: _Optional[_Union[CallToolResponse, _Mapping]] = ..., effect_of: _Optional[str] = ...) -> None: ...

class AppendStepRequest(_message.Message):
    __slots__ = ("run_id", "attempt", "step", "request_json", "reply_json", "milliseconds")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REQUEST_JSON_FIELD_NUMBER: _ClassVar[int]
    REPLY_JSON_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    attempt: int
    step: Step
    request_json: bytes
    reply_json: bytes
    milliseconds: int
    def __init__(self, run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., request_json: _Optional[bytes] = ..., reply_json: _Optional[bytes] = ..., milliseconds: _Optional[int] = ...) -> None: ...

class AppendStepResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EndAttemptRequest(_message.Message):
    __slots__ = ("run_id", "attempt", "state", "detail", "traceback")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    attempt: int
    state: str
    detail: str
    traceback: bytes
    def __init__(self, run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., state: _Optional[str] = ..., detail: _Optional[str] = ..., traceback: _Optional[bytes] = ...) -> None: ...

class EndAttemptResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("run_id", "attempt", "steps")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    attempt: int
    steps: int
    def __init__(self, run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., steps: _Optional[int] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class FinishRunRequest(_message.Message):
    __slots__ = ("run_id", "attempt", "state", "detail", "traceback", "result")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    attempt: int
    state: str
    detail: str
    traceback: bytes
    result: bytes
    def __init__(self, run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., state: _Optional[str] = ..., detail: _Optional[str] = ..., traceback: _Optional[bytes] = ..., result: _Optional[bytes] = ...) -> None: ...

class FinishRunResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("ready", "not_ready_reasons", "policy_revision", "records", "calls_by_state", "version")
    class CallsByStateEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    READY_FIELD_NUMBER: _ClassVar[int]
    NOT_READY_REASONS_FIELD_NUMBER: _ClassVar[int]
    POLICY_REVISION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    CALLS_BY_STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ready: bool
    not_ready_reasons: _containers.RepeatedScalarFieldContainer[str]
    policy_revision: str
    records: int
    calls_by_state: _containers.ScalarMap[str, int]
    version: str
    def __init__(self, ready: _Optional[bool] = ..., not_ready_reasons: _Optional[_Iterable[str]] = ..., policy_revision: _Optional[str] = ..., records: _Optional[int] = ..., calls_by_state: _Optional[_Mapping[str, int]] = ..., version: _Optional[str] = ...) -> None: ...

class QueryRecordsRequest(_message.Message):
    __slots__ = ("after_seq", "limit", "caller", "tool", "call_id", "kind", "run_id")
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    after_seq: int
    limit: int
    caller: str
    tool: str
    call_id: str
    kind: str
    run_id: str
    def __init__(self, after_seq: _Optional[int] = ..., limit: _Optional[int] = ..., caller: _Optional[str] = ..., tool: _Optional[str] = ..., call_id: _Optional[str] = ..., kind: _Optional[str] = ..., run_id: _Optional[str] = ...) -> None: ...

class QueryRecordsResponse(_message.Message):
    __slots__ = ("records_json", "last_seq")
    RECORDS_JSON_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    records_json: _containers.RepeatedScalarFieldContainer[bytes]
    last_seq: int
    def __init__(self, records_json: _Optional[_Iterable[bytes]] = ..., last_seq: _Optional[int] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunRow]
    def __init__(self, runs: _Optional[_Iterable[_Union[RunRow, _Mapping]]] = ...) -> None: ...

class RunRow(_message.Message):
    __slots__ = ("run_id", "app", "state", "attempt", "created", "detail", "updated", "steps", "origin", "origin_run", "origin_step", "purged", "parent_call", "parent_run")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    APP_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    UPDATED_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_RUN_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_STEP_FIELD_NUMBER: _ClassVar[int]
    PURGED_FIELD_NUMBER: _ClassVar[int]
    PARENT_CALL_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    app: str
    state: str
    attempt: int
    created: str
    detail: str
    updated: str
    steps: int
    origin: str
    origin_run: str
    origin_step: int
    purged: str
    parent_call: str
    parent_run: str
    def __init__(self, run_id: _Optional[str] = ..., app: _Optional[str] = ..., state: _Optional[str] = ..., attempt: _Optional[int] = ..., created: _Optional[str] = ..., detail: _Optional[str] = ..., updated: _Optional[str] = ..., steps: _Optional[int] = ..., origin: _Optional[str] = ..., origin_run: _Optional[str] = ..., origin_step: _Optional[int] = ..., purged: _Optional[str] = ..., parent_call: _Optional[str] = ..., parent_run: _Optional[str] = ...) -> None: ...

class ShowRunRequest(_message.Message):
    __slots__ = ("run_id", "operator", "row_only", "without_steps")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    ROW_ONLY_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_STEPS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    operator: str
    row_only: bool
    without_steps: bool
    def __init__(self, run_id: _Optional[str] = ..., operator: _Optional[str] = ..., row_only: _Optional[bool] = ..., without_steps: _Optional[bool] = ...) -> None: ...

class StepRow(_message.Message):
    __slots__ = ("step", "attempt", "created", "milliseconds", "state", "tool", "call_id", "decision_id", "input", "output", "copied")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    COPIED_FIELD_NUMBER: _ClassVar[int]
    step: Step
    attempt: int
    created: str
    milliseconds: int
    state: str
    tool: str
    call_id: str
    decision_id: str
    input: bytes
    output: bytes
    copied: bool
    def __init__(self, step: _Optional[_Union[Step, _Mapping]] = ..., attempt: _Optional[int] = ..., created: _Optional[str] = ..., milliseconds: _Optional[int] = ..., state: _Optional[str] = ..., tool: _Optional[str] = ..., call_id: _Optional[str] = ..., decision_id: _Optional[str] = ..., input: _Optional[bytes] = ..., output: _Optional[bytes] = ..., copied: _Optional[bool] = ...) -> None: ...

class ShowRunResponse(_message.Message):
    __slots__ = ("run", "steps", "input_json", "cut", "traceback", "result")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    INPUT_JSON_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    run: RunRow
    steps: _containers.RepeatedCompositeFieldContainer[StepRow]
    input_json: bytes
    cut: bool
    traceback: bytes
    result: bytes
    def __init__(self, run: _Optional[_Union[RunRow, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[StepRow, _Mapping]]] = ..., input_json: _Optional[bytes] = ..., cut: _Optional[bool] = ..., traceback: _Optional[bytes] = ..., result: _Optional[bytes] = ...) -> None: ...

class AdminStartRunRequest(_message.Message):
    __slots__ = ("app", "run_id", "input_json", "operator", "command", "cwd", "env")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    APP_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_JSON_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    CWD_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    app: str
    run_id: str
    input_json: bytes
    operator: str
    command: _containers.RepeatedScalarFieldContainer[str]
    cwd: str
    env: _containers.ScalarMap[str, str]
    def __init__(self, app: _Optional[str] = ..., run_id: _Optional[str] = ..., input_json: _Optional[bytes] = ..., operator: _Optional[str] = ..., command: _Optional[_Iterable[str]] = ..., cwd: _Optional[str] = ..., env: _Optional[_Mapping[str, str]] = ...) -> None: ...

class AdminStartRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: RunRow
    def __init__(self, run: _Optional[_Union[RunRow, _Mapping]] = ...) -> None: ...

class ControlRunRequest(_message.Message):
    __slots__ = ("run_id", "action", "operator")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    action: str
    operator: str
    def __init__(self, run_id: _Optional[str] = ..., action: _Optional[str] = ..., operator: _Optional[str] = ...) -> None: ...

class ControlRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: RunRow
    def __init__(self, run: _Optional[_Union[RunRow, _Mapping]] = ...) -> None: ...

class ResolveCallRequest(_message.Message):
    __slots__ = ("call_id", "state", "result", "kind", "operator")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    state: str
    result: bytes
    kind: ResultKind
    operator: str
    def __init__(self, call_id: _Optional[str] = ..., state: _Optional[str] = ..., result: _Optional[bytes] = ..., kind: _Optional[_Union[ResultKind, str]] = ..., operator: _Optional[str] = ...) -> None: ...

class ResolveCallResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class BranchRunRequest(_message.Message):
    __slots__ = ("run_id", "new_run_id", "origin", "steps", "edit_json", "operator", "dry_run", "cwd")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EDIT_JSON_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    CWD_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    new_run_id: str
    origin: str
    steps: int
    edit_json: bytes
    operator: str
    dry_run: bool
    cwd: str
    def __init__(self, run_id: _Optional[str] = ..., new_run_id: _Optional[str] = ..., origin: _Optional[str] = ..., steps: _Optional[int] = ..., edit_json: _Optional[bytes] = ..., operator: _Optional[str] = ..., dry_run: _Optional[bool] = ..., cwd: _Optional[str] = ...) -> None: ...

class EffectRow(_message.Message):
    __slots__ = ("step", "tool", "effect", "state", "call_id")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    step: int
    tool: str
    effect: str
    state: str
    call_id: str
    def __init__(self, step: _Optional[int] = ..., tool: _Optional[str] = ..., effect: _Optional[str] = ..., state: _Optional[str] = ..., call_id: _Optional[str] = ...) -> None: ...

class BranchRunResponse(_message.Message):
    __slots__ = ("run", "effects", "steps")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EFFECTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    run: RunRow
    effects: _containers.RepeatedCompositeFieldContainer[EffectRow]
    steps: int
    def __init__(self, run: _Optional[_Union[RunRow, _Mapping]] = ..., effects: _Optional[_Iterable[_Union[EffectRow, _Mapping]]] = ..., steps: _Optional[int] = ...) -> None: ...

class ExportRunRequest(_message.Message):
    __slots__ = ("run_id", "from_step", "operator", "from_byte")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_STEP_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    FROM_BYTE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    from_step: int
    operator: str
    from_byte: int
    def __init__(self, run_id: _Optional[str] = ..., from_step: _Optional[int] = ..., operator: _Optional[str] = ..., from_byte: _Optional[int] = ...) -> None: ...

class ClearText(_message.Message):
    __slots__ = ("payload", "salt", "data", "kept")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    payload: str
    salt: bytes
    data: bytes
    kept: bool
    def __init__(self, payload: _Optional[str] = ..., salt: _Optional[bytes] = ..., data: _Optional[bytes] = ..., kept: _Optional[bool] = ...) -> None: ...

class ExportRunResponse(_message.Message):
    __slots__ = ("run_json", "steps_json", "texts", "next_step", "digest", "first_record", "last_record", "next_byte")
    RUN_JSON_FIELD_NUMBER: _ClassVar[int]
    STEPS_JSON_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FIRST_RECORD_FIELD_NUMBER: _ClassVar[int]
    LAST_RECORD_FIELD_NUMBER: _ClassVar[int]
    NEXT_BYTE_FIELD_NUMBER: _ClassVar[int]
    run_json: bytes
    steps_json: _containers.RepeatedScalarFieldContainer[bytes]
    texts: _containers.RepeatedCompositeFieldContainer[ClearText]
    next_step: int
    digest: str
    first_record: int
    last_record: int
    next_byte: int
    def __init__(self, run_json: _Optional[bytes] = ..., steps_json: _Optional[_Iterable[bytes]] = ..., texts: _Optional[_Iterable[_Union[ClearText, _Mapping]]] = ..., next_step: _Optional[int] = ..., digest: _Optional[str] = ..., first_record: _Optional[int] = ..., last_record: _Optional[int] = ..., next_byte: _Optional[int] = ...) -> None: ...

class PurgeRunRequest(_message.Message):
    __slots__ = ("run_id", "digest", "without_export", "operator")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_EXPORT_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    digest: str
    without_export: bool
    operator: str
    def __init__(self, run_id: _Optional[str] = ..., digest: _Optional[str] = ..., without_export: _Optional[bool] = ..., operator: _Optional[str] = ...) -> None: ...

class PurgeRunResponse(_message.Message):
    __slots__ = ("run", "deleted", "shared")
    RUN_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    run: RunRow
    deleted: int
    shared: int
    def __init__(self, run: _Optional[_Union[RunRow, _Mapping]] = ..., deleted: _Optional[int] = ..., shared: _Optional[int] = ...) -> None: ...

class ListCallsRequest(_message.Message):
    __slots__ = ("run_id", "limit")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    limit: int
    def __init__(self, run_id: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ListCallsResponse(_message.Message):
    __slots__ = ("calls",)
    CALLS_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[CallRow]
    def __init__(self, calls: _Optional[_Iterable[_Union[CallRow, _Mapping]]] = ...) -> None: ...

class CallRow(_message.Message):
    __slots__ = ("call_id", "caller", "tool", "state", "decision_id", "run_id", "reasons")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    caller: str
    tool: str
    state: str
    decision_id: str
    run_id: str
    reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, call_id: _Optional[str] = ..., caller: _Optional[str] = ..., tool: _Optional[str] = ..., state: _Optional[str] = ..., decision_id: _Optional[str] = ..., run_id: _Optional[str] = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class ActivatePolicyRequest(_message.Message):
    __slots__ = ("socket_path", "revision", "digest", "token_file", "operator", "listing_file")
    SOCKET_PATH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FILE_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    LISTING_FILE_FIELD_NUMBER: _ClassVar[int]
    socket_path: str
    revision: str
    digest: str
    token_file: str
    operator: str
    listing_file: str
    def __init__(self, socket_path: _Optional[str] = ..., revision: _Optional[str] = ..., digest: _Optional[str] = ..., token_file: _Optional[str] = ..., operator: _Optional[str] = ..., listing_file: _Optional[str] = ...) -> None: ...

class ActivatePolicyResponse(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: str
    def __init__(self, revision: _Optional[str] = ...) -> None: ...

class VerifyRecordsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VerifyRecordsResponse(_message.Message):
    __slots__ = ("verified", "records", "problem")
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    verified: bool
    records: int
    problem: str
    def __init__(self, verified: _Optional[bool] = ..., records: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...
