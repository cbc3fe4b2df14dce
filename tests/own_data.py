"""A person's own data set for RecBole, the options of a short run on it, and RecBole's steps up to the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recdenoise.recbole_adapter.recbole_config import build_config, resolve_model

N_USERS, N_ITEMS = 200, 60
SPLIT = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "full"}


def write_mine(folder: Path) -> Path:
    """A person's own .inter file: 200 users of two tastes, 60 items, tokens that are no numbers."""
    rng = np.random.default_rng(0)
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(N_USERS):
        taste = np.where(np.arange(N_ITEMS) % 2 == user % 2, 5.0, 1.0)
        items = rng.choice(N_ITEMS, rng.integers(8, 16), replace=False, p=taste / taste.sum())
        lines += [f"user {user}\titem {item}\t{rng.integers(1, 6)}\t{rng.integers(10**6)}" for item in items]
    (folder / "mine").mkdir()
    (folder / "mine" / "mine.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def short_run(data_path: Path, here: Path) -> dict[str, Any]:
    """RecBole options of a short run that writes below an empty working folder."""
    return {
        "data_path": str(data_path),
        "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
        "eval_args": SPLIT,
        "topk": [5, 10],
        "valid_metric": "NDCG@10",
        "epochs": 2,
        "train_batch_size": 512,
        "learning_rate": 0.01,
        "use_gpu": False,
        "show_progress": False,
        "checkpoint_dir": str(here / "saved"),
    }


def prepared(model: str, options: dict[str, Any], own_models: bool = True) -> tuple[Any, Any, list[Any]]:
    """RecBole's own steps up to the trainer: config, network and the three data loaders."""
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import init_logger, init_seed

    config = build_config(model, "mine", config_dict=options, own_models=own_models)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    dataset = create_dataset(config)
    parts = list(data_preparation(config, dataset))
    init_seed(config["seed"], config["reproducibility"])
    network = resolve_model(model, own_models)(config, parts[0]._dataset).to(config["device"])
    return config, network, parts
