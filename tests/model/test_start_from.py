"""A given table as first values: same width, wider (principal components), narrower (random rest), missing rows, scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imf_core.config import Config, ModelConfig
from imf_core.errors import DataError
from imf_core.model.imf import Imf
from imf_core.model.modality_table import start_from

N, D = 400, 8


def table(width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 5.0, size=(N, width)).astype(np.float32)


def model(structure_table: np.ndarray | None) -> Imf:
    torch.manual_seed(0)
    config = Config().updated({"model.dim": D, "model.relation_dim": 4}).model
    return Imf(config, N, 2, [], structure_table=structure_table)


def cosines(rows: torch.Tensor) -> np.ndarray:
    unit = torch.nn.functional.normalize(rows.detach().double())
    return (unit @ unit.T).numpy()


def deviation(rows: torch.Tensor) -> float:
    return float(rows.detach().std())


def centred(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0))


def test_equal_width_keeps_the_geometry_at_the_random_scale() -> None:
    given, random = table(D), model(None).structure
    found = model(given).structure
    np.testing.assert_allclose(cosines(found), cosines(centred(given)), atol=1e-5)
    assert deviation(found) == pytest.approx(deviation(random), rel=1e-3)
    assert isinstance(found, torch.nn.Parameter) and found.requires_grad


def test_a_wider_table_keeps_its_leading_directions() -> None:
    core = table(D)
    turned = core @ np.linalg.qr(np.random.default_rng(1).normal(size=(20, 20)))[0][:D].astype(np.float32)
    wide = turned + np.random.default_rng(2).normal(0, 1e-3, size=(N, 20)).astype(np.float32)
    found = model(wide).structure
    assert found.shape == (N, D)
    np.testing.assert_allclose(cosines(found), cosines(centred(core)), atol=1e-2)
    assert deviation(found) == pytest.approx(deviation(model(None).structure), rel=1e-3)


def test_a_narrower_table_leaves_the_other_columns_random() -> None:
    given, random = table(5), model(None).structure
    found = model(given).structure
    assert torch.equal(found[:, 5:], random[:, 5:])
    np.testing.assert_allclose(cosines(found[:, :5]), cosines(centred(given)), atol=1e-5)
    assert deviation(found) == pytest.approx(deviation(random), rel=0.05)


@pytest.mark.parametrize("width", [5, D, 20])
def test_rows_that_are_missing_stay_random(width: int) -> None:
    given, random = table(width), model(None).structure
    given[::3] = np.nan
    found = model(given).structure
    assert torch.equal(found[::3], random[::3])
    assert torch.isfinite(found).all()
    assert not torch.allclose(found[1::3], random[1::3])


def test_nothing_but_the_structure_branch_changes() -> None:
    plain, started = model(None), model(table(D))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, started.state_dict()[name]) == (name != "structure"), name


def test_signs_of_the_components_are_fixed() -> None:
    first, second = torch.ones(N, D), torch.ones(N, D)
    start_from(first.normal_(generator=torch.Generator().manual_seed(0)), table(20))
    start_from(second.normal_(generator=torch.Generator().manual_seed(0)), table(20)[:, ::-1])  # columns in another order
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_a_constant_table_does_not_divide_by_zero() -> None:
    assert torch.isfinite(model(np.ones((N, D), np.float32)).structure).all()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (np.zeros((N - 1, D), np.float32), "not one row for each of 400 entities"),
        (np.zeros(N, np.float32), "not one row for each of 400 entities"),
        (np.full((N, D), np.nan, np.float32), "no finite row"),
        (np.full((N, D), np.inf, np.float32), "no finite row"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(given: np.ndarray, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        start_from(torch.zeros(N, ModelConfig().dim), given)
