"""Hyper-parameter search on validation data alone, kept in an SQLite file, and the test of what it found."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recdenoise import checkpoint, denoisers, presets
from recdenoise.errors import TrainingError, UserError
from recdenoise.loop import Loop, Observer
from recdenoise.options import flat_options
from recdenoise.recbole_adapter.dataset import digest_of, find_folder
from recdenoise.recbole_adapter.experiment import prepare, train
from recdenoise.recbole_adapter.settings import DEFAULTS, Settings, resolve
from recdenoise.reports.grid import FIRST_SEED, merge, nested_options, to_csv
from recdenoise.reports.run_folder import check_data, check_folder
from recdenoise.reports.runs import read_users as read_users
from recdenoise.reports.runs import write_users
from recdenoise.seeds import derive
from recdenoise.selection import LOSSES

if TYPE_CHECKING:
    import optuna

L2 = (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
C = (1.0, 10.0, 100.0, 1000.0)
CROSS_MODEL = {"denoiser.c_1": C, "denoiser.c_2": C, "denoiser.alpha": (0.0, 0.5, 1.0)}
SPACES: dict[str, dict[str, tuple[Any, ...]]] = {
    "deca": CROSS_MODEL,
    "deca_p": CROSS_MODEL,
    "t_ce": {"denoiser.drop_rate": (0.05, 0.1, 0.2, 0.3)},
    "r_ce": {"denoiser.alpha": (0.05, 0.1, 0.25, 0.5, 1.0)},
    "wbpr": {"denoiser.beta": (0.25, 0.5, 0.75, 1.0)},
}
"""What is searched besides ``l2``, whose values are the DeCA paper's for every method; its c_1, c_2, alpha too."""

SAMPLER_ATTEMPTS = 20
"""Draws of the sampler that may repeat an earlier choice before a random one takes their place."""

PATIENCE = 20
"""Evaluations without a new best, of about a hundred in a whole run.

DeCA and DeCA(p) first learn what is popular and stay there for a while before they learn what is personal: half as many
stop some of their runs on that plateau.
"""


def default_epochs(dataset: str, model: str) -> int:
    """Most epochs of a trial, which early stopping rarely reaches: twice the longest published run, at least 300."""
    name = Path(dataset).name
    published = [
        int(presets.load("paper", name, model, method)["epochs"])
        for d, m, method in presets.available()
        if (d, m) == (name, model)
    ]
    return max(int(DEFAULTS["epochs"]), 2 * max(published, default=0))


def published_choice(dataset: str, model: str, denoiser: str, space: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The preset's values of the options that are searched; empty where there is no preset or it leaves the space."""
    name = Path(dataset).name
    if (name, model, denoiser) not in presets.available():
        return {}
    defaults = denoisers.get(denoiser).Config().to_dict()
    published = {f"denoiser.{key}": value for key, value in defaults.items()}
    published |= flat_options(presets.load("paper", name, model, denoiser))
    choice = {key: published.get(key) for key in space}
    return choice if all(value in space[key] for key, value in choice.items()) else {}


@dataclass(frozen=True)
class StudySpec:
    """A search, the same for every method but for the method's own options.

    Attributes:
        model, dataset, protocol, denoiser: what is tuned.
        selector: chooses the epoch within a trial and is the value that trials are compared by.
        seed: of the sampler and of every trial's training.
        options: fixed in every run, with RecBole's keys and a nested ``denoiser``.
        space: option in dotted form to its values.
        first: the first trial's choice: the published settings, where the space holds them; empty leaves it to the
            sampler. A short search of a large space would otherwise hardly ever see them.
    """

    model: str
    dataset: str
    protocol: str
    denoiser: str
    selector: str = "ndcg@20"
    seed: int = FIRST_SEED
    options: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    first: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The study's name in its file."""
        return f"{Path(self.dataset).name}-{self.protocol}-{self.model}-{self.denoiser}"

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """``minimize`` for validation losses, else ``maximize``."""
        return "minimize" if self.selector in LOSSES else "maximize"

    def settings(self, parameters: Mapping[str, Any], seed: int) -> Settings:
        """A run with one choice of parameters. Raises ``UserError`` for options that cannot work."""
        overrides = merge(self.options, nested_options(parameters))
        return resolve(self.model, self.dataset, self.denoiser, protocol=self.protocol, seed=seed, overrides=overrides)

    def to_dict(self) -> dict[str, Any]:
        """Plain types: what a study's file and ``tuned.json`` keep."""
        plain = {"model": self.model, "dataset": Path(self.dataset).name, "protocol": self.protocol}
        plain |= {"denoiser": self.denoiser, "selector": self.selector}
        more = {"seed": self.seed, "options": self.options, "space": {k: list(v) for k, v in self.space.items()}}
        more["first"] = dict(self.first)
        return json.loads(json.dumps({**plain, **more}))  # type: ignore[no-any-return]


def make_spec(
    model: str,
    dataset: str,
    denoiser: str,
    *,
    protocol: str = "clean",
    selector: str = "ndcg@20",
    seed: int = FIRST_SEED,
    epochs: int | None = None,
    options: Mapping[str, Any] | None = None,
    search: Mapping[str, Sequence[Any]] | None = None,
) -> StudySpec:
    """A checked search: the method's space, a cap on epochs and a rhythm of validation that suit the model.

    Args:
        model, dataset, denoiser, protocol, selector, seed: see :class:`StudySpec`.
        epochs: most epochs of a run; :func:`default_epochs` without.
        options: fixed; an option of the space that is fixed here is not searched.
        search: further options in dotted form, or other values for those of the space.

    Raises:
        UserError: unknown names or values, a space with nothing to search, or a selector that measures nothing.
    """
    denoisers.get(denoiser)
    if selector == "last":
        raise UserError("Selector 'last' measures nothing; tune by loss, trimmed or a metric such as ndcg@20.")
    fixed = dict(options or {})
    if epochs is None:
        epochs = int(fixed.get("epochs") or default_epochs(dataset, model))
    rhythm = {"epochs": epochs, "eval_step": max(1, epochs // 100), "stopping_step": PATIENCE}
    fixed = merge(rhythm, {**fixed, "epochs": epochs, "valid_selector": selector})
    space = {"denoiser.l2": L2, **SPACES.get(denoiser, {})}
    space = {key: values for key, values in space.items() if key not in flat_options(fixed)}
    space |= {key: tuple(values) for key, values in (search or {}).items()}
    if not space:
        raise UserError("Every option of the search is fixed by --set; leave one free or add --search KEY=V1,V2.")
    first = published_choice(dataset, model, denoiser, space)
    spec = StudySpec(model, dataset, protocol, denoiser, selector, seed, fixed, space, first)
    for key, values in space.items():
        for value in values:
            spec.settings({k: value if k == key else v[0] for k, v in space.items()}, seed)
    return spec


def train_and_validate(settings: Settings, observer: Observer | None = None) -> tuple[float, list[dict[str, Any]]]:
    """Train without saving or testing; returns the selector's value of what would be tested, and a row per epoch.

    The value is measured after training on the weights that the selector kept, through the method's own ranking score,
    so that it means the same for methods with one network and with several.

    Raises:
        TrainingError: a loss is not finite.
    """
    run = prepare(settings)
    loop = Loop(run.denoiser, run.task, settings.loop, validate=run.validation, observer=observer or Observer())
    history = loop.run()
    selector = settings.loop.selector
    wanted = LOSSES.get(selector, selector)
    run.denoiser.eval()
    run.task.begin_step(run.denoiser)
    return run.validation(run.denoiser.score, {wanted})[wanted], history


# The study's file


def open_study(spec: StudySpec, path: Path) -> optuna.Study:
    """Open or create the study in an SQLite file.

    Raises:
        UserError: the file is no such file, or holds a study of something else, of other data or with other options.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        others = [name for name in optuna.get_all_study_names(storage) if name != spec.name]
        if others:
            raise UserError(f"{path} holds the study {others[0]}, not {spec.name}; choose another --study.")
        study = optuna.create_study(
            study_name=spec.name, storage=storage, direction=spec.direction, load_if_exists=True
        )
    except (SQLAlchemyError, RuntimeError, OSError) as error:
        raise UserError(f"{path} is not a study that can be opened; choose another --study or delete it.") from error
    wanted, saved = spec.to_dict(), study.user_attrs.get("spec")
    if saved is None:
        study.set_user_attr("spec", wanted)
        study.set_user_attr("data", digest_of(find_folder(spec.dataset, spec.protocol)))
        return study
    check_data(study.user_attrs.get("data"), spec.dataset, spec.protocol, path)
    for key in wanted:
        if saved.get(key) != wanted[key]:
            raise UserError(
                f"{path} holds a study with {key} {saved.get(key)}, here it is {wanted[key]}; choose another --study."
            )
    return study


def counted(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that used up budget: finished ones, and those that failed by themselves, not by an interrupt."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if t.state == TrialState.COMPLETE or "error" in t.user_attrs]


TrialReport = Callable[["optuna.trial.FrozenTrial", int], None]
"""Told after every trial: the trial, and how many there are now."""


def run_study(
    spec: StudySpec,
    path: Path,
    trials: int,
    *,
    log: Path | None = None,
    report: TrialReport | None = None,
    observer: Callable[[int], Observer] | None = None,
) -> optuna.Study:
    """Go on with a study until it has ``trials`` trials. The test set is never looked at.

    A trial's sampler is seeded by the study's seed and the trial's place, so that a study that was killed and went on
    chooses as one that was not. A choice that was tried before counts as a trial and is not trained again: training
    follows from the seed alone.

    Args:
        spec: what to search.
        path: SQLite file.
        trials: how many there shall be in all.
        log: CSV file that is rewritten after every trial.
        report: told after every trial.
        observer: of a trial's training, by the trial's place.

    Raises:
        UserError: the file belongs to another study, or every trial failed.
    """
    from optuna.trial import TrialState

    study = open_study(spec, path)
    for stale in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(stale.number, state=TrialState.FAIL)  # its process was killed
    if log is not None:
        checkpoint.write_text(log, trials_csv(study, spec))
    while (place := len(counted(study))) < trials:
        if place == 0 and spec.first and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial(dict(spec.first))
        trial, parameters, before = _draw(spec, study, place)
        try:
            if before is None:
                _measure(spec, study, trial, parameters, observer(place) if observer else Observer())
            else:
                _repeat(study, trial, before)
        except BaseException:
            with contextlib.suppress(Exception):
                study.tell(trial, state=TrialState.FAIL)
            raise
        if log is not None:
            checkpoint.write_text(log, trials_csv(study, spec))
        if report is not None:
            report(study.trials[trial.number], place + 1)
    if not any(t.state == TrialState.COMPLETE for t in study.trials):
        error = counted(study)[0].user_attrs["error"]
        raise UserError(f"None of the {trials} trials of {spec.name} could be trained: {error}")
    return study


def _draw(
    spec: StudySpec, study: optuna.Study, place: int
) -> tuple[optuna.Trial, dict[str, Any], optuna.trial.FrozenTrial | None]:
    """A choice that was not tried before, while there is one; else a choice and the trial that it repeats.

    On a small grid the sampler soon draws the same again and again: such a draw would use up a trial and tell nothing.
    """
    import optuna
    from optuna.trial import TrialState

    tried = counted(study)
    left = math.prod(map(len, spec.space.values())) - len({json.dumps(t.params, sort_keys=True) for t in tried})
    for attempt in itertools.count():
        seed = derive(spec.seed, "trial", place, attempt) % 2**32
        random = attempt >= SAMPLER_ATTEMPTS
        study.sampler = optuna.samplers.RandomSampler(seed) if random else optuna.samplers.TPESampler(seed=seed)
        trial = study.ask()
        parameters = {key: trial.suggest_categorical(key, list(values)) for key, values in spec.space.items()}
        before = next((t for t in tried if t.params == parameters), None)
        if before is None or left == 0:
            break
        study.tell(trial, state=TrialState.FAIL)
    return trial, parameters, before


def _measure(
    spec: StudySpec, study: optuna.Study, trial: optuna.Trial, parameters: Mapping[str, Any], observer: Observer
) -> None:
    from optuna.trial import TrialState

    started = time.perf_counter()
    try:
        value, history = train_and_validate(spec.settings(parameters, spec.seed), observer)
        if not math.isfinite(value):  # Optuna takes no such value, and would have the same trial drawn for ever
            raise TrainingError(f"The validation value is {value}.")
    except TrainingError as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=TrialState.FAIL)
        return
    stages = dict.fromkeys(row["stage"] for row in history)
    epochs = [sum(row["stage"] == stage for row in history) for stage in stages]
    trial.set_user_attr("epochs", "+".join(map(str, epochs)))
    trial.set_user_attr("seconds", round(time.perf_counter() - started, 2))
    study.tell(trial, value)


def _repeat(study: optuna.Study, trial: optuna.Trial, before: optuna.trial.FrozenTrial) -> None:
    from optuna.trial import TrialState

    trial.set_user_attr("repeats", before.user_attrs.get("repeats", before.number))
    if before.state == TrialState.COMPLETE:
        study.tell(trial, before.value)
    else:
        trial.set_user_attr("error", before.user_attrs["error"])
        study.tell(trial, state=TrialState.FAIL)


def trials_csv(study: optuna.Study, spec: StudySpec) -> str:
    """The log of trials: number, state, validation value, options, epochs per stage, seconds, what it repeats."""
    columns = ["number", "state", f"valid_{spec.selector}", *spec.space, "epochs", "seconds", "repeats", "error"]
    rows = []
    for trial in counted(study):
        row = {"number": trial.number, "state": trial.state.name.lower(), f"valid_{spec.selector}": trial.value}
        attributes = {key: trial.user_attrs.get(key) for key in ("epochs", "seconds", "repeats", "error")}
        rows.append({**row, **trial.params, **attributes})
    return to_csv(columns, rows)


# The test


def final_runs(
    spec: StudySpec,
    study: optuna.Study,
    seeds: Sequence[int],
    out: Path,
    observer: Callable[[int], Observer] | None = None,
) -> dict[str, Any]:
    """Train the best trial's options with every seed, test each run once, write ``tuned.json``.

    A run's folder also gets ``users.csv``, the measures of every user. Finished runs are not repeated.

    Raises:
        UserError: a folder under ``out`` holds another run.
    """
    best = study.best_trial
    runs = []
    for seed in seeds:
        folder = out / f"trial-{best.number}-seed-{seed}"
        settings = spec.settings(best.params, seed)
        check_folder(settings, folder)
        if not (folder / "users.csv").is_file():
            train(settings, folder, resume=True, observer=observer(seed) if observer else None)
            write_users(folder)
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        runs.append({"seed": seed, "folder": folder.name, **result})
    record = {
        "spec": spec.to_dict(),
        "trials": len(counted(study)),
        "distinct": len({json.dumps(t.params, sort_keys=True) for t in counted(study)}),
        "best_trial": best.number,
        "validation": best.value,
        "parameters": best.params,
        "seeds": list(seeds),
        "runs": runs,
    }
    checkpoint.write_json(out / "tuned.json", record)
    return record
