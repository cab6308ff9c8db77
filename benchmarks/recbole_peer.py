"""BPR and LightGCN of RecBole, trained on a split that is given; run by an environment of its own (`recommend_ml100k.py`).

    ENV/bin/python benchmarks/recbole_peer.py ASKED.json

ASKED.json holds `folder` (with NAME.train.inter, NAME.valid.inter, NAME.test.inter; the last one is a copy of validation: the
test split is not handed over), `name`, `model`, `seed`, `settings`, `users` and `items` (names in the order of the scores) and
`out`. It writes the scores (U, I) as `out`, minus infinity for an item that RecBole does not know, and prints a line of JSON.
Nothing of the product is imported.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Train, score, and print what it took."""
    asked: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    restore_old_names()
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.data.interaction import Interaction
    from recbole.utils import get_model, get_trainer, init_seed

    torch.set_num_threads(int(asked.get("threads", 1)))
    patience = int(asked["settings"].get("stopping_step", 10))
    config = Config(model=asked["model"], dataset=asked["name"], config_dict={
        "data_path": asked["folder"], "benchmark_filename": ["train", "valid", "test"], "seed": asked["seed"],
        "load_col": {"inter": ["user_id", "item_id"]}, "use_gpu": False, "show_progress": False, "reproducibility": True,
        "eval_args": {"order": "RO", "mode": "full", "group_by": "user", "split": {"RS": [0.8, 0.1, 0.1]}},
        "metrics": ["NDCG", "Recall"], "topk": [10], "valid_metric": "NDCG@10", **asked["settings"],
    })
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, _ = data_preparation(config, dataset)
    count = len(train._dataset.inter_feat)
    if count != asked["train"]:
        raise SystemExit(f"RecBole reads {count} training interactions of {asked['train']}: its libraries do not fit it")
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.eval_collector.data_collect(train)
    best, stale, best_epoch, state = -1.0, 0, 0, None
    seconds, evaluations = [], []
    for epoch in range(1, int(config["epochs"]) + 1):
        started = time.perf_counter()
        trainer._train_epoch(train, epoch, show_progress=False)
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        score, _ = trainer._valid_epoch(valid)
        evaluations.append(time.perf_counter() - started)
        if score > best:
            best, stale, best_epoch = float(score), 0, epoch
            state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        else:
            stale += 1
        if stale >= patience:
            break
    model.load_state_dict(state)
    model.eval()
    users, items = ids(dataset, "user_id", asked["users"]), ids(dataset, "item_id", asked["items"])
    if hasattr(model, "restore_user_e"):  # LightGCN keeps the vectors of the last evaluation
        model.restore_user_e = model.restore_item_e = None
    table = np.full((len(users), len(items)), -np.inf, dtype=np.float32)
    known = items >= 0
    with torch.no_grad():
        for row, user in enumerate(users):
            if user >= 0:
                scores = model.full_sort_predict(Interaction({"user_id": torch.tensor([user])})).view(-1).cpu().numpy()
                table[row, known] = scores[items[known]]
    table[users < 0] = 0.0
    np.save(asked["out"], table)
    print(json.dumps({
        "valid_ndcg": best, "best_epoch": best_epoch, "epochs": len(seconds), "epoch_seconds": statistics.median(seconds),
        "evaluation_seconds": statistics.median(evaluations),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }))


def restore_old_names() -> None:
    """Names that RecBole 1.2.1 uses and later versions of NumPy and SciPy have taken away."""
    from scipy.sparse import dok_matrix

    for name, kind in (("float_", np.float64), ("complex_", np.complex128), ("object_", object), ("unicode_", np.str_)):
        if not hasattr(np, name):
            setattr(np, name, kind)
    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = lambda self, entries: self._dict.update(entries)


def ids(dataset: Any, field: str, names: list[str]) -> np.ndarray:
    """RecBole's numbers of names; -1 for one that it does not know."""
    known = dataset.field2token_id[field]
    return np.array([known.get(name, -1) for name in names], dtype=np.int64)


if __name__ == "__main__":
    main()
