"""`imf recommender` and `imf recommend` on files, from the audit to answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_interactions import SMALL, write_interactions
from typer.testing import CliRunner

from imf_core.cli import app, main
from imf_core.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_interactions(tmp_path_factory.mktemp("data") / "tastes")


def imf(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def checkpoint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "mine"
    said = imf("recommender", "train", out, "--data", folder, *(part for given in SMALL for part in ("--set", given)))
    assert "1 of 25 items have no training interaction" in said
    assert "MetaMMF_GCN" in said
    assert "popularity" in said
    return out


def test_recommend_answers_by_name(checkpoint: Path) -> None:
    answer = json.loads(imf("recommend", checkpoint, "--user", "user 3", "--top", 4, "--json"))
    assert answer["mean_user"] is False
    assert len(answer["items"]) == 4
    assert "these are the items of the mean user" in imf("recommend", checkpoint, "-u", "nobody", "-k", 2)


def test_recommend_answers_a_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("user 3\nnobody\n")
    imf("recommend", checkpoint, "--file", tmp_path / "users.txt", "--out", tmp_path / "out.tsv", "-k", 3)
    rows = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    assert rows[0] == ["user", "rank", "item", "score"]
    assert [(row[0], row[1]) for row in rows[1:]] == [(user, str(rank)) for user in ("user 3", "nobody") for rank in (1, 2, 3)]
    one = json.loads(imf("recommend", checkpoint, "--user", "user 3", "--top", 3, "--json"))
    assert [part["item"] for part in one["items"]] == [row[2] for row in rows[1:4]]


def test_evaluate_opens_test_only_when_asked(checkpoint: Path) -> None:
    for split, users in (("valid", 7), ("test", 8)):  # one user has 7 interactions: one left over is for test
        found = json.loads(imf("recommender", "evaluate", checkpoint, "--split", split, "--json"))
        assert set(found) == {"MetaMMF_GCN", "popularity"}
        assert found["MetaMMF_GCN"]["users"] == users
        assert 0 < found["MetaMMF_GCN"]["ndcg_at_10"] <= 1


def test_audit_in_words_and_as_json(folder: Path) -> None:
    assert "1 users have no interaction" in imf("recommender", "audit", folder)
    found = json.loads(imf("recommender", "audit", folder, "--json"))
    assert found["items"] == 25
    assert found["problems"] == []


def test_printed_settings_can_be_read(tmp_path: Path) -> None:
    from imf_core.recommend.config import RecommendConfig

    (tmp_path / "c.yaml").write_text(imf("recommender", "config"))
    assert RecommendConfig.load(tmp_path / "c.yaml") == RecommendConfig()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recommend", "CHECKPOINT", "--user", "usr 3"], "did you mean 'user 3'"),
        (["recommend", "CHECKPOINT"], "give either --user"),
        (["recommend", "/nowhere", "--user", "a"], "is missing"),
        (["recommender", "evaluate", "CHECKPOINT", "--split", "train"], "unknown split"),
        (["recommender", "audit", "/nowhere"], "neither a folder, a file nor a bundled data set"),
        (["recommender", "train", "/tmp/never", "--set", "model.fuson=mlp"], "did you mean 'model.fusion'"),
        (["predict", "CHECKPOINT", "--head", "a", "-r", "b"], "imf recommend"),
    ],
)
def test_wrong_questions_end_with_status_2(
    checkpoint: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["imf", *(str(checkpoint) if part == "CHECKPOINT" else part for part in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_nobody_to_rank_for_is_no_score_of_zero(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "interactions.tsv").rename(copy / "train.tsv")
    (copy / "valid.tsv").touch()
    result = CliRunner().invoke(app, ["recommender", "evaluate", str(checkpoint), "--data", str(copy)])
    assert isinstance(result.exception, DataError) and "nobody to rank for" in result.exception.problem, result.output


def test_features_of_no_item_are_a_problem(folder: Path, tmp_path: Path) -> None:
    """Features named `22` for items `22.0`: they become items of their own, and no other has any."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "modalities" / "sound.names.txt").write_text("".join(f"{number}\n" for number in range(25)))
    said = " ".join(imf("recommender", "audit", copy).split())
    assert "sound: none of the 24 items with interactions has it; do the names agree?" in said
    assert "tags: none" not in said
