"""The contracts of encoders (`imf_core.testing`) for the built-in ones; the pretrained ones take seconds to load."""

from __future__ import annotations

from types import MappingProxyType

from imf_core.testing import ImageEncoderContract, TextEncoderContract


class TestNgrams(TextEncoderContract):
    name = "ngrams"
    settings = MappingProxyType({"data.text_width": 8})


class TestBitmap(ImageEncoderContract):
    name = "bitmap"
    settings = MappingProxyType({"data.image_width": 4})


class TestWords(TextEncoderContract):
    name = "words"
