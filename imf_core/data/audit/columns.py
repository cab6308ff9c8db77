"""Columns in another order than head, relation, tail."""

from __future__ import annotations

import numpy as np

from imf_core.data.graph.graph import RawGraph

_FEWER = 4  # times as few names in the column that holds the relations as in the one that was read as such
_COLUMNS = ("head", "relation", "tail")


def swapped_columns(raw: RawGraph) -> list[str]:
    """The problem that another column than the middle one holds the relations, if it looks so.

    There are then nearly as many relations as entities, the middle column has names of another one, and one of the outer
    columns has few names, none of which the others have.
    """
    if not any(name in raw.entities.index for name in raw.relations.names):
        return []
    rows = np.concatenate(list(raw.splits.values()))
    names = [{raw.entities.names[row] for row in np.unique(rows[:, column])} for column in (0, 2)]
    columns = [names[0], {raw.relations.names[row] for row in np.unique(rows[:, 1])}, names[1]]
    middle = columns[1]
    for place, other in ((2, 0), (0, 2)):
        few = columns[place]
        if len(few) * _FEWER <= len(middle) and middle & columns[other] and not few & (middle | columns[other]):
            order = ["head", "tail", "relation"] if place == 2 else ["relation", "head", "tail"]
            shared = len(middle & columns[other])
            return [
                f"the {_COLUMNS[place]} column has {len(few):,} names, the relation column {len(middle):,}, {shared:,} of them"
                f" entities too: the columns look like {', '.join(order)}; write them as head<TAB>relation<TAB>tail"
            ]
    return []
