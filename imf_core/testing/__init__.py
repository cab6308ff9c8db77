"""What every part of a kind must do, as tests for its author. Subclass the class of the kind in a file that pytest collects:

    from imf_core.testing import ScorerContract

    class TestRotate(ScorerContract):
        name = "rotate"

The product's own parts pass the same tests. pytest itself is not imported here.
"""

from imf_core.testing.base import PartContract, toy
from imf_core.testing.encoders import EncoderContract, ImageEncoderContract, TextEncoderContract
from imf_core.testing.fusion import FusionContract
from imf_core.testing.losses import LossContract, RegularizerContract
from imf_core.testing.readers import ReaderContract
from imf_core.testing.scorer import ScorerContract
from imf_core.testing.tasks import TaskContract

__all__ = [
    "EncoderContract", "FusionContract", "ImageEncoderContract", "LossContract", "PartContract", "ReaderContract",
    "RegularizerContract", "ScorerContract", "TaskContract", "TextEncoderContract", "toy",
]
