"""What the training benchmark compares, on ml-100k: this library's loop, the bare step, RecBole's own trainer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import reference
from benchmarks.reference import Step, make_step
from benchmarks.turns import Side
from recdenoise.denoisers import Denoiser
from recdenoise.recbole_adapter.dataset import SplitData, load_split
from recdenoise.recbole_adapter.models import paper_model_config
from recdenoise.recbole_adapter.recbole_config import build_config, read_yaml, resolve_model
from recdenoise.recbole_adapter.settings import Settings, resolve
from recdenoise.recbole_adapter.task import RecBoleTask
from recdenoise.recbole_adapter.trainer import model_builder
from recdenoise.task import Pass

CPU: dict[str, Any] = {"use_gpu": False, "show_progress": False, "learning_rate": 1e-3}
"""RecBole's options on every side."""


@dataclass
class Bench:
    """One model's data, read once for all methods."""

    model: str
    folder: Path
    data: SplitData

    @classmethod
    def load(cls, model: str, folder: Path) -> Bench:
        """Read the split in ``folder`` for ``model``, at the paper's sizes."""
        return cls(model, folder, load_split(model, str(folder), "paper", paper_model_config(model) | CPU))

    @property
    def n_users(self) -> int:
        return self.data.truth.n_users

    @property
    def n_items(self) -> int:
        return self.data.truth.n_items

    def settings(self, method: str) -> Settings:
        """The paper's preset of one method."""
        return resolve(self.model, str(self.folder), method, preset="paper")

    def denoiser(self, method: str) -> Denoiser:
        """This library's networks of one method; a prior is trained for one epoch."""
        settings = self.settings(method)
        task = RecBoleTask(
            *self.data.train,
            self.n_users,
            self.n_items,
            new_model=model_builder(self.data.config, self.data.dataset, resolve_model(self.model)),
            seed=settings.seed,
            batch_size=settings.batch_size,
            device="cpu",
        )
        config = settings.config
        if method == "deca_p":
            config = replace(config, prior_epochs=1, prior_selector="last")  # type: ignore[call-arg]
        return settings.method(task, config)

    def bare(self, method: str) -> reference.Reference:
        """Networks and loss of the yardstick, with the preset's constants."""
        config = self.settings(method).config.to_dict()
        constants = {name: config[name] for name in ("c_1", "c_2", "alpha") if name in config}
        options = reference.Options(**constants, l2=config["l2"] / (self.n_users - 1))
        networks: dict[str, nn.Module] = {}
        if method != "normal":
            names = ["h", "h_prime"] + ["auxiliary"] * (method == "deca")
            networks = {name: reference.MF(self.n_users, self.n_items) for name in names}
        if method == "deca_p":
            networks["prior"] = self.plain_model()
        return reference.Reference(method, self.plain_model(), options, **networks)

    def plain_model(self) -> nn.Module:
        """The yardstick's network at the paper's sizes."""
        users, items = self.data.train
        if self.model == "LightGCN":
            return reference.LightGCN(self.matrix, self.n_users, self.n_items)
        if self.model == "CDAE":
            rows = torch.zeros(self.n_users, self.n_items)
            rows[users, items] = 1.0
            return reference.CDAE(rows)
        return {"GMF": reference.GMF, "NeuMF": reference.NeuMF}[self.model](self.n_users, self.n_items)

    @cached_property
    def matrix(self) -> Tensor:
        """The normalised graph in the yardstick's own form."""
        return reference.adjacency(*self.data.train, self.n_users, self.n_items)

    def steps(self, denoiser: Denoiser) -> list[Step]:
        """An epoch's batches as resident tensors: the very pairs that the loop trains on in some epoch."""
        made = []
        for batch in denoiser.task.loader(Pass(), (0, 0, 0)).batches():
            users, items, rows = batch.inputs
            distinct, place = (None, None) if rows is None else (part.clone() for part in rows)
            made.append(make_step(users.clone(), items.clone(), distinct, place))
        return made

    def recbole_epoch(self, batch_size: int, n_steps: int) -> Side:
        """An epoch of RecBole's own trainer for its own class: the same batch and number of examples, no validation.

        RecBole has no GMF: its NeuMF without the perceptron is one. A pointwise batch of RecBole counts positives and
        negatives, a pairwise one (LightGCN) pairs of both, an autoencoder's users.

        Args:
            batch_size: positives (or users) in a step.
            n_steps: of an epoch; RecBole's must have as many.

        Raises:
            RuntimeError: RecBole cuts the epoch into another number of steps.
        """
        from recbole.data import create_dataset, data_preparation
        from recbole.utils import InputType, get_trainer

        name = "NeuMF" if self.model == "GMF" else self.model
        options = paper_model_config(name) | {"mlp_train": self.model != "GMF"}
        options |= read_yaml(self.folder / f"{self.folder.name}.yaml") | CPU
        cls: Any = resolve_model(name, own_models=False)
        doubled = cls.input_type == InputType.POINTWISE and self.model != "CDAE"
        options["train_batch_size"] = 2 * batch_size if doubled else batch_size
        config = build_config(name, self.folder.name, None, options, own_models=False)
        config["data_path"] = str(self.folder)
        train_data = data_preparation(config, create_dataset(config))[0]
        if len(train_data) != n_steps:
            raise RuntimeError(f"RecBole's epoch has {len(train_data)} steps, not {n_steps}: nothing to compare.")
        model = cls(config, train_data.dataset)
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        return lambda: trainer._train_epoch(train_data, 0, show_progress=False)
