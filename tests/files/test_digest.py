"""Digests that do not change from one version to the next."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from imf_core.files.digest import sha256_of, sha256_of_file


def test_digests_are_those_of_the_joined_bytes(tmp_path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    array = np.arange(3)
    expected = hashlib.sha256(b"ab" + b"caf\xe9" + array.tobytes()).hexdigest()
    assert sha256_of(["a", b"b", name, array.data]) == expected
    (tmp_path / "file").write_bytes(b"abcaf\xe9" + array.tobytes())
    assert sha256_of_file(tmp_path / "file") == expected
    assert sha256_of([]) == hashlib.sha256().hexdigest()
