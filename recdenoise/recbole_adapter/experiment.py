"""A run from settings to files: train, evaluate, save; and a saved run back to a model that ranks."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import recdenoise
from recdenoise import checkpoint, ranking, seeds
from recdenoise.denoisers import Denoiser
from recdenoise.errors import UserError
from recdenoise.loop import Loop, Observer
from recdenoise.ranking import RankingResult
from recdenoise.recbole_adapter.dataset import SplitData, check_protocol, load_split
from recdenoise.recbole_adapter.loaders import WholeRows
from recdenoise.recbole_adapter.recbole_config import resolve_model
from recdenoise.recbole_adapter.settings import Settings, read_settings
from recdenoise.recbole_adapter.task import RecBoleTask
from recdenoise.recbole_adapter.trainer import model_builder, pointwise_note
from recdenoise.recbole_adapter.validation import PairValidation
from recdenoise.run_files import RunFiles, check_out, versions
from recdenoise.selection import LOSSES

METRICS = ("recall", "ndcg")
TOPK = (3, 5, 10, 20)
"""Where lists are cut; a catalogue of fewer items has fewer of them, see :meth:`Run.cut_offs`."""


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        path: its folder, or ``None`` where nothing was saved.
        test: metric name to mean over users, for example ``{"recall@20": 0.1, ...}``.
        record: what ``result.json`` holds.
    """

    path: Path | None
    test: dict[str, float]
    record: dict[str, Any]


@dataclass
class Run:
    """Data, task and networks of a run, trained or about to be."""

    settings: Settings
    data: SplitData
    task: RecBoleTask
    denoiser: Denoiser
    validation: PairValidation
    prepare_seconds: float

    @property
    def tests_like_the_published_code(self) -> bool:
        """The published code tests autoencoders in training mode and masks nothing (its mask is thrown away)."""
        return self.settings.config.compat == "paper_code" and self.task.rowwise

    @property
    def cut_offs(self) -> tuple[int, ...]:
        """Those of :data:`TOPK` that the catalogue is long enough for, or its length."""
        n_items = self.task.n_items - 1
        return tuple(k for k in TOPK if k <= n_items) or (n_items,)

    def check(self) -> None:
        """Refuse, before training, what the end of a run or its first validation would refuse.

        Raises:
            UserError: a selector's cut-off beyond the catalogue, or a test without a user who can be ranked.
        """
        selectors = {stage.selector or self.settings.loop.selector for stage in self.denoiser.stages()}
        for selector in sorted(selectors - {"last", *LOSSES}):
            cut = ranking.parse_metric(selector)[1]
            if cut is not None and cut > self.task.n_items - 1:
                raise UserError(f"Selector {selector}: only {self.task.n_items - 1} items can be ranked.")
        seen = self.task.data.lists.counts().cpu() > 0
        if self.data.protocol == "clean" and not bool((seen & (self.data.truth.counts().cpu() > 0)).any()):
            raise UserError(
                f"Training saw none of the users of the clean test in {self.data.folder}: under the clean protocol "
                "nobody is left to evaluate."
            )

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with this run to be continued by it."""
        return {**self.settings.identity(recdenoise.__version__), "data": self.data.digest}

    def score_block(self, users: Tensor) -> Tensor:
        """Scores of all items, ``(b, n_items)``."""
        return self.denoiser.score(WholeRows(users))

    def evaluate(
        self,
        topk: Sequence[int] | None = None,
        metrics: Sequence[str] = METRICS,
        protocol: str | None = None,
        masked: bool | None = None,
    ) -> RankingResult:
        """Rank all items for the users of the clean test.

        Args:
            topk: cut-offs; ``None`` takes :attr:`cut_offs`.
            metrics: names of :data:`recdenoise.ranking.METRICS`.
            protocol: how to count; the run's own by default. It never changes the files.
            masked: whether training and validation pairs are left out of the lists; by default they are, except for
                autoencoders under ``compat: paper_code``.

        Raises:
            UserError: an unknown metric, or a cut-off beyond the catalogue.
        """
        protocol = check_protocol(protocol or self.data.protocol)
        masked = not self.tests_like_the_published_code if masked is None else masked
        device = self.task.device
        users = (self.data.truth.counts() > 0).nonzero()[:, 0].to(device)
        self.denoiser.eval()
        self.task.begin_step(self.denoiser)
        before = checkpoint.random_state()
        if self.tests_like_the_published_code and not masked:
            torch.manual_seed(seeds.derive(self.settings.seed, "evaluate"))
            self.denoiser.train()
        try:
            return ranking.evaluate(
                self.score_block,
                self.data.truth.to(device),
                topk=list(self.cut_offs if topk is None else topk),
                metrics=metrics,
                mask=self.data.known.to(device) if masked else None,
                users=users,
                train=self.task.data.lists,
                keep_unseen_users=protocol == "paper",
                drop_masked_truth=protocol == "clean" and masked,
                first_item=1,
            )
        finally:
            self.denoiser.eval()
            checkpoint.restore_random_state(before)

    def recommend(self, tokens: Sequence[str], k: int) -> list[tuple[str, list[tuple[str, float]]]]:
        """The ``k`` best new items of each user: ``[(user, [(item, score), ...]), ...]`` by token.

        Raises:
            UserError: an unknown user, or ``k`` beyond the catalogue.
        """
        users = self.data.user_ids(list(tokens)).to(self.task.device)
        self.denoiser.eval()
        self.task.begin_step(self.denoiser)
        mask = self.data.known.to(self.task.device)
        lists = ranking.top_k(self.score_block, users, k, self.task.n_items, mask=mask, first_item=1)
        with torch.no_grad():
            probability = torch.sigmoid(self.score_block(users))
        names = self.data.item_tokens
        return [
            (token, [(str(names[i]), float(row[i])) for i in items.tolist() if i >= 0])
            for token, items, row in zip(tokens, lists, probability, strict=True)
        ]


def prepare(settings: Settings) -> Run:
    """Load the data and build every network of ``settings``."""
    started = time.perf_counter()
    data = load_split(settings.model, settings.dataset, settings.protocol, settings.options)
    cls = resolve_model(settings.model)
    build = model_builder(data.config, data.dataset, cls)
    task = RecBoleTask(
        *data.train,
        data.truth.n_users,
        data.truth.n_items,
        new_model=build,
        seed=settings.seed,
        batch_size=settings.batch_size,
        device=data.config["device"],
    )
    denoiser = settings.method(task, settings.config)
    validation = PairValidation(task, *data.valid)
    return Run(settings, data, task, denoiser, validation, time.perf_counter() - started)


def train(settings: Settings, out: Path | None, *, resume: bool = False, observer: Observer | None = None) -> RunResult:
    """Train and test; writes ``config.yaml``, ``metrics.csv``, ``checkpoint.pt``, ``model.pt`` and ``result.json``.

    Args:
        settings: from :func:`recdenoise.recbole_adapter.settings.resolve`.
        out: the run's folder, or ``None`` to save nothing.
        resume: go on from the folder's checkpoint where there is one; a finished run stays as it is.
        observer: told about progress.

    Raises:
        UserError: the folder holds another run, or ``resume`` is off and it holds one.
        TrainingError: a loss is not finite.
        KeyboardInterrupt: after a checkpoint was saved.
    """
    if out is not None:
        check_out(out, resume)
    run = prepare(settings)
    run.check()
    inner = observer or Observer()
    loop = Loop(
        run.denoiser,
        run.task,
        settings.loop,
        validate=run.validation,
        checkpoint_path=None if out is None else out / "checkpoint.pt",
        identity=run.identity(),
        observer=inner,
    )
    if resume and loop.resume() and loop.finished and out is not None:
        record = read_record(out)
        if record is not None:
            return RunResult(out, record["test"], record)
    if out is not None:
        # Only now: a checkpoint of another run was refused, so its config.yaml is still its own.
        checkpoint.write_text(out / "config.yaml", yaml.safe_dump(settings.to_dict(), sort_keys=False))
        loop.observer = RunFiles(out, inner, loop.history)
    if (
        settings.loop.selector in LOSSES
        and settings.method.loss_selector_note
        and not settings.loop.paper_code_stopping
    ):
        inner.on_note(f"{settings.method.title}: {settings.method.loss_selector_note}.")
    note = pointwise_note(resolve_model(settings.model), settings.method.title)
    if note:
        inner.on_note(note)
    history = loop.run()
    result = finish(run, history, out)
    if out is not None:
        checkpoint.save(out / "model.pt", {"identity": loop.identity, "modules": run.denoiser.state_dict()})
        checkpoint.write_json(out / "result.json", result.record)
    return result


def read_record(out: Path) -> dict[str, Any] | None:
    """What a finished run's ``result.json`` holds, or ``None`` where it is missing or broken."""
    try:
        record = json.loads((out / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and {"test", "seconds"} <= record.keys() and (out / "model.pt").is_file()
    return record if whole else None


def finish(run: Run, history: list[dict[str, Any]], out: Path | None) -> RunResult:
    """Test a trained run and put everything about it in one record."""
    started = time.perf_counter()
    measured = run.evaluate()
    evaluate_seconds = time.perf_counter() - started
    settings = run.settings
    watched = run.denoiser.module(run.denoiser.stages()[-1].watch)
    counts = measured.to_dict()
    test = counts.pop("mean")
    record: dict[str, Any] = {
        "model": settings.model,
        "dataset": run.data.name,
        "data": run.data.digest,
        "denoiser": settings.method.name,
        "protocol": settings.protocol,
        "seed": settings.seed,
        "preset": settings.preset,
        "selector": settings.loop.selector,
        "test": test,
        "counts": {**counts, "unknown_test_rows": run.data.unknown_test_rows},
        "seconds": {
            "prepare": run.prepare_seconds,
            "train": sum(row["seconds"] for row in history),
            "evaluate": evaluate_seconds,
        },
        "epochs": {
            stage: sum(r["stage"] == stage for r in history) for stage in dict.fromkeys(r["stage"] for r in history)
        },
        "parameters": sum(p.numel() for p in watched.parameters()),
        "versions": versions(("torch", "numpy", "scipy", "recbole")),
        "device": str(run.task.device),
    }
    if run.tests_like_the_published_code:
        record["test_masked"] = run.evaluate(masked=True).mean
    return RunResult(out, test, record)


def load(folder: Path) -> Run:
    """Load a finished run, ready to rank.

    Raises:
        UserError: not a run, an unfinished one, weights of another model or version, or a data set that has been
            built anew from other rows since: ids would no longer be those of the weights.
    """
    settings = read_settings(folder)
    if not (folder / "model.pt").is_file():
        raise UserError(f"The run in {folder} has not finished; continue it with: recdenoise train --resume {folder}")
    run = prepare(settings)
    path = folder / "model.pt"
    state = checkpoint.load(path, run.task.device)
    names = ("model", "protocol", "seed")
    expected = {"denoiser": settings.method.name, **{name: getattr(settings, name) for name in names}}
    checkpoint.require_same(path, state["identity"], expected)
    if state["identity"].get("data", run.data.digest) != run.data.digest:
        raise UserError(
            f"{folder} was trained on other files than {run.data.folder} holds now: build the data set as it was, or "
            "train again."
        )
    checkpoint.load_modules(path, run.denoiser.load_state_dict, state["modules"])
    run.denoiser.eval()
    return run
