"""Pictures of data sets: what stands in which cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recdenoise.errors import UserError
from tests.command import mistake, run
from vision import data, sheet
from vision.data import ImageData

LABELS = np.arange(24) % 3
BIAS = np.where(np.arange(24) < 18, LABELS, (LABELS + 1) % 3)


def numbered() -> ImageData:
    """Image i is all of grey i."""
    images = np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None, None], (24, 4, 5))
    return data.load((images, LABELS), attributes={"bias": BIAS}, class_names=("a", "b", "c"))


def value(image: torch.Tensor | None) -> int | None:
    return None if image is None else int(image[0, 0, 0])


def test_examples_are_of_their_class_half_of_them_conflicting() -> None:
    found = sheet.examples(numbered(), 4, seed=0)
    assert (found.row_names, len(found.column_names)) == (["a", "b", "c"], 4)
    for label, row in enumerate(found.cells):
        rows = [value(image) for image in row]
        assert len(set(rows)) == 4
        assert all(LABELS[each] == label for each in rows)
        assert [bool(BIAS[each] != label) for each in rows] == [False, False, True, True]
    apart = sheet.examples(numbered().subset(torch.arange(18, 24)), 2, seed=0)  # all of them conflict
    assert all(image is not None for row in apart.cells for image in row)
    few = sheet.examples(numbered().subset(torch.arange(6)), 4, seed=0)
    assert [sum(image is not None for image in row) for row in few.cells] == [2, 2, 2]


def test_a_column_for_each_value_of_an_attribute() -> None:
    found = sheet.by_attribute(numbered(), "bias", seed=0)
    assert found.column_names == ["bias 0", "bias 1", "bias 2"]
    for label, row in enumerate(found.cells):
        for column, image in enumerate(row):
            each = value(image)
            assert (each is None) == ((column - label) % 3 == 2)
            assert each is None or (LABELS[each], BIAS[each]) == (label, column)
    with pytest.raises(UserError, match="Unknown attribute of these images 'light'"):
        sheet.by_attribute(numbered(), "light", seed=0)


def test_sets_side_by_side_show_the_same_row() -> None:
    found = sheet.side_by_side([numbered(), numbered()], ["one", "two"], seed=0)
    assert all(value(left) == value(right) for left, right in found.cells)
    assert [LABELS[value(row[0])] for row in found.cells] == [0, 1, 2]  # type: ignore[index]
    with pytest.raises(UserError, match="two has 6 images of 3 classes and one 24 of 3"):
        sheet.side_by_side([numbered(), numbered().subset(torch.arange(6))], ["one", "two"], seed=0)


def test_the_canvas_by_hand() -> None:
    image = torch.full((1, 4, 5), 9, dtype=torch.uint8)
    found = sheet.canvas(sheet.Sheet([[None, image]], ["a"], ["", ""]))
    assert found.shape == (4 + 2 * sheet.GAP, 2 * 5 + 3 * sheet.GAP, 3)
    inside = found[sheet.GAP : -sheet.GAP, 5 + 2 * sheet.GAP : -sheet.GAP]
    assert (inside.min(), inside.max(), (found == 255).sum()) == (9, 9, found.size - 4 * 5 * 3)


def test_many_classes_are_thinned_out() -> None:
    many = data.load((np.zeros((100, 4, 4), np.uint8), np.arange(100)))
    found = sheet.examples(many, 1, seed=0)
    assert (len(found.cells), found.row_names[0], found.row_names[-1]) == (sheet.MOST_ROWS, "0", "99")


def test_the_command_writes_a_picture(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(20) % 4)
    names = [f"framed-{tmp_path / 'mine.npz'}:{version}" for version in ("v1", "v2", "v3", "v4")]
    out = tmp_path / "picture.png"
    shown = run("vision", "show", *names, "--out", str(out))
    assert shown.exit_code == 0, shown.output
    assert "framed-mine:v4: 20 images of 4 classes, 3 x 16 x 16" in shown.output
    first = out.read_bytes()
    assert Image.open(out).size[0] > 300
    assert run("vision", "show", *names, "--out", str(out)).exit_code == 0
    assert out.read_bytes() == first
    assert run("vision", "show", names[0], "--by", "a", "--out", str(out)).exit_code == 0
    assert "--by draws one data set" in mistake("vision", "show", *names, "--by", "a")
