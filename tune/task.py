"""What a search trains: link prediction or recommending. A worker, and the driver that shares the data, know no more of it.

The searcher, the scheduler, the journal, the records and the reports see one score, the validation MRR, for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imf_core.checkpoint.checkpoint import save_checkpoint
from imf_core.config import Config
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.model.imf import Imf
from imf_core.prepare.link_data import LinkData, load_prepared, save_prepared
from imf_core.recommend import fit as recommend
from imf_core.recommend.checkpoint import save_recommender
from imf_core.recommend.config import RecommendConfig
from imf_core.recommend.data.prepare import RecommendData, load_recommend, save_recommend
from imf_core.recommend.model import Recommender
from imf_core.recommend.topk import TopKMetrics
from imf_core.train import fit as link
from imf_core.train.loop import FitResult

StudyData = LinkData | RecommendData
Result = FitResult[RankingMetrics] | FitResult[TopKMetrics]


@dataclass(frozen=True)
class Task:
    """How one kind of model is configured, trained and kept.

    Args:
        config: its settings.
        save, load: its data in the form that all trials share, without the test split.
        build: settings and data -> the model, initialised.
        fit: trains it as `imf_core.train.fit.fit` does.
        keep: folder, model, settings, data and metrics -> a checkpoint.
    """

    config: type[Config] | type[RecommendConfig]
    save: Callable[[Any, Path], None]
    load: Callable[[str], Any]
    build: Callable[[Any, Any], Any]
    fit: Callable[..., Any]
    keep: Callable[[Path, Any, Any, Any, Mapping[str, Any]], None]


def _keep_link(folder: Path, model: Imf, config: Config, data: LinkData, metrics: Mapping[str, Any]) -> None:
    save_checkpoint(folder, model, config, data.graph.entities, data.graph.relations, metrics)


def _keep_recommender(
    folder: Path, model: Recommender, config: RecommendConfig, data: RecommendData, metrics: Mapping[str, Any]
) -> None:
    save_recommender(folder, model, config, data.interactions, metrics)


TASKS = {
    "link": Task(Config, save_prepared, load_prepared, link.build_model, link.fit, _keep_link),
    "recommend": Task(
        RecommendConfig, save_recommend, load_recommend, recommend.build_model, recommend.fit_recommender, _keep_recommender
    ),
}
