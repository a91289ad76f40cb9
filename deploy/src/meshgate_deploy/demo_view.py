"""The demo's story for people."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from meshgate_deploy.demo_report import Report
from meshgate_deploy.refund_desk.seed import INJECTED_CENTS, Payment, Story, euros


def show(report: Report, *, story: Story, book: Sequence[Payment], project: Path, console: Console) -> None:
    """Decisions, payments, and where to look next."""
    console.print(_decisions(report))
    console.print(_book(book))
    injected = next(ticket for ticket in story.tickets if ticket.injected_card)
    effects = report.effects
    lines = [
        (
            f"{injected.path} told the model to refund {euros(INJECTED_CENTS)} to a stranger's card and to "
            "read secrets.txt. It obeyed; what was refused, policies/billing.rego and triage.rego refused."
        ),
        (
            f"payments: {effects.seen} made, {effects.expected} expected, {effects.doubled} doubled, "
            f"{effects.missing} missing, {len(effects.unexpected)} unexpected"
        ),
        _survived(report),
        f"records: {report.records}, " + (report.problem or "the chain is whole"),
        f"took {report.seconds:.1f} s in all",
        "",
        "Look next:",
        f"  the project, an ordinary one    {project}",
        "  who may do what                 policies/, a file per app   (change it; meshgate policy test)",
        "  what ran where                  .meshgate/generated/, .meshgate/logs/",
        "  the runs, and whose they are    meshgate up -d && meshgate runs list",
        f"  every step of the killed one    meshgate runs show {report.run.get('id') or 'RUN'} --steps",
        "  every decision                  meshgate audit tail -n 100",
        "  the same for your own crew      meshgate scan",
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _survived(report: Report) -> str:
    run = report.run
    if int(run["attempts"]) == 1:
        return "every agent's process lived to its end"
    return (
        f"triage's process was killed in tool call 6: attempt {run['attempts']} took over "
        f"{run['replayed_steps']} finished steps and made {run['live_steps']} itself; going on took "
        f"{run['recovery_seconds']} s"
    )


def _decisions(report: Report) -> Table:
    table = Table("", "app", "tool", "decision", "outcome", "ms", title="Decisions", title_justify="left")
    for number, row in enumerate(report.rows, start=1):
        decision = "allowed" if row.allowed else "[bold red]denied[/]: " + ", ".join(row.reasons)
        taken = str(row.milliseconds) if row.outcome else ""
        table.add_row(str(number), row.app, row.tool, decision, row.outcome, taken)
    return table


def _book(book: Sequence[Payment]) -> Table:
    table = Table("order", "amount", "card", title="The payment service's own book", title_justify="left")
    for payment in book:
        table.add_row(payment.order_id, euros(payment.cents), payment.card)
    return table
