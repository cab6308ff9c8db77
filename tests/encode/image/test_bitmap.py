"""Bitmap features of pictures: deterministic, similar for similar pictures, damaged files named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imf_core.encode.image.bitmap import BitmapImageEncoder


@pytest.fixture
def shapes(tmp_path: Path) -> list[Path]:
    """Ten discs, then ten upright bars, of slowly changing size."""
    paths = []
    for kind in ("disc", "bar"):
        for step in range(10):
            picture = Image.new("L", (48, 48), 255)
            pen = ImageDraw.Draw(picture)
            if kind == "disc":
                pen.ellipse((24 - 8 - step, 24 - 8 - step, 24 + 8 + step, 24 + 8 + step), fill=0)
            else:
                pen.rectangle((20, 4, 24 + step // 2, 30 + step), fill=0)
            paths.append(tmp_path / f"{kind}{step}.png")
            picture.save(paths[-1])
    return paths


def test_similar_pictures_are_neighbours(shapes):
    matrix, _ = BitmapImageEncoder(width=4).encode(shapes)
    for row in range(20):
        distance = np.linalg.norm(matrix - matrix[row], axis=1)
        distance[row] = np.inf
        assert np.argmin(distance) // 10 == row // 10


def test_shape_scale_and_determinism(shapes):
    encoder = BitmapImageEncoder(width=6, size=16)
    matrix, mask = encoder.encode([None, *shapes, None])
    assert matrix.shape == (22, 6)
    assert matrix.dtype == np.float32
    assert mask.tolist() == [False] + [True] * 20 + [False]
    assert not matrix[~mask].any()
    assert matrix[mask].mean(axis=0) == pytest.approx(0, abs=1e-5)
    assert matrix[mask].std(axis=0) == pytest.approx(1, abs=1e-5)
    again, _ = BitmapImageEncoder(width=6, size=16).encode([None, *shapes, None])
    assert matrix.tobytes() == again.tobytes()


def test_damaged_files_are_named_and_missing(shapes, tmp_path):
    whole = shapes[0].read_bytes()
    damaged = {
        "empty": b"", "text": b"<html>not found</html>", "cut": whole[: len(whole) // 2], "header": whole[:8] + bytes(40),
    }
    for name, content in damaged.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    bad = [tmp_path / f"{name}.png" for name in damaged] + [tmp_path / "absent.png", tmp_path]
    encoder = BitmapImageEncoder(width=4)
    matrix, mask = encoder.encode([*bad, *shapes])
    assert mask.tolist() == [False] * len(bad) + [True] * len(shapes)
    assert [path for path, _ in encoder.rejected] == bad
    assert all(reason for _, reason in encoder.rejected)
    assert np.array_equal(matrix[len(bad) :], encoder.encode(shapes)[0])
    assert encoder.rejected == []


def test_random_damage_never_ends_the_run(shapes, tmp_path):
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    paths = []
    for form in ("png", "jpg", "webp", "bmp", "gif"):
        pixels.save(tmp_path / f"whole.{form}")
        content = (tmp_path / f"whole.{form}").read_bytes()
        for trial in range(60):
            noisy = np.frombuffer(content, dtype=np.uint8).copy()
            spots = rng.integers(0, (40, len(noisy))[trial % 2], size=5)
            noisy[spots] = rng.integers(0, 256, size=5)
            paths.append(tmp_path / f"{trial}.{form}")
            paths[-1].write_bytes(noisy.tobytes())
    encoder = BitmapImageEncoder(width=4)
    matrix, mask = encoder.encode(paths)
    assert np.isfinite(matrix).all()
    assert len(encoder.rejected) == (~mask).sum() > 0


def test_too_large_picture_is_refused_before_decoding(shapes, tmp_path):
    Image.new("1", (400, 300)).save(tmp_path / "large.png")
    Image.new("1", (19_000, 10_000)).save(tmp_path / "bomb.png")  # beyond Pillow's own limit as well
    encoder = BitmapImageEncoder(width=4, max_pixels=100_000)
    _, mask = encoder.encode([tmp_path / "large.png", tmp_path / "bomb.png", *shapes])
    assert mask.tolist() == [False, False] + [True] * len(shapes)
    assert "400 x 300" in encoder.rejected[0][1]


@pytest.mark.filterwarnings("error")
def test_all_kinds_of_pictures_are_read_alike(tmp_path):
    """Grey, colour, palette, transparent, 16 bit, lossy: one disc, one bitmap."""
    grey = Image.new("L", (48, 48), 255)
    ImageDraw.Draw(grey).ellipse((8, 8, 40, 40), fill=0)
    cut_out = Image.new("RGBA", (48, 48), (0, 0, 0, 0))
    ImageDraw.Draw(cut_out).ellipse((8, 8, 40, 40), fill=(0, 0, 0, 255))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    kinds = {"grey.png": grey, "colour.bmp": grey.convert("RGB"), "palette.gif": grey.convert("P"), "cut_out.png": cut_out,
             "deep.png": deep, "lossy.jpg": grey, "lossy.webp": grey.convert("RGB")}
    paths = []
    for name, picture in kinds.items():
        paths.append(tmp_path / name)
        picture.save(paths[-1])
    other = tmp_path / "other.png"
    Image.new("L", (48, 48), 255).save(other)
    encoder = BitmapImageEncoder(width=1)
    matrix, mask = encoder.encode([*paths, other])
    assert mask.all(), encoder.rejected
    alike, different = matrix[:-1, 0], matrix[-1, 0]
    assert np.ptp(alike) < 0.05 * abs(different - alike.mean())


@pytest.mark.filterwarnings("error")
def test_few_or_equal_pictures(shapes):
    for items, width in (([], 0), ([None], 0), (shapes[:1], 1), (shapes[:1] * 3, 3), (shapes[:2], 2)):
        matrix, mask = BitmapImageEncoder(width=64).encode(items)
        assert matrix.shape == (len(items), width)
        assert mask.shape == (len(items),)
        assert np.abs(matrix).max(initial=0) < 10


def test_several_pictures_of_an_entity_count_as_their_mean(shapes, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    encoder = BitmapImageEncoder(width=4)
    alone, _ = encoder.encode(shapes)
    twice, mask = encoder.encode([(path, path) for path in shapes])
    assert mask.all()
    assert np.allclose(twice, alone, atol=1e-5)
    mixed, mask = encoder.encode([(tmp_path / "broken.png", shapes[0]), *shapes[1:], ()])
    assert mask.tolist() == [True] * len(shapes) + [False]
    assert np.allclose(mixed[:-1], alone, atol=1e-5)
    assert [path.name for path, _ in encoder.rejected] == ["broken.png"]
    # One between two lies between them.
    pair, _ = encoder.encode([shapes[0], (shapes[0], shapes[10]), *shapes[10:]])
    assert np.linalg.norm(pair[1] - pair[0]) < np.linalg.norm(pair[2] - pair[0])
