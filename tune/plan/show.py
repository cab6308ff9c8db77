"""Print the plan and the search space on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tune.plan.plan import Plan
from tune.space.space import SearchSpace
from tune.study.schedule import ASHA_REDUCTION
from tune.uris import local_tracking_uri, without_password


def show_plan(console: Console, plan: Plan) -> None:
    """Print data, resources, memory and the searched parameters."""
    settings = plan.settings
    console.print(f"[bold]{settings.study}[/]: {escape(plan.data.summary())}", highlight=False)
    for note in (*plan.data.describe(getattr(plan.base.model, "modalities", None)), *plan.space.notes, *plan.resources.notes):
        console.print(f"  {escape(note)}", highlight=False)
    for title, entries in (("[bold yellow]warning[/]", plan.audit.warnings), ("[bold red]problem[/]", plan.audit.problems)):
        for entry in entries:
            console.print(f"  {title}: {escape(entry)}", highlight=False)
    for line in plan.audit.baseline_lines():
        console.print(f"  {escape(line)}", highlight=False)
    for part in plan.parts:
        console.print(f"  {escape(part.title)}", highlight=False)
    early = "no early stopping"
    if settings.scheduler == "asha":
        learned = " or earlier once the curves allow it" if settings.grace_epochs is None and plan.grace > 1 else ""
        reduction = settings.reduction_factor or ASHA_REDUCTION
        early = f"ASHA from epoch {plan.grace}{learned}, one trial in {reduction:g} passes a rung"
    elif plan.race is not None and (rungs := plan.race.rungs[:-1]):
        early = f"each pauses after epoch {', '.join(map(str, rungs))}, and one in {plan.race.reduction:g} goes on"
    budget = f", at most {settings.budget_seconds:.0f} s" if settings.budget_seconds else ""
    console.print(f"  {settings.trials} trials of up to {plan.base.train.max_epochs} epochs{budget}; {early}", highlight=False)
    if settings.first != "drawn":
        shipped = f", then {len(plan.start_points)} that won earlier searches" if plan.start_points else ""
        console.print(f"  the first trials use the base settings{shipped}", highlight=False)
    console.print(f"  {plan.memory.describe()}", highlight=False)
    if not settings.joins and (shortage := plan.memory.shortage(plan.resources.concurrency * plan.resources.workers)):
        console.print(f"  [bold yellow]warning[/]: {escape(shortage)}", highlight=False)
    console.print(f"  {plan.disk.describe()}", highlight=False)
    if shortage := plan.disk.shortage():
        console.print(f"  [bold yellow]warning[/]: {escape(shortage)}", highlight=False)
    console.print(f"  results in {settings.study_dir}", highlight=False)
    if settings.tracking_uri != local_tracking_uri(settings.storage):
        console.print(f"  MLflow at {escape(without_password(settings.tracking_uri))}", highlight=False)


def show_space(console: Console, space: SearchSpace) -> None:
    """Print every parameter that can be searched: range, first value, condition, and whether it is searched here."""
    table = Table(title="search space", box=None, header_style="bold")
    table.add_column("parameter", no_wrap=True)
    for column in ("searched", "range", "first value", "only where"):
        table.add_column(column, overflow="fold")
    for row in space.describe():
        first = f"{row.default:.4g}" if isinstance(row.default, float) else str(row.default)
        table.add_row(row.name, "yes" if row.searched else "", escape(row.range), first, row.condition)
    console.print(table)
