"""RecBole's Trainer as a thin face over the loop: its logger, TensorBoard, callbacks and return values stay."""

from __future__ import annotations

import copy
import os
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from time import time
from typing import Any

import recbole.utils
import torch
from recbole.trainer import Trainer
from recbole.utils import EvaluatorType, get_local_time, set_color
from torch import Tensor, nn

from recdenoise.denoisers import Clock, Denoiser, DenoiserConfig, Stage
from recdenoise.denoisers.deca import DeCAConfig
from recdenoise.errors import UserError
from recdenoise.loop import Loop, Observer
from recdenoise.recbole_adapter.flag import loop_config, read_flag, validates
from recdenoise.recbole_adapter.identity import identity
from recdenoise.recbole_adapter.loaders import WholeRows
from recdenoise.recbole_adapter.models import MODELS, paper_model_config
from recdenoise.recbole_adapter.recbole_config import read_yaml, resolve_model
from recdenoise.recbole_adapter.scorers import scorer_for
from recdenoise.recbole_adapter.task import RecBoleTask
from recdenoise.recbole_adapter.validation import PairValidation
from recdenoise.selection import LOSSES, check_selector
from recdenoise.task import Call


def config_view(config: Any) -> dict[str, Any]:
    """A RecBole Config as a plain mapping (``in`` and ``get`` work; ``Config[...]`` gives None for what is missing)."""
    return dict(config.final_config_dict)


def training_pairs(dataset: Any) -> tuple[Tensor, Tensor]:
    """User and item ids of a RecBole dataset's interactions, ``(n,)`` int64 each, on the CPU.

    Raises:
        UserError: the dataset has no user-item interactions.
    """
    feat = dataset.inter_feat
    if dataset.uid_field is None or dataset.iid_field is None or len(feat) == 0:
        raise UserError(f"The dataset {dataset.dataset_name!r} has no user-item interactions to train on.")
    return feat[dataset.uid_field].long(), feat[dataset.iid_field].long()


def auxiliary_class(name: str) -> type:
    """The class of an auxiliary model. Raises ``UserError`` for an unknown name or a model that cannot be trained."""
    ours = {own.lower(): own for own in MODELS}
    cls = resolve_model(ours.get(name.lower(), name))
    scorer_for(cls)
    return cls


def check_auxiliary(options: DenoiserConfig) -> None:
    """Refuse DeCA's ``auxiliary`` before data is read. Raises ``UserError`` as :func:`auxiliary_class`."""
    if isinstance(options, DeCAConfig):
        auxiliary_class(options.auxiliary)


def model_builder(config: Any, dataset: Any, target: type[nn.Module]) -> Callable[[str | None], nn.Module]:
    """A function that builds the target's class (``None``) or a named auxiliary model on ``dataset``.

    Names of our own models are case-insensitive (``mf``, ``gmf``, ``neumf``) and have the DeCA paper's sizes; any
    RecBole model works by its name, at RecBole's default sizes.
    """

    def build(name: str | None) -> nn.Module:
        if name is None:
            return build_network(target, config, dataset)
        cls = auxiliary_class(name)
        defaults = Path(recbole.__file__).parent / "properties" / "model" / f"{cls.__name__}.yaml"
        sizes = read_yaml(defaults) if defaults.is_file() else {}
        if cls.__name__ in MODELS:
            sizes |= paper_model_config(cls)
        sized = copy.copy(config)
        sized.final_config_dict = {**config.final_config_dict, **sizes}
        return build_network(cls, sized, dataset)

    return build


def build_network(cls: type[nn.Module], config: Any, dataset: Any) -> nn.Module:
    """Build a model. Raises ``UserError`` where its class refuses the options that it is given."""
    try:
        return cls(config, dataset)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{cls.__name__} cannot be built with the options it is given: {said}") from error


def pointwise_note(model: type, method: str) -> str | None:
    """What to tell who trains a pairwise model through a denoiser; ``None`` for other models."""
    if getattr(model, "input_type", None) != recbole.utils.InputType.PAIRWISE:
        return None
    return (
        f"{model.__name__} is a pairwise model: {method} trains it pointwise, on the logits of observed and sampled "
        "pairs, and its own loss is not used."
    )


WITHOUT_CUT_OFF = ("auc", "gauc", "mae", "rmse", "logloss")
"""RecBole's metrics that are no lists'."""


def check_measured(config: Any, wanted: Sequence[str], n_items: int) -> None:
    """Refuse a selector or metric that RecBole's evaluator will not give, and a cut-off beyond the catalogue.

    Raises:
        UserError: naming either, and what there is.
    """
    metrics, topk = config["metrics"], config["topk"]
    deepest = max([topk] if isinstance(topk, int) else topk or [0])
    if deepest > n_items:
        raise UserError(f"topk holds {deepest}, but only {n_items} items can be ranked.")
    metrics = [metrics] if isinstance(metrics, str) else metrics
    cut_offs = [topk] if isinstance(topk, int) else topk or []
    names = {metric.lower() for metric in metrics if metric.lower() in WITHOUT_CUT_OFF}
    names |= {f"{metric}@{k}".lower() for metric in metrics for k in cut_offs if metric.lower() not in WITHOUT_CUT_OFF}
    missing = sorted(set(wanted) - {"last", *LOSSES} - names)
    if missing:
        raise UserError(
            f"The config's metrics and topk do not give {', '.join(missing)}; add it there. "
            f"They give: {', '.join(sorted(names))}."
        )


class RecBoleObserver(Observer):
    """Logs what RecBole logs, in its words."""

    def __init__(self, trainer: DenoisingTrainer, verbose: bool, show_progress: bool) -> None:
        self.trainer, self.verbose, self.show_progress = trainer, verbose, show_progress
        self.bar: Any = None
        self.steps = 0
        self.epoch = 0  # of all stages together, as RecBole counts
        self.scored = False
        self.started = time()

    def on_stage(self, stage: Stage, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        self.steps = steps_per_epoch
        self.started = time()
        assert self.trainer.denoiser is not None
        self.scored = stage.name == self.trainer.denoiser.stages()[-1].name
        if self.verbose and self.trainer.many_stages:
            self.trainer.logger.info(f"Stage {stage.name}: {epochs} epochs of {steps_per_epoch} steps")

    def on_step(self, clock: Clock, loss: Tensor) -> None:
        if not self.show_progress:
            return
        if self.bar is None:
            from recbole.trainer.trainer import tqdm

            self.bar = tqdm(total=self.steps, ncols=100, desc=set_color(f"Train {clock.epoch:>5}", "pink"))
        self.bar.update(1)

    def take_up(self, history: Sequence[dict[str, Any]]) -> None:
        """Count on from the epochs of a resumed run."""
        self.trainer.train_loss_dict.update((index, row["loss"] * row["steps"]) for index, row in enumerate(history))
        self.epoch = len(history)

    def on_epoch(self, row: dict[str, Any]) -> None:
        trainer, index = self.trainer, self.epoch
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {row['loss']:.4f}")
            self.bar.close()
            self.bar = None
        total = row["loss"] * row["steps"]  # RecBole reports the sum over batches
        trainer.train_loss_dict[index] = total
        now = time()
        if self.verbose:
            trainer.logger.info(trainer._generate_train_loss_output(row["epoch"] - 1, self.started, now, total))
        trainer._add_train_loss_to_tensorboard(index, total)
        values = {key.removeprefix("valid_"): v for key, v in row.items() if key.startswith("valid_")}
        if values and self.verbose:
            shown = "    ".join(f"{name} : {value:.4f}" for name, value in values.items())
            trainer.logger.info(set_color("valid result", "blue") + f": {shown}")
        score = values.get(trainer.valid_metric)
        if score is not None and self.scored:  # how a prior ranks is not the score that a caller compares
            trainer.tensorboard.add_scalar("Vaild_score", score, index)  # RecBole's own spelling
            if trainer.callback is not None:
                trainer.callback(index, score)
        self.epoch, self.started = index + 1, now


class DenoisingTrainer(Trainer):
    """Trains a RecBole model through the denoiser named in its config.

    Pairwise models (BPR, RecBole's LightGCN) are trained pointwise on observed and sampled pairs. A batch holds
    ``train_batch_size`` observed pairs and as many sampled ones.
    """

    def __init__(self, config: Any, model: nn.Module) -> None:
        view = config_view(config)
        flag = read_flag(view)
        if flag is None:
            raise UserError("DenoisingTrainer needs a denoiser in the config, such as denoiser: deca_p.")
        self.method, self.method_config = flag
        check_auxiliary(self.method_config)
        try:
            super().__init__(config, model)
        except OSError as error:
            raise UserError(f"checkpoint_dir {config['checkpoint_dir']!r} cannot be used: {error.strerror}.") from error
        # RecBole's names have a resolution of one second: two runs in one second would share a file.
        name = f"{type(model).__name__}-{self.method.name}-{get_local_time()}-{uuid.uuid4().hex[:8]}.pth"
        self.saved_model_file: str = os.path.join(str(config["checkpoint_dir"]), name)
        self.callback: Callable[[int, float], Any] | None = None
        self.denoiser: Denoiser | None = None
        self.task: RecBoleTask | None = None
        self.history: list[dict[str, Any]] = []
        self.many_stages = False
        self._score: Call | None = None
        self._resume_from: Path | None = None

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], Any] | None = None,
    ) -> tuple[float, Any]:
        """Train; arguments and return value are RecBole's: ``(best valid score, best valid result)``.

        Raises:
            UserError: data or a model that cannot be denoised.
            TrainingError: a loss is not finite.
        """
        dataset = train_data.dataset if hasattr(train_data, "dataset") else train_data._dataset
        if verbose:
            self._announce()
        self.eval_collector.data_collect(train_data)
        users, items = training_pairs(dataset)
        self.task = RecBoleTask(
            users,
            items,
            dataset.user_num,
            dataset.item_num,
            new_model=model_builder(self.config, dataset, type(self.model)),
            seed=int(self.config["seed"]),
            batch_size=int(self.config["train_batch_size"]),
            device=self.device,
            first_target=self.model,
        )
        self.denoiser = self.method(self.task, self.method_config)
        settings = loop_config(config_view(self.config), validation_data=bool(valid_data))
        stages = self.denoiser.stages()
        selectors = [check_selector(stage.selector or settings.selector) for stage in stages]
        self.many_stages = len(stages) > 1
        self.callback = callback_fn
        validation = _Validation(self, valid_data) if valid_data else None
        # RecBole reports valid_metric after every epoch and at the end, whatever selects.
        reported = {self.valid_metric} if validation is not None else set()
        check_measured(self.config, [*selectors, *reported], dataset.item_num - 1)
        path = self._resume_from or Path(self.saved_model_file)
        observer = RecBoleObserver(self, verbose, show_progress)
        self.loop = Loop(
            self.denoiser,
            self.task,
            settings,
            validate=validation,
            checkpoint_path=path if saved else None,
            identity=identity(self.config, self.model, dataset.dataset_name, (users, items), settings),
            observer=observer,
            log_values=reported if validates(config_view(self.config)) else set(),
        )
        if self._resume_from is not None:
            self.loop.resume()
            observer.take_up(self.loop.history)
        self.history = self.loop.run()
        self._score = self.denoiser.score
        if validation is None:
            return -1, None
        result = validation.evaluate(self.denoiser.score)
        self.best_valid_score, self.best_valid_result = result[self.valid_metric], result
        self._add_hparam_to_tensorboard(self.best_valid_score)
        return self.best_valid_score, self.best_valid_result

    def _announce(self) -> None:
        self.logger.info(set_color("Denoiser", "blue") + f": {self.method.title} {self.method_config}")
        size = self.config["train_batch_size"]
        self.logger.info(f"A batch holds {size} observed pairs and as many sampled ones.")
        note = pointwise_note(type(self.model), self.method.title)
        if note:
            self.logger.info(note)

    def resume_checkpoint(self, resume_file: str) -> None:
        """Go on from a checkpoint when :meth:`fit` is called, in the same file."""
        self._resume_from = Path(resume_file)
        if not self._resume_from.is_file():
            raise UserError(f"There is no checkpoint {resume_file}.")

    @torch.no_grad()
    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: str | None = None, show_progress: bool = False
    ) -> Any:
        """RecBole's evaluation of the denoiser's score. The selected weights are in place after :meth:`fit`."""
        if self.denoiser is None or self.task is None:
            raise UserError("Call fit before evaluate: the denoiser's networks are built from the training data.")
        if load_best_model and model_file is not None:
            from recdenoise import checkpoint

            state = checkpoint.load(Path(model_file), self.device)
            checkpoint.load_modules(Path(model_file), self.denoiser.load_state_dict, state["modules"])
        self.denoiser.eval()
        self.task.begin_step(self.denoiser)
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)

    def _full_sort_batch_eval(self, batched_data: Any) -> tuple[Any, Tensor, Tensor, Tensor]:
        interaction, history_index, positive_u, positive_i = batched_data
        assert self._score is not None
        scores = self._score(WholeRows(interaction[self.config["USER_ID_FIELD"]].to(self.device)))
        scores[:, 0] = -torch.inf
        if history_index is not None:
            scores[history_index] = -torch.inf
        return interaction, scores, positive_u, positive_i

    def _neg_sample_batch_eval(self, batched_data: Any) -> tuple[Any, Tensor, Tensor, Tensor]:
        interaction, row_idx, positive_u, positive_i = batched_data
        assert self._score is not None
        assert self.task is not None
        users = interaction[self.config["USER_ID_FIELD"]].to(self.device)
        items = interaction[self.config["ITEM_ID_FIELD"]].to(self.device)
        flat = self.task.scan_pairs(self._score, users, items)
        if self.config["eval_type"] == EvaluatorType.VALUE:
            return interaction, torch.sigmoid(flat), positive_u, positive_i
        if row_idx is None:
            raise UserError("eval_args.mode is 'labeled'; denoisers rank: use full, uniN or popN.")
        scores = torch.full((int(positive_u[-1]) + 1, self.tot_item_num), -torch.inf, device=self.device)
        scores[row_idx.to(self.device), items] = flat
        return interaction, scores, positive_u, positive_i


class _Validation:
    """Losses from the held-out pairs, metrics from RecBole's own evaluation loop and evaluator."""

    def __init__(self, trainer: DenoisingTrainer, valid_data: Any) -> None:
        self.trainer, self.data = trainer, valid_data
        dataset = valid_data.dataset if hasattr(valid_data, "dataset") else valid_data._dataset
        assert trainer.task is not None
        self.pairs = PairValidation(trainer.task, *training_pairs(dataset))

    def evaluate(self, score: Call) -> OrderedDict[str, float]:
        """RecBole's metrics of a scorer."""
        self.trainer._score = score
        return self.trainer.evaluate(self.data, load_best_model=False)

    def __call__(self, score: Call, wanted: set[str]) -> dict[str, float]:
        values = self.pairs.losses(score) if wanted & {"loss", "trimmed_loss"} else {}
        metrics = wanted - {"loss", "trimmed_loss"}
        if metrics:
            result = self.evaluate(score)
            values |= {name: float(result[name]) for name in metrics}
        return {name: values[name] for name in wanted}


# Scripts that call RecBole's own get_trainer or run_recbole


def install_flag() -> None:
    """Let RecBole's ``get_trainer`` honour ``denoiser:``. Without the flag a config gets RecBole's own trainer."""
    import sys

    import recbole.utils
    import recbole.utils.utils

    stock = recbole.utils.utils.get_trainer
    if getattr(stock, "honours_denoiser", False):
        return

    def get_trainer(model_type: Any, model_name: str) -> Callable[[Any, nn.Module], Any]:
        def make(config: Any, model: nn.Module) -> Any:
            if read_flag(config_view(config)) is None:
                return stock(model_type, model_name)(config, model)
            return DenoisingTrainer(config, model)

        return make

    get_trainer.honours_denoiser = True  # type: ignore[attr-defined]
    for name in ("recbole.utils.utils", "recbole.utils", "recbole.quick_start.quick_start"):
        module = sys.modules.get(name)
        if module is not None:
            module.get_trainer = get_trainer  # type: ignore[attr-defined]
