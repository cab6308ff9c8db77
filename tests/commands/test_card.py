"""`imf card`: every figure is the one in the files, what is not there is unknown, and names stay names."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny_checkpoint import tiny_checkpoint, tiny_graph
from typer.testing import CliRunner

from imf_core.card.text import UNKNOWN, Facts
from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.cli import app
from imf_core.errors import CheckpointError, ConfigError, ImfError
from tune.report.files import summary
from tune.report.result import StudyResult

SHARES = {"mrr": "MRR", "hits_at_1": "Hits@1", "hits_at_3": "Hits@3", "hits_at_10": "Hits@10"}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_graph(tmp_path_factory.mktemp("card") / "graph")


def written(folder: Path, *options: object) -> str:
    """The card of a checkpoint, written beside it."""
    result = CliRunner().invoke(app, ["card", str(folder), *map(str, options)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return (folder / "README.md").read_text(encoding="utf-8")


def fails(*arguments: object) -> ImfError:
    result = CliRunner().invoke(app, ["card", *map(str, arguments)])
    assert isinstance(result.exception, ImfError), result.exception
    return result.exception


def cells(text: str, section: str) -> dict[str, list[str]]:
    """The rows of the tables of a section by their first cell, escapes undone."""
    body = text.split(f"\n{section}\n", 1)[1]
    body = re.split(r"\n#{2,3} ", body, maxsplit=1)[0]
    rows = [[cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in body.splitlines()
            if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def front(text: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return values


def study_summary(folder: Path, **changes: Any) -> dict[str, Any]:
    """What a search writes, of a study without trials; with changes."""
    test = [{"mrr": 0.31, "hits_at_1": 0.21, "hits_at_3": 0.33, "hits_at_10": 0.5, "mean_rank": 123.4},
            {"mrr": 0.29, "hits_at_1": 0.19, "hits_at_3": 0.31, "hits_at_10": 0.4, "mean_rank": 125.4}]
    result = StudyResult(
        "my study", folder, "graph", "f", (), 1.0, "python tune/search.py", structure_only_mrr=0.25, without={"text": 0.27},
        test_runs=tuple(test), seeds=(3, 4), checkpoint=folder / "best", winner_seed_mrr=(0.3, 0.32), test_opened=1,
    )
    found = json.loads(json.dumps(summary(result), default=str))
    found["trials"] = {"completed": 7, "pruned": 3, "failed": 0}
    found["best_validation_mrr"] = 0.3217
    found["points_over_baseline"] = {"valid": 1.25, "test": None}
    found["audit"] = {"train": {"distinct": 31_234}, "valid": {"distinct": 8}, "test": {"distinct": 9}}
    return {**found, **changes}


def test_every_validation_figure_is_that_of_the_file(graph: Path, tmp_path: Path) -> None:
    folder = tiny_checkpoint(graph, tmp_path / "best", seed=5)
    text = written(folder)
    stored = json.loads((folder / "config.json").read_text())
    found = cells(text, "### Validation")
    parts = {"all": stored["metrics"]["validation"], **stored["metrics"]["validation"]["slices"]}
    assert set(parts) == set(found) - {"slice", "---"}
    for name, part in parts.items():
        figures = [f"{part[key]:.4f}" for key in SHARES] + [f"{part['mean_rank']:.1f}"]
        assert found[name] == ([str(part["count"]), *figures] if part["count"] else ["0", *"-----"]), name
    assert any(part["count"] == 0 for part in parts.values())
    chosen = cells(text, "## How it was chosen")
    assert chosen["validation MRR"] == [f"{stored['metrics']['validation']['mrr']:.4f}"]
    assert (chosen["best epoch"], chosen["seed"], chosen["epochs at most"]) == (["2"], ["5"], ["30"])
    assert chosen["epochs trained"] == chosen["minutes of training"] == chosen["peak memory of its process, GB"] == [UNKNOWN]
    for key, value in load_checkpoint(folder).config.flat().items():
        assert json.loads(chosen[key][0]) == (list(value) if isinstance(value, tuple) else value), key


def test_the_model_and_its_data_are_those_of_the_files(graph: Path, tmp_path: Path) -> None:
    folder = tiny_checkpoint(graph, tmp_path / "best")
    text, loaded = written(folder), load_checkpoint(folder)
    model = cells(text, "## Model")
    assert model["branches"] == ["structure, text, sound, fused"]
    assert model["trained parameters"] == [f"{loaded.model.num_parameters:,}"]
    assert (model["entity dimension"], model["relation dimension"], model["loss"]) == (["16"], ["8"], ["ce"])
    data = cells(text, "## Training data")
    assert data["path"] == [str(graph)] and data["fingerprint"] == [loaded.metrics["fingerprint"]]
    assert (data["entities"], data["relations"], data["distinct train triples"]) == (["24"], ["2"], [UNKNOWN])
    assert "- text: 20 of 24 entities (83.3 %); encoder by the settings: ngrams" in text
    assert "- sound: 12 of 24 entities (50.0 %)" in text
    compared = written(tiny_checkpoint(
        graph, tmp_path / "compared", model__heads=[{"view": "sound", "scoring": "similarity", "only": True}]
    ))
    assert "- sound: 12 of 24 entities (50.0 %)" in compared
    assert cells(compared, "## Model")["branches"] == ["structure, text, fused, sound_similarity"]
    plain = written(tiny_checkpoint(graph, tmp_path / "plain", model__modalities=[], model__scoring="distmult"))
    assert "no modality: structure alone" in plain and "relation dimension" not in cells(plain, "## Model")


def test_front_matter_is_read_by_the_hub(graph: Path, tmp_path: Path) -> None:
    metrics = {"validation": {"mrr": 0.25, "hits_at_1": 0.125}, "test": {"mrr": 0.5, "mean_rank": math.nan}}
    cost = {"seconds": 450.0, "peak_bytes": 1_260_000_000}
    text = written(tiny_checkpoint(graph, tmp_path / "best", metrics={**metrics, "cost": cost}))
    chosen = cells(text, "## How it was chosen")
    assert (chosen["minutes of training"], chosen["peak memory of its process, GB"]) == (["7.5"], ["1.3"])
    card = ModelCard(text, ignore_metadata_errors=False)
    figures = [(r.dataset_split, r.metric_type, r.metric_value, r.dataset_name) for r in card.data.eval_results]
    assert figures == [("valid", "mrr", 0.25, "graph"), ("valid", "hits_at_1", 0.125, "graph"), ("test", "mrr", 0.5, "graph")]
    values = front(text)
    assert values["datasets"] == ["graph"] and "link-prediction" in values["tags"] and "license" not in values
    assert "license: yours to choose" in text and "10.1145/3543507.3583554" in text


def test_what_is_not_there_is_unknown(graph: Path, tmp_path: Path) -> None:
    """No figure at all, figures that are no numbers, and slices that are not there."""
    bare = written(tiny_checkpoint(graph, tmp_path / "bare", metrics={}))
    assert "Unknown: the checkpoint holds no validation figures." in bare
    assert "Unknown: the checkpoint holds no test figures." in bare
    assert cells(bare, "## How it was chosen")["validation MRR"] == [UNKNOWN]
    assert cells(bare, "## Training data")["fingerprint"] == [UNKNOWN]
    assert not {"model-index", "metrics"} & front(bare).keys()
    broken = {"mrr": math.inf, "hits_at_1": "high", "hits_at_3": None, "hits_at_10": True, "count": []}
    text = written(tiny_checkpoint(graph, tmp_path / "odd", metrics={"validation": broken, "test": [1]}))
    assert cells(text, "### Validation")["all"] == [UNKNOWN] * 6
    assert "Slices: unknown." in text and "holds no test figures" in text
    assert "model-index" not in front(text)
    assert "## The study" not in bare + text


def test_test_figures_of_the_file_are_shown(graph: Path, tmp_path: Path) -> None:
    test = {"mrr": 0.4321, "hits_at_1": 0.3, "hits_at_3": 0.45, "hits_at_10": 0.6, "mean_rank": 99.94}
    text = written(tiny_checkpoint(graph, tmp_path / "best", metrics={"test": test}))
    assert cells(text, "### Test")["all"] == [UNKNOWN, "0.4321", "0.3000", "0.4500", "0.6000", "99.9"]


def test_the_study_it_lies_in(graph: Path, tmp_path: Path) -> None:
    folder = tiny_checkpoint(graph, tmp_path / "best")
    stored = study_summary(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(stored))
    text = written(folder)
    found = cells(text, "## The study")
    assert text.splitlines()[text.splitlines().index("## Model") - 4] == "# my study"
    assert found["trials"] == ["7 completed, 3 pruned"]
    assert found["best validation MRR of a trial"] == ["0.3217"]
    assert found["seeds of the retrained winner"] == ["3, 4"]
    spread = stored["winner_validation_mrr"]
    assert found["validation MRR over the seeds"] == [f"{spread['mean']:.4f} ± {spread['std']:.4f}"] == ["0.3100 ± 0.0141"]
    assert found["validation MRR on structure alone"] == ["0.2500"]
    assert found["validation MRR without text"] == ["0.2700"]
    for key, title in SHARES.items():
        part = stored["test"][key]
        assert found[f"test {title} over the seeds"] == [f"{part['mean']:.4f} ± {part['std']:.4f}"]
    assert found["test mean rank over the seeds"] == ["124.4 ± 1.4"]
    assert found["test opened, times"] == ["1"]
    assert found["points above a baseline without training, validation"] == ["+1.2"]
    assert found["points above a baseline without training, test"] == [UNKNOWN]
    assert cells(text, "## Training data")["distinct train triples"] == ["31,234"]


def test_a_study_with_parts_missing_and_one_of_another_checkpoint(graph: Path, tmp_path: Path) -> None:
    folder = tiny_checkpoint(graph, tmp_path / "best")
    (tmp_path / "summary.json").write_text(json.dumps({"study": "s", "checkpoint": "/elsewhere/best", "test": None}))
    found = cells(written(folder), "## The study")
    assert found.pop("study") == ["s"]
    assert {cell for row, values in found.items() if row not in ("", "---") for cell in values} == {UNKNOWN}
    (tmp_path / "summary.json").write_text(json.dumps(study_summary(tmp_path, checkpoint="results/s/other")))
    assert "## The study" not in written(folder, "--force")
    (tmp_path / "summary.json").write_text("[1]")
    assert "## The study" not in written(folder, "--force")
    (tmp_path / "summary.json").write_text('{"study"')
    error = fails(folder, "--force")
    assert isinstance(error, CheckpointError) and str(tmp_path / "summary.json") in error.problem and error.remedy


def test_hostile_names_stay_names(tmp_path: Path) -> None:
    """Names with markup, line feeds and undecodable bytes: no row, heading, tag or fence of theirs appears."""
    place = tmp_path / "x|<b>`\n# owned\n---\n[a](b)"
    graph = tiny_graph(place / "my <graph>", first=[b"\xff\xfe[b]", b"```<script>"])
    folder = tiny_checkpoint(graph, tmp_path / "best", metrics={"fingerprint": "f|<i>", "test": {"mrr": 0.5}})
    stored = study_summary(tmp_path, study="<img src=x>\n# owned", validation_mrr_without={"a|b\n| x | y |": 0.5})
    (tmp_path / "summary.json").write_text(json.dumps(stored))
    text = written(folder)
    text.encode("utf-8")  # no lone surrogate
    values = front(text)
    assert values["datasets"] == ["my-graph"] and values["model-index"][0]["name"] == "img-src-x-owned"
    body = text.split("---\n", 2)[2]
    lines = body.splitlines()
    assert "# owned" not in lines and "| x | y |" not in lines and "---" not in lines
    prose = re.sub(r"^```.*?^```$", "", body, flags=re.S | re.M)
    assert not re.search(r"(?<!\\)<(?!/?(details|summary)>)", prose)
    assert not re.search(r"(?<!\\)\[", prose)
    assert lines.count("```") == 4 and sum(line.startswith("```") for line in lines) == 6
    assert "# \\<img src=x\\>\\\\n# owned" in lines
    assert "imf predict FOLDER '--head=```<script>' --relation=next" in lines  # the first name that can be typed
    assert cells(text, "## Training data")["fingerprint"] == ["f|<i>"]
    assert cells(text, "## The study")["validation MRR without a|bn| x | y |"] == ["0.5000"]  # \n is two characters there


def test_facts_are_numbers_or_unknown() -> None:
    facts = Facts({"a": {"b": 2, "mean_rank": 3.14}, "nan": math.nan, "flag": True, "text": "1"})
    assert facts.number("a", "b") == 2 and facts.shown("a", "mean_rank") == "3.1" and facts.shown("a", "b") == "2.0000"
    for path in (("a",), ("a", "c"), ("a", "b", "c"), ("nan",), ("flag",), ("text",), ("none", "x")):
        assert facts.number(*path) is None and facts.shown(*path) == UNKNOWN
    assert Facts(None).at("x") is None and Facts([1]).values == {}


def test_printed_written_elsewhere_and_never_over_a_file_unasked(graph: Path, tmp_path: Path) -> None:
    folder = tiny_checkpoint(graph, tmp_path / "best")
    printed = CliRunner().invoke(app, ["card", str(folder), "--out", "-"], catch_exceptions=False).stdout
    assert not (folder / "README.md").exists()
    assert printed == written(folder)
    (folder / "README.md").write_text("license: mine\n")
    error = fails(folder)
    assert isinstance(error, ConfigError) and "README.md is there already" in error.problem and "--force" in error.remedy
    assert (folder / "README.md").read_text() == "license: mine\n"
    assert written(folder, "--force") == printed
    out = tmp_path / "new" / "card.md"
    assert CliRunner().invoke(app, ["card", str(folder), "--out", str(out)]).exit_code == 0
    assert out.read_text(encoding="utf-8") == printed
    assert load_checkpoint(folder).path == folder  # a card beside it harms no checkpoint
    assert "cannot be written" in fails(folder, "--out", out / "x.md").problem
    assert "is missing" in fails(tmp_path / "nowhere").problem


def test_an_ensemble_is_named_as_one(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "ensemble.json").write_text("{}")
    error = fails(tmp_path / "pool")
    assert "is an ensemble of several models" in error.problem and "members/1" in error.remedy
