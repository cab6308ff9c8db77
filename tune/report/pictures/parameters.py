"""How the score depends on the searched settings: a panel for each, and all at once as parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imf_core.files.visible import in_a_file
from tune.report.formatting import setting, short, usable
from tune.report.pictures.plots import BEST, COLOURS, ticks
from tune.report.pictures.svg import REST, figure_svg
from tune.study.records import TrialRecord, ranked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 12  # settings; the others are less important
_ACROSS = 3  # panels in a row
_BROAD = 8.0  # a positive range whose ends differ by more is drawn on a logarithmic scale
_LETTERS = 18  # of a name or value


class Scale:
    """Where the values of a setting lie between 0 and 1: numbers by size, other values side by side in their order.

    Args:
        values: of the setting, one a trial; at least one.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self.numeric = all(usable(value) for value in values)
        if self.numeric:
            low, high = min(values), max(values)
            self.log = low > 0 and high / low > _BROAD
            self._low, self._high = self._at(low), self._at(high)
            self.ends = list(dict.fromkeys((_short(low), _short(high))))
        else:
            self._places = {name: place for place, name in enumerate(sorted({_short(value) for value in values}))}
            self.ends = list(self._places)

    def __call__(self, value: Any) -> float:
        """0..1; in the middle where all values are equal."""
        if self.numeric:
            return (self._at(value) - self._low) / (self._high - self._low) if self._high > self._low else 0.5
        return self._places[_short(value)] / (len(self._places) - 1) if len(self._places) > 1 else 0.5

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places that are named: both ends of a range, or each value."""
        if len(self.ends) == 1:
            return [(0.5, self.ends[0])]
        return [(place / (len(self.ends) - 1), name) for place, name in enumerate(self.ends)]

    def _at(self, value: float) -> float:
        return math.log(value) if self.log else float(value)


def panels(records: Sequence[TrialRecord], names: Mapping[str, str]) -> str:
    """The score of each trial against each setting, as an SVG element; empty without a score or a setting.

    Args:
        records: of the trials.
        names: the settings to draw, name -> short name, the most important first.
    """
    scored, shown = _scored(records), list(names.items())[:MOST]
    if not scored or not shown:
        return ""
    rows = math.ceil(len(shown) / _ACROSS)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, _ACROSS, sharey=True, squeeze=False)
        for axes, (name, title) in zip(grid.flat, shown):
            _panel(axes, [record for record in scored if name in record.params], name, title)
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_visible(False)
        for line in grid:
            line[0].set_ylabel("MRR")

    return figure_svg("panels", "best validation MRR of each trial against each setting", draw, 0.3 + 1.7 * rows)


def parallel(records: Sequence[TrialRecord], names: Mapping[str, str]) -> str:
    """A line for each trial through all settings to its score; empty with fewer than two settings or scores."""
    scored, shown = _scored(records), list(names.items())[:MOST]
    if len(scored) < 2 or len(shown) < 2:
        return ""

    def draw(figure: Figure) -> None:
        _parallel(figure.subplots(), scored, shown)

    return figure_svg("parallel", "the settings of each trial and its best validation MRR", draw, 3.6)


def _parallel(axes: Axes, scored: Sequence[TrialRecord], shown: Sequence[tuple[str, str]]) -> None:
    scales = [Scale([record.params[name] for record in scored if name in record.params] or [0]) for name, _ in shown]
    score = Scale([record.best_mrr for record in scored])
    quarter = max(1, len(scored) // 4)
    for rank, record in reversed(list(enumerate(scored))):  # the best on top
        line = [scale(record.params[name]) if name in record.params else math.nan for scale, (name, _) in zip(scales, shown)]
        best = rank < quarter
        axes.plot(
            range(len(shown) + 1), [*line, score(record.best_mrr)], ".-", color=BEST if best else REST, markersize=4,
            alpha=1.0 if best else 0.45, linewidth=2.2 if rank == 0 else 1.0,
        )
    for place, scale in enumerate([*scales, score]):
        axes.axvline(place, color=REST, linewidth=0.8, zorder=0)
        for at, name in scale.ticks:
            axes.annotate(name, (place, at), (3, 2), textcoords="offset points", fontsize=7)
    axes.set_xticks(range(len(shown) + 1), [*(_cut(title) for _, title in shown), "MRR"], rotation=30, ha="right", fontsize=8)
    axes.set(yticks=[], xlim=(-0.1, len(shown) + 0.6), ylim=(-0.05, 1.12))
    axes.spines[:].set_visible(False)


def _panel(axes: Axes, records: Sequence[TrialRecord], name: str, title: str) -> None:
    values = [record.params[name] for record in records]
    scale = Scale(values or [0])
    best = min((record.number for record in records[:1]), default=None)
    for record, value in zip(records, values):
        winner = record.number == best
        colour = BEST if winner else COLOURS[record.state]
        at, marker = value if scale.numeric else scale(value), "D" if winner else "o"
        axes.plot([at], [record.best_mrr or 0.0], marker, color=colour, markersize=4)
    if not scale.numeric:
        places = scale.ticks
        axes.set_xticks([at for at, _ in places], [_cut(text, 10) for _, text in places], rotation=20, ha="right")
        axes.set_xlim(-0.3, 1.3)
    elif scale.log:
        _logarithmic(axes)
    else:
        ticks(axes, whole=all(isinstance(value, int) for value in values))
    axes.tick_params(labelsize=7)
    axes.set_title(_cut(title), fontsize=8)
    axes.grid(alpha=0.25)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic x axis with plain numbers: the page shows text as text, so no powers that need typesetting."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _scored(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials that have a score, best first."""
    return [record for record in ranked(records) if record.state.usable and record.best_mrr is not None]


def _short(value: Any) -> str:
    return in_a_file(setting(value))


def _cut(text: str, most: int = _LETTERS) -> str:
    text = in_a_file(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"
