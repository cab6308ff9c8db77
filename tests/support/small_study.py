"""A small finished study with every kind of trial, and its page, read."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch

from imf_core.checkpoint.checkpoint import save_checkpoint
from imf_core.config import Config
from imf_core.data.audit.audit import audit
from imf_core.data.audit.baseline import BaselineMetrics
from imf_core.data.audit.report import AuditReport
from imf_core.data.graph.graph import RawGraph, Vocabulary
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.prepare.link_data import LinkData
from imf_core.train.fit import build_model
from tune.report.html import write_html
from tune.report.result import StudyResult
from tune.space.space import Row
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord

SECTIONS = ["winner", "answers", "importance", "history", "searched", "slices", "failures", "commands"]
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """Tags in their nesting, ids, attributes that name a resource, and the text of every table's cells."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.links: list[tuple[str, str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words: list[str] = []
        self._table = ""
        self.feed(self.source)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._see(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = str(dict(attrs)["id"])
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._see(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[self._table][-1][-1] += data.strip()

    def _see(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids[str(value)] += 1
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.links.append((tag, name, str(value)))


def record(number: int, state: str, best: float | None, epochs: int, reason: str = "", **values: object) -> TrialRecord:
    curve = tuple((epoch, best * epoch / epochs) for epoch in range(1, epochs + 1)) if best is not None else ()
    params = {"train.lr": 0.001 * (number + 1), "model.decision": "relation"}
    return replace(
        TrialRecord(
            number, f"trial-{number:03d}", TrialState(state), params, best, epochs if best is not None else None, epochs, 12.0,
            {}, reason, started=1000.0 + 60 * number, ended=1060.0 + 60 * number, curve=curve,
        ),
        **values,
    )


RECORDS = (
    record(0, "completed", 0.41, 8, "all 8 epochs"),
    record(1, "pruned", 0.12, 1, "behind"),
    record(2, "failed", 0.9, 2, "out of memory\n2 GiB needed", retries=1, log_path="/studies/demo/errors/trial_002.txt"),
    record(3, "completed", 0.52, 6, "no better for 3 epochs", retries=2),
    record(4, "diverged", None, 1, "loss is not finite"),
    record(5, "stopped", None, 0, "the search ended before its first epoch"),
)
SPACE = (
    Row("train.lr", "float", "[0.0005, 0.008] log", 0.002, "", True, True),
    Row("model.fusion_rank", "int", "[1, 8]", 2, "model.fusion = low_rank", True, True),
    Row("train.batch_size", "int", "[64, 512]", 128, "", False, False),
)
SHARES = {"hits_at_1": 0.4, "hits_at_3": 0.5, "hits_at_10": 0.6, "mean_rank": 120.0}


def audited(name: str = "r") -> AuditReport:
    """The audit of a graph whose validation line is a training line, with a baseline of both splits."""
    lines = np.array([[0, 0, 1]])
    raw = RawGraph(Vocabulary(("a", "b")), Vocabulary((name,), "relation"), lines, lines, None, source="drawn")
    rules = {split: BaselineMetrics(2, mrr, 1.0, mrr, mrr, mrr) for split, mrr in (("valid", 0.21), ("test", 0.32))}
    return replace(audit(raw, baseline_splits=()), baseline=rules)


def checkpoint(folder: Path, data: LinkData, **settings: object) -> Path:
    """A checkpoint whose decision weights differ by relation, with figures and slices as training writes them."""
    small = {"model.dim": 8, "model.relation_dim": 4}
    config = Config().updated({**small, **{f"model.{key}": value for key, value in settings.items()}})
    model = build_model(config, data)
    if model.decision.logits is not None:
        rows = torch.arange(len(model.decision.logits), dtype=torch.float32)
        model.decision.logits.copy_(torch.stack([rows * branch / 10 for branch in range(len(model.branches))], dim=1))
    ranks, tails = np.array([1.0, 2.0, 4.0, 8.0]), np.array([True, True, False, False])
    parts = {"tail": tails, "head": ~tails, "1-1": tails, "N-N": ~tails, "cold": np.zeros(4, bool), "warm": np.ones(4, bool)}
    metrics = {"validation": RankingMetrics.of(ranks, parts).as_dict(), "test": RankingMetrics.of(ranks[::-1], parts).as_dict()}
    save_checkpoint(folder, model, config, data.graph, metrics)
    return folder


def small_study(folder: Path, best: Path | None) -> StudyResult:
    """A study in a folder, with the checkpoint of its winner."""
    return StudyResult(
        study="demo", folder=folder, data="unicode", data_fingerprint="abc", records=RECORDS, wall_seconds=301.26,
        command="python tune/search.py", structure_only_mrr=0.44, without={"text": 0.47, "image": 0.515},
        test_runs=tuple({"mrr": mrr, **SHARES} for mrr in (0.50, 0.52, 0.54)), seeds=(0, 1, 2), checkpoint=best,
        tracking_uri="http://tracker:5000", example=("LATIN SMALL LETTER E", "base"), winner_seed_mrr=(0.50, 0.51, 0.52),
        test_opened=1, budget_seconds=1200.0, settings={"trials": 6, "sampler.seed": 0}, audit=audited(),
        importance={"train.lr": 0.75, "model.fusion_rank": 0.25},
    )


def drawn(result: StudyResult, **more: object) -> Page:
    """The page of a study, written and read."""
    return Page(write_html(result, **{"space": SPACE, **more}))


def sound(page: Page) -> bool:
    """Tags are balanced, ids are unique, sections are all there, and nothing is fetched or run."""
    assert page.source.startswith("<!DOCTYPE html>")
    assert (page.wrong, page.open) == ([], [])
    assert [name for name, count in page.ids.items() if count > 1] == []
    assert re.findall(r'<section id="(\w+)">', page.source) == SECTIONS
    outside = [link for link in page.links if not link[2].startswith(("#", "data:"))]
    assert outside == []
    assert {value[1:] for _, _, value in page.links if value.startswith("#")} <= page.ids.keys()
    fetched = [target for target in re.findall(r"url\(([^)]*)\)", page.source) if not target.startswith("#")]
    assert (fetched, "@import" in page.source) == ([], False)
    for tag in ("script", "iframe", "object", "embed", "link", "base"):
        assert page.tags[tag] == 0
    return True
