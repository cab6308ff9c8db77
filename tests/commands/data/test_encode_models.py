"""`imf encode` with real models and for real: VGG16 beside torchvision itself, and a process that is killed half-way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from encoding import ENTITIES, draw, run
from PIL import Image

from imf_core.data.bundled.unicode import bundled_path
from imf_core.data.features.feature_files import read_features
from imf_core.data.features.modality import load_modality
from imf_core.encode.image.pretrained import PretrainedImageEncoder
from imf_core.encode.text.pretrained import TransformersTextEncoder

pytestmark = pytest.mark.usefixtures("cache")

GLYPHS = ("LATIN SMALL LETTER A WITH ACUTE", "GREEK SMALL LETTER OMEGA", "CYRILLIC SMALL LETTER ZHE", "DIGIT FIVE")


# --- VGG16 --------------------------------------------------------------------------------------------------------------


def test_vgg16_on_bundled_glyphs(graph: Path, tmp_path: Path) -> None:
    """The published features: ImageNet's preparation, torchvision's VGG16, all but its last layer; from both kinds of file."""
    pytest.importorskip("torchvision", reason="the extra images is not installed")
    import torch
    from safetensors.torch import save_file
    from torchvision import transforms
    from torchvision.models import vgg16

    torch.manual_seed(0)
    model = vgg16(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "vgg16.pth")
    save_file(model.state_dict(), tmp_path / "vgg16.safetensors")
    shutil.rmtree(graph / "images")
    (graph / "images").mkdir()
    for name, glyph in zip(ENTITIES, GLYPHS, strict=False):
        shutil.copy(bundled_path("unicode") / "images" / f"{glyph}.png", graph / "images" / f"{name}.png")
    made = []
    for suffix in ("pth", "safetensors"):
        out = tmp_path / suffix
        said = run(graph, "--text", "none", "--image", f"vgg16:{tmp_path / f'vgg16.{suffix}'}", "--out", out)
        assert "images 4 of 5" in said and "4,096 wide, vgg16:" in said
        made.append(load_modality(out / "image.safetensors", ENTITIES))
        assert made[-1].mask.tolist() == [True] * 4 + [False]
    assert np.array_equal(made[0].matrix, made[1].matrix)
    standard = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ])
    pictures = [Image.open(graph / "images" / f"{name}.png").convert("RGB") for name in ENTITIES[:4]]
    model.classifier = model.classifier[:-1]
    with torch.no_grad():
        expected = model(torch.stack([standard(picture) for picture in pictures])).numpy()
    assert expected.shape == (4, 4096)
    assert np.abs(made[0].matrix[:4] - expected).max() < 1e-4
    spread = np.abs(expected[:, None] - expected[None]).max(axis=2)[np.triu_indices(4, 1)]
    assert spread.min() > 1e-3  # the four glyphs differ by more than the tolerance: a wrong row or picture would show


# --- killed -------------------------------------------------------------------------------------------------------------

# The command itself, but in the middle of its third shard it ends as by a power cut.
KILLED = """
import os, signal
from imf_core.encode.image.pretrained import PretrainedImageEncoder
from imf_core.encode.text.pretrained import TransformersTextEncoder

shards = []

def killed(encoder):
    real = encoder.encode_part
    def encode_part(self, items, advance):
        shards.append(len(items))
        if len(shards) < 3:
            return real(self, items, advance)
        real(self, items[: len(items) // 2], advance)
        os.write(1, repr(shards).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    encoder.encode_part = encode_part

killed(PretrainedImageEncoder)
killed(TransformersTextEncoder)
from imf_core.cli import main
main()
"""


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the shards that are encoded in this process from now on."""
    sizes: list[int] = []

    def counted(encoder: type) -> None:
        real = encoder.encode_part

        def encode_part(self: object, items: Sequence, advance: object) -> object:
            sizes.append(len(items))
            return real(self, items, advance)

        monkeypatch.setattr(encoder, "encode_part", encode_part)

    counted(PretrainedImageEncoder)
    counted(TransformersTextEncoder)
    return sizes


@pytest.mark.parametrize("view", ["text", pytest.param("image", marks=pytest.mark.slow)])
def test_a_killed_command_goes_on(
    graph: Path, models: tuple[str, str], tmp_path: Path, view: str, shards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two finished shards are not encoded again, the one that was cut off is, and the file is as if nothing had happened."""
    count, shard = (1_300, 512) if view == "text" else (700, 256)
    names = [f"n{number}" for number in range(count)]
    (graph / "entities.txt").write_text("".join(f"{name}\n" for name in (*ENTITIES, *names)))
    if view == "text":
        lines = [f"{name}\ta plain sentence of {'words ' * (number % 9)}\n" for number, name in enumerate(names)]
        (graph / "descriptions.tsv").write_text("".join(lines))
        arguments = ("--text", models[0], "--image", "none")
    else:
        shutil.rmtree(graph / "images")
        for number, name in enumerate(names):
            if number < 50:
                draw(graph / "images" / f"{name}.png", number)
            else:
                os.link(graph / "images" / f"{names[number % 50]}.png", graph / "images" / f"{name}.png")
        arguments = ("--text", "none", "--image", models[1])
    rest = count - 2 * shard
    environment = {**os.environ, "IMF_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}
    command = [sys.executable, "-c", KILLED, "encode", str(graph), *arguments]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stdout.endswith(repr([shard, shard, rest]))
    target = graph / "modalities" / f"{view}.safetensors"
    assert not target.exists()
    monkeypatch.setenv("COLUMNS", "200")
    assert f"encoded now: {rest} of {count}" in run(graph, *arguments).replace(",", "")
    assert shards == [rest]
    resumed = read_features(target.rename(tmp_path / "resumed.safetensors"))
    run(graph, *arguments)
    assert shards == [rest]
    target.unlink()
    monkeypatch.setenv("IMF_CACHE", str(tmp_path / "elsewhere"))
    run(graph, *arguments)
    assert shards == [rest, shard, shard, rest]
    whole = read_features(target)
    assert (whole.names, whole.facts) == (resumed.names, resumed.facts)
    assert np.array_equal(whole.matrix, resumed.matrix)
