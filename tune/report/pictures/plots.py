"""The two plots of a study: its history and its learning curves."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from imf_core.commands.terminal import NameConsole
from imf_core.files.visible import visible
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, winner

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"completed": "#1b7f5c", "pruned": "#8a8f98", "stopped": "#b08900", "failed": "#c0392b", "diverged": "#8e44ad"}
BEST = "#1f4e9c"  # colour of the winner and of the best value so far
_TITLE_WIDTH = 60  # characters of a window's title
_FEW = 60  # up to this many trials, epochs have markers and pruned trials their numbers


def plots(records: Sequence[TrialRecord], folder: Path | str) -> tuple[Path, Path]:
    """Draw `history.png` (all trials and the best value so far) and `curves.png` (learning curves), without a display."""
    history, curves = Path(folder) / "history.png", Path(folder) / "curves.png"
    history.parent.mkdir(parents=True, exist_ok=True)
    for file, draw in ((history, draw_history), (curves, draw_curves)):
        _picture(draw, records).savefig(file, dpi=120)
    return history, curves


def curves_picture(records: Sequence[TrialRecord]) -> Figure:
    """The learning curves as a figure, which a notebook shows."""
    return _picture(draw_curves, records)


def _picture(draw: Callable[[Axes, Sequence[TrialRecord]], None], records: Sequence[TrialRecord]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Picture(Figure):
        def _repr_png_(self) -> bytes:
            """A notebook shows figures by itself only once pyplot is imported."""
            content = io.BytesIO()
            self.savefig(content, format="png")
            return content.getvalue()

    figure = Picture(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw(axes, records)
    finish(axes)
    return figure


def save_picture(show: Callable[[Console], None], width: int, path: Path, title: str) -> Path:
    """Write what a function prints as an SVG that loads nothing: the web font that rich refers to is replaced.

    It prints once more, on a terminal of its own: a recording of the real one would hold every frame of a live table.

    Args:
        show: prints on a terminal.
        width: of the terminal, characters.
        path: of the SVG file.
        title: title of the window; a long one is cut.
    """
    console = NameConsole(record=True, file=io.StringIO(), width=width, force_jupyter=False)  # shows nothing itself
    show(console)
    picture = console.export_svg(title=textwrap.shorten(visible(title), _TITLE_WIDTH, placeholder=" ..."))
    plain = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL).replace("Fira Code", "DejaVu Sans Mono")
    path.write_text(plain, encoding="utf-8")
    return path


def draw_history(axes: Axes, records: Sequence[TrialRecord], timed: bool = True) -> None:
    """Draw the best validation MRR of each trial and the best so far, over time (if it is known) or over trials.

    A trial without a value is a cross on the lower edge: at 0 it would squeeze all others.
    """
    timed = timed and all(record.ended is not None for record in records)
    begin = min((record.started or record.ended or 0.0 for record in records), default=0.0)
    unit, seconds = time_unit(max((record.ended or 0.0 for record in records), default=0.0) - begin)
    points = sorted(((record.ended or 0.0) - begin) / seconds if timed else record.number for record in records)
    order = sorted(records, key=lambda record: ((record.ended or 0.0) if timed else record.number, record.number))
    best, line = -math.inf, []
    edge = axes.get_xaxis_transform()  # x in data, y from 0 (bottom) to 1 (top)
    for at, record in zip(points, order):
        value, usable = record.best_mrr, record.state.usable
        best = max(best, value if usable and value is not None else -math.inf)
        line.append(best if math.isfinite(best) else math.nan)
        colour, name = COLOURS[record.state], str(record.state)
        if value is None:
            axes.plot([at], [0.02], "x", color=colour, label=f"{name}, no value", transform=edge)
        else:
            axes.plot([at], [value], "o" if usable else "x", color=colour, label=name)
    axes.step(points, line, where="post", color=BEST, label="best so far", zorder=0)
    if math.isfinite(best):
        axes.annotate(f"{best:.4f}", (points[-1], best), (0, 4), textcoords="offset points", ha="right", color=BEST)
    axes.set(xlabel=unit if timed else "trial", ylabel="best validation MRR", title="Search history")
    axes.margins(y=0.1)
    if timed and points:
        axes.set_xlim(0, 1.03 * points[-1] or 1.0)
    ticks(axes, whole=not timed)


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which a time axis of this length has handy numbers, and its seconds."""
    units = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0))
    return next(((name, length) for name, length in units if seconds >= 2 * length), ("seconds", 1.0))


def ticks(axes: Axes, *, whole: bool) -> None:
    """Ticks of the x axis at round numbers; at whole ones only if it counts trials or epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=whole))


def draw_curves(axes: Axes, records: Sequence[TrialRecord]) -> None:
    """Draw the validation MRR of each trial over its epochs; the curve of a pruned trial ends in a cross and its number."""
    best, few = winner(records), len(records) <= _FEW
    for record in records:
        if record.curve and record is not best:
            colour, name = COLOURS[record.state], str(record.state)
            axes.plot(*zip(*record.curve), ".-" if few else "-", color=colour, alpha=0.6, linewidth=1, label=name)
            if record.state is TrialState.PRUNED:
                axes.plot(*record.curve[-1], "x", color=colour, markersize=6)
                if few:
                    axes.annotate(str(record.number), record.curve[-1], (4, -3), textcoords="offset points", fontsize=7)
    if best and best.curve:
        axes.plot(*zip(*best.curve), "-o", color=BEST, linewidth=2, markersize=3, label=f"winner (trial {best.number})")
    axes.set(xlabel="epoch", ylabel="validation MRR", title="Learning curves")
    ticks(axes, whole=True)


def finish(axes: Axes) -> None:
    """Add the legend and the grid, or a message if the plot is empty."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    if unique:
        axes.legend(list(unique.values()), list(unique), fontsize="small")
    else:
        axes.text(0.5, 0.5, "no trial reported a value", ha="center", va="center", transform=axes.transAxes)
    axes.grid(alpha=0.25)
