"""Files of interactions as people export them (public bug reports): headers, published splits, labels, ids as floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imf_core.errors import DataError
from imf_core.recommend.config import InteractionConfig
from imf_core.recommend.data.audit import audit_interactions
from imf_core.recommend.data.prepare import InteractionSource

PAIRS = [(user, (user * 3 + step) % 25) for user in range(20) for step in range(10)]


def folder_of(place: Path, name: str, lines: list[str]) -> Path:
    place.mkdir(exist_ok=True)
    (place / name).write_text("".join(f"{line}\n" for line in lines))
    return place


def source_of(folder: Path, **settings: object) -> InteractionSource:
    return InteractionSource.open(InteractionConfig.model_validate({"path": str(folder), **settings}))


def problems(source: InteractionSource) -> list[str]:
    return list(audit_interactions(source.raw, source.split).problems)


# --- R1: a published split in a column -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "header", "labels"),
    [
        ("ml.inter", "userID\titemID\trating\ttimestamp\tx_label", ("0", "1", "2")),
        ("ml.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\tx_label:float", ("0", "1", "2")),
        ("interactions.tsv", "user\titem\trating\ttimestamp\tsplit", ("train", "val", "test")),
        ("interactions.tsv", "customer_id\tarticle_id\trating\ttimestamp\tset", ("Train", "Dev", "Test")),
        ("interactions.tsv", "UID\tIID\trating\ttimestamp\tX_LABEL", ("train", "validation", "test")),
    ],
)
def test_r1_the_column_gives_the_split(tmp_path: Path, name: str, header: str, labels: tuple[str, ...]) -> None:
    split_of = [labels[0 if place % 10 < 8 else place % 10 - 7] for place in range(len(PAIRS))]
    rows = [f"{user}\t{item}\t5\t99\t{split}" for (user, item), split in zip(PAIRS, split_of, strict=True)]
    source = source_of(folder_of(tmp_path / "d", name, [header, *rows]))
    assert {split: len(pairs) for split, pairs in source.split.items()} == {"train": 160, "valid": 20, "test": 20}
    names = source.raw.items.names
    assert {(int(source.raw.users.names[user]), int(names[item])) for user, item in source.split["test"]} == {
        pair for place, pair in enumerate(PAIRS) if place % 10 == 9
    }
    notes = " ".join(source.raw.notes)
    assert "gives the split" in notes and "columns not used: rating, timestamp" in notes
    data = source.prepare()
    assert data.has_test and len(data.interactions.open_test()) == 20


def test_r1_what_is_no_split_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "d", "interactions.tsv", ["user\titem\tsplit", "1\t2\ttrain", "1\t3\tlater"])
    with pytest.raises(DataError, match=r"(?s)line 3.*the column split holds no split.*later"):
        source_of(folder)


# --- R2: header lines ----------------------------------------------------------------------------------------------------


def test_r2_names_of_exports_are_known(tmp_path: Path) -> None:
    rows = [f"A{user}\tB{item}\t5" for user, item in PAIRS]
    source = source_of(folder_of(tmp_path / "d", "interactions.tsv", ["reviewerID\tasin\toverall", *rows]))
    assert len(source.raw.users) == 20 and not problems(source)


@pytest.mark.parametrize("header", ["Kunde\tArtikel", "who\twhat\twhen"])
def test_r2_an_unknown_header_is_asked_about(tmp_path: Path, header: str) -> None:
    more = "\t7" * (header.count("\t") - 1)
    rows = [f"{user}\t{item}{more}" for user, item in PAIRS]
    (told,) = problems(source_of(folder_of(tmp_path / "d", "interactions.tsv", [header, *rows])))
    assert header.partition("\t")[0] in told and "user_id" in told and "item_id" in told
    assert not problems(source_of(folder_of(tmp_path / "right", "interactions.tsv", rows)))


# --- R3: ids as floats ---------------------------------------------------------------------------------------------------


def test_r3_twins_by_a_fraction_and_a_test_split_that_is_all_cold(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder_of(folder, "train.tsv", [f"{user}.0\ti{item}" for user, item in PAIRS[:160]])
    folder_of(folder, "valid.tsv", [f"{user}\ti{item}" for user, item in PAIRS[160:180]])
    folder_of(folder, "test.tsv", [f"{user}\ti{item}" for user, item in PAIRS[:20]])
    told = problems(source_of(folder))
    assert any("2 users differ from another only by '.0' (0 and 0.0)" in line for line in told)
    assert any("all 20 test interactions have a user or an item that training lacks" in line for line in told)


# --- R4: explicit negatives ----------------------------------------------------------------------------------------------


def test_r4_a_label_is_told_and_taken(tmp_path: Path) -> None:
    rows = [f"{user}\t{item}\t{float(item % 2) if user else item % 2}" for user, item in PAIRS]
    folder = folder_of(tmp_path / "d", "d.inter", ["user_id:token\titem_id:token\tlabel:float", *rows])
    source = source_of(folder)
    assert source.raw.lines == 200
    assert any("data.label=label leaves them out" in note for note in source.raw.notes)
    taken = source_of(folder, label="label")
    assert taken.raw.lines == sum(item % 2 for _, item in PAIRS)
    assert all(int(taken.raw.items.names[item]) % 2 for item in np.unique(taken.raw.splits["all"][:, 1]))
    with pytest.raises(DataError, match=r"data\.label names no column; did you mean 'label'"):
        source_of(folder, label="lable")


@pytest.mark.parametrize("header", ["userId\tmovieId\trating", "reviewer_id\tproduct_id\tstars"])
def test_r2_names_of_further_exports(tmp_path: Path, header: str) -> None:
    folder = folder_of(tmp_path / "d", "interactions.tsv", [header, *(f"{u}\t{i}\t4" for u, i in PAIRS)])
    source = source_of(folder, min_rating=3)
    assert (len(source.raw.users), len(source.raw.items), source.raw.lines) == (20, 25, 200)


@pytest.mark.parametrize("written", ["{u}\t{i}.0", "{u}.0\t{i}.0"])
def test_r3_items_or_both_with_a_fraction(tmp_path: Path, written: str) -> None:
    folder = folder_of(tmp_path / "d", "train.tsv", [written.format(u=u, i=i) for u, i in PAIRS[:150]])
    folder_of(folder, "test.tsv", [f"{u}\t{i}" for u, i in PAIRS[150:]])
    assert any('".0"' in problem or ".0" in problem for problem in problems(source_of(folder)))


@pytest.mark.parametrize(
    ("name", "header"), [("a.inter", "user_id\titem_id\tLabel"), ("interactions.tsv", "user\titem\tlabel")]
)
def test_r4_labels_of_other_files(tmp_path: Path, name: str, header: str) -> None:
    folder = folder_of(tmp_path / "d", name, [header, *(f"{u}\t{i}\t{(u + i) % 2}.0" for u, i in PAIRS)])
    assert any("data.label" in note for note in source_of(folder).raw.notes)
    assert source_of(folder, label="label").raw.lines == sum((u + i) % 2 for u, i in PAIRS)
