"""A call put to the policy in force: when it is asked for, and again before it would begin once more.

Never asked within a transaction. The policy that answered stays in force until the block that uses its
verdict has made it durable.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from meshgate_identities.spiffe_id import SpiffeId

from meshgate_gateway import calls, chains
from meshgate_gateway.catalogue import Catalogue
from meshgate_gateway.decide import Decision, changed, decide, policy_input, run_context
from meshgate_gateway.model import AuditRecord, Caller, LedgerRow, Run, ToolCall
from meshgate_gateway.payloads import Vault
from meshgate_gateway.policy import ActivePolicy, PolicySlot
from meshgate_gateway.record import Recorder, time_text
from meshgate_gateway.store import RecordQuery, Tables


@dataclass(frozen=True, slots=True)
class Question:
    """A call, and everything that the policy is told of it.

    Attributes:
        row: the call as it stood in the ledger when this was put together; None for a new one.
    """

    caller: Caller
    call: ToolCall
    arguments: Mapping[str, object]
    run: Run | None
    decision_id: str
    row: LedgerRow | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A question, and what one policy made of it."""

    question: Question
    policy: ActivePolicy
    decision: Decision

    def is_of(self, row: LedgerRow) -> bool:
        """False when the call has moved on since it was judged."""
        return self.question.row == row


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Asks, and writes down what was answered."""

    policy: PolicySlot
    vault: Vault
    recorder: Recorder
    catalogue: Catalogue
    now_ms: Callable[[], int]

    @contextmanager
    def deciding(self, question: Question) -> Iterator[Verdict]:
        """A verdict, and the policy that gave it held in force until the block has made it durable.

        Raises:
            PolicyUnavailable: no verdict.
        """
        above = chains.above(question.run)
        asks = policy_input(
            caller=question.caller,
            call=question.call,
            arguments=question.arguments,
            run=run_context(question.run),
            delegation=above.links,
            time=time_text(self.now_ms()),
        )
        with self.policy.deciding() as policy:
            raw = policy.engine.evaluate(asks)
            decision = decide(
                caller=question.caller,
                call=question.call,
                arguments=question.arguments,
                above=above,
                raw=raw,
                decision_id=question.decision_id,
            )
            yield Verdict(question, policy, decision)

    def record(
        self, verdict: Verdict, row: LedgerRow, more: Mapping[str, object] | None = None
    ) -> AuditRecord:
        """The record of a verdict on a call that stands as in `row`."""
        question = verdict.question
        delegation = chains.shown(chains.above(question.run).links)
        if delegation:
            more = {"delegation": delegation, **(more or {})}
        return self.recorder.decision(
            caller=question.caller,
            call=question.call,
            row=row,
            policy=verdict.policy,
            decision=verdict.decision,
            more=more,
        )

    def changed(self, row: LedgerRow) -> str:
        """A reason when a call's tool is no longer what the call was decided on."""
        return changed(row, self.catalogue.tools.get(row.tool))

    def again(self, tables: Tables, row: LedgerRow) -> Question:
        """The question that an allowed call was decided on, about the run as it is now.

        What the caller showed, and what it said of itself, is read from the record of the newest decision.
        """
        found = tables.records.query(RecordQuery(call_id=row.call_id, kind="decision"))
        decided = json.loads(found[-1][1])
        data = self.vault.get(tables, row.arguments)
        call = ToolCall(
            call_id=row.call_id,
            tool=self.catalogue.tools[row.tool],
            arguments=data,
            arguments_sha256=calls.digest(data),
            run_id=row.run_id,
            attempt=row.attempt,
            step_key=row.step_key,
            deadline_ms=row.deadline_ms,
            untrusted=decided["untrusted"],
        )
        run = tables.runs.get(row.run_id) if row.run_id else None
        return Question(self._asker(row, decided), call, json.loads(data), run, row.decision_id, row)

    def _asker(self, row: LedgerRow, decided: Mapping[str, Any]) -> Caller:
        """The caller of a call, with the certificate that it showed when that was decided on."""
        peer, certificate = SpiffeId.parse(row.caller), decided["certificate"]
        return Caller(
            spiffe_id=str(peer),
            trust_domain=peer.trust_domain,
            namespace=peer.namespace,
            app=peer.app,
            kind=self.catalogue.apps.get(peer.app),
            serial_hex=certificate["serial"],
            leaf_sha256=certificate["sha256"],
            address=decided["peer"],
        )
