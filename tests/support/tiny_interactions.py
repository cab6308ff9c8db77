"""A small folder of interactions as a user brings it: two tastes, features that tell them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SMALL = (
    "model.widths=[8,4]",
    "model.id_width=4",
    "model.meta_hidden=4",
    "train.lr=0.01",
    "train.max_epochs=3",
    "train.batch_size=64",
)


def write_interactions(place: Path, users: int = 8, items: int = 24) -> Path:
    """A user "nobody" without interactions, two modalities by name; one more item with features alone."""
    random = np.random.default_rng(0)
    (place / "modalities").mkdir(parents=True)
    pairs = [f"user {u}\titem {i}" for u in range(users) for i in range(items) if i % 2 == u % 2 and random.random() < 0.9]
    (place / "interactions.tsv").write_text("\n".join(pairs) + "\n")
    (place / "users.txt").write_text("nobody\n" + "".join(f"user {u}\n" for u in range(users)))
    taste = np.eye(2)[np.arange(items + 1) % 2]
    for name in ("sound", "tags"):
        noise = 0.1 * random.normal(size=(items + 1, 3))
        np.save(place / "modalities" / f"{name}.npy", np.hstack((taste, noise)).astype(np.float32))
        (place / "modalities" / f"{name}.names.txt").write_text("".join(f"item {i}\n" for i in range(items + 1)))
    return place
