"""Finding and opening picture files: all modes alike, whatever is damaged, mislabelled or too large refused with a reason."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imf_core.encode.image.pictures import MAX_PIXELS, PictureError, find_images, open_picture
from imf_core.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")


# --- finding ------------------------------------------------------------------------------------------------------------


def test_files_are_matched_by_name(tmp_path):
    names = ["St. John", "AC/DC", "100%25", "Zürich", "<http://x.org/a_b>", "nothing"]
    touch(tmp_path, "St. John.PNG", f"{quote('AC/DC', safe='')}.jpg", "100%25.gif", "Zu\u0308rich.webp",
          f"{quote('<http://x.org/a_b>', safe='')}.jpeg", "stranger.png", "readme.txt", "._St. John.png", ".DS_Store")
    files = find_images(tmp_path, names)
    address = "%3Chttp%3A%2F%2Fx.org%2Fa_b%3E.jpeg"
    found = [[path.name for path in paths] for paths in files.paths]
    assert found == [["St. John.PNG"], ["AC%2FDC.jpg"], ["100%25.gif"], ["Zu\u0308rich.webp"], [address], []]
    assert all(path.exists() for paths in files.paths for path in paths)
    assert (files.unknown, files.several, files.count) == (1, 0, 5)


def test_several_pictures_lie_side_by_side_or_in_a_folder(tmp_path):
    touch(tmp_path, "a.gif", "a.jpg", "a.png", "b.webp", "c/2.jpg", "c/10.png", "c/notes.txt", "b/x.png", "empty/readme.txt",
          f"{quote('d/e', safe='')}/1.png", "stranger.png", "stranger.jpg", "strangers/1.png", ".cache/1.png")
    files = find_images(tmp_path, ["b", "a", "c", "d/e", "empty"])
    found = [[str(path.relative_to(tmp_path)) for path in paths] for paths in files.paths]
    assert found == [["b.webp", "b/x.png"], ["a.png", "a.jpg", "a.gif"], ["c/10.png", "c/2.jpg"], ["d%2Fe/1.png"], []]
    assert (files.unknown, files.several, files.count) == (2, 3, 8)  # names, not files, are unknown


def test_ids_of_freebase_may_have_dots(tmp_path):
    touch(tmp_path, "m.02x/1.jpg", "m.0_a9.png", "g.11b.png", "%2Fm%2F04.png", "m.x.y.png", "M.02x.png")
    files = find_images(tmp_path, ["/m/02x", "/m/0_a9", "/g/11b", "/m/04", "/m/x.y"])
    found = [[str(path.relative_to(tmp_path)) for path in paths] for paths in files.paths]
    assert found == [["m.02x/1.jpg"], ["m.0_a9.png"], ["g.11b.png"], ["%2Fm%2F04.png"], []]
    assert files.unknown == 2
    assert find_images(tmp_path, ["m.02x", "/m/02x"]).paths[0] != ()  # a name as it stands goes before


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be listed"):
        find_images(tmp_path / "absent", ["a"])


# --- opening ------------------------------------------------------------------------------------------------------------


def header(width: int, height: int) -> bytes:
    """A PNG of 66 bytes that says how large it is and holds next to nothing."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    whole = start + chunk(b"IDAT", zlib.compress(b"\0" * 3)[:9]) + chunk(b"IEND", b"")
    assert len(whole) == 66
    return whole


def disc(mode: str) -> Image.Image:
    grey = Image.new("L", (48, 48), 255)
    ImageDraw.Draw(grey).ellipse((8, 8, 40, 40), fill=0)
    if mode == "I;16":
        return Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    if mode in ("LA", "RGBA"):
        ink = Image.new(mode, (48, 48), (0,) * len(mode))
        ink.putalpha(Image.fromarray(255 - np.asarray(grey)))
        return ink
    return grey.convert("RGB").convert(mode) if mode == "CMYK" else grey.convert(mode)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("P", "png"), ("P", "gif"), ("LA", "png"), ("RGBA", "png"), ("RGBA", "webp"), ("CMYK", "jpg"), ("1", "png"),
     ("I;16", "png"), ("RGB", "bmp"), ("RGB", "jpg"), ("RGB", "jfif")],
)
def test_all_modes_show_the_same_disc(tmp_path, mode, suffix):
    path = tmp_path / f"disc.{suffix}"
    disc(mode).save(path)
    for wanted in ("RGB", "L"):
        seen = open_picture(path, 48, mode=wanted)
        assert seen.mode == wanted
        pixels = np.asarray(seen.convert("RGB"), dtype=float)
        assert np.abs(pixels - np.asarray(disc("L").convert("RGB"), dtype=float)).mean() < 6
        assert np.ptp(pixels, axis=2).max() <= 8  # no colour comes in


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (10, 120, 250)]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"moving.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
        assert abs(np.asarray(open_picture(path, 8, mode="L"), dtype=float).mean() - 10) < 4


def test_the_content_counts_not_the_suffix(tmp_path):
    disc("L").save(tmp_path / "disc.png")
    (tmp_path / "disc.png").rename(tmp_path / "disc.jpg")
    assert open_picture(tmp_path / "disc.jpg", 48).size == (48, 48)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("half.jpg", None, "OSError: .*(truncated|broken)"),
        ("empty.png", b"", "an empty file"),
        ("page.jpg", b"<!doctype html><html><body>404</body></html>", "holds no PNG, JPEG, WebP, BMP or GIF picture"),
        ("bomb.png", header(20_000, 20_000), "DecompressionBombError"),
        ("large.png", header(10_000, 10_000), "10000 x 10000 pixels, more than 64,000,000"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_reason(tmp_path, name, content, reason):
    path = tmp_path / name
    if content is None:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        content = path.read_bytes()[: path.stat().st_size // 2]  # opens; only decoding fails
    path.write_bytes(content)
    with pytest.raises(PictureError, match=reason):
        open_picture(path, 48)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (("pipe.png", "not a file"), ("absent.png", "no such file"), (".", "not a file")):
        with pytest.raises(PictureError, match=reason):
            open_picture(tmp_path / name, 48)


def test_own_limit_holds_below_pillows(tmp_path):
    Image.new("1", (400, 300)).save(tmp_path / "large.png")
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS
    with pytest.raises(PictureError, match="400 x 300"):
        open_picture(tmp_path / "large.png", 48, max_pixels=100_000)
    assert open_picture(tmp_path / "large.png", 48, max_pixels=120_000).size == (400, 300)
