"""The contracts of `imf_core.testing` for the parts of the package, and that each can fail."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from imf_core.testing import FusionContract, ScorerContract, TextEncoderContract

pytestmark = pytest.mark.usefixtures("installed")


class TestRotate(ScorerContract):
    name = "rotate"
    settings = MappingProxyType({"model.rotate.margin": 4.0})


class TestWeighted(FusionContract):
    name = "weighted"


class TestHashes(TextEncoderContract):
    name = "hashes"
    settings = MappingProxyType({"data.hashes.width": 16})
