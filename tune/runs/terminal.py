"""One live table on the terminal while a search runs; a log file has only the lines of trials that have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import ray
import ray.tune as ray_tune
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tune.durations import duration
from tune.report.formatting import differing, fitting, plural, setting
from tune.runs.ledger import Ledger
from tune.study.history import DriverOnly
from tune.study.outcome import name_of
from tune.study.records import TrialRecord

_DRAW_SECONDS = 0.5  # between two drawings
_WAIT_SECONDS = 5.0  # after which a trial that waits is explained
_SHOWN = 12  # trials


class LiveTable(DriverOnly, ray_tune.Callback):
    """Running and waiting trials with epoch, best MRR and time; above them what is done, what is best, and the time left.

    A context manager around Tune's run: the terminal is restored whatever happens.

    Args:
        console: drawn on only where it is a terminal.
        ledger: knows the trials and when the time is over.
        total: trials of the run.
        bundle: resources that a trial reserves.
        free: resources of the cluster that nothing holds; None: asks Ray.
        clock: seconds since 1970.
        finals: these are the runs of finalising.
        shared: others may use the cluster too; otherwise Ray was started for this search alone.
    """

    def __init__(
        self, console: Console, ledger: Ledger, total: int, bundle: Mapping[str, float],
        free: Callable[[], Mapping[str, float]] | None = None, clock: Callable[[], float] = time.time, *, finals: bool = False,
        shared: bool = False,
    ) -> None:
        self.console, self.ledger, self.total, self.bundle = console, ledger, total, dict(bundle)
        self.finals, self.shared = finals, shared
        self._free, self._clock = free or ray.available_resources, clock
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._drawn, self._began = 0.0, clock()
        self._compared, self._names = 0, dict[str, str]()  # trials that were compared, and the settings in which they differ
        self._waits: dict[str, float] = {}  # trial that waits -> since when

    def __enter__(self) -> LiveTable:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Draw anew, a few times a second at most."""
        now = self._clock()
        if self._live is not None and now - self._drawn >= _DRAW_SECONDS:
            self._drawn = now
            self._live.update(self.render(trials), refresh=True)

    def render(self, trials: Sequence[Any]) -> RenderableType:
        """The table as it is now."""
        now = self._clock()
        active = [trial for trial in trials if trial.status in ("RUNNING", "PENDING", "PAUSED")]
        running = [trial for trial in active if trial.status == "RUNNING"]
        names = list(self._differing().items())
        most = 0 if self.finals else len(names)
        table, _ = fitting(lambda count: self._table(active, dict(names[:count])), most, self.console, self.console.width)
        why = self._why_waiting(active, running, now)
        return Group(Text(self._head(now), style="bold"), table, *([Text(why, style="yellow")] if why else []))

    def _differing(self) -> dict[str, str]:
        """The settings that tell the trials apart; looked for anew when there is another trial."""
        trials = self.ledger.history.trials
        if len(trials) != self._compared:
            self._compared, self._names = len(trials), differing([trial.params for trial in trials.values()])
        return self._names

    def _table(self, active: Sequence[Any], names: Mapping[str, str]) -> Table:
        """Trials that have not ended, each with its settings `names`."""
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("run" if self.finals else "trial", "", "epoch", "best MRR", "time", *names.values()):
            table.add_column(column, justify="left" if column in ("run", "trial", "") else "right", no_wrap=True)
        for trial in active[:_SHOWN]:
            known = self.ledger.history.trials[name_of(trial)]
            best = f"{known.value:.4f}" if known.value is not None else ""
            epoch = f"{known.last_epoch}/{self.ledger.max_epochs}"
            params = [Text(setting(known.params.get(name))) for name in names]
            table.add_row(known.name, trial.status.lower(), epoch, best, duration(known.seconds), *params)
        if len(active) > _SHOWN:
            table.add_row(f"and {len(active) - _SHOWN} more")
        return table

    def _head(self, now: float) -> str:
        ended = self.ledger.records
        best = max((record.best_mrr for record in ended if record.best_mrr is not None), default=None)
        parts = [f"{len(ended)} of {self.total} trials ended", f"{duration(now - self._began)} so far"]
        if paused := self.ledger.history.paused:
            parts.insert(1, f"{len(paused)} paused")
        if self.finals:
            parts[0] = f"finalising: run {min(len(ended) + 1, self.total)} of {self.total}"
        elif best is not None:
            parts.insert(1, f"best MRR {best:.4f}")
        return ", ".join([*parts, time_left(self.ledger, self.total, self._began, now, self.finals)])

    def _why_waiting(self, active: Sequence[Any], running: Sequence[Any], now: float) -> str:
        """Why a trial waits, once it has waited for some seconds; empty where none does."""
        waiting = [trial for trial in active if trial.status == "PENDING"]
        self._waits = {name: self._waits.get(name, now) for name in map(name_of, waiting)}
        late = [name for name, since in self._waits.items() if now - since >= _WAIT_SECONDS]
        if not late:
            return ""
        free = self._free()
        lacking = {name: amount for name, amount in self.bundle.items() if free.get(name, 0.0) < amount}
        if lacking:
            needs = ", ".join(f"{amount:g} {name}, {free.get(name, 0.0):g} free" for name, amount in lacking.items())
            ended = "other programs of this cluster" if self.shared else "processes of ended trials, which are about to exit,"
            holders = f"{len(running)} running trial(s)" if running else ended
            return f"{late[0]} waits for resources: it needs {needs}; {holders} hold the rest"
        return f"{late[0]} waits for its process to start"


def time_left(ledger: Ledger, total: int, began: float, now: float, finals: bool = False) -> str:
    """`about 4m00s left`: until the budget is over, or at the pace so far where that is sooner.

    Args:
        ledger: of the trials.
        total: trials of the run.
        began: when this session began, seconds since 1970.
        now: seconds since 1970.
        finals: the trials all run to their own end, so that the epochs of those that run count as a part of one.
    """
    ended = ledger.records
    begun = [trial for trial in ledger.history.trials.values() if trial.end is None] if finals else []
    part = sum(min(1.0, trial.last_epoch / ledger.max_epochs) for trial in begun)
    paused = len(ledger.history.paused)
    done = sum((record.ended or 0.0) >= began for record in ended) + paused + part
    at_this_pace = (now - began) / done * max(0.0, total - len(ended) - paused - part) if done else None
    left = [seconds for seconds in (ledger.deadline.seconds_left, at_this_pace) if seconds is not None]
    return f"about {duration(max(0.0, min(left)))} left" if left else "time left not known yet"


class TrialLines(DriverOnly, ray_tune.Callback):
    """One line on the terminal for each trial that ends; also readable in a log file.

    Args:
        console: where to print.
        ledger: knows how each trial ended; must come before this callback.
        total: trials of the run.
        gpus: GPUs that a trial and its workers take together; with any, a line at its start says so.
        clock: seconds since 1970.
    """

    def __init__(
        self, console: Console, ledger: Ledger, total: int, gpus: float = 0.0, clock: Callable[[], float] = time.time
    ) -> None:
        self.console, self.ledger, self.total, self.gpus = console, ledger, total, gpus
        self._shown: set[str] = set()
        self._clock, self._began = clock, clock()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print what a trial trains on, where that is a GPU."""
        if self.gpus:
            share = f"{self.gpus:.3g} GPU" if self.gpus >= 1 else f"a GPU that up to {1 / self.gpus:.0f} trials share"
            self.console.print(f"  {name_of(trial)} starts on {share}", highlight=False, soft_wrap=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print the trial's line, or that it is paused."""
        known = self.ledger.history.trials.get(name_of(trial))
        if known is not None and known.waits:
            score = f"MRR {known.value:.4f}" if known.value is not None else "no score"
            told = f"trial {known.number} paused after {plural(known.last_epoch, 'epoch')}, {known.seconds:.0f} s: {score}"
            self.console.print(f"  {told}", highlight=False, soft_wrap=True)
        self._show()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print the trial's line."""
        self._show()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Print those that the end of the search has ended."""
        self._show()

    def _show(self) -> None:
        for record in self.ledger.records:
            if record.trial_id not in self._shown:
                self._shown.add(record.trial_id)
                self.console.print(self._line(record), highlight=False, soft_wrap=True)

    def _line(self, record: TrialRecord) -> str:
        name = str(record.params["run"]) if "run" in record.params else f"trial {record.number}"
        score = f"MRR {record.best_mrr:.4f} in epoch {record.best_epoch}" if record.best_mrr is not None else "no score"
        best = max((item.best_mrr for item in self.ledger.records if item.best_mrr is not None), default=None)
        ahead = f"; best so far {best:.4f}" if best is not None and "run" not in record.params else ""
        why = f" ({record.reason})" if not record.state.usable else ""
        done = f"{len(self._shown)} of {self.total}"
        spent = f"{record.epochs} epoch{'s' if record.epochs != 1 else ''}, {record.seconds:.0f} s"
        left = "" if len(self._shown) == self.total else f"; {time_left(self.ledger, self.total, self._began, self._clock())}"
        return f"  {done}: {name} {record.state} after {spent}: {score}{ahead}{escape(why)}{left}"
