"""Which RecBole options a run knows, and of what type they are. RecBole itself ignores what it does not know."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recdenoise.errors import UserError
from recdenoise.options import convert, describe
from recdenoise.recbole_adapter.flag import PREFIX
from recdenoise.recbole_adapter.models import MODELS
from recdenoise.recbole_adapter.recbole_config import read_yaml

RESERVED = ("model", "dataset", "preset", "benchmark_filename", "data_path")
"""Not options: arguments or the data set's folder decide. In a file they are passed over."""

LOOP = (
    *("epochs", "train_batch_size", "learning_rate", "weight_decay", "clip_grad_norm", "enable_amp", "eval_step"),
    *("eval_steps", "stopping_step", "valid_selector", "paper_code_stopping", "checkpoint_seconds"),
)
"""Options of training, of RecBole's or of ours."""

WITHOUT_EFFECT = {
    **dict.fromkeys(RESERVED, "--model, --dataset, --protocol and --preset say it"),
    **dict.fromkeys(
        ("metrics", "topk"),
        "train tests recall and NDCG at 3, 5, 10 and 20, and recdenoise evaluate measures others",
    ),
    "train_neg_sample_args": "denoisers draw their negatives themselves; wbpr draws popular ones",
}
"""Options that nobody should type, and why. A file that serves RecBole too may hold them."""


def check_names(layer: Mapping[str, Any], model: str, place: str) -> None:
    """Refuse options that neither RecBole, nor the model, nor the loop knows.

    A file may serve several models, so there the options of all of RecBole's models are known; what is typed must have
    an effect.

    Args:
        layer: options of one source.
        model: name of the model's class.
        place: the file, or ``--set``.

    Raises:
        UserError: an unknown name; it suggests the nearest and lists those of training and of the model.
    """
    from recbole.utils import argument_list

    lists = ("general_arguments", "training_arguments", "evaluation_arguments", "dataset_arguments")
    known = {name for each in lists for name in getattr(argument_list, each)} | set(_properties("overall.yaml"))
    of_data = {*argument_list.dataset_arguments, *argument_list.evaluation_arguments} - {"valid_metric"}
    near = {*LOOP, *_properties(f"model/{model}.yaml")}
    if model in MODELS:
        near |= {*MODELS[model].paper_config}
    typed = place == "--set"
    for key in layer:
        if typed and key in {*WITHOUT_EFFECT, *of_data}:
            why = WITHOUT_EFFECT.get(key, "the data set's folder says how it is read and ranked")
            raise UserError(f"--set {key} has no effect: {why}.")
        if key in known | near | {"protocol", "denoiser"} or key.startswith(PREFIX):
            continue
        if not typed and (key in RESERVED or key in _properties("model/*.yaml")):
            continue
        close = difflib.get_close_matches(key, sorted(known | near), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        valid = ", ".join(sorted(near))
        raise UserError(
            f"{place}: unknown option {key!r}.{hint} Valid for {model}: {valid}, denoiser.OPTION, and RecBole's others."
        )


def check_types(options: Mapping[str, Any], model: str) -> None:
    """Refuse values of another type than the option's default has, before a network is built from them.

    Raises:
        UserError: a word where a number is due, a number where a list is due, or an embedding without a dimension.
    """
    ours = MODELS[model].paper_config if model in MODELS else {}
    overall = _properties("overall.yaml")
    defaults = {**overall, **_properties(f"model/{model}.yaml"), **ours}
    for key, value in options.items():
        default = defaults.get(key)
        if value is None or default is None:
            continue
        if isinstance(default, list):  # RecBole takes a single metric or cut-off for a list
            if key not in overall and not isinstance(value, list):
                raise UserError(f"Option {key!r} is {value!r}; it must be a list such as {default}.")
        elif isinstance(default, bool | int | float):
            # RecBole's files write 1 for 1.0: only of our own models is a whole number known to be one.
            kind = bool if isinstance(default, bool) else type(ours.get(key, 0.0))
            try:
                number = convert(value, kind)
            except TypeError:
                raise UserError(f"Option {key!r} is {value!r}; it must be {describe(kind)}.") from None
            if key.endswith("embedding_size") and number < 1:
                raise UserError(f"Option {key!r} is {value!r}; it must be 1 or more.")


def _properties(pattern: str) -> dict[str, Any]:
    """Options in RecBole's own default files, with their defaults."""
    import recbole

    folder = Path(recbole.__file__).parent / "properties"
    return {name: value for path in folder.glob(pattern) for name, value in read_yaml(path).items()}
