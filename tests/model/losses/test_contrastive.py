"""The contrastive constraint."""

import pytest
import torch

from imf_core.model.losses.contrastive import contrastive_loss


def test_contrastive_is_log_b_for_identical_rows_and_falls_with_alignment() -> None:
    ones = torch.ones(8, 3)
    assert float(contrastive_loss(ones, ones, 0.5)) == pytest.approx(2.0794415, abs=1e-6)  # ln 8: no pair can be told apart
    eye = torch.eye(8)
    # cos = 1 on the diagonal, 0 elsewhere: -ln(e^(1/tau) / (e^(1/tau) + 7))
    expected = -torch.log(torch.exp(torch.tensor(2.0)) / (torch.exp(torch.tensor(2.0)) + 7))
    assert float(contrastive_loss(eye, eye, 0.5)) == pytest.approx(float(expected), abs=1e-6)
    assert contrastive_loss(eye, eye, 0.05) < contrastive_loss(eye, eye, 0.5)
    assert float(contrastive_loss(eye * 3, eye * 0.1, 0.5)) == pytest.approx(float(expected), abs=1e-6)  # length does not count
