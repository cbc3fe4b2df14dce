"""One run of a grid: trained as by ``recdenoise train``, with what reports need of it left in its folder."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from recdenoise import checkpoint
from recdenoise.denoisers import Stage
from recdenoise.errors import UserError, unknown_name
from recdenoise.loop import Loop, Observer
from recdenoise.recbole_adapter.experiment import Run, RunFiles, check_out, finish, load, prepare, read_record, train
from recdenoise.recbole_adapter.settings import Settings
from recdenoise.reports.grid import KEPT, to_csv
from recdenoise.reports.report_text import damaged
from recdenoise.reports.run_folder import check_folder
from recdenoise.reports.suspects import write_detection

METRICS = ("recall", "ndcg")
CURVE_METRICS = ("recall@20", "ndcg@20")


class TestCurve(Observer):
    """Measures the clean test after every epoch of the last stage and writes ``test_curve.csv``.

    The values are only ever written down: no selector sees them. Generators and the modes of all networks are put back,
    so that a watched run ends with the same bits as one that is not.

    Args:
        run: what is trained.
        path: the file; rows of an interrupted run are kept up to the epoch that training goes on from.
    """

    __test__ = False  # no test, whatever its name looks like

    def __init__(self, run: Run, path: Path) -> None:
        self.run, self.path = run, path
        self.stage = run.denoiser.stages()[-1].name
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self.rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]

    def on_stage(self, stage: Stage, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        if stage.name == self.stage:
            self.rows = [row for row in self.rows if row["epoch"] <= first_epoch]

    def on_epoch(self, row: dict[str, Any]) -> None:
        if row["stage"] != self.stage:
            return
        started = time.perf_counter()
        random = checkpoint.random_state()
        modes = [(module, module.training) for module in self.run.denoiser.modules()]
        measured = self.run.evaluate(topk=(), metrics=CURVE_METRICS)
        for module, training in modes:
            module.training = training
        self.run.task.begin_step(self.run.denoiser)  # nothing that was cached without gradient is left
        checkpoint.restore_random_state(random)
        values: dict[str, float] = {"epoch": row["epoch"], **measured.mean}
        for name, means in (("warm", measured.warm), ("cold", measured.cold)):
            values |= {f"{name}_{metric}": value for metric, value in (means or {}).items()}
        self.rows.append({**values, "seconds": round(time.perf_counter() - started, 4)})
        checkpoint.write_text(self.path, to_csv(list(self.rows[-1]), self.rows))


def train_watched(settings: Settings, out: Path) -> None:
    """Train as :func:`recdenoise.recbole_adapter.experiment.train` does, with the test measured after every epoch.

    Goes on from the folder's checkpoint where there is one.
    """
    check_out(out, resume=True)
    run = prepare(settings)
    run.check()
    curve = TestCurve(run, out / KEPT["test_curve"])
    loop = Loop(
        run.denoiser,
        run.task,
        settings.loop,
        validate=run.validation,
        checkpoint_path=out / "checkpoint.pt",
        identity=run.identity(),
    )
    loop.resume()
    checkpoint.write_text(out / "config.yaml", yaml.safe_dump(settings.to_dict(), sort_keys=False))
    loop.observer = RunFiles(out, curve, loop.history)
    result = finish(run, loop.run(), out)
    checkpoint.save(out / "model.pt", {"identity": loop.identity, "modules": run.denoiser.state_dict()})
    checkpoint.write_json(out / "result.json", result.record)


def run_one(settings: Settings, out: Path, keeps: Sequence[str] = ("users",)) -> None:
    """Train what is not trained yet and write what ``keeps`` names: keys of :data:`recdenoise.reports.grid.KEPT`.

    Raises:
        UserError: an unknown name, a folder with another run, or a finished run whose test was not watched.
    """
    for name in keeps:
        if name not in KEPT:
            raise unknown_name("file to keep", name, KEPT)
    check_folder(settings, out)
    watched = "test_curve" in keeps
    if read_record(out) is None:
        if watched:
            train_watched(settings, out)
        else:
            train(settings, out, resume=True)
    elif watched and not (out / KEPT["test_curve"]).is_file():
        raise UserError(f"{out} holds a finished run whose test was not watched; choose another --out.")
    missing = [name for name in keeps if not (out / KEPT[name]).is_file()]
    if missing:
        run = load(out)
        for name in missing:
            WRITERS[name](out, run)


def write_users(folder: Path, run: Run | None = None) -> None:
    """Write recall and NDCG of every test user of a finished run to ``users.csv``."""
    run = run or load(folder)
    measured = run.evaluate(metrics=METRICS)
    names = run.data.user_tokens[measured.users.cpu().numpy()]
    columns = ["user", *measured.per_user]
    values = zip(*(column.tolist() for column in measured.per_user.values()), strict=True)
    rows = [dict(zip(columns, (str(name), *row), strict=True)) for name, row in zip(names, values, strict=True)]
    checkpoint.write_text(folder / KEPT["users"], to_csv(columns, rows))


def read_users(path: Path, metric: str) -> dict[str, float]:
    """One measure of every user from ``users.csv``. Raises ``UserError`` for a file that was cut short."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["user"]: float(row[metric]) for row in csv.DictReader(file)}
    except (ValueError, KeyError, TypeError):
        raise damaged(path) from None


class InTokenOrder(Run):
    """A run that ranks by probabilities in single precision, equal ones in the order of the items' tokens.

    A user whose embedding was never trained has logits near zero, or equal ones, bit for bit: weight decay has shrunk
    them. As probabilities, which programs that end in a sigmoid rank by, they are all 0.5, and what such a user is
    recommended is decided by how a top-k breaks ties.
    """

    tied = 0
    """Users seen so far whose 20th and 21st probability are equal."""

    def score_block(self, users: Tensor) -> Tensor:
        """``(b, n_items)``: minus the place of each item in its user's order."""
        scores = torch.sigmoid(super().score_block(users).float())
        order = token_order(self.data.item_tokens).to(scores.device)
        values, place = scores[:, order].sort(dim=1, descending=True, stable=True)
        self.tied += int((values[:, TIE_PLACE - 1] == values[:, TIE_PLACE]).sum()) if scores.shape[1] > TIE_PLACE else 0
        ranks = -torch.arange(scores.shape[1], dtype=torch.float32, device=scores.device)
        return torch.empty_like(scores, dtype=torch.float32).scatter_(1, order[place], ranks.expand_as(scores))


TIE_PLACE = 20


def token_order(tokens: np.ndarray[Any, Any]) -> Tensor:
    """Item ids in the order of their tokens: as numbers where all of them are, else as text; the padding last."""
    named = [str(token) for token in tokens[1:]]
    keys = np.array([int(t) for t in named] if all(t.isascii() and t.isdigit() for t in named) else named)
    order = np.argsort(keys, kind="stable") + 1
    return torch.from_numpy(np.concatenate([order, [0]]).astype(np.int64))


def write_ties(folder: Path, run: Run) -> None:
    """Write ``ties.json``: the test with ties broken by token, and the number of users with ties.

    Where training saw every test user nothing is ranked again: the file says so by a number that is ``null``.
    """
    record = read_record(folder)
    if record is not None and not record["counts"]["n_unseen_users"]:
        known = {"all": record["test"], "warm": None, "cold": None}
        checkpoint.write_json(folder / KEPT["ties"], {**known, "n_users": record["counts"]["n_users"], "n_tied": None})
        return
    ordered = InTokenOrder(run.settings, run.data, run.task, run.denoiser, run.validation, run.prepare_seconds)
    measured = ordered.evaluate(metrics=METRICS)
    means: dict[str, Any] = {"all": measured.mean, "warm": measured.warm, "cold": measured.cold}
    checkpoint.write_json(folder / KEPT["ties"], {**means, "n_users": measured.n_users, "n_tied": ordered.tied})


def write_predictions(folder: Path, run: Run) -> None:
    """Write ``predictions.npz``: for every training pair ``p``, ``p_clean`` and, where known, ``rating``.

    ``p`` is the probability that the model gives the pair; ``p_clean`` is P(y = 1 | observed), which DeCA computes by
    Eq. 25 and every other method takes to be ``p`` (Eq. 11). All are ``(n_train,)`` float32, in the order of the
    training file.
    """
    run.denoiser.eval()
    run.task.begin_step(run.denoiser)
    p = torch.sigmoid(run.task.scan(run.denoiser.score))
    run.task.begin_step(run.denoiser)
    p_clean = run.denoiser.clean_probability()
    tensors = {"p": p, "p_clean": p if p_clean is None else p_clean}
    if run.data.rating is not None:
        tensors["rating"] = run.data.rating
    arrays: dict[str, Any] = {name: tensor.cpu().numpy().astype(np.float32) for name, tensor in tensors.items()}
    with checkpoint.atomic_file(folder / KEPT["predictions"]) as file:
        np.savez_compressed(file, **arrays)


def read_predictions(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What :func:`write_predictions` wrote."""
    with np.load(folder / KEPT["predictions"], allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


WRITERS = {
    "users": write_users,
    "ties": write_ties,
    "predictions": write_predictions,
    "detection": lambda folder, run: write_detection(folder / KEPT["detection"], run),
}
