"""The contract of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from imf_core.config_base import Settings
from imf_core.tasks.registry import task_of
from imf_core.tasks.task import AnyTask
from imf_core.testing.base import PartContract


class TaskContract(PartContract):
    """A task: its data keeps its form on the disk, a training reports, a checkpoint is its own and answers."""

    kind = "task"

    def prepare(self, folder: Path) -> Settings:
        """Write a small data set into the folder; returns settings that train on it within seconds."""
        raise NotImplementedError  # abstract

    def question(self, example: tuple[str, ...]) -> dict[str, Any]:
        """A question, by the columns of `Task.questions`, about the names of `Task.example`."""
        raise NotImplementedError  # abstract

    @property
    def task(self) -> AnyTask:
        """The task."""
        task: AnyTask = self.part.target
        return task

    def test_it_has_what_a_search_asks_of_it(self) -> None:
        task = self.task
        assert task.name == self.name and task.test_metrics[0] == "mrr" and task.baseline_name
        sections = task.config.model_fields
        assert {"data", "model", "train"} <= sections.keys()
        assert {"seed", "max_epochs"} <= getattr(task.config().train, "model_fields_set", set()) | set(
            type(task.config().train).model_fields
        )

    def test_data_trains_and_answers_after_it_was_kept(self, tmp_path: Path) -> None:
        """From reading to a kept model that answers, with the data as workers load it."""
        task, config = self.task, self.prepare(tmp_path)
        data, audit = task.read(config, strict=False)
        assert "valid" in audit.baseline
        example = task.example(data)
        task.save(data, tmp_path / "shared")
        shared = task.load(str(tmp_path / "shared"))
        assert task.estimate(config, data, 1).total > 0
        reports: list[Any] = []
        model = task.build(config, shared)
        result = task.fit(model, shared, config, reports.append)
        assert reports and np.isfinite(result.metrics.flat()["mrr"])
        folder = tmp_path / "best"
        task.keep(folder, model, config, shared, {"validation": result.metrics.as_dict()})
        assert task_of(folder) == task
        rows = task.answer(task.open_predictor(folder), [self.question(example)], 3)
        assert rows and all(len(row) == len(task.answers) for row in rows)
