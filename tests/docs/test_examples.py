"""The files of `examples/`: settings and spaces that can be used as they are."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from imf_core.config import Config
from tune.space.space import SearchSpace

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SETTINGS = sorted(file for file in EXAMPLES.glob("*.yaml") if not file.name.startswith("space-"))
SPACES = sorted(EXAMPLES.glob("space-*.yaml"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
BRANCHES = ("structure", "text", "image", "fused")


def test_each_example_is_named_where_its_reader_looks() -> None:
    assert len(SETTINGS) + len(SPACES) == 6
    assert len(NOTEBOOKS) == 2
    searching, start = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("searching.md", "index.md"))
    assert [file.name for file in (*SETTINGS, *SPACES) if f"../examples/{file.name}" not in searching] == []
    assert [file.name for file in NOTEBOOKS if f"../examples/{file.name}" not in start] == []


@pytest.mark.parametrize("file", SETTINGS, ids=lambda file: file.stem)
def test_a_file_of_settings_can_be_searched(file: Path) -> None:
    config = Config.load(file)
    assert config.flat() != Config().flat()
    assert len(SearchSpace.default(config, BRANCHES).names) >= 4


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_each_draw_from_a_space_is_a_configuration(file: Path) -> None:
    space = SearchSpace.load(file, Config(), BRANCHES)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = [space.config_for(space.suggest(study.ask())) for _ in range(20)]
    searched = {name for name in space.names if len({json.dumps(config.flat().get(name)) for config in configs}) > 1}
    named = [line.partition(":")[0] for line in file.read_text().splitlines() if line.startswith(("model.", "train."))]
    assert named and set(named) <= searched
