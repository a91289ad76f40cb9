"""The three services: each method turns a message into a core call and its answer back."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from meshgate_wire import broker_pb2 as pb
from meshgate_wire import broker_pb2_grpc as services

from meshgate_gateway.adapters import wire
from meshgate_gateway.adapters.streams import Slot, Streams
from meshgate_gateway.admin import Admin
from meshgate_gateway.attempts import failures, seen
from meshgate_gateway.broker import Broker
from meshgate_gateway.catalogue import Catalogue
from meshgate_gateway.hosts import Hosts
from meshgate_gateway.journal import Journal
from meshgate_gateway.model import Outcome, Presented, State
from meshgate_gateway.own_calls import OwnCall, OwnCalls
from meshgate_gateway.policy import PolicyPlace
from meshgate_gateway.record import VERSION
from meshgate_gateway.runs import Runs, forsaken
from meshgate_gateway.store import CallQuery, RecordQuery

STREAM_SECONDS = 120.0  # for one journal, as long as a launcher waits for it
MAX_ANSWER_BYTES = 3_145_728  # of records in one answer: below gRPC's default 4 MiB

Guard = Callable[[grpc.ServicerContext, Callable[[Presented], Any]], Any]


class BrokerServicer(services.BrokerServicer):
    """Broker: agents and tool hosts."""

    def __init__(
        self, *, guard: Guard, broker: Broker, hosts: Hosts, own_calls: OwnCalls, catalogue: Catalogue
    ) -> None:
        self._guard = guard
        self._broker = broker
        self._hosts, self._own_calls = hosts, own_calls
        self._catalogue = catalogue

    def CallTool(self, request: pb.CallToolRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""
        return self._guard(
            context, lambda peer: wire.answer(self._broker.handle(peer, wire.call_request(request)))
        )

    def TakeCall(self, request: pb.TakeCallRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""
        return self._guard(
            context,
            lambda peer: wire.taken(
                self._hosts.take(peer, call_id=request.call_id, host_instance=request.host_instance)
            ),
        )

    def FinishCall(self, request: pb.FinishCallRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""
        outcome = wire.outcome(request) or Outcome(State.RESERVED, b"")

        def serve(peer: Presented) -> pb.FinishCallResponse:
            state = self._hosts.finish(
                peer,
                call_id=request.call_id,
                take=request.take,
                host_instance=request.host_instance,
                outcome=outcome,
            )
            return pb.FinishCallResponse(state=wire.state(state))

        return self._guard(context, serve)

    def FinishOwnCall(self, request: pb.FinishOwnCallRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""
        outcome = wire.own_outcome(request) or Outcome(State.RESERVED, b"")
        call = OwnCall(request.call_id, request.attempt, request.take)
        return self._guard(context, lambda peer: wire.answer(self._own_calls.finish(peer, call, outcome)))

    def ListTools(self, request: pb.ListToolsRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """See the proto."""
        return self._guard(context, lambda peer: wire.tools(self._broker.tools(peer), self._catalogue))


class RunsServicer(services.RunsServicer):
    """Runs: launchers."""

    def __init__(self, *, guard: Guard, runs: Runs, journal: Journal) -> None:
        self._guard = guard
        self._runs = runs
        self._journal = journal
        self._streams = Streams()

    def ReadJournal(self, request: pb.ReadJournalRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto. A fault on the way is a status, never a journal that looks whole."""
        slots: list[Slot] = []

        def opened(peer: Presented) -> Iterator[pb.JournalEntry]:
            entries = self._journal.read(
                peer,
                run_id=request.run_id,
                attempt=request.attempt,
                admit=lambda caller: slots.append(self._streams.take(caller.spiffe_id)),
            )
            return map(wire.entry, entries)

        # Who does not read stands in the way of the next message, where only a cancel reaches the thread.
        late = threading.Timer(STREAM_SECONDS, context.cancel)
        late.daemon = True
        try:
            entries = self._guard(context, opened)
            late.start()
            while (entry := self._guard(context, lambda _: next(entries, None))) is not None:
                yield entry
        finally:
            late.cancel()
            for slot in slots:
                slot.release()

    def AppendStep(self, request: pb.AppendStepRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.AppendStepResponse:
            self._journal.append(
                peer,
                run_id=request.run_id,
                attempt=request.attempt,
                step=wire.step(request.step),
                request=request.request_json,
                reply=request.reply_json,
                milliseconds=request.milliseconds,
            )
            return pb.AppendStepResponse()

        return self._guard(context, serve)

    def EndAttempt(self, request: pb.EndAttemptRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.EndAttemptResponse:
            run = self._runs.end_attempt(
                peer,
                run_id=request.run_id,
                attempt=request.attempt,
                state=request.state,
                detail=request.detail,
                traceback=request.traceback,
            )
            return pb.EndAttemptResponse(state=run.state)

        return self._guard(context, serve)

    def StartRun(self, request: pb.StartRunRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.StartRunResponse:
            run = self._runs.start(peer, run_id=request.run_id, input_json=request.input_json)
            return pb.StartRunResponse(
                run_id=run.run_id, state=run.state, failures=failures(run), attempt=run.attempt
            )

        return self._guard(context, serve)

    def ReadRun(self, request: pb.ReadRunRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.ReadRunResponse:
            run, given = self._runs.read(peer, run_id=request.run_id)
            silent = forsaken(run, now_ms=self._runs.now_ms())
            return pb.ReadRunResponse(
                state=run.state,
                forsaken=silent,
                input_json=given,
                failures=failures(run),
                attempt=run.attempt,
                lost=seen(run).lost,
            )

        return self._guard(context, serve)

    def StartAttempt(self, request: pb.StartAttemptRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.StartAttemptResponse:
            after = request.after if request.HasField("after") else None
            asked = {"run_id": request.run_id, "launcher": request.launcher_instance}
            run = self._runs.start_attempt(peer, after=after, **asked)
            failures = run.crashes + run.lost
            first = run.attempt == 1 and not run.origin_run  # each step is of an attempt, or was copied
            return pb.StartAttemptResponse(attempt=run.attempt, failures=failures, first=first)

        return self._guard(context, serve)

    def Heartbeat(self, request: pb.HeartbeatRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.HeartbeatResponse:
            run = self._runs.heartbeat(
                peer, run_id=request.run_id, attempt=request.attempt, steps=request.steps
            )
            return pb.HeartbeatResponse(state=run.state)

        return self._guard(context, serve)

    def FinishRun(self, request: pb.FinishRunRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.FinishRunResponse:
            run = self._runs.finish(
                peer,
                run_id=request.run_id,
                attempt=request.attempt,
                state=request.state,
                detail=request.detail,
                traceback=request.traceback,
                result=request.result,
            )
            return pb.FinishRunResponse(state=run.state)

        return self._guard(context, serve)


class AdminServicer(services.AdminServicer):
    """Admin: operators."""

    def __init__(self, *, guard: Guard, admin: Admin) -> None:
        self._guard = guard
        self._admin = admin

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """See the proto."""

        def serve(peer: Presented) -> pb.StatusResponse:
            status = self._admin.status(peer)
            return pb.StatusResponse(
                ready=not status.not_ready,
                not_ready_reasons=status.not_ready,
                policy_revision=status.policy_revision,
                records=status.records,
                calls_by_state=status.calls_by_state,
                version=VERSION,
            )

        return self._guard(context, serve)

    def QueryRecords(self, request: pb.QueryRecordsRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""
        query = RecordQuery(
            after_seq=request.after_seq,
            limit=request.limit or 1000,
            caller=request.caller,
            tool=request.tool,
            call_id=request.call_id,
            run_id=request.run_id,
            kind=request.kind,
        )

        def serve(peer: Presented) -> pb.QueryRecordsResponse:
            rows, size = [], 0
            for seq, body in self._admin.records(peer, query):
                size += len(body)
                if size > MAX_ANSWER_BYTES:
                    break
                rows.append((seq, body))
            last = rows[-1][0] if rows else request.after_seq
            return pb.QueryRecordsResponse(records_json=[body for _, body in rows], last_seq=last)

        return self._guard(context, serve)

    def ListRuns(self, request: pb.ListRunsRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.ListRunsResponse:
            runs = self._admin.runs(peer, request.limit or 1000)
            return pb.ListRunsResponse(runs=[wire.run_row(run) for run in runs])

        return self._guard(context, serve)

    def ListCalls(self, request: pb.ListCallsRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.ListCallsResponse:
            query = CallQuery(run_id=request.run_id, limit=request.limit or 1000)
            return pb.ListCallsResponse(calls=[wire.call_row(row) for row in self._admin.calls(peer, query)])

        return self._guard(context, serve)

    def ActivatePolicy(self, request: pb.ActivatePolicyRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.ActivatePolicyResponse:
            active = self._admin.activate(
                peer,
                place=PolicyPlace(
                    socket=request.socket_path,
                    token_file=request.token_file,
                    revision=request.revision,
                    digest=request.digest,
                    listing=request.listing_file,
                ),
                operator=request.operator,
            )
            return pb.ActivatePolicyResponse(revision=active.revision)

        return self._guard(context, serve)

    def StartRun(self, request: pb.AdminStartRunRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.AdminStartRunResponse:
            run = self._admin.start(peer, wire.order(request), operator=request.operator)
            return pb.AdminStartRunResponse(run=wire.run_row(run))

        return self._guard(context, serve)

    def ShowRun(self, request: pb.ShowRunRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""
        question = wire.question(request)
        return self._guard(context, lambda peer: wire.run_view(self._admin.show(peer, question)))

    def ControlRun(self, request: pb.ControlRunRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.ControlRunResponse:
            run = self._admin.control(
                peer, run_id=request.run_id, action=request.action, operator=request.operator
            )
            return pb.ControlRunResponse(run=wire.run_row(run))

        return self._guard(context, serve)

    def ResolveCall(self, request: pb.ResolveCallRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.ResolveCallResponse:
            state = self._admin.resolve(
                peer,
                call_id=request.call_id,
                outcome=wire.resolution(request),
                operator=request.operator,
            )
            return pb.ResolveCallResponse(state=state.value)

        return self._guard(context, serve)

    def BranchRun(self, request: pb.BranchRunRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""
        order = wire.branch_order(request)
        return self._guard(
            context, lambda peer: wire.branch(self._admin.branch(peer, order, dry_run=request.dry_run))
        )

    def ExportRun(self, request: pb.ExportRunRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.ExportRunResponse:
            part = self._admin.export(
                peer,
                run_id=request.run_id,
                from_step=request.from_step,
                operator=request.operator,
                from_byte=request.from_byte,
            )
            return wire.part(part)

        return self._guard(context, serve)

    def PurgeRun(self, request: pb.PurgeRunRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """See the proto."""

        def serve(peer: Presented) -> pb.PurgeRunResponse:
            done = self._admin.purge(
                peer,
                run_id=request.run_id,
                digest=request.digest,
                without_export=request.without_export,
                operator=request.operator,
            )
            return pb.PurgeRunResponse(run=wire.run_row(done.run), deleted=done.deleted, shared=done.shared)

        return self._guard(context, serve)

    def VerifyRecords(self, request: pb.VerifyRecordsRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002
        """See the proto."""

        def serve(peer: Presented) -> pb.VerifyRecordsResponse:
            found = self._admin.verify(peer)
            return pb.VerifyRecordsResponse(
                verified=found.verified, records=found.records, problem=found.problem
            )

        return self._guard(context, serve)
