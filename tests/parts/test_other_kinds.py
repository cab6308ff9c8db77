"""Parts of the other kinds, each as short as it can be, against its contract: loss, regularizer, reader, encoders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Tensor

import imf_core
from imf_core.config import Config
from imf_core.data.formats.readers import read_graph
from imf_core.errors import ConfigError, DataError
from imf_core.evaluate.ranking import evaluate
from imf_core.model.losses.own import OwnLoss
from imf_core.parts import registry
from imf_core.prepare.link_data import LinkData, prepare
from imf_core.testing import EncoderContract, ImageEncoderContract, LossContract, ReaderContract, RegularizerContract
from imf_core.train.estimate import estimate_of
from imf_core.train.fit import build_model


class HingeSettings(imf_core.Section):
    margin: Annotated[float, imf_core.Tunable(low=0.5, high=4.0)] = Field(1.0, gt=0, le=100, description="of the hinge")


def hinge(scores: Tensor, positives: Any, smoothing: float, settings: HingeSettings) -> Tensor:
    """The margin by which known answers shall be above all others."""
    mean = positives.mean(scores)[:, None]  # (B, 1)
    wrong = torch.ones_like(scores).index_put((positives.rows, positives.tails), torch.zeros((), dtype=scores.dtype))
    return (torch.relu(settings.margin + scores - mean) * wrong).mean(dim=1).mean()


def squares(
    scorer: Any, heads: Tensor, relations: Tensor, contexts: Tensor, tails: Tensor, positives: Any, weights: Tensor
) -> Tensor:
    """Squared lengths of heads and tails."""
    return weights @ heads.square().sum(dim=1) + positives.shares(weights) @ tails.square().sum(dim=1)


def json_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """A list of three names on each line, as JSON."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            head, relation, tail = json.loads(line)
            yield head, relation, tail


class Sizes:
    """Sizes of sound files: `sounds/NAME.wav`."""

    def encode(self, folder: Path, entities: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        files = [folder / "sounds" / f"{name}.wav" for name in entities]
        mask = np.array([file.exists() for file in files])
        sizes = [float(file.stat().st_size) if there else 0.0 for file, there in zip(files, mask, strict=True)]
        return np.array([[size, size**0.5] for size in sizes]), mask


class Bytes:
    """Counts of the bytes of a picture's file."""

    def encode(self, items: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        rows = [b"".join(path.read_bytes() for path in paths) if paths else b"" for paths in items]
        mask = np.array([row.startswith(b"\x89PNG") for row in rows])
        return np.stack([np.bincount(np.frombuffer(row, np.uint8), minlength=256) for row in rows]), mask


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registry.scope():
        imf_core.loss("hinge", settings=HingeSettings, reads="bce")(hinge)
        imf_core.regularizer("squares")(squares)
        imf_core.reader("jsonl")(json_lines)
        imf_core.encoder("sound")(Sizes)
        imf_core.image_encoder("bytes")(Bytes)
        yield


class TestHinge(LossContract):
    name = "hinge"


class TestSquares(RegularizerContract):
    name = "squares"


class TestJsonLines(ReaderContract):
    name = "jsonl"

    def write(self, path: Path, triples: Sequence[tuple[str, str, str]]) -> None:
        path.write_text("".join(json.dumps(triple) + "\n" for triple in triples), encoding="utf-8")


class TestSound(EncoderContract):
    name = "sound"

    def prepare(self, folder: Path) -> None:
        (folder / "sounds").mkdir()
        for row in range(0, 12, 2):
            (folder / "sounds" / f"entity {row}.wav").write_bytes(b"x" * (row + 1))


class TestBytes(ImageEncoderContract):
    name = "bytes"


def test_a_loss_says_how_its_scores_are_read(toy: LinkData) -> None:
    config = Config().updated({"train.loss": "hinge", "train.hinge.margin": 2.0, "model.dim": 8, "model.relation_dim": 4})
    model = build_model(config, toy)
    assert (model.loss_kind, OwnLoss.of(config.train).reads) == ("bce", "bce")  # type: ignore[union-attr]
    assert OwnLoss.of(config.train).settings[0].margin == 2.0  # type: ignore[union-attr]
    assert 0 < evaluate(model, toy.graph, toy.graph.valid, toy.graph.known()).metrics.mrr <= 1
    plain = config.updated({"train.loss": "bce"})
    assert estimate_of(config, toy).parts["scores"] >= estimate_of(plain, toy).parts["scores"]


def test_a_loss_of_one_s_own_sees_all_candidates() -> None:
    with pytest.raises(ConfigError, match="the loss hinge sees all candidates"):
        Config().updated({"train.loss": "hinge", "train.num_negatives": 8})


def test_a_modality_of_one_s_own_is_trained_on(tmp_path: Path) -> None:
    names = [f"entity {row}" for row in range(12)]
    lines = "".join(f"{name}\tnext\t{other}\n" for name, other in zip(names, names[1:] + names[:1], strict=True))
    back = "".join(f"{name}\tprevious\t{other}\n" for name, other in zip(names[1:], names))
    (tmp_path / "train.tsv").write_text(lines + back)
    (tmp_path / "valid.tsv").write_text("entity 3\tnext\tentity 5\n")
    TestSound().prepare(tmp_path)
    config = Config().updated({"data.path": str(tmp_path), "data.encoders": ["sound"]})
    (modality,) = prepare(config.data).modalities
    assert (modality.name, int(modality.mask.sum()), modality.encoder) == ("sound", 6, "sound")
    with pytest.raises(ConfigError, match="there is no encoder 'sond'; did you mean 'sound'"):
        config.updated({"data.encoders": ["sond"]})


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ((np.zeros((3, 2)), np.ones(12, dtype=bool)), r"\(3, 2\) features"),
        ((np.zeros((12, 2)), np.ones(12)), "mask .* of float64"),
        ((np.full((12, 2), np.nan), np.ones(12, dtype=bool)), "not finite for item 0"),
    ],
)
def test_an_encoder_that_returns_something_else_is_named(tmp_path: Path, result: Any, words: str) -> None:
    class Odd:
        """Whatever the test says."""

        def encode(self, folder: Path, entities: Sequence[str]) -> Any:
            return result

    class OddContract(EncoderContract):
        name = "odd"

    imf_core.encoder("odd")(Odd)
    with pytest.raises(DataError, match=f"the encoder odd made .*{words}"):
        OddContract().view(tmp_path)


def test_a_reader_that_yields_something_else_is_named(tmp_path: Path) -> None:
    imf_core.reader("pairs")(lambda path: [("a", "b")])
    (tmp_path / "train.pairs").write_text("")
    with pytest.raises(DataError, match=r"train\.pairs: the reader pairs yields no head, relation, tail as triple 1"):
        read_graph(tmp_path)
    (tmp_path / "train.pairs").unlink()
    (tmp_path / "train.jsonl").write_text("no json")
    with pytest.raises(DataError, match=r"train\.jsonl: the reader jsonl cannot read it"):
        read_graph(tmp_path)
