"""Texts -> vectors by a pretrained `transformers` model, in float32.

The vector of a text does not depend on the texts around it: padding is masked, dropout is off. The texts of a batch have about
the same length, since padding costs as much as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imf_core.encode.base import Part, spread
from imf_core.encode.hub import folder_hash, model_folder, quiet_transformers
from imf_core.errors import ConfigError, DataError
from imf_core.files.digest import sha256_of

if TYPE_CHECKING:
    from torch import Tensor

_CODE = "1"  # raise it whenever the same model and text would give another vector
_LONGEST = 512  # tokens, where neither model nor tokeniser knows a bound
_PADDED_AT_START = ("roberta", "camembert", "mpnet", "longformer", "esm")  # their positions begin behind the padding's id


class TransformersTextEncoder:
    """One vector a text from a `transformers` model.

    Args:
        model: a folder, or the name of a model on the hub (from its cache, or fetched where the network is allowed).
        name: how it is called in reports; default: as `model`.
        pooling: `pooler` (the pooled output, what the published work takes from `bert-base-uncased`), `mean` (of the tokens),
            `cls` (the first token); `auto`: what a sentence model's `modules.json` says, else `pooler` for BERT, else `mean`.
        batch_tokens: tokens of a batch, padding included; bounds the memory.

    Attributes:
        truncated, blank: texts that the last `encode` cut, and texts without a token, which count as missing.
    """

    shard = 512

    def __init__(self, model: str, *, name: str | None = None, pooling: str = "auto", batch_tokens: int = 4096) -> None:
        self.name, self.pooling, self.batch_tokens = name or model, pooling, batch_tokens
        self.folder = model_folder(model)
        self.truncated = self.blank = 0
        self._loaded: _LoadedText | None = None

    def identity(self) -> dict[str, str]:
        """Kind, pooling and the hash of the model's files."""
        return {"kind": "transformers text", "code": _CODE, "pooling": self.pooling, "weights": folder_hash(self.folder)}

    def digest(self, item: str) -> str:
        """SHA-256 of the text."""
        return sha256_of([item.encode("utf-8", "surrogatepass")])

    def order(self, items: Sequence[str]) -> np.ndarray:
        """Long texts first, so that the time left is never underestimated."""
        return np.argsort([-len(item) for item in items], kind="stable")

    def encode(self, items: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Encode texts; None and blank texts are missing.

        Args:
            items: n texts.

        Returns:
            Features (n, f) float32; presence mask (n,) bool.
        """
        rows = [row for row, item in enumerate(items) if item is not None]
        part = self.encode_part([item for item in items if item is not None], lambda count: None)
        self.truncated, self.blank = len(part.truncated), len(part.blank)
        mask = np.zeros(len(items), dtype=bool)
        mask[rows] = part.present
        return spread(part.vectors, mask), mask

    def encode_part(self, items: Sequence[str], advance: Callable[[int], None]) -> Part:
        """Encode n texts; blank ones have no vector."""
        if self._loaded is None:
            self._loaded = _LoadedText(self.folder, self.pooling)
        loaded = self._loaded
        tokens, truncated = loaded.tokens([item.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for item in items])
        present = np.array([row is not None for row in tokens], dtype=bool)
        rows_with_tokens = [row for row in tokens if row is not None]
        vectors = np.zeros((len(rows_with_tokens), 0), dtype=np.float32)
        advance(len(items) - len(rows_with_tokens))
        order = np.argsort([-len(row) for row in rows_with_tokens], kind="stable")
        start = 0
        while start < len(order):
            rows = order[start : start + max(1, self.batch_tokens // len(rows_with_tokens[order[start]]))]
            batch = loaded.vectors([rows_with_tokens[row] for row in rows])
            if not start:
                vectors = np.zeros((len(rows_with_tokens), batch.shape[1]), dtype=np.float32)
            vectors[rows] = batch
            advance(len(rows))
            start += len(rows)
        return Part(present, vectors, truncated, np.flatnonzero(~present).tolist())


class _LoadedText:
    """A model and its tokeniser in memory."""

    def __init__(self, folder: Path, pooling: str) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                model, info = AutoModel.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
                    output_loading_info=True,
                )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise DataError.at(
                folder, None, f"this model cannot be loaded: {error}", remedy="fetch or save it again, or choose another one"
            ) from error
        config = model.config
        absent = {key for key in info["missing_keys"] if "pooler" not in key}
        if absent or info["mismatched_keys"]:
            raise DataError.at(
                folder, None, f"the weights do not fill the model: {sorted(absent) or info['mismatched_keys']!s:.200}",
                remedy="fetch or save it again, or choose another model",
            )
        model = getattr(model, "text_model", model)  # of a model of texts and pictures
        self.model = (model.get_encoder() if config.is_encoder_decoder else model).to(self.device).eval()
        self.tokenizer: Any = tokenizer
        words = self.model.get_input_embeddings().num_embeddings
        if not 16 <= len(tokenizer) <= words:
            raise DataError.at(
                folder, None, f"the tokeniser knows {len(tokenizer):,} tokens and the model {words:,}",
                remedy="put the tokeniser's files into the folder: tokenizer.save_pretrained(FOLDER)",
            )
        trained_pooler = not any("pooler" in key for key in info["missing_keys"]) and hasattr(self.model, "pooler")
        self.pooling, self.unit = _pooling(folder, pooling, str(config.model_type), trained_pooler)
        self.longest = _longest(folder, config.get_text_config(), tokenizer)

    def tokens(self, texts: list[str]) -> tuple[list[list[int] | None], list[int]]:
        """Token ids of each text (None without a token of its own), and the positions of the texts that were cut."""
        if not texts:
            return [], []
        special = self.tokenizer.num_special_tokens_to_add()
        rows = self.tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]
        long = [number for number, row in enumerate(rows) if len(row) > self.longest]
        for number in long:  # again, by the tokeniser: where it cuts and what it keeps at the ends differs between models
            rows[number] = self.tokenizer(texts[number], truncation=True, max_length=self.longest)["input_ids"]
        token_rows = [
            row if len(row) > special and text.strip() else None for row, text in zip(rows, texts, strict=True)
        ]
        return token_rows, [number for number in long if token_rows[number] is not None]

    def vectors(self, rows: list[list[int]]) -> np.ndarray:
        """(b, f) of b texts."""
        import torch

        padding = self.tokenizer.pad_token_id or 0
        ids = torch.full((len(rows), max(map(len, rows))), padding, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.inference_mode():
            output = self.model(input_ids=ids, attention_mask=mask)
            pooled = self._pool(output, mask)
            if self.unit:
                pooled = torch.nn.functional.normalize(pooled, dim=1)
        return pooled.cpu().numpy()

    def _pool(self, output: Any, mask: Tensor) -> Tensor:
        pooled: Tensor
        if self.pooling == "pooler":
            pooled = output.pooler_output
        elif self.pooling == "cls":
            pooled = output.last_hidden_state[:, 0]
        else:
            weight = mask[:, :, None].to(output.last_hidden_state.dtype)
            pooled = (output.last_hidden_state * weight).sum(1) / weight.sum(1)
        return pooled


def _pooling(folder: Path, asked: str, model_type: str, trained_pooler: bool) -> tuple[str, bool]:
    """How the tokens become one vector, and whether it is scaled to length 1."""
    described: list[dict[str, Any]] = _json(folder / "modules.json") or []
    kinds = {str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in described}
    unit = "Normalize" in kinds
    if asked == "pooler" and not trained_pooler:
        raise ConfigError(
            f"{folder} has no trained pooler", remedy="choose data.text_pooling=mean (imf encode: --text-pooling mean)",
            key="data.text_pooling", value=asked,
        )
    if asked != "auto":
        return asked, unit
    if "Pooling" not in kinds:
        return ("pooler" if model_type == "bert" and trained_pooler else "mean"), unit
    settings: dict[str, Any] = _json(folder / kinds["Pooling"] / "config.json") or {}
    modes = {mode for mode, wanted in settings.items() if mode.startswith("pooling_mode_") and wanted is True}
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or not modes <= known.keys() or "Dense" in kinds:
        found = ", ".join(sorted(modes | (kinds.keys() & {"Dense"})))
        raise ConfigError(
            f"{folder} pools its tokens in a way that is not known here ({found})",
            remedy="choose data.text_pooling=mean or cls (imf encode: --text-pooling mean)",
            key="data.text_pooling", value=asked,
        )
    return known[modes.pop()], unit


def _longest(folder: Path, config: Any, tokenizer: Any) -> int:
    """Tokens that the model reads of a text."""
    positions = getattr(config, "max_position_embeddings", None) or _LONGEST
    if any(family in str(config.model_type) for family in _PADDED_AT_START):
        positions -= (config.pad_token_id or 0) + 1
    asked = (_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    longest = min(positions, tokenizer.model_max_length, asked or positions)
    return int(min(longest, 8192))  # the time for a text grows with the square


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError.at(path, None, f"no JSON: {error}", remedy="fetch or save the model again") from error
