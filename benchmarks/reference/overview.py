"""How one model of ours stands beside the published single models, graph by graph: the first table of `results/README.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imf_core.evaluate.test_once import OWN, POOLED
from imf_core.files.markdown import table


@dataclass(frozen=True)
class Line:
    """A graph and what the model sees of it.

    Args:
        data_set: as in `reference.json`.
        sees: besides the triples.
        row: ours.
        published: test MRR of published single models, in percent, with what they see or are where that explains a lead.
    """

    data_set: str
    sees: str
    row: str
    published: str


_N3 = "ComplEx with N3 and contextual in one model"
LINES = (
    Line("DB15K", "names", "ComplEx and contextual in one model, names by MiniLM",
         "MoMoK 39.6, M-Hyper 41.3 (both with images; the latter run again by others, on validation: 37.5)"),
    Line("DB15K", "nothing", "ComplEx and contextual in one model, structure only", "TuckER 33.9"),
    Line("MKG-W", "names", f"{_N3}, names by MiniLM", "M-Hyper 37.0, Beyond Images 38.1 (both with images)"),
    Line("MKG-W", "nothing", f"{_N3}, structure only", "TuckER 30.4"),
    Line("MKG-Y", "names", f"{_N3}, names by MiniLM", "M-Hyper 39.5, Beyond Images 40.8 (both with images)"),
    Line("MKG-Y", "nothing", f"{_N3}, structure only", "TuckER 37.1"),
    Line("FB15K237", "descriptions", "ComplEx with N3 and under Adam in one model, descriptions by MiniLM and by words",
         "SimKGC 33.6, CARF 38.4 (both fine-tune BERT)"),
    Line("FB15K237", "nothing", "ComplEx with N3, structure only, 1,024 reals and 2,048 sampled negatives",
         "ComplEx 34.8 and RESCAL 35.6 (LibKGE), ComplEx-N3 35 with 200 reals, 37 with 2,000; TuckER 35.8, TuckER-IVR 36.8"),
    Line("WN18RR", "glosses", f"{_N3}, glosses by MiniLM and by words", "SimKGC 66.6 (fine-tunes BERT on four GPUs)"),
    Line("WN18RR", "nothing", "ComplEx with N3, structure only, sampled negatives",
         "ComplEx 47.5 and RESCAL 46.7 (LibKGE), ComplEx-N3 47 with 200 reals, 49 with 1,000; TuckER 47.0, TuckER-IVR 50.1"),
)


def overview(rows: Sequence[Mapping[str, Any]], lines: Sequence[Line] = LINES) -> list[str]:
    """The table, one line for each of `lines` whose row there is; none for the others.

    Args:
        rows: of `reference.json`; `cost` says what a model cost to train, where that is known.
        lines: in this order.
    """
    cells = []
    for line in lines:
        ours = [row for row in rows if row["data_set"] == line.data_set]
        found = next((row for row in ours if row["row"] == line.row and row.get("decision", OWN) == OWN), None)
        if found is None:
            continue
        together = (row for row in ours if row["command"] == found["command"] and row.get("decision") == POOLED)
        pooled = next(together, None)
        cost = found.get("cost") or {}
        cells.append([
            line.data_set, line.sees, f"**{100 * found['mrr_mean']:.1f}** ± {100 * (found['mrr_std'] or 0):.1f}",
            f"{100 * pooled['mrr_mean']:.1f}" if pooled is not None else "",
            f"{cost['parameters'] / 1e6:.1f}" if cost else "", _shown(cost.get("minutes"), 0),
            _shown(cost.get("peak_gb"), 1), line.published,
        ])
    costs = ["million parameters", "minutes", "GB"]
    head = ["graph", "besides triples", "one model", "its seeds together", *costs, "published models"]
    return table(head, cells, left=2, markup=True)


def _shown(number: float | None, digits: int) -> str:
    return "" if number is None else f"{number:.{digits}f}"
