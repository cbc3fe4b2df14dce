"""A RecBole data set of thirty users and twenty items, written to a folder, for tests that need a real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recdenoise.recbole_adapter.recbole_config import build_config

N_USERS, N_ITEMS = 31, 21  # the padding id included


def write_inter(folder: Path, seed: int = 0) -> Path:
    """Write ``tiny/tiny.inter``: every user has five to ten items, every item at least one user; ratings 1 to 5."""
    rng = np.random.default_rng(seed)
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(1, N_USERS):
        items = rng.permutation(np.arange(1, N_ITEMS))[: rng.integers(5, 11)]
        items = np.union1d(items, [1 + (user - 1) % (N_ITEMS - 1)])
        lines += [f"u{user}\ti{item}\t{rng.integers(1, 6)}\t{rng.integers(1000, 2000)}" for item in items]
    (folder / "tiny").mkdir(parents=True, exist_ok=True)
    path = folder / "tiny" / "tiny.inter"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tiny_config(folder: Path, model: str | type, own_models: bool = True, **options: Any) -> Any:
    """RecBole's configuration of one model on the tiny data, everything in train."""
    defaults = {
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None, "mode": "full"},
        "use_gpu": False,
        "checkpoint_dir": str(folder / "saved"),
    }
    return build_config(model, "tiny", config_dict={**defaults, **options}, own_models=own_models)


def tiny_dataset(config: Any) -> Any:
    """All interactions as RecBole's dataset object."""
    from recbole.data import create_dataset

    dataset = create_dataset(config)
    dataset._change_feat_format()
    return dataset


def build_model(folder: Path, model: str | type, own_models: bool = True, **options: Any) -> Any:
    """A freshly initialised model on the tiny data."""
    config = tiny_config(folder, model, own_models, **options)
    return config.model_class(config, tiny_dataset(config)).to(config["device"])
