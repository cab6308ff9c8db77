"""Plots of a study as SVG elements of its page, in the page's colours and identical for identical results.

matplotlib writes colours verbatim, so the colours defined here can be replaced by CSS variables of the page (`var(--ink)`); the
plots are then readable in light and dark mode.
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

from imf_core.files.visible import in_a_file
from tune.report.pictures.plots import BEST, COLOURS, draw_curves, draw_history, finish
from tune.study.records import TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GROUND, REST = "#010203", "#fdfefd", "#7a8190"  # unique, so that they can be replaced in the SVG text
_PAINT = {colour: f"var(--{state})" for state, colour in COLOURS.items()} | {
    BEST: "var(--best)", _INK: "var(--ink)", _GROUND: "var(--ground)", REST: "var(--rest)",
}
_WIDTH = 6.4  # inches; narrow enough that 10 pt text is readable on a phone
_LETTERS = 36  # maximum length of a bar's name; the table beside it has the full names
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "imf-search",  # otherwise the ids of clips and markers are random
    "svg.fonttype": "none",  # keep text as text, in the page's font
    "text.parse_math": False,  # names may contain dollar signs
    "font.size": 10, "axes.titlesize": 10, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "grid.color": _INK, "axes.facecolor": "none", "figure.facecolor": "none",
    "savefig.facecolor": "none", "legend.facecolor": _GROUND, "legend.edgecolor": _INK, "legend.framealpha": 0.8,
}


@dataclass(frozen=True)
class Bar:
    """One bar of a comparison.

    Args:
        name: of the model.
        value: MRR, 0..1.
        spread: standard deviation over seeds; None for none.
        best: whether it is the winner's.
    """

    name: str
    value: float
    spread: float | None = None
    best: bool = False


def history(records: Sequence[TrialRecord], *, timed: bool) -> str:
    """All trials and the best value so far, over minutes or over trials."""
    over = "time" if timed else "trials"

    def draw(axes: Axes) -> None:
        draw_history(axes, records, timed)
        axes.set_title("")  # the page has one
        finish(axes)

    return as_svg(f"history-{over}", f"best validation MRR so far, over {over}", draw)


def curves(records: Sequence[TrialRecord]) -> str:
    """Learning curves; those of pruned trials end in a cross."""

    def draw(axes: Axes) -> None:
        draw_curves(axes, records)
        axes.set_title("")
        finish(axes)

    return as_svg("curves", "validation MRR of each trial over its epochs", draw)


def bars(name: str, label: str, entries: Sequence[Bar]) -> str:
    """Horizontal bars from 0, the first on top, with a line at the winner's value.

    Args:
        name: of the plot, unique in the page.
        label: description for screen readers.
        entries: at least one.
    """
    return as_svg(name, label, partial(_bars, entries=entries), height=0.7 + 0.3 * len(entries))


def as_svg(name: str, label: str, draw: Callable[[Axes], None], height: float = 3.5) -> str:
    """As `figure_svg`, of a plot with one pair of axes: `draw` draws on them."""
    return figure_svg(name, label, lambda figure: draw(figure.subplots()), height)


def figure_svg(name: str, label: str, draw: Callable[[Figure], None], height: float) -> str:
    """Draw a plot and return it as an `<svg>` element without a fixed size.

    Args:
        name: prefix of all ids, since several plots share a page.
        label: description for screen readers.
        draw: draws on the figure.
        height: inches; the width is 6.4.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # matplotlib only measures text; the browser has other fonts
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _inlined(text.getvalue(), name, label)


def _inlined(drawn: str, name: str, label: str) -> str:
    """Turn an SVG file into an element of a page: without prolog, size, metadata and page-wide styles, with prefixed ids."""
    opening = re.search(r"<svg\b[^>]*>", drawn)
    box = re.search(r'viewBox="([^"]*)"', drawn)
    assert opening is not None and box is not None  # matplotlib writes both
    inner = drawn[opening.end() :]
    inner = re.sub(r"<(metadata|style)\b.*?</\1>", "", inner, flags=re.DOTALL)
    inner = re.sub(r"<!--.*?-->\s*", "", inner, flags=re.DOTALL)  # matplotlib repeats each text in a comment
    inner = inner.replace("xlink:href=", "href=").replace(' style="fill: none"', ' fill="none"')
    inner = re.sub(r" font-family: [^;]*;", "", inner)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', inner))
    inner = re.sub(r' id="([^"]*)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", inner)
    inner = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", inner)
    for colour, paint in _PAINT.items():
        inner = inner.replace(colour, paint)
    return f'<svg viewBox="{box.group(1)}" role="img" aria-label="{escape(label)}">{inner.strip()}'


def _bars(axes: Axes, entries: Sequence[Bar]) -> None:
    rows = range(len(entries))
    axes.barh(rows, [bar.value for bar in entries], color=[BEST if bar.best else REST for bar in entries], height=0.6)
    longest = 0.0
    for row, bar in zip(rows, entries):
        end = bar.value + (bar.spread or 0.0)
        if bar.spread is not None:
            axes.errorbar(bar.value, row, xerr=bar.spread, color=_INK, capsize=3, linewidth=1)
        if bar.best:
            axes.axvline(bar.value, color=BEST, linewidth=1, linestyle=":", zorder=0)
        axes.annotate(f"{bar.value:.4f}", (end, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
        longest = max(longest, end)
    axes.set(yticks=list(rows), xlim=(0, 1.15 * longest or 1.0), xlabel="MRR")
    names = [in_a_file(bar.name) for bar in entries]
    axes.set_yticklabels([name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…" for name in names])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
