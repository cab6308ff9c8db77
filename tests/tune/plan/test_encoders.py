"""Pretrained encoders and a search: a missing model shows before anything is written; what trials read holds the features."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_search import SMALL, write_graph
from tiny_models import block_sockets, tiny_bert

from imf_core.config import Config
from imf_core.config_base import parse_overrides
from imf_core.encode.text.pretrained import TransformersTextEncoder
from imf_core.errors import DataError
from imf_core.prepare.link_data import load_prepared
from imf_core.train.fit import build_model, fit
from tune.hosts.resources import ClusterResources
from tune.plan.opening import open_study
from tune.plan.plan import Plan, make_plan
from tune.settings import SearchConfig


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`graph/` with descriptions, and a cache of the test's own."""
    monkeypatch.setenv("IMF_CACHE", str(tmp_path / "cache"))
    write_graph(tmp_path / "graph")
    return tmp_path


def planned(home: Path, study: str, model: str) -> Plan:
    given = {"data": str(home / "graph"), "storage": str(home / "results"), "study": study,
             "overrides": parse_overrides([*SMALL, f"data.text_encoder={model}"])}  # fmt: skip
    return make_plan(SearchConfig.build(given), ClusterResources.local())


def test_a_missing_model_is_one_error_before_the_search(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MM-7: model, cache and download command are named; no connection is tried, no study begun."""
    tried = block_sockets(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    with pytest.raises(DataError) as caught:
        planned(home, "one", "bert-base-uncased")
    assert f"the model bert-base-uncased is not in {home / 'hub'}" in str(caught.value)
    assert "hf download bert-base-uncased" in caught.value.remedy
    assert tried == []
    assert not (home / "results").exists()


def test_features_are_extracted_once_and_trials_need_no_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MM-7: two searches encode each text once in all; a trial trains though model, cache and graph folder are gone."""
    encoded: list[int] = []
    real = TransformersTextEncoder.encode_part

    def counted(self: TransformersTextEncoder, items: list[str], advance: object) -> object:
        encoded.append(len(items))
        return real(self, items, advance)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformersTextEncoder, "encode_part", counted)
    model = tiny_bert(home / "bert")
    plan = planned(home, "one", str(model))
    with open_study(plan):
        pass
    planned(home, "two", str(model))
    assert sum(encoded) == len((home / "graph" / "descriptions.tsv").read_text().splitlines())
    for folder in (model, home / "cache", home / "graph"):
        shutil.rmtree(folder)
    trials = [load_prepared(plan.prepared) for _ in range(2)]
    (first,), (second,) = (data.modalities for data in trials)
    assert first.encoder == str(model)
    assert np.array_equal(first.matrix, second.matrix) and np.array_equal(first.mask, second.mask)
    config = Config().updated(parse_overrides(SMALL)).updated({"train.max_epochs": 1})
    for data in trials:
        assert fit(build_model(config, data), data, config).curve
    assert len(encoded) == 1
