"""Recommending as a task: MetaMMF on interactions of users and items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from imf_core.data.audit.report import Audit
from imf_core.prepare.shared_form import arrays_digest
from imf_core.recommend.answers import ItemRecommender
from imf_core.recommend.checkpoint import load_recommender, save_recommender
from imf_core.recommend.config import RecommendConfig
from imf_core.recommend.data.audit import audit_interactions
from imf_core.recommend.data.prepare import InteractionSource, RecommendData, load_recommend, save_recommend
from imf_core.recommend.estimate import estimate_recommender
from imf_core.recommend.fit import build_model, evaluate_recommender, fit_recommender, popularity_baseline
from imf_core.recommend.model import Recommender
from imf_core.recommend.negatives import TrainingPairs
from imf_core.recommend.topk import TopKMetrics
from imf_core.runtime import WHOLE, MemoryBudget, Shard
from imf_core.tasks.protocols import Column, Control, TestResult, refuse_problems, with_baseline
from imf_core.tasks.task import OnEpoch, Task
from imf_core.train.estimate import MemoryEstimate
from imf_core.train.loop import FitResult, Saving


class RecommendTask(Task[RecommendConfig, RecommendData, Recommender]):
    """Propose items to users."""

    name = "recommend"
    config = RecommendConfig
    test_metrics = ("mrr", "precision_at_10", "recall_at_10", "hit_ratio_at_10", "ndcg_at_10")
    baseline_name = "what most users have"
    split_note = (
        "Validation ranks hide the items of training, test ranks those of training and validation. Settings and epoch were "
        "chosen on validation, nothing on test."
    )
    questions = (Column("user", "string"),)
    answers = (
        Column("user", "string"), Column("rank", "long"), Column("item", "string"), Column("score", "double"),
        Column("known", "boolean"),
    )

    def read(self, config: RecommendConfig, *, strict: bool) -> tuple[RecommendData, Audit]:
        source = InteractionSource.open(config.data)
        report = audit_interactions(source.raw, source.split, source.modalities[0])
        if strict:
            refuse_problems(report, "mend them, or search without --strict")
        data = source.prepare()
        pairs = data.interactions
        return data, with_baseline(report, "valid", popularity_baseline(pairs, pairs.valid, (pairs.train,)))

    def save(self, data: RecommendData, folder: Path) -> str:
        save_recommend(data, folder)
        return arrays_digest(folder)

    def load(self, folder: str) -> RecommendData:
        return load_recommend(folder)

    def example(self, data: RecommendData) -> tuple[str, ...]:
        """A user of validation."""
        return (data.interactions.users.names[data.interactions.valid[0][0]],)

    def estimate(self, config: RecommendConfig, data: RecommendData, workers: int) -> MemoryEstimate:
        TrainingPairs(data.interactions).num_steps(config.train.batch_size, workers)
        return estimate_recommender(config, data)

    def build(self, config: RecommendConfig, data: RecommendData) -> Recommender:
        return build_model(config, data)

    def fit(
        self, model: Recommender, data: RecommendData, config: RecommendConfig, on_epoch: OnEpoch | None = None, *,
        shard: Shard = WHOLE, saving: Saving | None = None, device: torch.device | None = None,
    ) -> FitResult[Any]:
        return fit_recommender(model, data, config, on_epoch, shard=shard, saving=saving, device=device)

    def keep(
        self, folder: Path, model: Recommender, config: RecommendConfig, data: RecommendData, metrics: Mapping[str, Any]
    ) -> None:
        save_recommender(folder, model, config, data.interactions, metrics)

    def control(self, config: RecommendConfig, data: RecommendData, seed: int) -> Control | None:
        """Static fusion where the winner's is dynamic, else dynamic fusion; nothing where there are no features."""
        if not data.modalities:
            return None
        dynamic = config.model.fusion in ("meta", "meta_cp")
        other = config.updated({"model.fusion": "mlp" if dynamic else "meta", "train.seed": seed})
        return Control("static fusion" if dynamic else "meta fusion", other)

    def ablations(self, config: RecommendConfig, data: RecommendData, seed: int) -> Mapping[str, RecommendConfig]:
        used = self.branches(config, data)
        if len(used) < 2 or config.model.fusion == "id":
            return {}
        rest = {name: [other for other in used if other != name] for name in used}
        return {name: config.updated({"model.modalities": others, "train.seed": seed}) for name, others in rest.items()}

    def test(
        self, checkpoints: Mapping[int, Path], config: RecommendConfig, data: RecommendData, ranks_file: Path
    ) -> TestResult:
        """Open the test split: each seed's checkpoint, and what most users have."""
        pairs = data.interactions
        relevant, known = pairs.open_test(), (pairs.train, pairs.valid)
        memory = MemoryBudget.of(config.train.memory_budget_mb)
        models = (load_recommender(path).model for path in checkpoints.values())
        metrics = [evaluate_recommender(model, pairs, relevant, known, memory) for model in models]
        return TestResult(
            [one.flat() for one in metrics], [one.as_dict() for one in metrics],
            baseline=popularity_baseline(pairs, relevant, known),
        )

    def baseline(self, values: Mapping[str, Any]) -> TopKMetrics:
        return TopKMetrics.from_dict(values)

    def open_predictor(self, checkpoint: Path | str) -> ItemRecommender:
        return ItemRecommender.load(checkpoint)

    def answer(
        self, predictor: ItemRecommender, questions: Sequence[Mapping[str, Any]], k: int, known: str = "drop"
    ) -> list[tuple[Any, ...]]:
        """One row an item: user, rank (from 1), item, score, and whether the user has it already."""
        users = [str(row["user"]) for row in questions]
        return [
            (user, rank, answer.item, float(answer.score), answer.known)
            for user, answers in zip(users, predictor.recommend_all(users, k, known=known), strict=True)
            for rank, answer in enumerate(answers, start=1)
        ]

    def ask_command(self, checkpoint: Path, example: tuple[str, ...]) -> list[str]:
        (user,) = example or ("NAME",)
        return ["imf", "recommend", str(checkpoint), "--user", user]


RECOMMEND = RecommendTask()
