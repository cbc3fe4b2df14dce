"""One call: whatever a user has as images and as a model goes in, a classifier comes out; or one clear sentence."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vision
from recdenoise import checkpoint
from recdenoise.errors import TrainingError, UserError
from recdenoise.loop import Observer
from tests.command import environment
from tests.toy_images import CLASSES, TinyImages, network
from tests.toy_runs import Stop
from vision import methods
from vision.fitting import FitResult
from vision.run import refused_operation

DATA, TEST = TinyImages.draw(132, 0.3, 7), TinyImages.draw(60, 0.0, 9)
TRAIN, HELD = (DATA.images, DATA.labels), (TEST.images, TEST.labels)
with torch.random.fork_rng():
    torch.manual_seed(0)
    MODEL = network()
FAST: dict[str, Any] = {"batch_size": 16, "optimizer": "adam", "lr": 0.03, "crop_pad": 0, "flip": False}


def fit(method: Any = "normal", train: Any = TRAIN, model: Any = None, **options: Any) -> FitResult:
    return vision.fit(model or MODEL, train, method=method, **{**FAST, "epochs": 3, **options})


def biased(shift: int) -> vision.data.ImageData:
    """The toy images with a bias; another one for another ``shift``."""
    bias = (torch.arange(132) + shift) % 2
    return vision.data.load(TRAIN, attributes={"bias": bias})


@pytest.fixture(scope="module")
def fitted() -> FitResult:
    """DeCA(p) trained on the toy images; read only."""
    return fit({"name": "deca_p", "alpha": 0.5}, epochs=12, test=HELD)


def test_it_learns_and_knows_which_labels_are_wrong(fitted: FitResult) -> None:
    assert fitted.measured["test"]["best_val"]["accuracy"] > 0.8
    wrong = (DATA.labels != DATA.true_labels).numpy()
    p = fitted.clean_probability
    assert (p.shape, p.dtype) == ((132,), np.float32)
    for rows in fitted.rows:
        assert p[rows][~wrong[rows]].mean() > p[rows][wrong[rows]].mean() + 0.1
    assert sorted(np.concatenate(fitted.rows).tolist()) == list(range(132))


def test_clean_probability_is_the_labels_probability_in_the_order_given(fitted: FitResult) -> None:
    probability = fitted.predict_proba(DATA.images.numpy())
    np.testing.assert_allclose(fitted.clean_probability, probability[np.arange(132), DATA.labels.numpy()], rtol=1e-5)


class Notes(Observer):
    """Keeps what it is told about the run."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_note(self, text: str) -> None:
        self.told.append(text)


def test_what_was_done_to_the_images_is_told() -> None:
    observer = Notes()
    fit(train=(np.full((132, 6, 6), 0.5), DATA.labels), epochs=1, observer=observer)
    assert observer.told == ["Float images were rounded to 256 levels; no pixel moved by more than 0.0020."]


def test_why_the_loss_chooses_badly_is_told_when_it_chooses() -> None:
    told = {}
    for selector, valid in (("loss", 0.2), ("accuracy", 0.2), ("loss", 0)):
        observer = Notes()
        fit({"name": "dmi", "warm_selector": "last"}, epochs=1, selector=selector, valid=valid, observer=observer)
        told[selector, valid] = observer.told
    (note,) = told["loss", 0.2]
    assert note.startswith("DMI: ")
    assert "choose by accuracy" in note
    assert told["accuracy", 0.2] == told["loss", 0] == []


@pytest.mark.parametrize("method", ["m_correction", "forward"])
def test_held_out_labels_are_judged_by_the_methods_own_rule(method: str) -> None:
    result = fit(method, epochs=6)
    _, held_out = result.rows
    denoiser, task = result.run.denoiser, result.run.task
    images = torch.as_tensor(DATA.images[held_out])

    def scan(call: Any) -> torch.Tensor:
        with torch.no_grad():
            return call(task.augmented(images, torch.Generator(), train=False))

    with torch.no_grad():
        own = denoiser.held_out_probability(scan, DATA.labels[held_out])
    np.testing.assert_allclose(result.clean_probability[held_out], own, rtol=1e-4, atol=1e-6)
    plain = torch.softmax(scan(denoiser.score), 1)[torch.arange(len(held_out)), DATA.labels[held_out]]
    assert not np.allclose(result.clean_probability[held_out], plain, atol=1e-3)


def test_predictions_come_as_the_images_came(fitted: FitResult) -> None:
    arrays, tensors = fitted.predict_proba(TEST.images.numpy()), fitted.predict_proba(TEST.images)
    assert isinstance(arrays, np.ndarray)
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_array_equal(arrays, tensors.numpy())
    np.testing.assert_allclose(arrays.sum(1), 1, rtol=1e-5)
    classes = fitted.predict(TEST.images.numpy())
    np.testing.assert_array_equal(classes, arrays.argmax(1))
    assert (classes == TEST.labels.numpy()).mean() == fitted.measured["test"]["best_val"]["accuracy"]
    assert fitted.predict(TEST.images[:1]).shape == (1,)
    np.testing.assert_array_equal(fitted.predict(TEST.images[:, 0].numpy().astype(float) / 255), classes)


def test_the_model_is_the_network_that_predicts(fitted: FitResult) -> None:
    assert isinstance(fitted.model, nn.Sequential)
    assert not fitted.model.training


def test_the_model_takes_normalised_images(fitted: FitResult) -> None:
    inputs = fitted.normalise(TEST.images)
    assert (inputs.shape, inputs.dtype) == (TEST.images.shape, torch.float32)
    mean, std = (fitted.settings["augment"][name][0] for name in ("mean", "std"))
    torch.testing.assert_close(inputs, (TEST.images / 255 - mean) / std, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        probability = torch.softmax(fitted.model(inputs), 1)
    torch.testing.assert_close(probability, fitted.predict_proba(TEST.images))
    with pytest.raises(UserError, match="training saw"):
        fitted.normalise(np.zeros((4, 8, 8), np.uint8))


class Photos(torch.utils.data.Dataset[Any]):
    """Items as people write them."""

    def __len__(self) -> int:
        return len(TEST.images)

    def __getitem__(self, row: int) -> Any:
        return TEST.images[row].float() / 255, 0


def test_sets_are_predicted_in_every_form(fitted: FitResult, tmp_path: Path) -> None:
    images, labels = TEST.images.numpy(), TEST.labels.numpy()
    wanted = fitted.predict_proba(images)
    path = tmp_path / "held.npz"
    np.savez(path, images=images, labels=labels)
    pairs = torch.utils.data.TensorDataset(TEST.images, TEST.labels)
    forms = [HELD, [images, labels], (images, labels[:, None]), (images, ["no", "number"] * 30), path, str(path)]
    forms += [{"images": images, "labels": labels}, pairs, Photos(), torch.utils.data.Subset(pairs, range(60))]
    for form in (*forms, vision.data.load(HELD)):
        found = fitted.predict_proba(form)
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(fitted.predict(form), wanted.argmax(1))
    two = fitted.predict_proba([images[0], images[1]])  # images alone, however many
    np.testing.assert_allclose(two, wanted[:2], rtol=1e-5)
    for form, message in (
        (7, "images"),
        (None, "images"),
        ("no-such-set", "Unknown data set"),
        ({}, "no images"),
        ([[1], [1, 2], [3]], "shapes differ"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            fitted.predict(form)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [2, 5])
def test_images_of_odd_channels_are_predicted_as_they_were_trained(channels: int) -> None:
    images = torch.cat([DATA.images] * channels, 1).numpy()
    last = images.transpose(0, 2, 3, 1)
    with pytest.raises(UserError, match=r"vision.data.load\(..., layout="):
        fit(model="mlp", train=(images, DATA.labels))
    result = fit(model="mlp", train=vision.data.load((images, DATA.labels), layout="NCHW"), epochs=1)
    for form in (last, (last, DATA.labels), torch.from_numpy(last)):
        np.testing.assert_array_equal(np.asarray(result.predict_proba(form)), result.predict_proba(images))
    assert result.evaluate((last, DATA.labels)) == result.evaluate((images, DATA.labels))
    with pytest.raises(UserError, match=r"vision.data.load\(..., layout="):
        result.predict(images[:, :, :5])


def test_both_ends_are_measured_and_either_may_predict(fitted: FitResult) -> None:
    try:
        for end in ("last", "best_val"):
            fitted.use(end)
            accuracy = (fitted.predict(TEST.images) == TEST.labels).double().mean().item()
            assert accuracy == fitted.measured["test"][end]["accuracy"]
            assert fitted.evaluate(HELD)[end]["accuracy"] == accuracy
        with pytest.raises(UserError, match="one of last, best_val"):
            fitted.use("best")
    finally:
        fitted.use("best_val")


def test_keep_says_which_end_predicts() -> None:
    last = fit(keep="last", epochs=4)
    assert last.used == "last"
    no_valid = fit(valid=0, epochs=4)
    assert no_valid.measured == {}
    assert len(no_valid.rows[1]) == 0
    assert not any("valid_accuracy" in row for row in no_valid.history)


def test_the_same_seed_the_same_result_and_the_model_given_stays() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    a, b, c = fit(model=model, seed=3), fit(model=model, seed=3), fit(model=model, seed=4)
    np.testing.assert_array_equal(a.predict_proba(TEST.images), b.predict_proba(TEST.images))
    assert not np.array_equal(a.predict_proba(TEST.images), c.predict_proba(TEST.images))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_seed_of_numpys_is_the_plain_one(tmp_path: Path) -> None:
    plain, own = fit(seed=3, epochs=1), fit(seed=np.int64(3), epochs=1)
    np.testing.assert_array_equal(plain.predict_proba(TEST.images), own.predict_proba(TEST.images))
    own.save(tmp_path / "r.pt")
    assert FitResult.load(tmp_path / "r.pt", model=network()).settings["seed"] == 3


def test_saved_and_loaded(fitted: FitResult, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "result.pt"
    fitted.save(path)
    loaded = FitResult.load(path, model=network(), device="cpu")
    np.testing.assert_array_equal(loaded.predict_proba(TEST.images), fitted.predict_proba(TEST.images))
    np.testing.assert_array_equal(loaded.clean_probability, fitted.clean_probability)
    assert (loaded.history, loaded.measured, loaded.used) == (fitted.history, fitted.measured, fitted.used)
    assert loaded.evaluate(HELD) == fitted.evaluate(HELD)
    with pytest.raises(UserError, match="load it with model="):
        FitResult.load(path)
    with pytest.raises(UserError, match="does not fit this model"):
        FitResult.load(path, model=nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES)))
    with pytest.raises(UserError, match="There is no checkpoint"):
        FitResult.load(tmp_path / "none.pt")
    state = checkpoint.load(path)
    checkpoint.save(path, {key: value for key, value in state.items() if key != "ends"})
    with pytest.raises(UserError, match=r"result.pt is not a checkpoint of a result of vision.fit: it lacks 'ends'"):
        FitResult.load(path, model=network(), device="cpu")


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    method = methods.get(name)
    clean = {"clean": HELD} if "clean" in method.needs else {}
    train = {"images": DATA.images, "labels": DATA.labels, "attribute_bias": np.arange(132) % 2}
    result = fit({**method.brief, "name": name}, train, epochs=2, **clean)
    result.save(tmp_path / "r.pt")
    loaded = FitResult.load(tmp_path / "r.pt", model=network())
    np.testing.assert_array_equal(loaded.predict_proba(TEST.images), result.predict_proba(TEST.images))
    assert ((result.clean_probability >= 0) & (result.clean_probability <= 1)).all()


def test_an_interrupted_fit_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": "deca_p", "model": network(0.2), "epochs": 3}
    whole = fit(**options)
    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(**options, checkpoint_path=path, observer=Stop(9))
    rest = fit(**options, checkpoint_path=path)
    np.testing.assert_array_equal(rest.predict_proba(TEST.images), whole.predict_proba(TEST.images))
    assert [{**row, "seconds": 0} for row in rest.history] == [{**row, "seconds": 0} for row in whole.history]
    with pytest.raises(UserError, match="belongs to another run: its option epochs is 3, here it is 4"):
        fit(**{**options, "epochs": 4}, checkpoint_path=path)
    with pytest.raises(UserError, match="belongs to another run: its labels"):
        fit(**options, checkpoint_path=path, train=(DATA.images, DATA.true_labels))


def reweighed() -> nn.Module:
    """The network with one other weight."""
    model = copy.deepcopy(MODEL)
    with torch.no_grad():
        model[6].bias[0] += 1
    return model


BUILT: dict[str, Any] = {"model": network}
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "images": ({}, {"train": (DATA.images ^ 1, DATA.labels)}, "images"),
    "one pixel": ({}, {"train": (torch.cat([DATA.images[:-1], DATA.images[-1:] ^ 1]), DATA.labels)}, "images"),
    "a share that validates": ({}, {"valid": 0.3}, "validation is 26, here it is 40"),
    "images that validate": ({"valid": HELD}, {"valid": (TEST.images ^ 1, TEST.labels)}, "validation is 'images"),
    "labels that validate": ({"valid": HELD}, {"valid": (TEST.images, TEST.labels.flip(0))}, "validation is 'images"),
    "clean images": ({"method": "mw_net", "clean": HELD}, {"clean": (TEST.images ^ 1, TEST.labels)}, "clean images"),
    "weights": ({}, {"model": reweighed()}, "model is 'Sequential .* with weights"),
    "layers": ({}, {"model": nn.Sequential(*MODEL, nn.Identity())}, "model is 'Sequential"),
    "what a function builds": (BUILT, {"model": lambda: network(0.5)}, "model is 'Sequential"),
    "a module for a name": ({"model": "mlp"}, {"model": MODEL}, "model is 'mlp', here it is 'Sequential"),
    "an option of the method": (
        {"method": {"name": "gce"}},
        {"method": {"name": "gce", "q": 0.5}},
        "option method.q is 0.7, here it is 0.5",
    ),
    "an option without a value": ({"second_policy": "randaugment"}, {"second_policy": None}, "option second_policy"),
    "attributes": ({"train": biased(0)}, {"train": biased(1)}, "attributes"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_of_other_data_or_another_model_is_refused(name: str, tmp_path: Path) -> None:
    before, change, message = CHANGES[name]
    path, options = tmp_path / "c.pt", {"epochs": 1, **before}
    whole = fit(**options, checkpoint_path=path)
    again = fit(**options, checkpoint_path=path)
    np.testing.assert_array_equal(again.predict_proba(TEST.images), whole.predict_proba(TEST.images))
    with pytest.raises(UserError, match=f"belongs to another run: its {message}") as caught:
        fit(**{**options, **change}, checkpoint_path=path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_knows_the_weights_of_a_file(tmp_path: Path) -> None:
    for seed in (0, 1):
        fit(model="mlp", epochs=1, seed=seed).save(tmp_path / f"{seed}.pt")
    options: dict[str, Any] = {"model": "mlp", "epochs": 1, "weights": str(tmp_path / "0.pt")}
    options["checkpoint_path"] = tmp_path / "c.pt"
    fit(**options)
    fit(**options)
    (tmp_path / "1.pt").replace(tmp_path / "0.pt")
    with pytest.raises(UserError, match="belongs to another run: its model is 'mlp with weights"):
        fit(**options)


def test_a_checkpoint_goes_on_with_images_at_another_place(tmp_path: Path) -> None:
    from PIL import Image

    for row, image in enumerate(DATA.images[:40, 0].numpy()):
        path = tmp_path / "one" / f"{row % 2}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    file, lazy = tmp_path / "c.pt", {"memory": 0}
    fit(model="mlp", train=vision.data.load(tmp_path / "one", **lazy), epochs=1, checkpoint_path=file)
    moved = (tmp_path / "one").rename(tmp_path / "two")
    fit(model="mlp", train=vision.data.load(moved, **lazy), epochs=1, checkpoint_path=file)
    (moved / "1" / "1.png").rename(moved / "1" / "100.png")
    with pytest.raises(UserError, match="belongs to another run: its images"):
        fit(model="mlp", train=vision.data.load(moved, **lazy), epochs=1, checkpoint_path=file)


def test_a_probe_draws_the_test_curve_and_changes_nothing() -> None:
    plain, probed = fit(test=HELD), fit(test=HELD, probe=True)
    assert all("test_accuracy" in row for row in probed.history)
    assert not any("test_accuracy" in row for row in plain.history)
    np.testing.assert_array_equal(plain.predict_proba(TEST.images), probed.predict_proba(TEST.images))


def test_validation_images_of_their_own() -> None:
    result = fit(valid=HELD)
    assert result.clean_probability.shape == (132,)
    assert len(result.rows[0]) == 132
    accuracy = max(row["valid_accuracy"] for row in result.history)
    assert result.measured["valid"]["best_val"]["accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(("valid", "plain"), [(np.int64(50), 50), (np.float32(0.25), 0.25), (np.uint8(0), 0)])
def test_numbers_of_numpy_divide_like_plain_ones(valid: Any, plain: float) -> None:
    rows, wanted = (fit(valid=each, epochs=1).rows for each in (valid, plain))
    np.testing.assert_array_equal(rows[1], wanted[1])
    assert vision.data.split(132, None, valid, 0)[1].tolist() == wanted[1].tolist()
    with pytest.raises(UserError, match="The validation part is"):
        fit(valid=np.float32(1.5))


def test_images_to_measure_may_all_be_of_one_class() -> None:
    rows = TEST.labels == 1
    one = (TEST.images[rows], TEST.labels[rows])
    result = fit(test=one, tests={"again": one}, valid=one, epochs=1)
    measured = result.measured["test"]
    assert measured == result.measured["valid"] == result.measured["tests"]["again"] == result.evaluate(one)
    with pytest.raises(UserError, match="training needs images of at least two classes"):
        fit({"name": "mw_net"}, clean=one, epochs=1)


@pytest.mark.parametrize(
    "train",
    [
        (DATA.images.numpy()[:, 0], DATA.labels.tolist()),
        (DATA.images.permute(0, 2, 3, 1).numpy(), DATA.labels.numpy().astype(np.uint8)),
        torch.utils.data.TensorDataset(DATA.images, DATA.labels),
    ],
    ids=["grey arrays and a list", "channels last and bytes", "a torch data set"],
)
def test_images_in_other_forms(train: Any) -> None:
    np.testing.assert_array_equal(fit(train=train).predict_proba(TEST.images), fit().predict_proba(TEST.images))


def test_images_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, images=DATA.images.numpy(), labels=DATA.labels.numpy())
    np.testing.assert_array_equal(fit(train=path).predict_proba(TEST.images), fit().predict_proba(TEST.images))


# Models


def test_a_function_and_a_name_build_models() -> None:
    for model in (network, "mlp"):
        result = fit(model=model, epochs=1)
        assert result.predict_proba(TEST.images).shape == (60, CLASSES)


def test_further_copies_have_weights_of_their_own() -> None:
    model = network()
    run = fit("ensemble", model=model, epochs=1).run
    first, second = (run.builder(member) for member in (0, 1))
    assert torch.equal(first[0].weight, model[0].weight)
    assert not torch.equal(second[0].weight, model[0].weight)
    run = fit("ensemble", model=model, epochs=1, pretrained=True).run
    second = run.builder(1)
    assert torch.equal(second[0].weight, model[0].weight)
    assert not torch.equal(second[6].weight, model[6].weight)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "itlm", "rounds": 2, "round_epochs": 1},
        {"name": "joint_optim", "label_epochs": 1},
        {"name": "cores", "star": True, "sieve_epochs": 1},
    ],
    ids=["itlm", "joint_optim", "cores"],
)
def test_a_network_that_begins_again_keeps_weights_worth_keeping(method: dict[str, Any], tmp_path: Path) -> None:
    still: dict[str, Any] = {"epochs": 1, "lr": 1e-9, "weight_decay": 0.0}  # so that what is left is how a stage began
    model = network()
    before = dict(model.named_parameters())
    for pretrained in (False, True):
        after = dict(fit(method, model=model, pretrained=pretrained, **still).model.named_parameters())
        moved = {name for name, value in before.items() if not torch.allclose(value, after[name], atol=1e-5)}
        assert moved == {"6.weight", "6.bias"} | (set() if pretrained else {"0.weight", "0.bias"})
    named = vision.fit("mlp", TRAIN, method="normal", epochs=1, batch_size=16)
    named.save(tmp_path / "w.pt")
    after = dict(fit(method, model="mlp", weights=str(tmp_path / "w.pt"), **still).model.named_parameters())
    moved = {n for n, value in named.model.named_parameters() if not torch.allclose(value, after[n], atol=1e-5)}
    assert moved == set(list(after)[-2:])


def test_parts_of_a_network_are_drawn_as_ever() -> None:
    denoiser = fit(epochs=1, pretrained=True).run.denoiser
    before = torch.get_rng_state()
    assert denoiser.renewed("target.0") is None
    assert torch.equal(torch.get_rng_state(), before)
    assert denoiser.renewed("target") is not None
    assert not torch.equal(torch.get_rng_state(), before)


def test_backbones_of_denll_keep_weights_worth_keeping() -> None:
    denoiser = fit({"name": "denll", "mask": "box"}, epochs=1, pretrained=True).run.denoiser
    first, second = denoiser.renewed("host.target"), denoiser.renewed("host.target")
    assert first is not None
    assert second is not None
    assert torch.equal(first["encoder.0.weight"], MODEL[0].weight)
    assert torch.equal(first["background_encoder.0.weight"], MODEL[0].weight)
    assert any(not torch.equal(first[name], second[name]) for name in first if name.startswith("interaction."))
    assert denoiser.renewed("host.target.encoder.0") is None
    assert fit({"name": "denll", "mask": "box"}, epochs=1).run.denoiser.renewed("host.target") is None


class Stubborn(nn.Module):
    """Weights that cannot be drawn anew."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.inner = network()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images * self.scale)


def test_a_model_that_cannot_be_drawn_anew_asks_for_a_function() -> None:
    fit("normal", model=Stubborn(), epochs=1)
    fit("ensemble", model=Stubborn, epochs=1)
    with pytest.raises(UserError, match=r"no reset_parameters.*Give a function"):
        fit("ensemble", model=Stubborn(), epochs=1)


# Bad input


class Untrained(Observer):
    """Fails when training begins: what is wrong must be found before."""

    def on_stage(self, *args: Any) -> None:
        raise AssertionError("training began")


class Fails(nn.Module):
    """Raises an error, or returns something, in place of logits."""

    def __init__(self, error: Exception | None, returned: Any = None) -> None:
        super().__init__()
        self.inner, self.error, self.returned = network(), error, returned

    def forward(self, images: torch.Tensor) -> Any:
        if self.error is not None:
            raise self.error
        return self.returned


def labelled(**changes: Any) -> tuple[Any, Any]:
    images, labels = DATA.images.numpy().copy(), DATA.labels.numpy().copy()
    for place, value in changes.items():
        if place == "pixel":
            images = images.astype(float) / 255
            images[5, 0, 1, 1] = value
        elif place == "label":
            labels = labels.astype(type(value)) if not isinstance(value, int) else labels
            labels[3] = value
        elif place == "cut":
            labels = labels[:value]
        else:
            labels[:] = value
    return images, labels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": labelled(label=-1)}, "label"),
        ({"train": labelled(label=1.5)}, "whole numbers"),
        ({"train": labelled(cut=100)}, "100 labels for 132 images"),
        ({"train": labelled(all=1)}, "at least two classes"),
        ({"train": labelled(pixel=math.nan)}, "Image 5 has 1 pixels that are NaN"),
        ({"batch_size": 500}, "fewer than one batch of 500"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(36, 10))}, "3 classes; build it with 3 outputs"),
        ({"model": nn.Sequential(nn.Conv2d(3, 3, 2), nn.Flatten(), nn.Linear(3, 3))}, "does not take images of shape"),
        ({"model": Fails(AssertionError())}, r"Fails does not take images of shape \(1, 6, 6\): AssertionError"),
        ({"model": Fails(KeyError("x"))}, r"Fails does not take images of shape \(1, 6, 6\): KeyError: 'x'"),
        ({"model": Fails(TypeError("no"))}, "Fails does not take images .*TypeError: no"),
        ({"model": Fails(ValueError("no"))}, "Fails does not take images .*ValueError: no"),
        ({"model": Fails(None, {"y": 1})}, "The model returns dict; it must return its logits"),
        ({"model": Fails(None, [1.0])}, "The model returns list; it must return its logits"),
        ({"model": Fails(None, None)}, "The model returns NoneType; it must return its logits"),
        ({"model": 7}, "The model is 7"),
        ({"model": lambda: None}, "returned NoneType, not a torch"),
        ({"model": "resnet33"}, "resnet33"),
        ({"model": nn.Sequential(nn.Flatten(), nn.LazyLinear(3))}, r"without a size yet \(1.weight\): call it"),
        ({"model": lambda: nn.Sequential(nn.LazyBatchNorm2d(), network())}, r"without a size yet \(0.weight\)"),
        ({"method": "decap"}, "Did you mean 'deca_p'"),
        ({"method": {"name": "deca_p", "c1": 1}}, "Did you mean 'c_1'"),
        ({"method": {"name": "deca_p", "alpha": 2}}, "from 0 to 1"),
        ({"method": {"name": "normal", "compat": "paper_code"}}, "only recommenders"),
        ({"method": "deca_p", "c_1": 10}, "c_1 is an option of the method"),
        ({"method": "deca_p", "valid": 0}, "stops its prior by validation accuracy"),
        ({"method": "forward", "valid": 0}, r"stops its anchors by validation accuracy.*say warm_selector: last"),
        ({"method": {"name": "deca_p", "prior_selector": "trimmed"}}, "'trimmed' is none of last, loss, accuracy"),
        ({"method": {"name": "dmi", "warm_selector": "ndcg@20"}}, "'ndcg@20' is none of last, loss, accuracy"),
        ({"method": "mw_net"}, "mw_net needs a clean set"),
        ({"valid": 1.5}, "The validation part is 1.5"),
        ({"valid": 132}, "leave none of 132"),
        ({"test": (np.zeros((5, 1, 8, 8), np.uint8), [0, 1, 2, 0, 1])}, r"The images of test have shape \(1, 8, 8\)"),
        ({"test": (DATA.images, DATA.labels + 1)}, "label"),
        ({"epochs": 0}, "'epochs' is 0"),
        ({"seed": 1.5}, "The seed is 1.5; it must be a whole number"),
        ({"epoch": 3}, "Did you mean 'epochs'"),
        ({"lr": "fast"}, "must be a number"),
        ({"milestones": 5}, "a list, each entry a number"),
        ({"milestones": [0]}, "above 0"),
        ({"device": "tpu"}, "'device' is 'tpu'"),
        ({"embedding": "pool", "method": "deca_p"}, "Unknown layer 'pool'"),
        ({"policy": "best"}, "policy"),
        ({"nesterov": True, "momentum": 0.0}, "momentum is above 0"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fit(**options, observer=Untrained())
    assert "\n" not in str(caught.value)


def test_images_of_another_shape_are_not_predicted(fitted: FitResult) -> None:
    with pytest.raises(UserError, match=r"shape \(1, 8, 8\) .* training saw \(1, 6, 6\)"):
        fitted.predict(np.zeros((4, 8, 8), np.uint8))


def test_a_gpu_without_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Observer):
        def on_step(self, *args: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with pytest.raises(TrainingError, match="no memory left at batch_size 16: lower batch_size"):
        fit(observer=Full())


def test_batches_too_small_for_batch_normalisation_are_one_sentence() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    with pytest.raises(UserError, match=r"Batch normalisation cannot .*raise batch_size, which is 1") as caught:
        fit(model=flat, batch_size=1, epochs=1)
    assert "\n" not in str(caught.value)
    fit(train=(DATA.images[:20], DATA.labels[:20]), batch_size=1, epochs=1)  # with several values for each channel


def test_an_operation_that_may_differ_from_run_to_run_is_named() -> None:
    class Undetermined(Observer):
        def on_step(self, *args: Any) -> None:
            torch.zeros(4).put_(torch.tensor([0, 1]), torch.ones(2))

    fit(epochs=1, observer=Undetermined())
    with pytest.raises(
        UserError, match=r"^Option 'deterministic' is true, and the operation put_ has no determin"
    ) as c:
        fit(epochs=1, observer=Undetermined(), deterministic=True)
    assert "\n" not in str(c.value)
    assert not torch.are_deterministic_algorithms_enabled()
    cublas = "but this operation is not deterministic because it uses CuBLAS: set CUBLAS_WORKSPACE_CONFIG=:4096:8"
    for said, wanted in ((cublas, "matrix products are"), ("CUDA error", None)):
        found = refused_operation(said)
        assert found is None if wanted is None else str(found).startswith(wanted)


# scikit-learn


def test_the_classifier_follows_the_conventions() -> None:
    sklearn = pytest.importorskip("sklearn")
    from sklearn.base import clone, is_classifier
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    names = np.array(["cat", "dog", "eel"])
    x, y = DATA.images.numpy(), names[DATA.labels.numpy()]
    test_x, test_y = TEST.images.numpy(), names[TEST.labels.numpy()]
    classifier = vision.NoisyLabelClassifier(network, method="gce", options={**FAST, "epochs": 6})
    assert is_classifier(classifier)
    assert "NoisyLabelClassifier(" in repr(classifier)
    with pytest.raises(UserError, match="not fitted"):
        classifier.predict(test_x)
    copied = clone(classifier).set_params(method_options={"q": 0.5}, seed=1)
    assert (copied.get_params()["seed"], classifier.get_params()["seed"]) == (1, 0)
    assert copied.fit(x, y) is copied
    assert copied.score(test_x, test_y) > 0.6
    assert list(copied.classes_) == list(names)
    assert copied.predict_proba(test_x).shape == (60, CLASSES)
    assert copied.clean_probability_.shape == (132,)
    pipeline = make_pipeline(FunctionTransformer(lambda images: 255 - images), clone(classifier))
    assert pipeline.fit(x, y).score(test_x, test_y) > 0.5
    assert cross_val_score(clone(classifier), x, DATA.labels.numpy(), cv=2).shape == (2,)
    with pytest.raises(UserError, match="Unknown parameter 'epochs'"):
        classifier.set_params(epochs=3)
    with pytest.raises(UserError, match="one label for each image"):
        classifier.fit(x, y[:5])
    assert sklearn.__version__


@pytest.fixture(scope="module")
def named_classes() -> tuple[vision.NoisyLabelClassifier, np.ndarray, np.ndarray]:
    """A classifier of cats, dogs and eels; images to test it on, and their labels."""
    names = np.array(["cat", "dog", "eel"])
    classifier = vision.NoisyLabelClassifier(network, method="normal", options={**FAST, "epochs": 2})
    classifier.fit(DATA.images.numpy(), names[DATA.labels.numpy()])
    return classifier, TEST.images.numpy(), names[TEST.labels.numpy()]


Named = tuple[vision.NoisyLabelClassifier, np.ndarray, np.ndarray]


def test_the_score_is_of_one_label_for_each_image(named_classes: Named) -> None:
    classifier, x, y = named_classes
    right = classifier.predict(x) == y
    assert classifier.score(x, y) == classifier.score(x, list(y)) == right.mean()
    for labels in (y[:, None], y[0], y[:1], [], [y]):
        with pytest.raises(UserError, match=r"60 images and labels of shape .*; give one label for each image"):
            classifier.score(x, labels)
    assert classifier.score(x, np.full(60, "fox")) == classifier.score(x, np.arange(60)) == 0
    weights = np.arange(60.0)
    assert classifier.score(x, y, sample_weight=weights) == pytest.approx((right * weights).sum() / weights.sum())
    for wrong, message in (
        (weights[:, None], r"weights of shape \(60, 1\)"),
        (weights[:3], r"weights of shape \(3,\)"),
        (weights - 1, "0 or more"),
        (weights * 0, "not all 0"),
        (weights * np.nan, "must be numbers"),
        (["heavy"] * 60, "must be numbers"),
    ):
        with pytest.raises(UserError, match=message):
            classifier.score(x, y, wrong)


MISSING: dict[str, tuple[Any, str]] = {
    "NaN": (np.array([0.0, 1.0, np.nan] * 44), "label of row 2 is nan"),
    "None": ([0, None, 1] * 44, "label of row 1 is None"),
    "NaN among text": (["cat", "dog", math.nan] * 44, "label of row 2 is nan"),
    "None among text": (np.array(["cat", None, "dog"] * 44, dtype=object), "label of row 1 is None"),
    "no time": (np.array(["2020", "NaT"] * 66, dtype="datetime64[D]"), "label of row 1 is NaT"),
    "numbers and text": (np.array([1, "cat", "dog"] * 44, dtype=object), "do not sort together"),
    "a list of numbers and text": ([1, "cat", "dog"] * 44, "do not sort together"),
    "what does not sort": (np.array([1, 2j, object()] * 44, dtype=object), "do not sort together"),
    "a ragged list": ([[1], [1, 2], 3] * 44, "not one array"),
}


@pytest.mark.parametrize("name", MISSING)
def test_labels_that_are_none_are_refused_and_what_was_fitted_stays(named_classes: Named, name: str) -> None:
    classifier, x, _ = named_classes
    labels, message = MISSING[name]
    before = classifier.predict(x).tolist()
    with pytest.raises(UserError, match=message) as caught:
        classifier.fit(DATA.images.numpy(), labels)
    assert "\n" not in str(caught.value)
    assert classifier.predict(x).tolist() == before


def test_missing_labels_of_a_table_are_refused() -> None:
    import pandas as pd

    for labels in (
        pd.Series(["cat", pd.NA] * 66),
        pd.Series([1, None] * 66, dtype="Int64"),
        pd.Series(["a", None] * 66),
    ):
        with pytest.raises(UserError, match="label of row 1 is"):
            vision.NoisyLabelClassifier("mlp").fit(DATA.images.numpy(), labels)


def test_a_second_fit_that_fails_leaves_the_first(named_classes: Named) -> None:
    classifier, x, y = named_classes
    before, score = list(classifier.classes_), classifier.score(x, y)
    with pytest.raises(UserError, match="fewer than one batch"):
        classifier.fit(x[:6], ["new", "names"] * 3)
    assert (list(classifier.classes_), classifier.score(x, y)) == (before, score)


@pytest.mark.parametrize(
    "name",
    [
        "data.load",
        "data.biased.COLOURS",
        "augment.Augment",
        "fitting.FitResult",
        "methods.names",
        "networks.names",
        "noise.make_noisy",
        "options.TrainOptions",
        "progress.Progress",
    ],
)
def test_parts_of_vision_are_there_after_a_plain_import(name: str) -> None:
    code = f"import vision\nvision.{name}\nassert {name.partition('.')[0]!r} in dir(vision)\n"
    code += "assert not hasattr(vision, 'dat')\n"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_vision_is_light() -> None:
    code = "import sys, vision\nassert 'torch' not in sys.modules\n"
    code += "vision.fit, vision.NoisyLabelClassifier, vision.register\n"
    code += "import vision.fitting, vision.experiment, vision.cli\nassert callable(vision.fit)\n"
    code += "print([n for n in ('recbole', 'sklearn', 'pandas', 'matplotlib', 'torch_geometric') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
