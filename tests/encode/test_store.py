"""The feature store: extracted once, found by content, gone on with after a kill, never half a file, mapped when read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from lengths import ITEMS, NAMES, Lengths

from imf_core.data.features.feature_files import Features, read_features, save_features
from imf_core.encode.base import Part, PretrainedEncoder
from imf_core.encode.store import FeatureStore
from imf_core.errors import DataError


def test_rows_come_back_in_the_order_of_the_items(tmp_path: Path) -> None:
    encoder: PretrainedEncoder[str] = Lengths()
    done = FeatureStore(tmp_path).extract(encoder, NAMES, [*ITEMS[:8], "c" * 12, *ITEMS[9:]])
    assert done.features.names == tuple(NAMES[:9])
    assert done.features.matrix.tolist() == [*([i + 1, ord("b")] for i in range(8)), [12, ord("c")]]
    assert (done.items, done.truncated, done.blank, done.encoded) == (11, 1, 1, 11)
    assert done.rejected == (("e10", 0, "unreadable"),)
    assert done.features.facts["encoder"] == "lengths"
    assert done.features.facts["key"] == done.key
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{done.key}.safetensors"]


def test_what_is_there_is_read_and_not_encoded(tmp_path: Path) -> None:
    first = FeatureStore(tmp_path).extract(Lengths(), NAMES, ITEMS)
    encoder = Lengths()
    again = FeatureStore(tmp_path).extract(encoder, NAMES, ITEMS)
    assert (encoder.encoded, again.encoded) == (0, 0)
    assert np.array_equal(first.features.matrix, again.features.matrix)
    assert (again.truncated, again.blank, again.rejected) == (first.truncated, first.blank, first.rejected)


def test_the_key_follows_model_names_and_content(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    keys = [
        store.extract(Lengths(weights), names, items).key
        for weights, names, items in (
            ("1", NAMES, ITEMS), ("2", NAMES, ITEMS), ("1", NAMES[::-1], ITEMS), ("1", NAMES, ["x", *ITEMS[1:]]),
            ("1", NAMES[:-1], ITEMS[:-1]),
        )
    ]
    assert len(set(keys)) == 5


def test_features_are_mapped_and_read_only(tmp_path: Path) -> None:
    matrix = np.zeros((4096, 1024), np.float32)
    save_features(tmp_path / "x.safetensors", Features(tuple(map(str, range(4096))), matrix))
    before = private_pages()
    read = [read_features(tmp_path / "x.safetensors").matrix for _ in range(4)]
    assert sum(float(each.sum()) for each in read) == 0
    assert private_pages() - before < matrix.nbytes  # four of 16 MiB, and less than one of them is ours
    with pytest.raises(ValueError, match="read-only"):
        read[0][0, 0] = 1


def private_pages() -> int:
    """Bytes of memory that belong to this process alone and are no page of a file."""
    lines = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return 1024 * int(lines["Private_Dirty"].split()[0])


def test_nothing_readable_is_an_answer_too(tmp_path: Path) -> None:
    for _ in range(2):
        done = FeatureStore(tmp_path).extract(Lengths(), ["a", "b"], ["", "?"])
        assert done.features.names == ()
        assert done.features.matrix.shape[0] == 0
        assert (done.blank, len(done.rejected)) == (1, 1)


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    done = FeatureStore(tmp_path).extract(Lengths(), NAMES, ITEMS)
    expected = done.features.matrix.copy()
    done.path.write_bytes(done.path.read_bytes()[:-7])
    again = FeatureStore(tmp_path).extract(Lengths(), NAMES, ITEMS)
    assert again.encoded == 11
    assert np.array_equal(again.features.matrix, expected)


def test_a_damaged_shard_is_made_anew(tmp_path: Path) -> None:
    class Stops(Lengths):
        def encode_part(self, items: Sequence[str], advance: Callable[[int], None]) -> Part:
            if self.encoded == 8:
                raise KeyboardInterrupt
            return super().encode_part(items, advance)

    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path).extract(Stops(), NAMES, ITEMS)
    (parts,) = tmp_path.glob("*.parts")
    shards = sorted(parts.iterdir())
    assert len(shards) == 2
    shards[0].write_bytes(shards[0].read_bytes()[:-3])
    done = FeatureStore(tmp_path).extract(Lengths(), NAMES, ITEMS)
    assert done.encoded == 7  # the damaged shard of 4 and the missing one of 3
    assert np.array_equal(done.features.matrix, FeatureStore(tmp_path / "b").extract(Lengths(), NAMES, ITEMS).features.matrix)
    assert not parts.exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="features cannot be written") as caught:
        FeatureStore(tmp_path / "file" / "below").extract(Lengths(), NAMES, ITEMS)
    assert "IMF_CACHE" in caught.value.remedy


SLOW = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from imf_core.encode.store import FeatureStore
from lengths import Lengths
store = FeatureStore(Path({root!r}))
done = store.extract(Lengths(seconds={seconds}), [f"e{{i}}" for i in range(40)], ["b" * (i + 1) for i in range(40)])
print(done.encoded, float(done.features.matrix.sum()))
"""


def start(root: Path, seconds: float) -> subprocess.Popen[str]:
    here = Path(__file__).resolve()
    code = SLOW.format(path=[str(here.parents[1] / "support"), str(here.parents[2])], root=str(root), seconds=seconds)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_killed_extraction_goes_on_where_it_was(tmp_path: Path) -> None:
    process = start(tmp_path, 0.2)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*.parts/00001.safetensors")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(tmp_path.glob("*.safetensors"))
    kept = len(list(tmp_path.glob("*.parts/0*.safetensors")))
    assert 2 <= kept < 10
    encoder = Lengths()
    names, items = [f"e{i}" for i in range(40)], ["b" * (i + 1) for i in range(40)]
    done = FeatureStore(tmp_path).extract(encoder, names, items)
    assert done.encoded == encoder.encoded == 40 - 4 * kept
    assert done.features.matrix[:, 0].tolist() == list(range(1, 41))
    assert [path.name for path in tmp_path.iterdir()] == [f"{done.key}.safetensors"]


def test_two_processes_at_once_encode_once(tmp_path: Path) -> None:
    both = [start(tmp_path, 0.05) for _ in range(2)]
    said = sorted(process.communicate(timeout=120)[0].split() for process in both)
    assert [process.returncode for process in both] == [0, 0]
    total = str(float(sum(range(1, 41)) + 40 * ord("b")))
    assert said == [["0", total], ["40", total]]
