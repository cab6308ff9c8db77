"""The pictures of a study as SVG that lies inside a page: drawn in the page's colours, equal for equal results.

matplotlib writes colours as they were given. Those that are known here become the page's own (`var(--ink)`), so one picture is
readable in light and in dark.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from tune.report.plots import BEST, COLOURS, draw_curves, draw_history, finish
from tune.report.tables import printable
from tune.study.records import TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _GROUND, _REST = "#010203", "#fdfefd", "#7a8190"  # drawn by nothing else, so they can be told from the other colours
_PAINT = {colour: f"var(--{state})" for state, colour in COLOURS.items()} | {
    BEST: "var(--best)", _INK: "var(--ink)", _GROUND: "var(--ground)", _REST: "var(--rest)",
}
_WIDE = 6.4  # inches; 10 pt text of it is still readable where a phone makes it narrower
_LETTERS = 36  # of a bar's name; the table beside it has all
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "imf-search",  # without it the names of clips and markers are random
    "svg.fonttype": "none",  # text stays text, in the page's font
    "text.parse_math": False,  # a name may hold dollar signs
    "font.size": 10, "axes.titlesize": 10, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "grid.color": _INK, "axes.facecolor": "none", "figure.facecolor": "none",
    "savefig.facecolor": "none", "legend.facecolor": _GROUND, "legend.edgecolor": _INK, "legend.framealpha": 0.8,
}


@dataclass(frozen=True)
class Bar:
    """One bar of a comparison.

    Args:
        name: what was measured.
        value: MRR, 0..1.
        spread: sample deviation over seeds; None where there is none.
        best: it is the winner's.
    """

    name: str
    value: float
    spread: float | None = None
    best: bool = False


def history(records: Sequence[TrialRecord], *, timed: bool) -> str:
    """Every trial and the best so far, over minutes or over trials."""
    over = "time" if timed else "trials"
    draw = partial(_history, records=records, timed=timed)
    return as_svg(f"history-{over}", f"best validation MRR so far, over {over}", draw)


def curves(records: Sequence[TrialRecord]) -> str:
    """Learning curves; those of pruned trials end in a cross."""
    return as_svg("curves", "validation MRR of each trial over its epochs", partial(_curves, records=records))


def bars(name: str, label: str, entries: Sequence[Bar]) -> str:
    """Lying bars from 0, the first on top, with a line at the winner's end.

    Args:
        name: of the picture, unique in the page.
        label: what it shows, for who cannot see it.
        entries: at least one.
    """
    return as_svg(name, label, partial(_bars, entries=entries), height=0.7 + 0.3 * len(entries))


def as_svg(name: str, label: str, draw: Callable[[Axes], None], height: float = 3.5) -> str:
    """Draw on axes and return an `<svg>` element without a size of its own.

    Args:
        name: put before each id, since several pictures share a page.
        label: what it shows, for who cannot see it.
        draw: draws on the axes.
        height: in inches; the width is 6.4.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # it is measured in one font and shown in the reader's
        figure = Figure(figsize=(_WIDE, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _inlined(text.getvalue(), name, label)


def _inlined(drawn: str, name: str, label: str) -> str:
    """An SVG file as an element of a page: no prolog, no size, no metadata, no rule for the whole page, ids of its own."""
    opening = re.search(r"<svg\b[^>]*>", drawn)
    box = re.search(r'viewBox="([^"]*)"', drawn)
    assert opening is not None and box is not None  # matplotlib writes both
    inner = drawn[opening.end() :]
    inner = re.sub(r"<(metadata|style)\b.*?</\1>", "", inner, flags=re.DOTALL)
    inner = re.sub(r"<!--.*?-->\s*", "", inner, flags=re.DOTALL)  # each text, again
    inner = inner.replace("xlink:href=", "href=").replace(' style="fill: none"', ' fill="none"')
    inner = re.sub(r" font-family: [^;]*;", "", inner)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', inner))
    inner = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", inner)
    inner = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", inner)
    for colour, paint in _PAINT.items():
        inner = inner.replace(colour, paint)
    return f'<svg viewBox="{box.group(1)}" role="img" aria-label="{escape(label)}">{inner.strip()}'


def _history(axes: Axes, records: Sequence[TrialRecord], timed: bool) -> None:
    draw_history(axes, records, timed)
    _finish(axes, whole=not timed)


def _curves(axes: Axes, records: Sequence[TrialRecord]) -> None:
    draw_curves(axes, records)
    _finish(axes, whole=True)


def _finish(axes: Axes, *, whole: bool) -> None:
    """Without a title, since the page has one; ticks at whole numbers alone where there is no half trial or epoch."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title("")
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=whole))
    finish(axes)


def _bars(axes: Axes, entries: Sequence[Bar]) -> None:
    places = range(len(entries))
    axes.barh(places, [bar.value for bar in entries], color=[BEST if bar.best else _REST for bar in entries], height=0.6)
    reach = 0.0
    for place, bar in zip(places, entries):
        end = bar.value + (bar.spread or 0.0)
        if bar.spread is not None:
            axes.errorbar(bar.value, place, xerr=bar.spread, color=_INK, capsize=3, linewidth=1)
        if bar.best:
            axes.axvline(bar.value, color=BEST, linewidth=1, linestyle=":", zorder=0)
        axes.annotate(f"{bar.value:.4f}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
        reach = max(reach, end)
    axes.set(yticks=list(places), xlim=(0, 1.15 * reach or 1.0), xlabel="MRR")
    names = [printable(bar.name) for bar in entries]
    axes.set_yticklabels([name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…" for name in names])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
