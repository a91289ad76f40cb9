"""The records of the gateway: what goes into each kind. Holds no clear text.

Every record names the gateway instance and the policy in force. Arguments and results appear
as payload id and commitment. Not here: numbering and hashing, which the store does in the
transaction that writes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from meshgate_gateway.decide import Allow, Decision, Deny
from meshgate_gateway.model import AuditRecord, Caller, JournalRow, LedgerRow, Run, Sealed, ToolCall
from meshgate_gateway.policy import ActivePolicy

VERSION = version("meshgate")
SCHEMA = 1


def time_text(now_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds."""
    seconds, milliseconds = divmod(now_ms, 1000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment.replace(tzinfo=None).isoformat()}.{milliseconds:03d}Z"


def sealed_form(sealed: Sealed | None) -> dict[str, object] | None:
    """Clear text as a record names it."""
    if sealed is None:
        return None
    return {"payload": sealed.payload_id, "hmac_sha256": sealed.commitment, "bytes": sealed.size_bytes}


def _given(row: JournalRow | LedgerRow) -> Sealed:
    return row.request if isinstance(row, JournalRow) else row.arguments


def _gave(row: JournalRow | LedgerRow) -> Sealed | None:
    return row.reply if isinstance(row, JournalRow) else row.result


def _repeats(row: LedgerRow) -> dict[str, object]:
    """The first of equal calls in a task, in the records of the others."""
    return {"repeats": row.repeats} if row.repeats else {}


def _where(row: LedgerRow) -> dict[str, object]:
    """Marks a call whose outcome is the word of the agent that made it."""
    return {"executed_in": "agent"} if row.in_agent else {}


def _who(caller: Caller) -> dict[str, object]:
    return {
        "caller": caller.spiffe_id,
        "app": caller.app,
        "certificate": {"serial": caller.serial_hex, "sha256": caller.leaf_sha256},
        "peer": caller.address,
    }


@dataclass(frozen=True, slots=True)
class Recorder:
    """Builds records; stamps time, instance and version."""

    instance: Callable[[], str]
    now_ms: Callable[[], int]

    def _made(self, kind: str, body: Mapping[str, object]) -> AuditRecord:
        stamp = {
            "time": time_text(self.now_ms()),
            "gateway": self.instance(),
            "version": VERSION,
            "schema": SCHEMA,
        }
        return AuditRecord(kind, {**stamp, **body})

    def decision(  # noqa: PLR0913 - one record, its fields
        self,
        *,
        caller: Caller,
        call: ToolCall,
        row: LedgerRow,
        policy: ActivePolicy,
        decision: Decision,
        more: Mapping[str, object] | None = None,
    ) -> AuditRecord:
        """A policy was evaluated; written before anything runs."""
        # A repeat may be denied though policy allows it.
        denied = decision.reasons if isinstance(decision, Deny) else row.reasons
        return self._made(
            "decision",
            {
                **_who(caller),
                **self._call(row),
                "kind_of_call": call.tool.kind.value,
                "allow": not denied,
                "reasons": list(denied),
                "obligations": dict(decision.obligations) if isinstance(decision, Allow) else {},
                "policy": {"revision": policy.revision, "digest": policy.digest},
                "untrusted": dict(call.untrusted),
                **(more or {}),
            },
        )

    def denied_unasked(self, *, caller: Caller, row: LedgerRow, method: str = "CallTool") -> AuditRecord:
        """The call could not be put to a policy: unknown tool, or arguments nobody may decide on."""
        body = {**_who(caller), **self._call(row), "reason": row.reasons[0], "detail": row.detail}
        return self._made("refusal", {**body, "method": method})

    @staticmethod
    def _call(row: LedgerRow) -> dict[str, object]:
        return {
            "call_id": row.call_id,
            "decision_id": row.decision_id,
            "tool": row.tool,
            "host": row.host,
            "effect": row.effect,
            "definition_sha256": row.definition_sha256,
            "run_id": row.run_id,
            "attempt": row.attempt,
            "step_key": row.step_key,
            "arguments": sealed_form(row.arguments),
            **_repeats(row),
            **_where(row),
        }

    def refusal(  # noqa: PLR0913 - one record, its fields
        self, *, caller: Caller, method: str, reason: str, detail: str, call_id: str = "", tool: str = ""
    ) -> AuditRecord:
        """An authenticated request that was not served, or could not be."""
        about = {"call_id": call_id, "tool": tool, "reason": reason, "detail": detail[:500]}
        return self._made("refusal", {**_who(caller), "method": method, **about})

    def authentication(self, *, address: str, method: str, reason: str, detail: str) -> AuditRecord:
        """A certificate that passed the handshake and proves nothing to us."""
        body = {"peer": address, "method": method, "reason": reason, "detail": detail[:500]}
        return self._made("authentication", body)

    def take(self, *, caller: Caller, row: LedgerRow, ambiguous: bool = False) -> AuditRecord:
        """A tool host fetched a call: from here on its effect may have begun."""
        body = {
            **_who(caller),
            "call_id": row.call_id,
            "decision_id": row.decision_id,
            "tool": row.tool,
            "run_id": row.run_id,
            "take": row.take,
            "host_instance": row.host_instance,
            **({"ambiguous": True} if ambiguous else {}),
        }
        return self._made("take", body)

    def outcome(self, *, row: LedgerRow, by: str, cause: str = "") -> AuditRecord:
        """A call came to an end, or to nobody knows; written before anybody is told."""
        return self._made(
            "outcome",
            {
                "caller": row.caller,
                "call_id": row.call_id,
                "decision_id": row.decision_id,
                "tool": row.tool,
                "host": row.host,
                "run_id": row.run_id,
                "state": row.state.value,
                "take": row.take,
                "host_instance": row.host_instance,
                "result_kind": row.result_kind,
                "result": sealed_form(row.result),
                "error_class": row.error_class,
                "settled_by": by,
                "cause": cause,
                **_repeats(row),
                **_where(row),
                "milliseconds": max(0, row.updated_ms - row.created_ms),
            },
        )

    def step(self, *, caller: Caller, row: JournalRow) -> AuditRecord:
        """A model's reply, recorded before the program saw it."""
        body = {
            **_who(caller),
            "run_id": row.run_id,
            "attempt": row.attempt,
            "step_key": row.step_key,
            "turn": row.turn,
            "request": sealed_form(row.request),
            "reply": sealed_form(row.reply),
            "milliseconds": row.milliseconds,
        }
        return self._made("step", body)

    def branched(self, *, run: Run, operator: str, edited: int, order: str) -> AuditRecord:
        """A run was made from another one; its copied steps have records of their own.

        Args:
            run: the new run.
            operator: who made it.
            edited: number of the step that was given another answer; 0 for none.
            order: the likeness of what was asked for: the same again is the same run.
        """
        fields = {
            "run_id": run.run_id,
            "state": run.state,
            "origin": run.origin,
            "origin_run": run.origin_run,
            "origin_step": run.origin_step,
            "edited_step": edited,
            "order": order,
            "input": sealed_form(run.input),
            "operator": operator,
        }
        return self.lifecycle(event=f"run_{run.origin}", caller=run.app, fields=fields)

    def copied(
        self,
        *,
        run: Run,
        row: JournalRow | LedgerRow,
        before: JournalRow | LedgerRow | None,
        number: int,
        operator: str,
    ) -> AuditRecord:
        """A step of another run became one of this run: answered, never executed here.

        Args:
            run: the new run.
            row: its step.
            before: the old step, when a person put another answer in its place.
            number: of the step, the same in both.
            operator: who made the new run.
        """
        about: dict[str, object] = {"given": sealed_form(_given(row)), "gave": sealed_form(_gave(row))}
        if isinstance(row, LedgerRow):
            about |= {"call_id": row.call_id, "tool": row.tool, "decision_id": row.decision_id}
            about |= {"state": row.state.value, "origin_call_id": row.copied_from, **_where(row)}
        if before is not None:
            about["edited"] = {"before": sealed_form(_gave(before)), "after": sealed_form(_gave(row))}
        return self._made(
            "copy",
            {
                "caller": run.app,
                "operator": operator,
                "run_id": run.run_id,
                "step": number,
                "step_key": row.step_key,
                "turn": row.turn,
                "origin_run": run.origin_run,
                **about,
            },
        )

    def policy(self, *, policy: ActivePolicy, by: str, operator: str) -> AuditRecord:
        """A policy came into force."""
        body = {"caller": by, "operator": operator, "revision": policy.revision, "digest": policy.digest}
        return self._made("policy", body)

    def lifecycle(self, *, event: str, caller: str = "", fields: Mapping[str, object]) -> AuditRecord:
        """Start, stop, and the steps of runs."""
        return self._made("lifecycle", {"event": event, "caller": caller, **fields})
