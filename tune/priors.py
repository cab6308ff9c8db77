"""Points that did well on other graphs, shipped with the product: where a search begins that knows nothing of its graph yet.

`priors.yaml` holds them: the best points of studies with the default space, each with the data that it comes from.
`python -m tune.priors STUDY...` prints those of further studies in its form.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import BaseModel, ConfigDict

from imf_core.errors import ConfigError
from tune.outcome import TrialState
from tune.records import load_records
from tune.space import SearchSpace
from tune.warm_start import WarmStart

PRIORS_FILE = Path(__file__).with_name("priors.yaml")


class Prior(BaseModel):
    """One shipped point.

    Args:
        data: name of the graph on which it was found.
        mrr: the validation MRR it had there.
        point: searched values by dotted name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    mrr: float
    point: dict[str, Any]


@lru_cache
def shipped(file: Path = PRIORS_FILE) -> tuple[Prior, ...]:
    """The shipped points, in the order in which they are tried."""
    return tuple(Prior.model_validate(entry) for entry in yaml.safe_load(file.read_text(encoding="utf-8")))


def prior_points(space: SearchSpace, without: Sequence[str] = ()) -> WarmStart:
    """What the shipped points say about a space.

    A value that the space does not search, or not there, is left out: the base holds it, or the sampler draws it.

    Args:
        space: what is searched.
        without: names of graphs whose points are left out.
    """
    points: list[dict[str, Any]] = []
    known = {parameter.name: parameter for parameter in space.parameters}
    chosen = [prior for prior in shipped() if prior.data not in without]
    for prior in chosen:
        point = {}
        for name, value in prior.point.items():
            try:
                if name in known:
                    point[name] = known[name].check(value)
            except ConfigError:  # the user's range is another one, and it is what counts
                continue
        if len(point) > len(prior.point) / 2 and (clean := space.validate_point(point)) not in points:
            points.append(clean)
    if not points:
        return WarmStart()
    origin = ", ".join(dict.fromkeys(prior.data for prior in chosen))
    return WarmStart(tuple(points), (), f"begins with {len(points)} shipped points that did well on other graphs ({origin})")


def main(studies: Annotated[list[Path], typer.Argument(help="Folders of finished studies.")], best: int = 2) -> None:
    """Print the best points of studies in the form of priors.yaml."""
    found = []
    for folder in studies:
        ended = [record for record in load_records(folder) if record.state is TrialState.COMPLETED and record.best_mrr]
        for record in sorted(ended, key=lambda record: -float(record.best_mrr or 0))[:best]:
            point = {name: _short(value) for name, value in record.params.items()}
            found.append({"data": folder.name, "mrr": round(float(record.best_mrr or 0), 4), "point": point})
    print(yaml.safe_dump(found, sort_keys=False, allow_unicode=True), end="")


def _short(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value


if __name__ == "__main__":
    typer.run(main)
