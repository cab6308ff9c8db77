"""Models small enough to be made in a test, and the proof that nothing asked the network for another one."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "plain", "sentence", "of", "words", "https", "example", "org",
         "page", ":", "/", ".", "-", "中", "文", "the", "city", "##s", "first", "second", "third", "one", "text")


def tiny_bert(folder: Path, *, positions: int = 16, pooler: bool = True, seed: int = 0) -> Path:
    """A BERT of one layer and its tokeniser."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                        max_position_embeddings=positions)
    BertModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def tiny_vit(folder: Path, *, seed: int = 0) -> Path:
    """A vision transformer of one layer for pictures of 16 x 16, without a trained pooler."""
    import torch
    from transformers import ViTConfig, ViTModel

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    size, half = {"height": 16, "width": 16}, [0.5] * 3
    said = {"do_resize": True, "size": size, "image_mean": half, "image_std": half, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def block_sockets(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Each connection that is tried from now on fails, and is noted in the list."""
    tried: list[object] = []

    def refuse(*arguments: object, **keywords: object) -> None:
        tried.append(arguments)
        raise OSError("the network is blocked in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried
