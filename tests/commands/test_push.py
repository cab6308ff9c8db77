"""`imf push` and `hf://`: what leaves the machine and what does not, what comes back, and what each refusal says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import command_line
import pytest
from hub import READS, Hub, hub_on_loopback, use_hub
from huggingface_hub import ModelCard, constants
from tiny_checkpoint import tiny_checkpoint, tiny_graph, tiny_pool

import imf_core
from imf_core.checkpoint.hub import local_folder
from imf_core.errors import CheckpointError, ConfigError

QUESTION = ("e3", "next")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_graph(tmp_path_factory.mktemp("push") / "graph")


@pytest.fixture(scope="module")
def made(graph: Path) -> Path:
    return tiny_checkpoint(graph, graph.parent / "best")


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    """A checkpoint that lies among other files of the user's."""
    folder = shutil.copytree(made, tmp_path / "best")
    (folder / "modalities").mkdir()
    for other in ("train.tsv", "notes.txt", "modalities/sound.safetensors"):
        (folder / other).write_text("the user's own")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_on_loopback() as server:
        use_hub(server, tmp_path / "home", monkeypatch)
        yield server


def answers(folder: object) -> list[tuple[str, float]]:
    model = imf_core.load(str(folder))
    return [(answer.entity, answer.score) for answer in model.predictor().tails(*QUESTION, k=3)]


def test_what_is_pushed_is_the_checkpoint_with_its_card_and_loads_again(hub: Hub, checkpoint: Path) -> None:
    said = command_line.run("push", str(checkpoint), "me/graph")
    kept = hub.repositories["me/graph"]
    assert kept.private and kept.messages == [f"imf-search {imf_core.__version__}"]
    own = ["config.json", "facts.safetensors", "model.safetensors", "vocabulary.json"]
    assert sorted(kept.files) == ["README.md", *own]
    for name in own:
        assert kept.files[name] == (checkpoint / name).read_bytes()
    card = kept.files["README.md"].decode()
    assert ModelCard(card, ignore_metadata_errors=False).data.library_name == "imf-search"
    assert "imf predict hf://me/graph --head=" in card and 'Predictor.load("hf://me/graph")' in card
    assert not (checkpoint / "README.md").exists()
    words = " ".join(said.split())
    assert f"pushed: {hub.address}/me/graph; load it as hf://me/graph" in words and "(private)" in words
    assert "validated on is in facts.safetensors; --without-facts leaves it out" in words
    assert "not pushed, since it is no part of a checkpoint: notes.txt, train.tsv" in words
    assert "README.md is the card that imf card writes; its licence is yours to fill in" in words
    assert answers("hf://me/graph") == answers(checkpoint)
    asked = ("predict", "hf://me/graph", "--head", QUESTION[0], "-r", QUESTION[1], "--json")
    assert json.loads(command_line.run(*asked)) == json.loads(command_line.run(asked[0], str(checkpoint), *asked[2:]))


def test_a_dry_run_lists_the_files_and_asks_nobody(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    said = command_line.run("push", str(checkpoint), "me/graph", "--dry-run", "--public")
    assert f"would push to {hub.address}/me/graph (public):" in said
    listed = {name: int(size.replace(",", "")) for name, size in re.findall(r"^ +(\S+) +([\d,]+) bytes$", said, re.M)}
    card = listed.pop("README.md")
    assert card > 1000
    assert listed == {
        name: (checkpoint / name).stat().st_size
        for name in ("config.json", "facts.safetensors", "model.safetensors", "vocabulary.json")
    }
    assert hub.requests == []


def test_facts_stay_here_and_go_from_there(hub: Hub, checkpoint: Path, graph: Path) -> None:
    command_line.run("push", str(checkpoint), "me/graph")
    said = command_line.run("push", str(checkpoint), "me/graph", "--without-facts")
    assert "deleted there: facts.safetensors; the history of the repository still has it" in said
    assert "whoever asks it needs the graph" in said and "--without-facts" not in said
    assert "facts.safetensors" not in hub.repositories["me/graph"].files
    loaded = imf_core.load("hf://me/graph")
    assert loaded.graph is None
    alone = [answer.entity for answer in loaded.predictor(str(graph)).tails(*QUESTION, k=3)]
    assert alone == [entity for entity, _ in answers(checkpoint)]


def test_a_card_of_the_users_is_pushed_and_one_of_the_hub_stays(hub: Hub, checkpoint: Path) -> None:
    command_line.run("push", str(checkpoint), "me/graph")
    files = hub.repositories["me/graph"].files
    files["README.md"] = b"---\nlicense: mit\n---\nwritten there"
    files["pictures.json"] = b"{}"
    command_line.run("push", str(checkpoint), "me/graph")
    assert files["README.md"].endswith(b"written there") and "pictures.json" in files
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\nwritten here")
    command_line.run("push", str(checkpoint), "me/graph")
    assert files["README.md"].endswith(b"written here")
    (checkpoint / "README.md").write_text("no front matter")
    error = command_line.fails("push", str(checkpoint), "me/graph")
    assert "no front matter" in error.problem and "correct the front matter of the folder's README.md" in error.remedy


def test_nothing_becomes_public_unasked(hub: Hub, checkpoint: Path) -> None:
    command_line.run("push", str(checkpoint), "me/open", "--public")
    assert not hub.repositories["me/open"].private
    before = hub.repositories["me/open"].sha
    error = command_line.fails("push", str(checkpoint), "me/open")
    assert isinstance(error, ConfigError) and "me/open is public" in error.problem and "--public" in error.remedy
    assert hub.repositories["me/open"].sha == before


def test_an_ensemble_goes_and_comes_whole(hub: Hub, graph: Path, tmp_path: Path) -> None:
    pool = tiny_pool(graph, tmp_path) / "pool"
    said = command_line.run("push", str(pool), "me/pool")
    assert sorted(hub.repositories["me/pool"].files) == sorted(
        ["ensemble.json", *(f"members/{number}/{name}" for number in (1, 2) for name in
                            ("config.json", "facts.safetensors", "model.safetensors", "vocabulary.json"))]
    )
    assert f"no model card: write {pool / 'README.md'} to have one" in " ".join(said.split())
    assert answers("hf://me/pool") == answers(pool)
    command_line.run("push", str(pool), "me/pool", "--without-facts")
    assert not [name for name in hub.repositories["me/pool"].files if name.endswith("facts.safetensors")]


@pytest.mark.parametrize(
    ("token", "fails", "repo", "says"),
    [
        ("", 0, "me/graph", r"no login of Hugging Face.*hf auth login, or set HF_TOKEN"),
        ("hf_old", 0, "me/graph", r"does not accept the token \(HTTP 401.*log in again: hf auth login, or set HF_TOKEN"),
        (READS, 0, "me/graph", r"may not write me/graph \(HTTP 403.*use a token that may write it.*hf auth login"),
        ("hf_writes", 0, "others/graph", r"may not write others/graph \(HTTP 403: not your namespace.*an account that may"),
        ("hf_writes", 404, "me/graph", r"shows no me/graph \(HTTP 404.*look at the name.*hf auth login"),
        ("hf_writes", 500, "me/graph", r"fails \(HTTP 500.*again later"),
    ],
)
def test_a_refusal_names_the_remedy(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, token: str, fails: int, repo: str, says: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.fails = fails
    error = command_line.fails("push", str(checkpoint), repo)
    assert isinstance(error, ConfigError) and re.search(says, " ".join(str(error).split())), error
    assert hub.repositories == {}


@pytest.mark.parametrize("repo", ["graph", "me/graph/x", "hf://me/graph", "me/a--b", "me/.x", "me/" + "x" * 100, "", "-me/x"])
def test_a_name_that_the_hub_cannot_have_is_refused_first(made: Path, repo: str) -> None:
    error = command_line.fails("push", str(made), "--", repo) if repo else command_line.fails("push", str(made), repo)
    assert "is no name of a model on the hub" in error.problem and "OWNER/NAME" in error.remedy


def test_without_a_network(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command_line.run("push", str(checkpoint), "me/graph")
    here = answers("hf://me/graph")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    error = command_line.fails("push", str(checkpoint), "me/graph")
    assert "the hub at http://127.0.0.1:9 cannot be reached" in error.problem and "HF_ENDPOINT" in error.remedy
    assert answers("hf://me/graph") == here  # the copy that was fetched before
    with pytest.raises(CheckpointError, match=r"(?s)127\.0\.0\.1:9 cannot be reached.*look at the network"):
        imf_core.load("hf://me/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert answers("hf://me/graph") == here
    with pytest.raises(CheckpointError, match=r"(?s)HF_HUB_OFFLINE is set, and there is no copy of me/other.*unset"):
        imf_core.load("hf://me/other")
    error = command_line.fails("push", str(checkpoint), "me/graph")
    assert error.problem == "the hub is not asked: HF_HUB_OFFLINE is set" and error.remedy == "unset HF_HUB_OFFLINE"


def test_what_cannot_be_loaded_says_why(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command_line.run("push", str(checkpoint), "me/graph")
    with pytest.raises(CheckpointError, match=r"(?s)shows no me/lost \(HTTP 404.*look at the name"):
        imf_core.load("hf://me/lost")
    with pytest.raises(CheckpointError, match=r"(?s)me/graph has no such branch.*behind the @"):
        imf_core.load("hf://me/graph@v7")
    commit = hub.repositories["me/graph"].sha
    assert imf_core.load(f"hf://me/graph@{commit}").path.name == commit
    for wrong in ("hf://graph", "hf://me/graph/x", "hf://"):
        with pytest.raises(CheckpointError, match=r"(?s)names no model on the hub.*hf://OWNER/NAME"):
            local_folder(wrong)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(CheckpointError, match=r"(?s)a login that may read it: hf auth login"):
        imf_core.load("hf://me/graph@main2")
    error = command_line.fails("card", "hf://me/graph")
    assert "no card is written there" in error.problem and "--out" in error.remedy


def test_a_damaged_checkpoint_is_not_pushed(hub: Hub, checkpoint: Path) -> None:
    (checkpoint / "vocabulary.json").write_text("{")
    assert "vocabulary.json is damaged" in command_line.fails("push", str(checkpoint), "me/graph").problem
    assert "is missing" in command_line.fails("push", str(checkpoint / "modalities"), "me/graph").problem
    assert hub.requests == []
