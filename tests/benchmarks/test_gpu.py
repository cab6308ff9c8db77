"""The script for a GPU, rehearsed on the CPU: one measurement of each kind, in figures that are not asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu

SOURCE = "generated:200,6,600"
KINDS = ("agreement paper static", "step toy captured B=256", "step toy textbook B=256", "epoch toy paper", "ranking toy")


def test_the_measurements_begin_with_the_agreement_and_have_names_of_their_own() -> None:
    names = [name for name, _ in gpu.measurements(gpu.Card(cpu=True), {"toy": SOURCE})]
    assert len(set(names)) == len(names)
    assert [name.startswith("agreement") for name in names].index(False) == 4
    assert all(any(name.startswith(kind) for name in names) for kind in KINDS)
    assert all(any(f" {form} B=1024" in name for name in names) for form in gpu.FORMS)


def test_a_measurement_that_fails_is_recorded_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gpu.measurements

    def some(card: gpu.Card, sources: dict[str, str]) -> list[tuple[str, object]]:
        def failing() -> gpu.Figures:
            raise RuntimeError("CUDA error: no such thing")

        chosen = [(name, measure) for name, measure in real(card, sources) if name.startswith(KINDS)]
        return [("failing", failing), *chosen]

    monkeypatch.setattr(gpu, "measurements", some)
    out = tmp_path / "gpu.json"
    gpu.main([str(out), "--cpu", f"toy={SOURCE}"])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["card"] == "none"
    figures = found["figures"]
    assert "no such thing" in figures.pop("failing")["error"]
    assert len(figures) >= len(KINDS)
    assert not [name for name, figure in figures.items() if "error" in figure]
    (agreed,) = [figure for name, figure in figures.items() if name.startswith("agreement")]
    assert agreed["loss"] < 1e-5 and agreed["gradient"] < 1e-5 and agreed["ranks_differing"] == 0
