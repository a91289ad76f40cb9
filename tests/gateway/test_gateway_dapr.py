"""The Dapr adapter: when a call is begun again, and a sidecar that never answers."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import grpc
import pytest
from dapr.conf import settings
from meshgate_gateway.adapters.dapr_runtime import MAX_STARTS, STUCK_SECONDS, DaprRuntime
from meshgate_gateway.errors import DeliveriesSpent, RuntimeUnavailable

PATIENCE_SECONDS = 60.0
CALL = "c" + "0" * 40


class Hung(grpc.GenericRpcHandler):
    """Takes every method and waits until the test is over."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.over = threading.Event()

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        self.asked.append(details.method.rpartition("/")[2])
        return grpc.unary_unary_rpc_method_handler(self._wait)

    def _wait(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.over.wait()
        return b""


@pytest.fixture
def hung(monkeypatch):
    """A stopped sidecar and a runtime on it; the SDK's process-wide settings are put back."""
    for name in ("DAPR_API_TOKEN", "DAPR_GRPC_PORT", "DAPR_API_TIMEOUT_SECONDS"):
        monkeypatch.setattr(settings, name, getattr(settings, name))
    handler = Hung()
    server = grpc.server(ThreadPoolExecutor(8), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, DaprRuntime(grpc_port=port, api_token="t")
    handler.over.set()
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("fresh", "asked"), [(None, "GetInstance"), (True, "StartInstance"), (False, "GetInstance")]
)
def test_a_hung_sidecar_is_unavailable_and_holds_no_handler(hung, fresh, asked) -> None:
    """Probe, first start and join each end by themselves: no verdict."""
    handler, runtime = hung
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            if fresh is None:
                runtime.probe()
            else:
                runtime.dispatch(CALL, "orders", fresh=fresh)
        except RuntimeUnavailable as error:
            failures.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert len(failures) == 1
    assert handler.asked == [asked]


class Sidecar:
    """Instances by id: their status and how many seconds old they are."""

    def __init__(self, **instances: tuple[str, float]) -> None:
        self.instances = {f"{CALL}{name}": state for name, state in instances.items()}
        self.scheduled: list[str] = []
        self.failure: grpc.StatusCode | None = None

    def get_workflow_state(self, instance: str, *, fetch_payloads: bool) -> object:
        if instance not in self.instances:
            return None
        status, age = self.instances[instance]
        created = datetime.now(UTC) - timedelta(seconds=age)
        return SimpleNamespace(runtime_status=SimpleNamespace(name=status), created_at=created)

    def schedule_new_workflow(self, workflow: str, *, input: object, instance_id: str) -> None:  # noqa: A002
        if self.failure is not None:
            raise Failed(self.failure)
        self.scheduled.append(instance_id.removeprefix(CALL))


class Failed(grpc.RpcError, grpc.Call):
    """What the SDK raises."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "says the test"

    initial_metadata = trailing_metadata = time_remaining = is_active = cancel = add_callback = None


def dispatched(monkeypatch, sidecar: Sidecar, *, fresh: bool = False) -> list[str]:
    """Which instances one dispatch began, by what follows the call id."""
    over(monkeypatch, sidecar).dispatch(CALL, "orders", fresh=fresh)
    return sidecar.scheduled


def over(monkeypatch, sidecar: Sidecar) -> DaprRuntime:
    for name in ("DAPR_API_TOKEN", "DAPR_GRPC_PORT", "DAPR_API_TIMEOUT_SECONDS"):
        monkeypatch.setattr(settings, name, getattr(settings, name))
    runtime = DaprRuntime(grpc_port=1, api_token="t")
    runtime._client = sidecar
    return runtime


@pytest.mark.parametrize(
    ("instances", "begun"),
    [
        ({}, [""]),
        ({"": ("RUNNING", 1.0)}, []),
        ({"": ("PENDING", 1.0)}, []),
        ({"": ("RUNNING", STUCK_SECONDS + 1)}, ["-1"]),
        ({"": ("COMPLETED", 0.0)}, ["-1"]),
        ({"": ("RUNNING", 60.0), "-1": ("RUNNING", STUCK_SECONDS + 1)}, []),
        ({"": ("RUNNING", 60.0), "-1": ("RUNNING", 2 * STUCK_SECONDS + 1)}, ["-2"]),
        ({"": ("FAILED", 9.0), "-1": ("TERMINATED", 5.0), "-2": ("RUNNING", 1.0)}, []),
    ],
)
def test_a_call_is_begun_beside_an_instance_that_dapr_left_behind(monkeypatch, instances, begun) -> None:
    """One under way is left alone until it is too old, each next one after twice the wait."""
    assert dispatched(monkeypatch, Sidecar(**instances)) == begun


def test_a_call_begun_too_often_is_unavailable(monkeypatch) -> None:
    """Not for ever: a person must look."""
    many = {f"-{n}" if n else "": ("FAILED", 1.0) for n in range(MAX_STARTS)}
    with pytest.raises(DeliveriesSpent):
        dispatched(monkeypatch, Sidecar(**many))


@pytest.mark.parametrize("status", ["RUNNING", "COMPLETED", "FAILED"])
def test_an_app_is_told_once_for_each_telling(monkeypatch, status) -> None:
    """However the first one ended and however often it was told before."""
    sidecar = Sidecar()
    runtime = over(monkeypatch, sidecar)
    for number in range(3 * MAX_STARTS):
        runtime.start_run("r", "desk", telling=f"7-{number}")
    assert sidecar.scheduled == [f"start-r-7-{number}" for number in range(3 * MAX_STARTS)]
    sidecar.instances = dict.fromkeys(sidecar.scheduled, (status, 9e9))
    sidecar.scheduled = []
    runtime.start_run("r", "desk", telling="7-1")
    assert sidecar.scheduled == []


def test_a_start_that_was_quicker_is_no_fault(monkeypatch) -> None:
    """Another gateway started the same call: nothing to do. Any other failure is no verdict."""
    sidecar = Sidecar()
    sidecar.failure = grpc.StatusCode.ALREADY_EXISTS
    assert dispatched(monkeypatch, sidecar, fresh=True) == []
    sidecar.failure = grpc.StatusCode.INTERNAL
    with pytest.raises(RuntimeUnavailable):
        dispatched(monkeypatch, sidecar, fresh=True)
