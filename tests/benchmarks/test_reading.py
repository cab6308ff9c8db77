"""A large graph is read in bounded memory; the time is printed, and never asserted: it is the machine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reading import TRIPLES, generate, measure

LIMIT_GIB = 6.0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", ["tsv", "openke", "nt"])
def test_twenty_million_triples(tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = generate(tmp_path, target)
    run = measure(tmp_path)
    with capsys.disabled():
        size = file.stat().st_size / 1e6
        print(f"\n{TRIPLES:,} triples as {target} ({size:,.0f} MB): {run['seconds']:.1f} s, peak {run['peak_gib']:.2f} GiB")
    file.unlink()
    assert TRIPLES * 0.99 < run["train"] + run["valid"] <= TRIPLES  # a few are drawn twice and merged
    assert run["peak_gib"] <= LIMIT_GIB


@pytest.mark.slow
def test_fb15k237(shared_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = measure(shared_dir / "data" / "FB15K237")
    with capsys.disabled():
        print(f"\nFB15K237: {run['seconds']:.2f} s, peak {run['peak_gib']:.2f} GiB (expected: under 3 s)")
    assert (run["entities"], run["train"], run["valid"]) == (14_541, 272_115, 17_535)
