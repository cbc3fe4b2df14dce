"""Train an image classifier on labels that lie, in one call."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import recdenoise
from recdenoise import checkpoint, seeds
from recdenoise.denoisers import DenoiserConfig
from recdenoise.errors import UserError
from recdenoise.observer import Observer
from vision import methods, splitters
from vision.augment import Augment
from vision.data import ImageData, bias, load, split
from vision.data.arrays import Layout, as_images, as_tensor, is_set, without_labels
from vision.identity import identity
from vision.models import Model
from vision.options import NAMES, TrainOptions, read_train_options
from vision.run import ENDS, Run, Sets, memory_errors, on_device

KIND = "vision result"


class FitResult:
    """A trained classifier. Made by :func:`fit` or :meth:`load`.

    Attributes:
        model: the trained network, with the weights of ``used``.
        used: ``best_val`` or ``last``; :meth:`use` changes it.
        history: a row for every epoch.
        clean_probability: ``(N,)`` float32: P(the given label is right), for every row that was given, validation rows
            included, in the order given.
        rows: ``(training, validation)`` row numbers, int64.
        measured: ``{"valid": {"last": {...}, "best_val": {...}}, "test": ...}`` with accuracy and loss, for the sets
            that there are; ``tests`` holds as much for every further part, by name.
    """

    def __init__(
        self,
        run: Run,
        settings: dict[str, Any],
        clean_probability: np.ndarray,
        rows: tuple[np.ndarray, np.ndarray],
        measured: dict[str, Any],
        history: list[dict[str, Any]],
    ) -> None:
        self.run, self.settings = run, settings
        self.clean_probability, self.rows, self.measured, self.history = clean_probability, rows, measured, history

    @property
    def model(self) -> nn.Module:
        """The network that the method trained, in eval mode, on the device.

        It takes what :meth:`normalise` gives: floats less the training images' mean, divided by their deviation.
        """
        return self.run.watched

    @property
    def used(self) -> str:
        """Whose weights predict."""
        return self.run.used

    def use(self, end: str) -> FitResult:
        """Predict with the weights of ``last`` or ``best_val`` from now on; returns itself."""
        self.run.use(end)
        return self

    def normalise(self, images: Any) -> Tensor:
        """What ``model`` takes, of ``(n, C, H, W)`` images in any form that :meth:`predict_proba` takes.

        The probabilities are the softmax of ``result.model(result.normalise(images))`` wherever a method answers with
        this one network alone.

        Returns:
            ``(n, C, H, W)`` float32 on the device, normalised by the mean and the deviation of the training images;
            a method whose network reads masks has them as a further channel.

        Raises:
            UserError: as :meth:`predict_proba`.
        """
        with memory_errors(self.run.options.batch_size):
            return self.run.task.scan_data(self._shaped(images), lambda inputs: inputs)

    def predict_proba(self, images: Any) -> Any:
        """Probabilities ``(n, C)`` of images alone, as arrays or tensors, or of a set in any form that :func:`fit` has.

        Labels that come along change nothing. A tensor gives a tensor on the CPU, anything else an array.

        Raises:
            UserError: images of another shape than those that were trained on, or a set that cannot be read.
        """
        probability = torch.softmax(self._logits(images), 1).cpu()
        return probability if isinstance(images, Tensor) else probability.numpy()

    def predict(self, images: Any) -> Any:
        """Classes ``(n,)`` int64, in the form of :meth:`predict_proba`."""
        classes = self._logits(images).argmax(1).cpu()
        return classes if isinstance(images, Tensor) else classes.numpy()

    def _logits(self, images: Any) -> Tensor:
        return self.run.logits(self._shaped(images))

    def _shaped(self, images: Any) -> ImageData:
        """Images on the device. Raises ``UserError`` for another shape than those that were trained on."""
        shape, images = tuple(self.settings["shape"]), without_labels(images)
        if isinstance(images, ImageData):
            data = images
        elif is_set(images):
            data = self._read(images)
        else:
            values = as_tensor(images, "images")
            pixels, _ = as_images(values, self._layout(values))
            data = ImageData(pixels, torch.zeros(len(pixels), dtype=torch.int64), self.settings["n_classes"])
        if tuple(data.images.shape[1:]) != shape:
            found = tuple(data.images.shape[1:])
            raise UserError(f"The images have shape {found} (channels, height, width); training saw {shape}.")
        return data.to(self.run.task.device)

    def _layout(self, images: Tensor) -> Layout | None:
        """Where the channels of images are, as the shape trained on tells it; ``None`` where it does not."""
        given, (channels, *sides) = tuple(images.shape[1:]), self.settings["shape"]
        fits: list[Layout] = []
        if given == (channels, *sides):
            fits.append("NCHW")
        if given == (*sides, channels):
            fits.append("NHWC")
        return fits[0] if len(fits) == 1 else None

    def evaluate(self, data: Any) -> dict[str, dict[str, float]]:
        """Accuracy (0 to 1) and cross-entropy of ``last`` and ``best_val`` on labelled images, in any form of `fit`."""
        return self.run.measure(self._read(data).to(self.run.task.device))

    def evaluate_parts(self, data: Any) -> dict[str, dict[str, dict[str, float]]]:
        """:meth:`evaluate` of the ``aligned`` and the ``conflicting`` images of a set whose bias is known."""
        return {name: self.evaluate(part) for name, part in bias.parts(self._read(data)).items()}

    def _read(self, data: Any) -> ImageData:
        """Images to measure, which may all be of one class."""
        if isinstance(data, ImageData):
            return data
        images = without_labels(data)
        layout = None if images is data else self._layout(as_tensor(images, "images"))
        return load(data, n_classes=self.settings["n_classes"], layout=layout, trains=False)

    def save(self, path: str | Path) -> None:
        """Write weights of both ends, settings, history and clean probabilities to one file.

        Raises:
            UserError: the file cannot be written.
        """
        state = {
            "identity": {"kind": KIND, "version": recdenoise.__version__},
            "modules": self.run.denoiser.state_dict(),
            "ends": self.run.ends,
            "used": self.used,
            "settings": self.settings,
            "history": self.history,
            "measured": self.measured,
            "clean_probability": torch.from_numpy(self.clean_probability),
            "rows": [torch.from_numpy(rows) for rows in self.rows],
        }
        checkpoint.save(Path(path), state)

    @staticmethod
    def load(path: str | Path, model: nn.Module | None = None, device: str | None = None) -> FitResult:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.
            model: the same architecture as was trained, where that was no network of :mod:`vision.networks`.
            device: where to predict; ``None`` takes a GPU where there is one.

        Raises:
            UserError: not such a file, or a model that its weights do not fit.
        """
        path = Path(path)
        state = checkpoint.load(path)
        if state["identity"].get("kind") != KIND:
            raise UserError(f"{path} is no result of vision.fit.")
        needed = ("settings", "ends", "used", "history", "measured", "clean_probability", "rows")
        checkpoint.require_keys(path, state, needed, "a result of vision.fit")
        settings = state["settings"]
        run = rebuild(settings, model, device, path)
        checkpoint.load_modules(path, run.denoiser.load_state_dict, state["modules"])
        run.ends, run.history = state["ends"], state["history"]
        run.use(state["used"])
        rows = (state["rows"][0].numpy(), state["rows"][1].numpy())
        return FitResult(run, settings, state["clean_probability"].numpy(), rows, state["measured"], state["history"])


def fit(
    model: Model,
    train: Any,
    *,
    method: str | Mapping[str, Any] = "deca_p",
    valid: Any = 0.2,
    test: Any = None,
    tests: Mapping[str, Any] | None = None,
    clean: Any = None,
    seed: int = 0,
    checkpoint_path: str | Path | None = None,
    probe: bool = False,
    observer: Observer | None = None,
    **options: Any,
) -> FitResult:
    """Train ``model`` through ``method`` on images whose labels are partly wrong.

    Args:
        model: a name of :mod:`vision.networks`, any ``nn.Module`` that returns logits ``(n, C)`` (a copy is trained,
            from the weights it has), or a function that builds one.
        train: ``(images, labels)`` arrays or tensors, an ``.npz`` file, an image folder, a torch or torchvision data
            set, or an :class:`vision.data.ImageData`.
        method: a name, or a mapping of a name and options, such as ``{"name": "deca_p", "c_1": 10}``.
        valid: share or number of ``train``'s images that choose the epoch, by their given labels; or images of their
            own, in any form of ``train``; 0 for none, which keeps the last epoch.
        test: images with trusted labels, measured at the end and never used to choose.
        tests: further test parts by name, measured likewise. Where the bias of ``test``'s images is known, ``aligned``
            and ``conflicting`` are among them by themselves.
        clean: images with trusted labels, for methods that learn from some.
        seed: everything random follows from it.
        checkpoint_path: saved to while training, and gone on from where it is there. Images, labels, model and options
            must be those that it was begun with; a module must have the same weights again, a function draws them anew.
        probe: also measure ``test`` after every epoch.
        observer: told about progress, for example :class:`vision.progress.Progress`, and what was done to the images.
        options: fields of :class:`vision.options.TrainOptions`: epochs, batch_size, lr, ...

    Returns:
        The trained classifier.

    Raises:
        UserError: anything that cannot work, before training begins.
        TrainingError: a loss that is not finite.

    Example:
        >>> result = vision.fit("resnet20", (images, labels), method="deca_p", epochs=30)  # doctest: +SKIP
        >>> result.predict(new_images), result.clean_probability  # doctest: +SKIP
    """
    seed = seeds.whole(seed)
    chosen, config = methods.parse(method)
    check_names(options, set(chosen.Config.__dataclass_fields__), chosen.name)
    train_options = read_train_options(options)
    whole = load_set(train, "train")
    rows, learned, others, further = gather(whole, valid, test, tests, clean, seed)
    device = train_options.torch_device()
    augment = augmentation(learned, train_options)
    settings = described(model, chosen.name, config, train_options, seed, whole, learned, augment)
    moved = {name: on_device(data, device) for name, data in others.items()}
    sources = {"clean": moved["clean"]} if clean is not None else {}
    parts = {name: on_device(data, device) for name, data in further.items()}
    sets = Sets(on_device(learned, device), moved.get("valid"), moved.get("test"), sources, parts)
    run = Run(model, chosen, config, train_options, sets, augment, seed)
    path = None if checkpoint_path is None else Path(checkpoint_path)
    same = None if path is None else identity(run, settings, whole, len(rows[1]), others)
    loop = run.loop(checkpoint_path=path, identity=same, observer=observer, probe=probe)
    loop.resume()
    for note in (*whole.notes, *run.notes()):
        loop.observer.on_note(note)
    history = run.train(loop)
    return FitResult(run, settings, in_order(run, rows), rows, run.measure_all(), history)


def described(
    model: Model,
    method: str,
    config: DenoiserConfig,
    options: TrainOptions,
    seed: int,
    whole: ImageData,
    learned: ImageData,
    augment: Augment,
) -> dict[str, Any]:
    """What a result keeps of how it was trained, in plain types: all that loading it again needs."""
    return {
        "model": model if isinstance(model, str) else None,
        "method": {"name": method, **config.to_dict()},
        "options": options.to_dict(),
        "seed": seed,
        "n_classes": whole.n_classes,
        "n_rows": len(learned),
        "shape": list(whole.images.shape[1:]),
        "augment": {n: getattr(augment, n) for n in ("mean", "std", "crop_pad", "flip", "cutout", "policy", "frame")},
        "attributes": {name: int(values.max()) for name, values in learned.attributes.items()},
        "class_names": None if whole.class_names is None else list(whole.class_names),
    }


def gather(
    whole: ImageData, valid: Any, test: Any, tests: Mapping[str, Any] | None, clean: Any, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], ImageData, dict[str, ImageData], dict[str, ImageData]]:
    """The sets of a run from what :func:`fit` was given.

    Returns:
        ``(training, validation)`` row numbers of ``whole``; the rows to learn from; ``valid``, ``test`` and ``clean``,
        those that there are; and the further test parts. Raises ``UserError`` for a set that does not fit ``whole``.
    """
    separate = not isinstance(valid, numbers.Real)
    if separate:
        rows = (np.arange(len(whole)), np.arange(0))
    else:
        divided = split(len(whole), whole.labels, valid, seed)
        rows = (divided[0].numpy(), divided[1].numpy())
    given = {"valid": valid if separate else None, "test": test, "clean": clean}
    others = {
        name: load_set(data, name, whole, trains=name == "clean") for name, data in given.items() if data is not None
    }
    further = bias.parts(others["test"]) if "test" in others else {}
    further |= {name: load_set(data, f"tests[{name!r}]", whole) for name, data in (tests or {}).items()}
    if not len(rows[1]):
        return rows, whole, others, further
    others["valid"] = whole.subset(torch.from_numpy(rows[1]))
    return rows, whole.subset(torch.from_numpy(rows[0])), others, further


def load_set(data: Any, name: str, like: ImageData | None = None, trains: bool = False) -> ImageData:
    """A data set in any form, with the classes and the image shape of ``like``. Raises ``UserError``.

    One that is learned from (``trains``; without ``like`` it always is) holds images of two classes or more.
    """
    n_classes = None if like is None else like.n_classes
    loaded = data if isinstance(data, ImageData) else load(data, n_classes=n_classes, trains=trains or like is None)
    if like is not None and loaded.images.shape[1:] != like.images.shape[1:]:
        raise UserError(
            f"The images of {name} have shape {tuple(loaded.images.shape[1:])} (channels, height, width); those to "
            f"train on have {tuple(like.images.shape[1:])}."
        )
    if like is not None and loaded.n_classes != like.n_classes:
        raise UserError(f"The set {name} has {loaded.n_classes} classes; the one to train on has {like.n_classes}.")
    return loaded


def in_order(run: Run, rows: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The clean probability of training and validation rows, in the order in which they were given."""
    train, valid = run.clean_probability()
    out = np.empty(len(rows[0]) + len(rows[1]), dtype=np.float32)
    out[rows[0]] = train.numpy()
    if len(rows[1]) and valid is not None:
        out[rows[1]] = valid.numpy()
    return out


def augmentation(data: ImageData, options: TrainOptions) -> Augment:
    """What the options say about crops, flips and the like, normalised as the training images ask for."""
    return Augment.for_data(
        data,
        crop_pad=(data.images.shape[2] - 2 * data.frame) // 8 if options.crop_pad is None else options.crop_pad,
        flip=options.flip,
        cutout=options.cutout,
        policy=options.policy,
    )


def rebuild(settings: Mapping[str, Any], model: nn.Module | None, device: str | None, path: Path) -> Run:
    """An untrained run of the shape that ``settings`` describe, over images that are not there."""
    named = settings["model"]
    if named is None and model is None:
        raise UserError(
            f"{path} holds the weights of a model of your own: load it with model=..., the same architecture."
        )
    method, config = methods.parse(settings["method"])
    options = read_train_options(
        {**settings["options"], "device": device, "compile": False, "batch_size": 1, "weights": None}
    )
    n, n_classes = settings["n_rows"], settings["n_classes"]
    # One blank image stands for all: nothing is asked of them but how many rows, classes and values there are.
    images = torch.zeros((1, *settings["shape"]), dtype=torch.uint8, device=options.torch_device())
    zeros = torch.zeros(n, dtype=torch.int64, device=images.device)
    highest = {name: zeros.index_fill(0, zeros[-1:], most) for name, most in settings.get("attributes", {}).items()}
    masks = None
    if getattr(config, "splitter", None) == splitters.PRECOMPUTED:  # a run refuses images that lack them
        masks = images[:, :1].expand(n, 1, *settings["shape"][1:])
    blank = ImageData(images.expand(n, *settings["shape"]), zeros, n_classes, attributes=highest, masks=masks)
    sources = dict.fromkeys(method.needs, blank)
    sets = Sets(blank, blank, None, sources)
    return Run(named or model, method, config, options, sets, Augment(**settings["augment"]), settings["seed"])  # type: ignore[arg-type]


def check_names(options: Mapping[str, Any], of_method: set[str], method: str) -> None:
    """Say where an option of the method belongs, if it was given as one of the run's. Raises ``UserError``."""
    misplaced = sorted(name for name in options if name in of_method and name not in NAMES)
    if misplaced:
        name = misplaced[0]
        raise UserError(
            f"{name} is an option of the method: method={{'name': {method!r}, {name!r}: {options[name]!r}}}."
        )


__all__ = ["ENDS", "FitResult", "fit"]
