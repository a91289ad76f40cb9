"""The parts of a running host, put together and taken apart in order."""

import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from meshgate_identities.errors import IdentityUnavailable
from meshgate_identities.source import IdentitySource
from meshgate_identities.tls import RotatingChannel

from meshgate_toolhost import settings
from meshgate_toolhost.activity import make_activity
from meshgate_toolhost.delivery import Delivery
from meshgate_toolhost.errors import SettingsInvalid
from meshgate_toolhost.finished import FinishedLedger
from meshgate_toolhost.gateway import GrpcGateway
from meshgate_toolhost.invoke import Invoker, Limits
from meshgate_toolhost.model import LoadedTool
from meshgate_toolhost.results import MAX_RESULT_BYTES
from meshgate_toolhost.settings import Settings
from meshgate_toolhost.worker import Worker

IDENTITY_SECONDS = 30.0  # the Workload API answers in milliseconds; then the process gives up
MAX_MESSAGE_BYTES = 4_194_304  # gRPC's default, as the gateway has it


@dataclass(frozen=True, slots=True)
class Host:
    """Everything that has to be closed."""

    source: IdentitySource
    channel: RotatingChannel
    finished: FinishedLedger
    delivery: Delivery
    invoker: Invoker
    worker: Worker

    @classmethod
    def connect(cls, config: Settings, tools: Mapping[str, LoadedTool]) -> "Host":
        """Gets an identity and builds the parts. Nothing is served yet.

        Raises:
            SettingsInvalid: no identity or no sidecar token.
            LedgerUnavailable: the ledger cannot be opened.
        """
        token = settings.read_token(config.dapr.api_token_file)
        finished = FinishedLedger(path=config.finished_db)
        source, channel = _identity(config)
        gateway = GrpcGateway(channel=lambda: channel.channel)
        delivery = Delivery(gateway=gateway, finished=finished)
        invoker = Invoker(
            tools=tools,
            limits=limits(config),
            gateway=gateway,
            finished=finished,
            delivery=delivery,
            instance=str(uuid.uuid4()),
            withheld=config.withheld,
        )
        worker = Worker(
            grpc_port=config.dapr.grpc_port, api_token=token, activity=make_activity(invoker.invoke)
        )
        return cls(source, channel, finished, delivery, invoker, worker)

    def start(self, stop: threading.Event, *, patience_seconds: float) -> int:
        """Sends what an earlier process left, then serves; returns how many outcomes were left.

        Raises:
            SidecarUnavailable: no sidecar in time.
        """
        left = self.delivery.start()
        self.worker.start(stop, patience_seconds=patience_seconds)
        return left

    def close(self) -> None:
        """Stops serving. Bodies under way are left to the end of the process."""
        self.invoker.close()
        self.worker.close()
        self.delivery.close()
        self.channel.close()
        self.source.close()
        self.finished.close()


def _identity(config: Settings) -> tuple[IdentitySource, RotatingChannel]:
    source = IdentitySource(socket_path=config.workload_api.removeprefix("unix:"))
    try:
        source.start(IDENTITY_SECONDS)
        channel = RotatingChannel(
            source=source,
            target=config.gateway.target,
            server_name=config.gateway.server_name,
            options=(("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),),
        )
    except IdentityUnavailable as error:
        raise SettingsInvalid(f"no identity: {error}") from error
    return source, channel


def limits(config: Settings) -> dict[str, Limits]:
    """Limits per tool, from the configuration's overrides."""
    return {
        tool_id: Limits(one.deadline_seconds, one.max_result_bytes or MAX_RESULT_BYTES)
        for tool_id, one in config.tool_overrides.items()
    }
