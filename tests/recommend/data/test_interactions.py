"""Interactions: readers, split, features by item, audit. REC-n are cases from public bug reports."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from imf_core.data.bundled.codepages import text_encodings
from imf_core.data.bundled.unicode import bundled_path
from imf_core.errors import ConfigError, DataError
from imf_core.recommend.config import InteractionConfig, RecommendConfig
from imf_core.recommend.data.audit import audit_interactions
from imf_core.recommend.data.interactions import Owned, split_per_user
from imf_core.recommend.data.pair_files import read_pairs
from imf_core.recommend.data.prepare import InteractionSource, load_recommend, prepare_recommend, save_recommend
from imf_core.recommend.data.readers import read_raw_interactions
from imf_core.tasks.recommend import RECOMMEND

PAIRS = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 3), (2, 0), (0, 3)]  # 3 users, 4 items
FORMS = {
    "from zero": [0, 1, 2, 3],
    "after the users": [3, 4, 5, 6],
    "gaps": [10, 20, 30, 40],
    "text": ["B00X", "a", "Z9", "ü u"],
}


def write_lines(path: Path, pairs: list, end: str = "\n") -> Path:
    path.write_bytes("".join(f"{user}\t{item}{end}" for user, item in pairs).encode())
    return path


# --- readers ------------------------------------------------------------------------------------------------------------


def test_text_with_mark_header_crlf_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(b"\xef\xbb\xbfuserId\tmovieId\trating\r\nNew York\tA:B|C\t4\r\n\r\n7\tA:B|C\t1\r\nNew York\tb\t5")
    found = read_pairs(path)
    assert (found.users, found.items) == (("New York", "7"), ("A:B|C", "b"))
    assert found.rows.tolist() == [[0, 0], [1, 0], [0, 1]]
    assert found.lines.tolist() == [2, 4, 5]
    assert found.notes == ("x.tsv: column not used: rating",)
    rated = read_pairs(path, min_rating=4)
    assert rated.rows.tolist() == [[0, 0], [0, 1]]
    assert "1 interactions with a rating below 4" in rated.notes[0]


def test_an_atomic_file_is_read_by_its_typed_header(tmp_path: Path) -> None:
    path = tmp_path / "ml.inter"
    path.write_text("item_id:token\ttimestamp:float\tuser_id:token\trating:float\nb\t1.5\tu\t3\na\t2\tu\t5\n")
    found = read_pairs(path, min_rating=4)
    assert (found.users, found.items, found.rows.tolist()) == (("u",), ("a",), [[0, 0]])
    assert read_raw_interactions(tmp_path).splits["all"].shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "text", "line", "value"),
    [
        ("x.tsv", "u\ti\nu\tj\tk\n", 2, "u\tj\tk"),
        ("x.tsv", "u\ti\n\nu\t \n", 3, "u\t "),
        ("x.tsv", "u,i\n", 1, "u,i"),
        ("x.tsv", "lonely\n", 1, "lonely"),
        ("x.inter", "u\ti\n", 1, "u"),
        ("x.inter", "user_id:token\titem_id:word\n", 1, "item_id:word"),
        ("x.inter", "user_id:token\tthing:token\n", 1, "user_id:token\tthing:token"),
        ("x.inter", "user_id:token\titem_id:token_seq\n", 1, "item_id:token_seq"),
        ("x.inter", "user_id:token\titem_id:token\trating:float\na\tb\tgood\n", 2, "good"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, name: str, text: str, line: int, value: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}, line {line}: ") as caught:
        read_pairs(tmp_path / name, min_rating=1 if "rating" in text else None)
    assert caught.value.line == line
    assert caught.value.value == value
    assert caught.value.remedy


def test_ratings_are_needed_where_they_count(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a column of ratings"):
        read_pairs(write_lines(tmp_path / "x.tsv", PAIRS), min_rating=3)


def test_matrices_and_pairs_of_numpy(tmp_path: Path) -> None:
    users, items = np.array(PAIRS).T
    matrix = scipy.sparse.csr_matrix((np.full(len(PAIRS), 2.0), (users, items)), shape=(5, 6))
    scipy.sparse.save_npz(tmp_path / "m.npz", matrix)
    found = read_pairs(tmp_path / "m.npz")
    assert (len(found.users), len(found.items)) == (5, 6)  # two users and two items without any
    assert sorted(map(tuple, found.rows.tolist())) == sorted(PAIRS)
    assert not len(read_pairs(tmp_path / "m.npz", min_rating=3).rows)
    np.save(tmp_path / "p.npy", np.array(PAIRS))
    np.savez(tmp_path / "p.npz", users=users, items=items)
    for name in ("p.npy", "p.npz"):
        assert [
            (int(found.users[u]), int(found.items[i])) for found in [read_pairs(tmp_path / name)] for u, i in found.rows
        ] == PAIRS
    np.save(tmp_path / "bad.npy", np.array([[0, 1], [2, -1]]))
    with pytest.raises(DataError, match="line 2: an id is negative"):
        read_pairs(tmp_path / "bad.npy")
    np.save(tmp_path / "code.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="no plain NumPy file"):
        read_pairs(tmp_path / "code.npy")
    scipy.sparse.save_npz(tmp_path / "csc.npz", matrix.tocsc())
    with pytest.raises(DataError, match="tocsr"):
        read_pairs(tmp_path / "csc.npz")


def test_a_list_fixes_ids_and_refuses_strangers(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "interactions.tsv", [("b", "y"), ("a", "x")])
    (tmp_path / "users.txt").write_text("none\na\nb\n")
    raw = read_raw_interactions(tmp_path)
    assert raw.users.names == ("none", "a", "b")
    (tmp_path / "items.txt").write_text("x\n")
    with pytest.raises(DataError, match="line 1: the item is missing") as caught:
        read_raw_interactions(tmp_path)
    assert caught.value.value == "y"
    (tmp_path / "items.txt").write_text("x\ny\nunused\n")
    assert read_raw_interactions(path).items.names == ("x", "y", "unused")


# --- split --------------------------------------------------------------------------------------------------------------


def test_rec_2_users_with_few_interactions(tmp_path: Path) -> None:
    """Users with 0, 1, 2, 3 and 5 interactions."""
    counts = {"none": 0, "one": 1, "two": 2, "three": 3, "five": 5}
    write_lines(tmp_path / "interactions.tsv", [(user, f"i{k}") for user, count in counts.items() for k in range(count)])
    (tmp_path / "users.txt").write_text("\n".join(counts))
    data = prepare_recommend(InteractionConfig(path=str(tmp_path)))
    found = data.interactions
    assert np.bincount(found.train[:, 0], minlength=5).tolist() == [0, 1, 2, 2, 4]
    assert np.bincount(found.open_test()[:, 0], minlength=5).tolist() == [0, 0, 0, 1, 1]
    assert not len(found.valid)
    assert any(
        "1 of 5 users have no training interaction: they get what the mean user gets" in line for line in data.describe()
    )


@pytest.mark.parametrize("count", range(1, 60))
def test_the_split_of_a_user_is_complete_and_has_something_to_train(count: int) -> None:
    pairs = np.stack((np.zeros(count, np.int64), np.arange(count)), axis=1)
    parts = split_per_user(pairs, 1, count)
    assert sorted(np.concatenate(parts)[:, 1].tolist()) == list(range(count))
    train, valid, test = map(len, parts)
    assert train == int(0.8 * count + 0.5) >= 1
    assert 0 <= test - valid <= 1


def test_the_seed_decides_the_split_and_nothing_else_does() -> None:
    pairs = np.stack(np.divmod(np.arange(400), 20), axis=1)
    first, again, other = (split_per_user(pairs, 20, 20, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[2], other[2])
    positions = np.concatenate([split_per_user(pairs, 20, 20, seed)[2][:, 1] for seed in range(50)])
    assert np.bincount(positions, minlength=20).min() > 50  # 2,000 draws over 20 items: all of them are held out at times


def test_files_of_their_own_are_taken_as_they_are_and_validation_is_set_aside(tmp_path: Path) -> None:
    train = [("u", f"i{k}") for k in range(20)]
    write_lines(tmp_path / "train.tsv", train)
    write_lines(tmp_path / "test.tsv", [("u", "only here")])
    data = prepare_recommend(InteractionConfig(path=str(tmp_path), drop_cold=True))
    assert (len(data.interactions.train), len(data.interactions.valid)) == (18, 2)
    names = data.interactions.items.names
    assert [names[item] for _, item in data.interactions.open_test()] == ["only here"]


# --- ids ----------------------------------------------------------------------------------------------------------------


def test_rec_3_however_items_are_numbered_the_graph_is_the_same(tmp_path: Path) -> None:
    found = {}
    for form, names in FORMS.items():
        folder = tmp_path / form
        folder.mkdir()
        write_lines(folder / "interactions.tsv", [(user, names[item]) for user, item in PAIRS])
        data = prepare_recommend(InteractionConfig(path=str(folder)))
        assert data.interactions.items.names == tuple(map(str, names))  # the original ids come back
        found[form] = (
            data.interactions.train.tolist(),
            data.interactions.valid.tolist(),
            data.interactions.open_test().tolist(),
        )
        assert (data.interactions.num_users, data.interactions.num_items) == (3, 4)
    assert all(parts == found["from zero"] for parts in found.values())


@pytest.mark.parametrize("form", ["from zero", "after the users"])
def test_rec_3_rows_of_features_follow_either_numbering(tmp_path: Path, form: str) -> None:
    write_lines(tmp_path / "interactions.tsv", [(user, FORMS[form][item]) for user, item in reversed(PAIRS)])
    np.save(tmp_path / "tags.npy", np.arange(8, dtype=np.float32).reshape(4, 2))
    data = prepare_recommend(InteractionConfig(path=str(tmp_path)))
    (tags,) = data.modalities
    for position, name in enumerate(data.interactions.items.names):
        assert tags.matrix[position, 0] == 2 * FORMS[form].index(int(name))


def test_rec_3_a_mixed_file_is_refused_by_line(tmp_path: Path) -> None:
    mixed = [(0, 0), (0, 1), (1, 1), (1, 5), (2, 3), (2, 6)]  # lines 4 and 6 count on after the users
    write_lines(tmp_path / "interactions.tsv", mixed)
    np.save(tmp_path / "tags.npy", np.ones((4, 2), np.float32))
    with pytest.raises(DataError, match="line 4: the item is none of the 4 rows") as caught:
        prepare_recommend(InteractionConfig(path=str(tmp_path)))
    assert (caught.value.line, caught.value.value) == (4, "5")
    (tmp_path / "tags.npy").unlink()
    (tmp_path / "items.txt").write_text("0\n1\n2\n3\n")
    with pytest.raises(DataError, match="line 4: the item is missing"):
        prepare_recommend(InteractionConfig(path=str(tmp_path)))


def test_text_ids_and_features_without_names_do_not_go_together(tmp_path: Path) -> None:
    write_lines(tmp_path / "interactions.tsv", [("u", "0"), ("u", "B00X")])
    np.save(tmp_path / "tags.npy", np.ones((4, 2), np.float32))
    with pytest.raises(DataError, match="line 2: features without names need items that are row numbers"):
        prepare_recommend(InteractionConfig(path=str(tmp_path)))


# --- features -----------------------------------------------------------------------------------------------------------


def rec_6(folder: Path) -> Path:
    """4 items with features, 3 of them with interactions, and a fifth item with interactions alone."""
    (folder / "modalities").mkdir(parents=True)
    np.save(folder / "modalities" / "tags.npy", np.arange(1, 9, dtype=np.float32).reshape(4, 2))
    (folder / "modalities" / "tags.names.txt").write_text("d\nc\nb\na\n")
    write_lines(folder / "interactions.tsv", [("u", "a"), ("u", "b"), ("v", "bare"), ("v", "c")])
    return folder


def test_rec_6_items_without_features_and_features_without_interactions(tmp_path: Path) -> None:
    data = prepare_recommend(InteractionConfig(path=str(rec_6(tmp_path / "x"))))
    found, (tags,) = data.interactions, data.modalities
    assert found.items.names == ("a", "b", "bare", "c", "d")
    assert tags.mask.tolist() == [True, True, False, True, True]
    assert tags.matrix.tolist() == [[7, 8], [5, 6], [0, 0], [3, 4], [1, 2]]  # of item k, not of row k
    said = "\n".join(data.describe())
    assert "1 of 5 items have no training interaction" in said
    assert "1 of 5 items have no features at all" in said
    dropped = prepare_recommend(InteractionConfig(path=str(tmp_path / "x"), drop_cold=True))
    assert dropped.interactions.items.names == ("a", "b", "bare", "c")
    assert dropped.modalities[0].matrix.tolist() == [[7, 8], [5, 6], [0, 0], [3, 4]]
    save_recommend(dropped, tmp_path / "prepared")
    loaded = load_recommend(tmp_path / "prepared")
    assert loaded.interactions.items.names == ("a", "b", "bare", "c")  # the map of ids is kept
    assert loaded.interactions.fingerprint == dropped.interactions.fingerprint
    assert loaded.interactions.test_reader is None


def test_prepared_data_that_was_changed_is_refused(tmp_path: Path) -> None:
    save_recommend(prepare_recommend(InteractionConfig(path=str(rec_6(tmp_path / "x")))), tmp_path / "p")
    text = (tmp_path / "p" / "vocabulary.json").read_text()
    (tmp_path / "p" / "vocabulary.json").write_text(text.replace('"bare"', '"else"'))
    with pytest.raises(DataError, match="damaged"):
        load_recommend(tmp_path / "p")


def test_the_movielens_sample_is_read_as_it_lies(shared_dir: Path) -> None:
    data = prepare_recommend(InteractionConfig(path=str(shared_dir / "data" / "movielens-sample")))
    found = data.interactions
    assert (found.num_users, found.num_items) == (100, 1141)
    assert {modality.name: modality.width for modality in data.modalities} == {"acoustic": 128, "textual": 100}
    assert len(found.train) + len(found.valid) + len(found.open_test()) == 2071
    textual = np.load(shared_dir / "data" / "movielens-sample" / "textual.npy")
    row = found.items.index["118"]
    assert np.array_equal(data.modalities[1].matrix[row], textual[118])


def test_the_bundled_code_pages(tmp_path: Path) -> None:
    folder = bundled_path("codepages")
    lines = (folder / "interactions.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "user\titem"
    assert "ascii\tLATIN SMALL LETTER A" in lines
    assert "koi8_r\tCYRILLIC SMALL LETTER ZHE" in lines
    assert "ascii\tLATIN SMALL LETTER E WITH ACUTE" not in lines
    users = {line.partition("\t")[0] for line in lines[1:]}
    assert {"cp437", "latin_1", "shift_jis"} <= users <= set(text_encodings())
    assert not users & {"utf_8", "utf_16", "gb18030", "base64_codec"}  # they have everything, or are no text encodings
    data = prepare_recommend(InteractionConfig())
    assert [modality.name for modality in data.modalities] == ["image", "text"]
    assert data.modalities[1].coverage == 1.0


# --- index and audit ----------------------------------------------------------------------------------------------------


def test_owned_items_of_users() -> None:
    owned = Owned.build([np.array([(2, 1), (0, 3)]), np.array([(2, 0), (2, 1)])], 3, 4)
    rows, items = owned.of(np.array([2, 1, 0]))
    assert rows.tolist() == [0, 0, 2]
    assert items.tolist() == [0, 1, 3]


def test_the_audit_counts_overlaps_repeats_and_cold_items(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.tsv", [("u", "a"), ("u", "a"), ("u", "b"), ("v", "a")])
    write_lines(tmp_path / "valid.tsv", [("u", "a"), ("v", "new")])
    write_lines(tmp_path / "test.tsv", [("v", "new"), ("w", "b")])
    source = InteractionSource.open(InteractionConfig(path=str(tmp_path)))
    report = audit_interactions(source.raw, source.split, source.modalities[0])
    valid, test = report.splits["valid"], report.splits["test"]
    assert (report.interactions, report.distinct, report.given) == (8, 7, True)
    assert (valid.in_train, valid.in_test, valid.clean, valid.cold_items) == (1, 1, 0, 1)
    assert (test.cold, test.cold_users, test.cold_items, test.in_train) == (2, 1, 1, 0)
    assert len(report.problems) == 2
    assert report.problems[0].startswith("1 of 2 validation interactions stand in train too")
    assert "1 repeats merged" in report.lines()
    assert report.to_json()["splits"]["valid"]["in_train"] == 1
    assert "## Audit of the data" in report.markdown()


def test_settings_are_checked() -> None:
    config = RecommendConfig().updated({"model.fusion": "meta_cp", "train.lr": 0.01})
    assert (config.model.fusion, config.train.lr) == ("meta_cp", 0.01)
    with pytest.raises(ConfigError, match=r"did you mean 'model\.fusion'"):
        RecommendConfig().updated({"model.fuson": "mlp"})
    with pytest.raises(ConfigError, match="refused"):
        RecommendConfig().updated({"train.num_negatives": 0})


def test_each_file_is_opened_once_by_audit_training_and_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, pairs in (("train", PAIRS), ("valid", [(0, 2)]), ("test", [(1, 3)])):
        write_lines(tmp_path / f"{split}.tsv", pairs)
    (tmp_path / "descriptions.tsv").write_text("".join(f"{item}\ttext {item}\n" for item in range(4)))
    np.save(tmp_path / "sound.npy", np.eye(4, dtype=np.float32))
    (tmp_path / "sound.names.txt").write_text("0\n1\n2\n3\n")
    opened: Counter[str] = Counter()
    open_file = io.open

    def counted(file: object, *args: object, **more: object) -> object:
        opened[Path(str(file)).name] += 1
        return open_file(file, *args, **more)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", counted)
    monkeypatch.setattr("io.open", counted)  # what `Path.open` calls
    data, _ = RECOMMEND.read(RecommendConfig.build({"data": {"path": str(tmp_path)}}), strict=False)
    assert data.interactions.open_test().tolist() == [[1, 3]]
    names = {f"{name}.tsv" for name in ("train", "valid", "test", "descriptions")} | {"sound.npy", "sound.names.txt"}
    assert {name: opened[name] for name in names} == dict.fromkeys(names, 1)
