"""The contracts of losses and regularizers (`imf_core.testing`) for each of the product's."""

from __future__ import annotations

from imf_core.parts.registry import KINDS
from imf_core.testing import LossContract, RegularizerContract

for _kind, _contract in (("loss", LossContract), ("regularizer", RegularizerContract)):
    globals().update({
        f"Test_{name}": type(f"Test_{name}", (_contract,), {"__module__": __name__, "name": name})
        for name in KINDS[_kind].built_in
    })
del _contract
