"""Distributed hyperparameter search over `imf_core`: the only part that knows Ray, Optuna and MLflow.

    import tune

    study = tune.search("mygraph", trials=20, budget="30m", space={"train.lr": (1e-4, 1e-2)})
    study.predictor().tails("Berlin", "capitalOf", k=5)
"""

from typing import TYPE_CHECKING

from imf_core.lazy import export

if TYPE_CHECKING:
    from tune.interface import Study, search
    from tune.settings import SearchConfig
    from tune.space.space import SearchSpace

__all__ = ["SearchConfig", "SearchSpace", "Study", "search"]

export(__name__, {
    "SearchConfig": "tune.settings", "SearchSpace": "tune.space.space", "Study": "tune.interface", "search": "tune.interface",
})
