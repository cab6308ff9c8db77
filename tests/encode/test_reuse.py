"""What an earlier extraction by the same encoder has encoded is taken from there, whatever has changed around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lengths import ITEMS, NAMES, Lengths
from safetensors.numpy import load_file, save_file

from imf_core.encode.reuse import digest_rows, known_items
from imf_core.encode.store import Extracted, FeatureStore

LONG = "c" * 12


def extract(root: Path, names: list[str], items: list[str], weights: str = "1") -> tuple[Extracted, int]:
    encoder = Lengths(weights)
    return FeatureStore(root).extract(encoder, names, items), encoder.encoded


def test_one_more_item_costs_one_item(tmp_path: Path) -> None:
    names, items = NAMES[:10], [*ITEMS[:9], ""]
    extract(tmp_path, names, items)
    done, encoded = extract(tmp_path, ["new", *names[::-1]], [LONG, *items[::-1]])
    assert (encoded, done.encoded, done.reused, done.items) == (1, 1, 10, 11)
    assert done.features.names == ("new", *names[8::-1])
    assert done.features.matrix[:, 0].tolist() == [12, *range(9, 0, -1)]
    assert (done.truncated, done.blank) == (1, 1)  # counts are of all items, encoded now or before
    fresh, _ = extract(tmp_path / "fresh", ["new", *names[::-1]], [LONG, *items[::-1]])
    assert np.array_equal(done.features.matrix, fresh.features.matrix)
    assert done.features.facts == fresh.features.facts


def test_fewer_items_cost_nothing_and_equal_ones_share(tmp_path: Path) -> None:
    extract(tmp_path, NAMES[:10], [*ITEMS[:8], LONG, ""])
    done, encoded = extract(tmp_path, ["x", "y", "z", "w"], [LONG, "bb", LONG, ""])
    assert (encoded, done.reused) == (0, 4)
    assert done.features.names == ("x", "y", "z")
    assert done.features.matrix[:, 0].tolist() == [12, 2, 12]
    assert (done.truncated, done.blank) == (2, 1)


def test_rows_come_from_several_files(tmp_path: Path) -> None:
    extract(tmp_path, ["a", "b"], ["p", "qq"])
    extract(tmp_path, ["c", "d"], ["rrr", "ssss"])
    done, encoded = extract(tmp_path, list("abcde"), ["ssss", "p", "ttttt", "rrr", "qq"])
    assert (encoded, done.reused) == (1, 4)
    assert done.features.matrix.tolist() == [[4, ord("s")], [1, ord("p")], [5, ord("t")], [3, ord("r")], [2, ord("q")]]


def test_another_model_shares_nothing(tmp_path: Path) -> None:
    extract(tmp_path, NAMES[:9], ITEMS[:9])
    done, encoded = extract(tmp_path, NAMES[:8], ITEMS[:8], weights="2")
    assert (encoded, done.reused) == (8, 0)


def test_what_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    extract(tmp_path, ["a", "b"], ["x", "?"])
    done, encoded = extract(tmp_path, ["a", "b", "c"], ["x", "?", "yy"])
    assert (encoded, done.reused) == (2, 1)
    assert done.rejected == (("b", 0, "unreadable"),)


@pytest.mark.parametrize("damage", ["cut", "empty", "older"])
def test_files_that_are_no_help_do_no_harm(tmp_path: Path, damage: str) -> None:
    first, _ = extract(tmp_path, NAMES[:9], ITEMS[:9])
    if damage == "older":  # written before digests were
        kept = {name: tensor for name, tensor in load_file(first.path).items() if name in ("matrix", "names")}
        save_file(kept, first.path, metadata=dict(first.features.facts))
    else:
        first.path.write_bytes(first.path.read_bytes()[:-7] if damage == "cut" else b"")
    done, encoded = extract(tmp_path, NAMES[:8], ITEMS[:8])
    assert (encoded, done.reused) == (8, 0)
    assert done.features.matrix[:, 0].tolist() == list(range(1, 9))


def test_a_killed_extraction_goes_on_though_more_is_known_by_then(tmp_path: Path) -> None:
    """Shards of the first start hold other items than those of the second: none may be taken for another."""
    class Stops(Lengths):
        def encode_part(self, items, advance):  # type: ignore[no-untyped-def]
            if self.encoded == 4:
                raise KeyboardInterrupt
            return super().encode_part(items, advance)

    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path).extract(Stops(), NAMES[:9], ITEMS[:9])
    assert len(list(tmp_path.glob("*.parts/*.safetensors"))) == 1  # the four longest
    extract(tmp_path, ["other"], [ITEMS[8]])  # the longest of them is now known from elsewhere
    done, encoded = extract(tmp_path, NAMES[:9], ITEMS[:9])
    assert done.features.matrix[:, 0].tolist() == list(range(1, 10))
    assert (encoded, done.reused) == (8, 1)


def test_nothing_asked_for(tmp_path: Path) -> None:
    known = known_items(tmp_path, "", [])
    assert (len(known.flags), len(known.missing), known.sources) == (0, 0, [])
    assert digest_rows(["00ff", "0102"]).tolist() == [[0, 255], [1, 2]]
