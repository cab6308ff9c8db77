"""What a search says of its data before it starts: contaminated splits, the baseline without training, explicit files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from small_search import search_here, write_graph

from imf_core.commands.data.audit import audit_command
from imf_core.data.features.modality import Modality
from imf_core.errors import ConfigError, DataError
from tune.hosts.resources import ClusterResources, Node
from tune.plan.opening import AUDIT_FILE, open_study, search_config
from tune.plan.plan import Plan, make_plan
from tune.plan.show import show_plan
from tune.runs.final_runs import FinalRuns
from tune.settings import SearchConfig

HERE = ClusterResources((Node(2.0, 0.0),))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "graph")


def leak(graph: Path) -> None:
    """5 training lines and 3 test lines get into validation."""
    train, test = ((graph / f"{split}.tsv").read_text().splitlines() for split in ("train", "test"))
    with (graph / "valid.tsv").open("a") as valid:
        valid.write("\n".join([*train[:5], *test[:3]]) + "\n")


def planned(graph: Path | None, **values: object) -> Plan:
    given = {"data": str(graph), **values} if graph is not None else values
    return make_plan(SearchConfig.build(given), HERE)


def shown(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=400)
    show_plan(console, plan)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_clean_graph_has_no_problem_and_a_baseline_on_validation_alone(graph: Path) -> None:
    plan = planned(graph, strict=True)
    assert plan.audit.problems == []
    assert list(plan.audit.baseline) == ["valid"]  # nobody sees a test score before the end
    assert plan.audit.baseline["valid"].count == 2 * len(plan.data.graph.valid)
    text = shown(plan)
    assert "baseline without training, validation: MRR" in text
    assert "problem" not in text


def test_a_contaminated_graph_is_told_at_the_start(graph: Path) -> None:
    leak(graph)
    text = shown(planned(graph))
    assert "problem: 5 of 48 validation lines stand in train and 3 in test; 40 stand in neither" in text
    assert "--repair" in text


def test_strict_ends_the_search_before_anything_is_encoded(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leak(graph)
    monkeypatch.setattr("imf_core.prepare.link_data.GraphSource.prepare", lambda *_, **__: pytest.fail("features were built"))
    with pytest.raises(DataError, match="found 1 problem: 5 of 48 validation lines") as caught:
        planned(graph, strict=True)
    assert f"imf audit {graph} --repair {graph}-repaired" in caught.value.remedy  # can be copied as it is
    assert "without --strict" in caught.value.remedy


def test_strict_on_the_command_line(graph: Path, tmp_path: Path) -> None:
    leak(graph)
    done = search_here(tmp_path, "--data", "graph", "--strict")
    assert done.returncode == 2
    assert "5 of 48 validation lines stand in train" in " ".join(done.stderr.split())
    assert not (tmp_path / "results").exists()


def test_the_audit_is_in_the_study_from_its_start_and_agrees_with_the_command(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leak(graph)
    plan = planned(graph, storage=tmp_path / "results", study="x")
    with open_study(plan):
        pass
    kept = json.loads((tmp_path / "results" / "x" / AUDIT_FILE).read_text())
    audit_command(str(graph), as_json=True)
    said = json.loads(capsys.readouterr().out)
    del said["baseline"]["test"]
    assert kept == said


def test_a_carved_validation_split_has_its_baseline(graph: Path) -> None:
    (graph / "valid.tsv").unlink()
    plan = planned(graph)
    assert plan.audit.baseline["valid"].count == 2 * len(plan.data.graph.valid) > 0
    text = shown(plan)
    assert "no validation split" in text
    assert "triples set aside from train as validation (seed 0)" in text


def test_explicit_files_take_the_place_of_the_folder(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "elsewhere.tsv"
    other.write_text("thing 1\tis like\tthing 2\nthing 3\tis like\tthing 4\n")
    plan = planned(graph, overrides={"data.valid": "elsewhere.tsv"})
    assert len(plan.data.graph.valid) == 2
    assert plan.base.data.valid == str(other)  # absolute: a worker may run elsewhere
    assert plan.audit.splits["valid"].lines == 2
    (graph / "train.tsv").rename(graph / "mine.tsv")
    alone = planned(None, overrides={"data.train": "graph/mine.tsv"})
    assert alone.base.data.path == str(graph)
    assert [modality.name for modality in alone.data.modalities] == ["text"]  # descriptions.tsv lies beside it
    assert len(alone.data.graph.valid) == 40


def test_unseen_entities_are_left_out_on_request(graph: Path) -> None:
    with (graph / "entities.txt").open("a") as names, (graph / "valid.tsv").open("a") as valid:
        names.write("stranger\n")
        valid.write("stranger\tis like\tthing 1\n")
    kept = planned(graph)
    assert (kept.data.graph.num_entities, len(kept.data.graph.valid)) == (129, 41)
    assert "1 unseen entity in 1 validation triple: kept" in shown(kept)
    dropped = planned(graph, overrides={"data.unseen": "drop"})
    assert (dropped.data.graph.num_entities, len(dropped.data.graph.valid)) == (128, 40)
    assert "1 of 41 left out (data.unseen=drop)" in shown(dropped)
    assert dropped.audit.baseline["valid"].count == 80


def test_a_test_split_is_set_aside_on_request_and_read_again_on_resume(graph: Path, tmp_path: Path) -> None:
    (graph / "test.tsv").unlink()
    assert "no test split" in (text := shown(planned(graph))) and "--test-size 10%" in text
    plan = planned(graph, test_size="10%", storage=tmp_path / "results", study="x")
    assert "triples set aside from train as test (data.test_size=0.1, seed 0)" in (text := shown(plan))
    assert "no test split" not in text
    with open_study(plan):
        pass
    shared = plan.task.load(plan.prepared)
    test = {tuple(row) for row in plan.data.graph.open_test().tolist()}
    assert len(test) == plan.audit.splits["test"].lines == shared.graph.made["test"]["written"] == 32
    assert not test & {tuple(row) for split in (shared.graph.train, shared.graph.valid) for row in split.tolist()}
    assert not shared.has_test
    again = make_plan(search_config({"storage": tmp_path / "results", "study": "x", "resume": True}), HERE)
    assert {tuple(row) for row in again.data.graph.open_test().tolist()} == test
    with open_study(again) as study:
        assert study.resumed


def test_what_cannot_be_set_aside_is_refused(graph: Path) -> None:
    with pytest.raises(ConfigError, match="has a test split") as caught:
        planned(graph, test_size=0.1)
    assert "imf split" in caught.value.remedy
    with pytest.raises(ConfigError, match="recommend cannot set a test split aside"):
        planned(None, task="recommend", test_size=0.1)


def test_a_text_that_names_answers_is_compared_with_a_model_without_it(graph: Path) -> None:
    told = [line.split("\t") for split in ("valid", "test") for line in (graph / f"{split}.tsv").read_text().splitlines()]
    (graph / "descriptions.tsv").write_text("".join(f"{head}\tit {relation} {tail}\n" for head, relation, tail in
                                                    {row[0]: row for row in told}.values()))
    plan = planned(graph)
    assert plan.audit.named_answers["text"].startswith("it names the answer in at least ")
    assert plan.task.control(plan.base, plan.data, 0).config.model.modalities == ()  # text is its only modality
    (graph / "modalities").mkdir()
    names = plan.data.graph.entities.names
    Modality("sound", np.ones((len(names), 2), np.float32), np.ones(len(names), bool)).save(
        graph / "modalities" / "sound.safetensors", names
    )
    plan = planned(graph)
    assert set(plan.audit.named_answers) <= set(plan.task.ablations(plan.base, plan.data, 0)) == {"sound", "text"}
    # Where time is short the last is given up first: the runs without one modality, then the control, then seeds.
    assert FinalRuns.of(plan, plan.base, [0, 1]).titles == (
        "seed 0", "seed 1", "on structure alone", "without text", "without sound",
    )
    assert planned(graph, overrides={"data.text": "names"}).audit.named_answers == {}
