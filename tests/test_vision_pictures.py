"""``recdenoise vision picture``: the numbers of each picture against plain loops, and mistakes in one sentence."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recdenoise.errors import UserError
from tests.command import mistake, output
from tests.toy_images import TinyImages
from vision.pictures import cam, correlation, losses, masks
from vision.pictures.runs import choose, open_runs, run_names

FAST = ("--set", "batch_size=16", "--set", "optimizer=adam", "--set", "lr=0.01", "--set", "crop_pad=0", "--set")
FAST += ("flip=false", "--quiet", "--method", "normal", "--epochs", "2", "--valid", "24")


def npz(path: Path, seed: int, n: int = 96) -> Path:
    """Three classes of grey 12 x 12 images, with a test part."""
    parts = {name: TinyImages.draw(size, 0.0, seed) for name, size in (("", n), ("_test", 30))}
    arrays = {}
    for end, data in parts.items():
        arrays[f"images{end}"] = data.images[:, 0].repeat_interleave(2, 1).repeat_interleave(2, 2).numpy()
        arrays[f"labels{end}"] = data.labels.numpy()
    np.savez(path, **arrays, class_names=np.array(["top", "bottom", "side"]))
    return path


def trained(data: Path, out: Path, *words: str) -> Path:
    output("vision", "train", "--dataset", data, *FAST, "--out", out, *words)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return npz(tmp_path_factory.mktemp("data") / "small.npz", 7)


@pytest.fixture(scope="module")
def noisy(data: Path) -> Path:
    return trained(data, data.parent / "noisy", "--network", "convnet2", "--noise", "symmetric-other:0.3")


@pytest.fixture(scope="module")
def clean(data: Path) -> Path:
    return trained(data, data.parent / "clean", "--network", "convnet2")


@pytest.fixture(scope="module", params=["two encoders", "shared, eq5"])
def denll(request: pytest.FixtureRequest, data: Path) -> Path:
    """A run that tells foreground from background."""
    words = ["--network", "convnet2", "--method", "denll", "--noise", "symmetric-other:0.3", "--epochs", "1"]
    words += ["--set", "method.share=true", "--set", "method.mask=eq5"] if request.param != "two encoders" else []
    return trained(data, data.parent / f"denll-{request.param[:3]}", *words)


@pytest.fixture(scope="module")
def flat(data: Path) -> Path:
    """A run of a network without maps."""
    return trained(data, data.parent / "flat", "--network", "mlp", "--noise", "symmetric-other:0.3")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on other images of the same shape."""
    folder = tmp_path_factory.mktemp("other")
    return trained(npz(folder / "other.npz", 8), folder / "run", "--network", "convnet2")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def drawn(path: Path) -> np.ndarray:
    """The pixels of a picture, which must show something."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.std() > 5
    return pixels


# Losses


def test_losses_are_those_of_a_loop_over_images(noisy: Path, tmp_path: Path) -> None:
    printed = output("vision", "picture", "losses", noisy, "--out", tmp_path, "--bins", "7", "--weights", "best_val")
    (opened,) = open_runs([noisy], end="best_val")
    train = opened.prepared.train
    found, wrong = [], []
    for row in range(len(train)):
        logits = opened.run.logits(train.subset(torch.tensor([row])))[0].double()
        found.append(float(torch.log(torch.exp(logits).sum()) - logits[train.labels[row]]))
        wrong.append(bool(train.labels[row] != train.true_labels[row]))  # type: ignore[index]
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, is_wrong in zip(found, wrong, strict=True)
        for b, is_other in zip(found, wrong, strict=True)
        if is_wrong and not is_other
    ]
    auc = sum(pairs) / len(pairs)
    rows = table(tmp_path / "losses.csv")
    assert {row["run"] for row in rows} == {"Normal, symmetric-other:0.3"}
    assert float(rows[0]["auc"]) == pytest.approx(auc, abs=1e-6)
    assert f"{auc:.4f}" in printed
    low, high = min(found), max(found)
    for kind, flag in (("right", False), ("wrong", True)):
        counts = [0] * 7
        for value, is_wrong in zip(found, wrong, strict=True):
            if is_wrong == flag:
                counts[min(6, int((value - low) / (high - low) * 7))] += 1
        got = [row for row in rows if row["labels"] == kind]
        assert [int(row["images"]) for row in got] == counts
        assert float(got[0]["from"]) == pytest.approx(low, abs=1e-5)
        assert float(got[-1]["to"]) == pytest.approx(high, abs=1e-5)
    drawn(tmp_path / "losses.png")


def test_losses_of_both_ends_and_of_a_sample(noisy: Path, flat: Path, tmp_path: Path) -> None:
    records, paths = losses.write_losses([noisy, flat], tmp_path, ends=("last", "best_val"), sample=20)
    names = [f"Normal, symmetric-other:0.3, seed 0 ({folder})" for folder in ("noisy", "flat")]
    assert [(r.name, r.end) for r in records] == [(name, end) for name in names for end in ("last", "best_val")]
    whole = losses.losses_of(next(open_runs([noisy], end="last")))
    share = whole.wrong.mean()
    assert len(whole.loss) == 72
    for record in records:
        assert (~record.wrong).sum() == 20
        assert record.wrong.sum() == round(20 * share)
    assert set(records[0].loss) <= set(whole.loss)
    assert all(path.is_file() for path in paths)


def test_equal_losses_have_a_scale_too() -> None:
    record = losses.LossRecord("a", "last", np.full(4, 2.0), np.array([True, False, False, True]))
    assert record.auc == 0.5
    assert record.scaled.tolist() == [0] * 4


# Correlation


def test_correlations_are_those_of_a_loop(noisy: Path, clean: Path, tmp_path: Path) -> None:
    printed = output("vision", "picture", "correlation", clean, noisy, "--out", tmp_path, "--images", "20")
    rows = table(tmp_path / "correlation.csv")
    assert len(rows) == 2 * 2 * 2
    names = ["Normal, labels as given", "Normal, symmetric-other:0.3"]
    for opened, name in zip(open_runs([clean, noisy]), names, strict=True):
        chosen = choose(opened, "test", 20)
        assert len(set(chosen.rows.tolist())) == 20
        task, network = opened.run.task, opened.run.watched.eval()
        seen: dict[str, list[np.ndarray]] = {"whole": [], "foreground": [], "background": []}
        for row in range(20):
            inputs = task.augment(chosen.data.images[row : row + 1], torch.Generator(), False)
            inside = torch.zeros(12, 12, dtype=torch.bool)
            for i in range(12):
                for j in range(12):
                    inside[i, j] = 1 <= i < 10 and 1 <= j < 10
            for view in seen:
                shown = inputs.clone()
                if view != "whole":
                    shown[:, :, ~inside if view == "foreground" else inside] = 0
                seen[view].append(task.embed(network, shown)[1].detach().numpy()[0].astype(np.float64))
        for part in ("foreground", "background"):
            features = [np.corrcoef(a, b)[0, 1] for a, b in zip(seen["whole"], seen[part], strict=True)]
            columns = np.stack(seen["whole"]).T, np.stack(seen[part]).T
            with np.errstate(invalid="ignore", divide="ignore"):
                images = [np.corrcoef(a, b)[0, 1] for a, b in zip(*columns, strict=True)]
            wanted = {"features": np.nanmean(features), "images": np.nanmean(images)}
            got = {r["across"]: float(r["mean"]) for r in rows if r["run"] == name and r["part"] == part}
            assert got == pytest.approx(wanted, abs=1e-5)
        assert name in printed
    drawn(tmp_path / "correlation.png")


def test_a_side_that_does_not_vary_has_no_correlation() -> None:
    a = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    b = torch.tensor([[2.0, 1.0, 0.0], [3.0, 1.0, 2.0]])
    found = correlation.pearson(a, b, 1)
    assert found[0] == -1
    assert found[1].isnan()
    record = correlation.Correlation("a", "last", 2, 3, {"foreground": {"features": found, "images": found}})
    assert record.mean("foreground", "features") == -1


# Grad-CAM


def test_grad_cam_is_that_of_a_loop() -> None:
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    head = torch.nn.Sequential(torch.nn.Conv2d(4, 5, 3), torch.nn.Flatten(), torch.nn.Linear(20, 3))
    network = torch.nn.Sequential(body, head)
    inputs, target = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 2, 1, 0])
    assert cam.last_map(network, network, inputs) == "1.0"
    found = cam.grad_cam(network, body, inputs, target)
    for row in range(6):
        maps = body(inputs[row : row + 1]).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(head(maps)[0, target[row]], maps)
        wanted = torch.zeros(4, 4)
        for channel in range(4):
            wanted += gradient[0, channel].mean() * maps[0, channel].detach()
        wanted = torch.nn.functional.interpolate(wanted.clamp_min(0)[None, None], size=(8, 8), mode="bilinear")[0, 0]
        wanted = wanted / wanted.max() if wanted.max() > 0 else wanted
        torch.testing.assert_close(found[row], wanted, atol=1e-5, rtol=1e-5)


def test_a_row_of_cams_for_every_run(noisy: Path, clean: Path, tmp_path: Path) -> None:
    words = ("--images", "6", "--target", "predicted", "--name", "right labels", "--name", "wrong labels")
    printed = output("vision", "picture", "cam", clean, noisy, "--out", tmp_path, *words)
    rows = table(tmp_path / "cam.csv")
    assert [row["run"] for row in rows] == ["right labels"] * 6 + ["wrong labels"] * 6
    assert [row["row"] for row in rows[:6]] == [row["row"] for row in rows[6:]]
    assert [int(row["label"]) for row in rows[:6]] == [0, 1, 2, 0, 1, 2]
    assert all(row["asked"] == row["predicted"] for row in rows)
    assert all(row["share_inside_box"] == "nan" or 0 <= float(row["share_inside_box"]) <= 1 for row in rows)
    assert "right labels" in printed
    (opened,) = open_runs([clean])
    chosen = choose(opened, "test", 0, [int(row["row"]) for row in rows[:6]])
    chances = torch.softmax(opened.run.logits(chosen.data), 1)
    assert [float(row["probability"]) for row in rows[:6]] == pytest.approx(chances.amax(1).tolist(), abs=1e-5)
    assert [int(row["predicted"]) for row in rows[:6]] == chances.argmax(1).tolist()
    drawn(tmp_path / "cam.png")


def test_denll_is_looked_at_through_its_foregrounds(denll: Path) -> None:
    (opened,) = open_runs([denll])
    chosen = choose(opened, "test", 5)
    found = cam.cams_of(opened, chosen)
    assert found.layer.startswith("encoder.")
    one = [cam.cams_of(opened, choose(opened, "test", 0, [row])).maps[0] for row in chosen.rows.tolist()]
    torch.testing.assert_close(found.maps, torch.stack(one), atol=1e-4, rtol=1e-4)


# Masks


def test_masks_are_those_of_the_network(denll: Path, tmp_path: Path) -> None:
    printed = output("vision", "picture", "masks", denll, "--out", tmp_path, "--images", "5", "--part", "train")
    rows = table(tmp_path / "masks.csv")
    (opened,) = open_runs([denll])
    chosen = choose(opened, "train", 5, by_class=True)
    assert [int(row["row"]) for row in rows] == chosen.rows.tolist()
    assert [int(row["label"]) for row in rows] == [0, 1, 2, 0, 1]
    network, shares = masks.network_of(opened).eval(), []
    found = masks.found_masks(opened, chosen)
    augment = opened.run.task.augment
    mean, std = augment.mean[0], augment.std[0]  # type: ignore[attr-defined]
    for place, row in enumerate(rows):
        with torch.no_grad():
            parts = network.parts(augment(chosen.data.images[place : place + 1], torch.Generator(), False))
        total, down, across = 0.0, 0.0, 0.0
        for i in range(12):
            for j in range(12):
                value = float(parts.mask[0, 0, i, j])
                total, down, across = total + value, down + value * i, across + value * j
        shares.append(total / 144)
        assert float(row["share"]) == pytest.approx(total / 144, abs=1e-5)
        assert float(row["centre_row"]) == pytest.approx(down / total, abs=1e-4)
        assert float(row["centre_column"]) == pytest.approx(across / total, abs=1e-4)
        eq5 = network.cut.mode == "eq5"
        for drawn_part, part in ((found.foreground, parts.foreground), (found.background, parts.background)):
            wanted = (part if eq5 else part * std + mean).clamp(0, 1)
            torch.testing.assert_close(drawn_part[place], wanted[0], atol=1e-5, rtol=1e-5)
    assert f"{np.mean(shares):.4f}" in printed
    drawn(tmp_path / "masks.png")


def test_masks_of_one_run_serve_all(denll: Path, clean: Path, tmp_path: Path) -> None:
    output("vision", "picture", "correlation", clean, denll, "--mask", denll, "--images", "20", "--out", tmp_path)
    rows = table(tmp_path / "correlation.csv")
    assert {row["mask"] for row in rows} == {str(denll)}
    (owner,) = open_runs([denll])
    chosen = choose(owner, "test", 20)
    mask = masks.masks_of(owner, chosen.data)
    for opened, name in zip(open_runs([clean, denll]), (rows[0]["run"], rows[-1]["run"]), strict=True):
        whole, *parts = correlation.representations(opened.run, chosen.data, mask)
        inputs = opened.run.task.augment(chosen.data.images[:1], torch.Generator(), False)
        with torch.no_grad():
            alone = opened.run.task.embed(opened.run.watched, inputs * mask[:1])[1]
        torch.testing.assert_close(parts[0][:1], alone, atol=1e-5, rtol=1e-4)
        wanted = [
            np.corrcoef(a, b)[0, 1] for a, b in zip(whole.double().numpy(), parts[1].double().numpy(), strict=True)
        ]
        got = [r for r in rows if r["run"] == name and r["part"] == "background" and r["across"] == "features"]
        assert float(got[0]["mean"]) == pytest.approx(np.nanmean(wanted), abs=1e-5)
    records, _ = correlation.write_correlation([denll], tmp_path, mask="own", images=20)
    assert records[0].mean("background", "features") == pytest.approx(np.nanmean(wanted), abs=1e-5)


def test_rows_may_be_named(clean: Path, noisy: Path, tmp_path: Path) -> None:
    output("vision", "picture", "cam", clean, noisy, "--out", tmp_path, "--rows", "4", "2", "--part", "train")
    assert [row["row"] for row in table(tmp_path / "cam.csv")] == ["4", "2", "4", "2"]
    assert "Row 96 is none of the train images" in mistake(
        "vision", "picture", "cam", clean, "--rows", "96", "--part", "train", "--out", tmp_path
    )
    assert "must be whole numbers" in mistake("vision", "picture", "cam", clean, "--rows", "a", "--out", tmp_path)


def test_images_of_the_training_part_are_in_the_order_of_the_data_with_their_true_labels(noisy: Path) -> None:
    (opened,) = open_runs([noisy])
    chosen = choose(opened, "train", 200)
    with np.load(opened.settings.dataset) as arrays:
        assert chosen.rows.tolist() == list(range(96))
        np.testing.assert_array_equal(chosen.data.images[:, 0].numpy(), arrays["images"])
        np.testing.assert_array_equal(chosen.data.labels.numpy(), arrays["labels"])


def test_runs_are_called_by_what_differs(noisy: Path, clean: Path, flat: Path) -> None:
    assert run_names([clean, noisy]) == ["Normal, labels as given", "Normal, symmetric-other:0.3"]
    assert run_names([noisy, flat])[0] == "Normal, symmetric-other:0.3, seed 0 (noisy)"
    assert run_names([noisy, noisy], ["a", "b"]) == ["a", "b"]


# Mistakes


def test_bad_input_gets_one_sentence(noisy: Path, clean: Path, flat: Path, other: Path, tmp_path: Path) -> None:
    for command in ("losses", "correlation", "cam"):
        assert "is not a run" in mistake("vision", "picture", command, noisy, tmp_path / "nothing")
        assert "Missing argument" in mistake("vision", "picture", command)
        assert "There are 1 names for 2 runs" in mistake("vision", "picture", command, noisy, clean, "--name", "a")
        assert "The same run was given twice" in mistake("vision", "picture", command, noisy, noisy)
    for command in ("correlation", "cam"):
        assert "are runs of different data: their test images differ" in mistake(
            "vision", "picture", command, clean, other, "--name", "a", "--name", "b", "--out", tmp_path
        )
    assert "which labels are wrong is not known" in mistake("vision", "picture", "losses", clean, "--out", tmp_path)
    assert "MLP has no layer whose output is a map" in mistake("vision", "picture", "cam", flat, "--out", tmp_path)
    assert "Unknown layer of convnet2: 'layer9'" in mistake(
        "vision", "picture", "cam", clean, "--layer", "layer9", "--out", tmp_path
    )
    assert "gives no map for each image" in mistake(
        "vision", "picture", "cam", clean, "--layer", head_of(clean), "--out", tmp_path
    )
    assert "has no masks: Normal does not tell" in mistake("vision", "picture", "masks", clean, "--out", tmp_path)
    for mask in ("own", noisy):
        assert "has no masks" in mistake("vision", "picture", "correlation", clean, "--mask", mask, "--out", tmp_path)
    assert "is not a run" in mistake("vision", "picture", "correlation", clean, "--mask", tmp_path, "--out", tmp_path)
    (tmp_path / "file").write_text("")
    assert "Cannot write" in mistake("vision", "picture", "cam", clean, "--out", tmp_path / "file" / "x")
    assert not list(tmp_path.glob("*.png"))


def head_of(run: Path) -> str:
    """The last layer of a run's network."""
    (opened,) = open_runs([run])
    return [name for name, module in opened.run.watched.named_modules() if isinstance(module, torch.nn.Linear)][-1]


def test_functions_check_their_arguments(noisy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be one of last, best_val"):
        next(open_runs([noisy], end="first"))
    with pytest.raises(UserError, match="No run was given"):
        run_names([])
    with pytest.raises(UserError, match="must be test or train"):
        choose(next(open_runs([noisy])), "valid", 3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="must be features or images"):
        correlation.write_correlation([noisy], tmp_path, across="rows")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="must be 2 or more"):
        correlation.write_correlation([noisy], tmp_path, images=1)
    with pytest.raises(UserError, match="must be label or predicted"):
        cam.write_cam([noisy], tmp_path, target="true")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="must be 1 or more"):
        cam.write_cam([noisy], tmp_path, images=0)
    with pytest.raises(UserError, match="must be 1 or more"):
        masks.write_masks([noisy], tmp_path, images=0)
    with pytest.raises(UserError, match="2 bins or more"):
        losses.write_losses([noisy], tmp_path, bins=1)
