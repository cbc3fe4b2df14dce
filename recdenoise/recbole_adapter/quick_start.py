"""``run_recbole`` with RecBole's signature and return shape, on today's stack, with the ``denoiser`` flag."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from logging import getLogger
from typing import Any

from recbole.data import create_dataset, data_preparation
from recbole.utils import init_logger, init_seed, set_color

from recdenoise.errors import UserError
from recdenoise.recbole_adapter.atomic_files import check_inter_files, explain
from recdenoise.recbole_adapter.flag import loop_config, read_flag
from recdenoise.recbole_adapter.recbole_config import build_config, resolve_model
from recdenoise.recbole_adapter.scorers import scorer_for
from recdenoise.recbole_adapter.trainer import DenoisingTrainer, build_network, check_auxiliary, config_view

RECBOLE_EVAL_BATCH = 4096
"""RecBole's default ``eval_batch_size``: two users at a time on ml-100k, so a slower evaluation than training."""

USERS_PER_BLOCK = 256
SCORES_PER_BLOCK = 1 << 24


class RecBoleResult(dict[str, Any]):
    """What RecBole's ``run_recbole`` returns, a dictionary, with its entries and the run's objects as attributes."""

    def __init__(self, values: Mapping[str, Any], config: Any, model: Any, trainer: Any) -> None:
        super().__init__(values)
        self.config, self.model, self.trainer = config, model, trainer

    @property
    def best_valid_score(self) -> float:
        """Best value of ``valid_metric``."""
        return float(self["best_valid_score"])

    @property
    def best_valid_result(self) -> dict[str, float]:
        """All metrics on validation at that point."""
        return dict(self["best_valid_result"] or {})

    @property
    def test_result(self) -> dict[str, float]:
        """All metrics on test."""
        return dict(self["test_result"] or {})

    @property
    def denoiser(self) -> Any:
        """The trained denoiser, or ``None`` where the config named none."""
        return getattr(self.trainer, "denoiser", None)

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row per epoch, where a denoiser trained."""
        return list(getattr(self.trainer, "history", []))


def run_recbole(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    queue: Any = None,
) -> RecBoleResult:
    """Train and test a model on a data set; with ``denoiser`` in the config, through that denoiser.

    Args:
        model: a RecBole model's name, or MF or GMF, or a class.
        dataset: a data set as RecBole names it; ``ml-100k`` needs no download.
        config_file_list: RecBole YAML files.
        config_dict: options that outrank the files.
        saved: save the model and test the best one.
        queue: receives the result, for RecBole's multiprocessing.

    Returns:
        RecBole's dictionary (``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``, ``test_result``).

    Raises:
        UserError: whatever cannot work, before data is read where that can be known.
        TrainingError: a loss is not finite.
    """
    config = build_config(model, dataset, config_file_list, config_dict, read_command_line=False)
    view = config_view(config)
    flag = read_flag(view)
    # Without a denoiser a model is RecBole's own class, so that nothing differs from RecBole.
    cls = resolve_model(model if model is not None else config["model"], own_models=flag is not None)
    if flag is not None:
        scorer_for(cls)
        check_auxiliary(flag[1])
        loop_config(view, validation_data=True)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    logger = getLogger()
    logger.info(config)
    data = _guarded(flag is not None, config, create_dataset)
    logger.info(data)
    if flag is not None and config["eval_batch_size"] == RECBOLE_EVAL_BATCH:
        # The values are the same for any block of users; only the time differs. Scorers bound their own memory, as
        # RecBole's pair-by-pair models do not.
        config["eval_batch_size"] = max(RECBOLE_EVAL_BATCH, min(USERS_PER_BLOCK * data.item_num, SCORES_PER_BLOCK))
    train_data, valid_data, test_data = _guarded(flag is not None, config, data_preparation, data)
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    build = cls if flag is None else partial(build_network, cls)
    network = build(config, train_data._dataset).to(config["device"])
    logger.info(network)
    trainer = _trainer(config, network, flag is not None)
    best_valid_score, best_valid_result = trainer.fit(
        train_data, valid_data, saved=saved, show_progress=config["show_progress"]
    )
    test_result = trainer.evaluate(test_data, load_best_model=saved, show_progress=config["show_progress"])
    logger.info(set_color("best valid ", "yellow") + f": {best_valid_result}")
    logger.info(set_color("test result", "yellow") + f": {test_result}")
    values = {
        "best_valid_score": best_valid_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_valid_result,
        "test_result": test_result,
    }
    if config["local_rank"] == 0 and queue is not None:
        queue.put(values)
    return RecBoleResult(values, config, network, trainer)


def _guarded(denoises: bool, config: Any, step: Callable[..., Any], *data: Any) -> Any:
    """One of RecBole's steps with its mistakes in one sentence; without a denoiser they are RecBole's own."""
    if not denoises:
        return step(config, *data)
    if not data:
        check_inter_files(config)
    try:
        return step(config, *data)
    except UserError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise explain(config, error, *data) from error


def _trainer(config: Any, network: Any, denoises: bool) -> Any:
    if denoises:
        return DenoisingTrainer(config, network)
    from recbole.utils import get_trainer

    try:
        return get_trainer(config["MODEL_TYPE"], config["model"])(config, network)
    except ValueError as error:  # torch's word for a model without parameters, such as Pop under a plain Trainer
        raise UserError(f"RecBole cannot train {config['model']}: {error}") from error
