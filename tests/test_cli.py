"""The `imf` command: train, evaluate, predict, config; continuing; errors without a traceback, exit status 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.cli import main
from imf_core.config import Config, published
from imf_core.data.features.modality import Modality, load_modality
from tests.support.command_line import fails, run

QUICK = [
    "--set", "model.dim=16", "--set", "model.relation_dim=8", "--set", "train.batch_size=16",
    "--set", "train.lr=1e-2", "--set", "train.max_epochs=2",
]  # fmt: skip
COUNT = 24


def write_graph(folder: Path, odd: bytes = b"") -> Path:
    """Entities `e0`.. (the first one under an odd name), relations `next` and `[rest]`, a text and a feature file."""
    folder.mkdir(parents=True)
    names = [odd or b"e0", *(f"e{i}".encode() for i in range(1, COUNT))]
    lines = [names[i] + b"\tnext\t" + names[(i + 1) % COUNT] for i in range(COUNT)]
    lines += [names[i] + b"\t[rest]\t" + names[i % 4] for i in range(COUNT)]
    order = np.random.default_rng(0).permutation(len(lines))
    for split, chosen in (("train", order[:36]), ("valid", order[36:42]), ("test", order[42:])):
        (folder / f"{split}.tsv").write_bytes(b"\n".join(lines[i] for i in chosen) + b"\n")
    (folder / "descriptions.tsv").write_bytes(b"".join(name + b"\tthe text of " + name + b"\n" for name in names[:20]))
    (folder / "modalities").mkdir()
    features = np.random.default_rng(1).normal(size=(COUNT, 3)).astype(np.float32)
    texts = [name.decode("utf-8", "surrogateescape") for name in names]
    Modality("sound", features, np.arange(COUNT) % 2 == 0).save(folder / "modalities" / "sound.safetensors", texts)
    return folder


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graph(tmp_path_factory.mktemp("cli") / "graph")


@pytest.fixture(scope="module")
def checkpoint(graph: Path) -> Path:
    out = graph.parent / "trained"
    run("train", str(out), "--data", str(graph), *QUICK)
    return out


def in_process(*arguments: str | bytes, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    """The command as a user runs it, through `imf_core.cli.main`."""
    code = "from imf_core.cli import main; main()"
    environment = {**os.environ, "COLUMNS": "200", "PYTHONUTF8": "1" if encoding == "utf-8" else "0", "NO_COLOR": "1"}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=False, env=environment)


# --- train --------------------------------------------------------------------------------------------------------------


def test_train_tells_what_it_does(graph: Path, tmp_path: Path) -> None:
    shown = run("train", str(tmp_path / "out"), "--data", str(graph), *QUICK)
    flat = " ".join(shown.split())
    assert "24 entities, 2 relations, 36 training and 6 validation triples" in flat
    assert "text: 20 of 24 entities (83.3 %)" in flat
    assert "sound: 12 of 24 entities (50.0 %), 3 wide" in flat
    assert "branches structure, text, sound, fused" in flat
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("epoch")] == ["1", "2"]
    loaded = load_checkpoint(tmp_path / "out")
    assert (loaded.config.model.dim, loaded.config.train.lr, loaded.config.data.path) == (16, 0.01, str(graph))
    assert loaded.metrics["validation"]["count"] == 12
    assert len(loaded.metrics["fingerprint"]) == 64


def test_dry_run_tells_the_memory_and_trains_nothing(graph: Path, tmp_path: Path) -> None:
    told = run("train", str(tmp_path / "out"), "--data", str(graph), "--dry-run", *QUICK)
    assert "24 entities" in told and "GiB for each worker (process" in told
    assert "epoch" not in told and not (tmp_path / "out").exists()


def test_a_run_that_will_not_fit_is_warned_of(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imf_core.train.estimate.free_memory", lambda: 2**20)
    told = " ".join(run("train", str(tmp_path / "out"), "--data", str(graph), "--dry-run", *QUICK).split())
    assert "warning: 1 worker of about" in told and "0.0 GiB are free" in told


def test_damaged_pictures_are_shown(graph: Path, tmp_path: Path) -> None:
    other = write_graph(tmp_path / "graph")
    (other / "images").mkdir()
    (other / "images" / "e1.png").write_bytes(b"no picture")
    assert "none of the 1 pictures can be read" in fails("train", str(tmp_path / "out"), "--data", str(other), *QUICK).problem
    from PIL import Image

    Image.new("L", (4, 4), 7).save(other / "images" / "e2.png")
    shown = " ".join(run("train", str(tmp_path / "out"), "--data", str(other), *QUICK).split())
    assert "image: 1 of 2 pictures cannot be read and count as missing (e1.png:" in shown


def test_settings_from_a_file_and_a_preset(graph: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {dim: 12, relation_dim: 6, modalities: []}\ntrain: {max_epochs: 1}\n")
    run("train", str(tmp_path / "a"), "--data", str(graph), "--config", str(file), "--set", "train.seed=4")
    config = load_checkpoint(tmp_path / "a").config
    assert (config.model.dim, config.model.modalities, config.train.seed) == (12, (), 4)
    run("train", str(tmp_path / "b"), "--data", str(graph), "--preset", "published", *QUICK)
    config = load_checkpoint(tmp_path / "b").config
    assert (config.train.loss, config.model.finetune_features, config.model.dim) == ("bce", True, 16)


def test_from_continues_the_weights(graph: Path, checkpoint: Path, tmp_path: Path) -> None:
    """With a learning rate of nearly nothing the weights stay those of the first run, not those of a new start."""
    run("train", str(tmp_path / "on"), "--from", str(checkpoint), "--set", "train.lr=1e-12", "--set", "train.max_epochs=1")
    before, after = load_checkpoint(checkpoint), load_checkpoint(tmp_path / "on")
    assert after.config.train.lr == 1e-12
    assert after.config.model == before.config.model
    for (name, old), new in zip(before.model.named_parameters(), after.model.parameters(), strict=True):
        assert np.allclose(old.detach(), new.detach(), atol=1e-8), name
    run("train", str(tmp_path / "on"), "--from", str(checkpoint), "--set", "train.lr=1e-2", "--set", "train.max_epochs=1")
    moved = load_checkpoint(tmp_path / "on").model.structure.detach()
    assert not np.allclose(moved, before.model.structure.detach(), atol=1e-4)


def test_structure_starts_from_attention_and_continues_without_it(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMF_CACHE", str(tmp_path / "cache"))
    attention = ["--set", "structure.init=gat", "--set", "structure.width=8", "--set", "structure.epochs=2"]
    train = ["train", str(tmp_path / "a"), "--data", str(graph), *QUICK, *attention]
    assert "trained for 2 epochs" in " ".join(run(*train).split())
    assert "8 wide, from the cache" in " ".join(run(*train).split())
    assert load_checkpoint(tmp_path / "a").config.structure.init == "gat"
    shown = run("train", str(tmp_path / "on"), "--from", str(tmp_path / "a"), "--set", "train.max_epochs=1")
    assert "graph attention" not in " ".join(shown.split())
    assert "mrr" in run("evaluate", str(tmp_path / "a"), "--json")


def test_from_refuses_what_does_not_fit(graph: Path, checkpoint: Path, tmp_path: Path) -> None:
    out, other = str(tmp_path / "out"), write_graph(tmp_path / "graph")
    for split in (other / f"{name}.tsv" for name in ("train", "valid", "test")):
        split.write_bytes(split.read_bytes().replace(b"next", b"after").replace(b"[rest]", b"of"))
    start = ["--from", str(checkpoint)]
    assert "model.dim cannot change" in fails("train", out, *start, "--set", "model.dim=8").problem
    assert "exclude each other" in fails("train", out, *start, "--config", "x.yaml").problem
    assert "no relations in common" in fails("train", out, *start, "--data", str(other)).problem
    assert not Path(out).exists()


# --- evaluate -----------------------------------------------------------------------------------------------------------


def test_evaluate_validation_gives_the_stored_count_and_a_table(graph: Path, checkpoint: Path) -> None:
    found = json.loads(run("evaluate", str(checkpoint), "--json"))
    assert found["count"] == 12  # 6 triples, both directions
    assert found["slices"]["head"]["count"] == found["slices"]["tail"]["count"] == 6
    assert 0 <= found["hits_at_1"] <= found["hits_at_3"] <= found["hits_at_10"] <= 1
    assert 0 < found["mrr"] <= 1
    table = run("evaluate", str(checkpoint))
    assert f"{found['mrr']:.4f}" in table
    assert "MRR" in table and "warm" in table


def test_evaluate_compares_decisions(graph: Path, checkpoint: Path) -> None:
    """The own decision gives what `evaluate` gives without; a branch alone is that branch's ranking."""
    plain = json.loads(run("evaluate", str(checkpoint), "--json"))
    found = json.loads(run("evaluate", str(checkpoint), "--json", "--decisions"))
    decisions = found.pop("decisions")
    assert found == plain
    own = load_checkpoint(checkpoint).config.model.decision
    branches = ("structure", "sound", "text", "fused")
    assert set(decisions) >= {own, "uniform", *(f"{branch} alone" for branch in branches), "without fused"}
    assert decisions[own]["mrr"] == plain["mrr"]
    assert len({round(decisions[f"{branch} alone"]["mrr"], 6) for branch in branches}) > 1
    table = run("evaluate", str(checkpoint), "--decisions")
    assert "structure alone" in table and "without fused" in table


def test_evaluate_test_reads_the_test_file(graph: Path, checkpoint: Path) -> None:
    count = len((graph / "test.tsv").read_text().splitlines())
    found = json.loads(run("evaluate", str(checkpoint), "--split", "test", "--json"))
    assert found["count"] == 2 * count == 12


def test_evaluate_refuses_other_data_and_other_splits(graph: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = write_graph(tmp_path / "graph", odd=b"another")
    assert "belongs to other entities" in fails("evaluate", str(checkpoint), "--data", str(other)).problem
    assert "unknown split 'all'" in fails("evaluate", str(checkpoint), "--split", "all").problem


# --- predict ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["--head", "--tail"])
def test_predict_as_json(checkpoint: Path, side: str) -> None:
    answers = json.loads(run("predict", str(checkpoint), side, "e3", "-r", "next", "-k", "4", "--json"))
    assert len(answers) == 4
    assert sum(answers[0]["weights"].values()) == pytest.approx(1, abs=1e-5)
    assert [answer["score"] for answer in answers] == sorted((answer["score"] for answer in answers), reverse=True)


def test_predict_as_a_table(checkpoint: Path) -> None:
    shown = run("predict", str(checkpoint), "--head", "e3", "-r", "[rest]", "-k", "3")
    assert "(e3, [rest], ?)" in shown  # brackets are no markup
    assert shown.count("│ e") == 3


def test_predict_needs_one_side(checkpoint: Path) -> None:
    for sides in ([], ["--head", "e1", "--tail", "e2"]):
        assert "either --head or --tail" in fails("predict", str(checkpoint), "-r", "next", *sides).problem


def test_predict_answers_a_file(checkpoint: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.tsv"
    questions.write_bytes(b"e3\tnext\t?\r\n\n?\t[rest]\te2\n")
    for name in ("answers.jsonl", "answers.tsv"):
        shown = run("predict", str(checkpoint), "--file", str(questions), "--out", str(tmp_path / "new" / name), "-k", "4")
        assert "2 questions answered" in shown
    records = [json.loads(line) for line in (tmp_path / "new" / "answers.jsonl").read_text().splitlines()]
    assert [(r["head"], r["relation"], r["tail"]) for r in records] == [("e3", "next", None), (None, "[rest]", "e2")]
    alone = json.loads(run("predict", str(checkpoint), "--tail", "e2", "-r", "[rest]", "-k", "4", "--json"))
    assert [answer["entity"] for answer in records[1]["answers"]] == [answer["entity"] for answer in alone]
    rows = [line.split("\t") for line in (tmp_path / "new" / "answers.tsv").read_text().splitlines()]
    assert rows[0] == ["head", "relation", "tail", "rank", "entity", "score"]
    assert [row[:5] for row in rows[5:]] == [["?", "[rest]", "e2", str(n), a["entity"]] for n, a in enumerate(alone, 1)]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["answers.jsonl", "answers.tsv"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("e3\tnext\t?\ne3\tnext\n", "line 2: 2 columns instead of 3"),
        ("e3\tnext\t?\n\ne99\tnext\t?\n", "line 3: 'e99' is no entity"),
        ("e3\tnxt\t?\n", "line 1: 'nxt' is no relation of this graph (2 known); did you mean 'next'?"),
        ("e3\tnext\te4\n", "line 1: (e3, next, e4) leaves not exactly one end open"),
        ("\n", "holds no line"),
    ],
)
def test_a_wrong_question_is_named_and_nothing_is_written(checkpoint: Path, tmp_path: Path, text: str, problem: str) -> None:
    questions, out = tmp_path / "questions.tsv", tmp_path / "answers.tsv"
    questions.write_text(text)
    error = fails("predict", str(checkpoint), "--file", str(questions), "--out", str(out))
    assert problem in error.problem and str(questions) in error.problem and error.remedy
    assert not out.exists()


def test_predict_refuses_half_a_question(checkpoint: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.tsv"
    questions.write_text("e3\tnext\t?\n")
    assert "--file needs --out" in fails("predict", str(checkpoint), "--file", str(questions)).problem
    assert "no relation" in fails("predict", str(checkpoint), "--head", "e3").problem
    wrong = fails("predict", str(checkpoint), "--file", str(questions), "--out", str(tmp_path / "answers.csv"))
    assert "the answers are .tsv or .jsonl" in wrong.problem
    under_a_file = questions / "answers.tsv"
    lost = fails("predict", str(checkpoint), "--file", str(questions), "--out", str(under_a_file))
    assert f"{under_a_file} cannot be written" in lost.problem


def test_exported_vectors_are_a_modality_of_another_graph(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "modalities" / "learned.safetensors"
    assert "24 entities, 16 wide" in run("export", str(checkpoint), str(file), "--branch", "fused")
    found = load_modality(file, ["e5", "unknown", "e3"])
    loaded = load_checkpoint(checkpoint)
    vectors = loaded.model.tables().entities["fused"].detach().numpy()
    np.testing.assert_array_equal(found.matrix[[0, 2]], vectors[[loaded.entities.id("e5"), loaded.entities.id("e3")]])
    assert found.mask.tolist() == [True, False, True] and found.encoder == "imf fused"
    assert "no branch 'x'" in fails("export", str(checkpoint), str(file), "--branch", "x").problem
    assert "the output is safetensors" in fails("export", str(checkpoint), str(tmp_path / "x.npy")).problem


# --- config -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), [("paper", Config()), ("published", published())])
def test_config_prints_what_config_reads(tmp_path: Path, name: str, expected: Config) -> None:
    shown = run("config", "--preset", name)
    file = tmp_path / "all.yaml"
    file.write_text(shown)
    assert Config.load(file) == expected
    assert set(yaml.safe_load(shown)) == {"data", "structure", "model", "train"}
    assert "# learning rate" in shown


# --- errors and odd names, as a user meets them -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            ["predict", "CHECKPOINT", "--head", "e99", "-r", "next"],
            "VocabularyError",
            "'e99' is no entity of this graph (24 known)",
        ),
        (["predict", "nowhere", "--head", "a", "-r", "b"], "CheckpointError", "nowhere/config.json is missing"),
        (["train", "out", "--data", "no[/b]where"], "DataError", "'no[/b]where' is neither a folder nor a bundled data set"),
        (["train", "out", "--set", "train.lrr=1"], "ConfigError", "unknown setting train.lrr; did you mean 'train.lr'?"),
        (["train", "out", "--config", "nowhere.yaml"], "ConfigError", "nowhere.yaml cannot be read"),
        (["config", "--preset", "x"], "ConfigError", "unknown preset 'x'"),
    ],
)
def test_errors_end_with_status_two_and_no_traceback(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    kind: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["imf", *(str(checkpoint) if word == "CHECKPOINT" else word for word in arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    shown = capsys.readouterr()
    assert caught.value.code == 2
    assert shown.out == ""
    assert shown.err.startswith(f"Error {kind}: ")
    assert message in shown.err
    assert "What to do:" in shown.err
    assert "Traceback" not in shown.err


def test_an_error_in_a_process_of_its_own(tmp_path: Path) -> None:
    result = in_process("predict", str(tmp_path), "--head", "a", "-r", "b")
    assert result.returncode == 2
    assert result.stdout == b""
    assert b"CheckpointError" in result.stderr and b"Traceback" not in result.stderr


def test_names_leave_as_they_came(tmp_path: Path) -> None:
    """A name with undecodable bytes, brackets and colons goes through training, the command line and the table."""
    odd = b"[b]:cat: \xff\xfe[/b]"
    graph = write_graph(tmp_path / "graph", odd=odd)
    run("train", str(tmp_path / "out"), "--data", str(graph), *QUICK)
    result = in_process("predict", str(tmp_path / "out"), "--head", odd, "-r", "next", "-k", "24", "--known", "mark")
    assert result.returncode == 0, result.stderr
    assert b"(" + odd + b", next, ?)" in result.stdout
    assert result.stdout.count(odd) == 2  # in the question and among the answers
