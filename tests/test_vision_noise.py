"""Label noise: matrices computed by hand, counts, draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data_recipes.images_names import CIFAR100_CLASSES
from recdenoise.errors import UserError
from vision import data, noise
from vision.instance_noise import flip_rates
from vision.noise import NoiseSpec, apply, parse, transition_matrix

MATRICES = {
    "none": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    "symmetric:0.4": [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.1, 0.7]],
    "symmetric-other:0.3": [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.1, 0.7]],
    "pairflip:0.45": [[0.55, 0.45, 0, 0], [0, 0.55, 0.45, 0], [0, 0, 0.55, 0.45], [0.45, 0, 0, 0.55]],
}
CLASSWISE = ["symmetric-any:0.4", "symmetric-other:0.4", "pairflip:0.45", "asymmetric-cifar10:0.3"]


def balanced(each: int = 600, n_classes: int = 10) -> Tensor:
    labels = torch.arange(n_classes).repeat(each)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def chi_square(found: noise.NoisyLabels) -> tuple[float, int]:
    """Distance of the drawn labels from the transition matrix, and its degrees of freedom."""
    sizes = torch.bincount(found.true_labels, minlength=len(found.transition)).double().unsqueeze(1)
    wanted, drawn = found.transition * sizes, found.realised() * sizes
    used = wanted > 0
    assert float(drawn[~used].sum()) == 0
    distance = float(((drawn[used] - wanted[used]) ** 2 / wanted[used]).sum())
    return distance, int(used.sum()) - int((sizes > 0).sum())


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_are_those_computed_by_hand(name: str) -> None:
    wanted = torch.tensor(MATRICES[name], dtype=torch.float64)
    torch.testing.assert_close(transition_matrix(parse(name), 4), wanted)
    torch.testing.assert_close(apply(name, balanced(4, 4), 4).transition, wanted)


def test_asymmetric_noise_goes_to_similar_classes() -> None:
    matrix = transition_matrix(parse("asymmetric:0.3"), 10, "cifar10")
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    pairs = {(names[i], names[j]) for i, j in (matrix - torch.eye(10) > 0).nonzero().tolist()}
    assert pairs == {
        ("truck", "automobile"),
        ("bird", "airplane"),
        ("cat", "dog"),
        ("dog", "cat"),
        ("deer", "horse"),
    }
    assert matrix.diagonal().tolist() == [1, 1, 0.7, 0.7, 0.7, 0.7, 1, 1, 1, 0.7]
    fashion = transition_matrix(parse("asymmetric-fashion-mnist:0.2"), 10)
    assert [(i, int(row.argsort()[-2])) for i, row in enumerate(fashion) if row[i] < 1] == [
        (2, 6),
        (3, 4),
        (4, 3),
        (7, 5),
        (9, 7),
    ]
    digits = transition_matrix(parse("asymmetric-mnist:0.2"), 10)
    assert [(i, int(row.argsort()[-2])) for i, row in enumerate(digits) if row[i] < 1] == [
        (2, 7),
        (3, 8),
        (5, 6),
        (6, 5),
        (7, 1),
    ]


def test_cifar100_classes_stay_in_their_superclass() -> None:
    matrix = transition_matrix(parse("asymmetric-cifar100:0.4"), 100)
    becomes = (matrix - torch.eye(100) > 0).int().argmax(1).tolist()
    number = CIFAR100_CLASSES.index
    for old, new in [("beaver", "dolphin"), ("whale", "beaver"), ("apple", "mushroom"), ("tractor", "lawn_mower")]:
        assert becomes[number(old)] == number(new)
    assert sorted(becomes) == list(range(100))
    torch.testing.assert_close(matrix.diagonal(), torch.full((100,), 0.6, dtype=torch.float64))


def test_superclasses_are_those_of_the_publisher(real_data: Path) -> None:
    from data_recipes.images_names import CIFAR100_SUPERCLASSES

    found = np.load(real_data / "vision" / "cifar_human_labels" / "cifar100n.npz")
    coarse = {name: i for i, names in enumerate(CIFAR100_SUPERCLASSES.values()) for name in names}
    mine = np.array([coarse[name] for name in CIFAR100_CLASSES])[found["clean_label"]]
    assert np.array_equal(mine, found["clean_coarse_label"])


@given(
    rate=st.floats(0, 0.99),
    n=st.integers(1, 200),
    n_classes=st.integers(2, 6),
    seed=st.integers(0, 2**40),
    kind=st.sampled_from(["symmetric-any", "symmetric-other", "pairflip"]),
)
def test_exact_counts_are_exact(rate: float, n: int, n_classes: int, seed: int, kind: str) -> None:
    labels = torch.randint(0, n_classes, (n,), generator=torch.Generator().manual_seed(seed % 1000))
    found = apply(NoiseSpec(kind, rate), labels, n_classes, seed=seed)
    assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < n_classes
    wrong = found.labels != labels
    assert found.rate == pytest.approx(float(wrong.double().mean()))
    wanted = int(n * rate + 0.5)
    if kind == "symmetric-any":
        assert int(wrong.sum()) <= wanted
        return
    assert int(wrong.sum()) == wanted
    for each in range(n_classes):
        mine = labels == each
        assert abs(float(wrong[mine].sum()) - rate * float(mine.sum())) <= 1 + 1e-6
    if kind == "pairflip":
        assert torch.equal(found.labels[wrong], (labels[wrong] + 1) % n_classes)


@pytest.mark.parametrize("count", ["exact", "binomial"])
@pytest.mark.parametrize("name", CLASSWISE)
def test_draws_follow_the_matrix(name: str, count: str) -> None:
    found = apply(f"{name},count={count}", balanced(), 10, seed=3)
    distance, freedom = chi_square(found)
    assert distance < freedom + 4.5 * (2 * freedom) ** 0.5 + 10
    if count == "exact" and not name.startswith("symmetric-any"):
        assert found.realised().diagonal().tolist() == pytest.approx(found.transition.diagonal().tolist())
    if count == "binomial" and name.startswith("pairflip"):
        assert len(set(found.realised().diagonal().tolist())) > 5
        assert distance > 0.5


def test_the_own_class_counts_where_the_name_says_so() -> None:
    labels = balanced(6000)
    assert apply("symmetric:0.4", labels, 10).rate == pytest.approx(0.36, abs=0.004)
    assert apply("symmetric-other:0.4", labels, 10).rate == pytest.approx(0.4, abs=1e-9)
    assert apply(noise.symmetric(0.4, include_self=False), labels, 10).rate == pytest.approx(0.4, abs=1e-9)
    assert str(parse("symmetric:0.4")) == str(noise.symmetric(0.4)) == "symmetric-any:0.4"


def test_seeds_and_nothing_else_decide() -> None:
    labels = balanced()
    torch.manual_seed(0)
    first = apply("symmetric:0.4", labels, 10, seed=5)
    torch.manual_seed(1)
    again = apply("symmetric:0.4", labels, 10, seed=5)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, apply("symmetric:0.4", labels, 10, seed=6).labels)
    assert apply("symmetric:0.5", torch.arange(10), 10, seed=7).labels.tolist() == SYMMETRIC_OF_SEED_7
    assert torch.equal(labels, balanced())


SYMMETRIC_OF_SEED_7 = [3, 1, 4, 3, 7, 5, 7, 7, 7, 9]


@pytest.mark.parametrize(
    "name",
    [
        "none",
        "symmetric-any:0.4",
        "pairflip:0.2,count=binomial",
        "asymmetric-cifar100:0.4",
        "asymmetric:0.1",
        "instance:0.3",
        "human:cifar10n-worse",
    ],
)
def test_names_survive_a_round_trip(name: str) -> None:
    spec = parse(name)
    assert parse(str(spec)) == spec == parse(spec)
    if name != "instance:0.3":
        assert str(spec) == name


BAD_NAMES = [
    ("symmetric:1", "rate is 1.0; it must be 0 or more and below 1"),
    ("symmetric:-0.1", "rate is -0.1"),
    ("symmetric:nan", "rate is nan"),
    ("symmetric", "'symmetric'; it needs its rate, as in symmetric:0.4"),
    ("symmetric:40%", "needs its rate"),
    ("symetric:0.4", "Did you mean 'symmetric'"),
    ("asymmetric-cifar:0.4", "Unknown asymmetric noise of 'cifar'.*cifar10"),
    ("pairflip:0.4,rate=3", "Unknown option of noise pairflip: 'rate'"),
    ("pairflip:0.4,count=some", "count is 'some'; it must be exact or binomial"),
    ("instance:0.4,count=exact", "its count is binomial"),
    ("none:0.4", "none takes no rate"),
    ("human", "needs its set"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "message"), BAD_NAMES)
def test_bad_names_get_one_clear_sentence(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(name)


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("symmetric:0.4", torch.tensor([0, 1, 4]), "label of row 2 is 4"),
        ("symmetric:0.4", torch.tensor([0.0, 1.0]), "int64"),
        ("asymmetric:0.4", torch.tensor([0, 1]), "of unnamed data; say which it shall be: asymmetric-cifar10, "),
        ("asymmetric-cifar10:0.4", torch.tensor([0, 1]), "is for 10 classes; the data has 4"),
        ("instance:0.4", torch.tensor([0, 1]), "hand over one for each label"),
        ("human:cifar10n-best", torch.tensor([0, 1]), "Unknown set of human labels 'cifar10n-best'.*cifar10n-worse"),
        ("human:nowhere.npz#a", torch.tensor([0, 1]), "There is no file nowhere.npz"),
    ],
)
def test_noise_that_does_not_fit_gets_one_clear_sentence(name: str, labels: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply(name, labels, 4)
    for kind in ("instance:0.4", "human:x"):
        with pytest.raises(UserError, match="no transition matrix before it meets the data"):
            transition_matrix(parse(kind), 4)


def pictures(n: int = 3000, n_classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=generator),
        torch.randint(0, n_classes, (n,), generator=generator),
    )


def test_rates_of_images_are_a_truncated_normal() -> None:
    from scipy.special import ndtr

    for rate in (0.1, 0.4):
        found = np.sort(flip_rates(20_000, rate, seed=1))
        low, high = ndtr(-rate / 0.1), ndtr((1 - rate) / 0.1)
        wanted = (ndtr((found - rate) / 0.1) - low) / (high - low)
        assert np.abs(wanted - np.arange(20_000) / 20_000).max() < 1.95 / 20_000**0.5  # Kolmogorov-Smirnov, p = 0.001
    assert flip_rates(20_000, 0.1, 1).mean() > 0.12


def test_instance_noise_follows_its_own_matrix() -> None:
    images, labels = pictures()
    found = apply("instance:0.4", labels, 5, images, seed=2)
    assert found.rate == pytest.approx(0.4, abs=0.03)
    distance, freedom = chi_square(found)
    assert distance < freedom + 4.5 * (2 * freedom) ** 0.5
    torch.testing.assert_close(found.transition.sum(1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(
        found.transition.diagonal(), torch.full((5,), 0.6, dtype=torch.float64), rtol=0, atol=0.02
    )


def test_instance_noise_depends_on_the_image() -> None:
    """Copies of one image go to the same few classes; copies of another to others."""
    images, _ = pictures(2)
    many = images.repeat_interleave(1000, 0)
    labels = torch.zeros(2000, dtype=torch.int64)
    found = apply("instance:0.4", labels, 5, many, seed=2).labels
    first, second = (torch.bincount(each, minlength=5)[1:] / 1000 for each in (found[:1000], found[1000:]))
    assert float((first - second).abs().sum()) > 0.2
    assert first.max() > 0.2


def test_instance_noise_of_nothing_is_nothing() -> None:
    images, labels = pictures(20)
    assert apply("instance:0", labels, 5, images).rate == 0


def test_a_data_set_is_made_noisy_as_a_whole() -> None:
    images, labels = pictures(100, 10)
    clean = data.ImageData(images, labels, 10, name="cifar10")
    noisy, found = noise.make_noisy(clean, "asymmetric:0.5", seed=1)
    assert torch.equal(noisy.labels, found.labels)
    assert noisy.true_labels is clean.labels
    changes = set(torch.stack([labels, noisy.labels])[:, noisy.labels != labels].T.flatten().tolist())
    assert changes <= {9, 1, 2, 0, 3, 5, 4, 7}


def test_human_labels_are_read_in_every_form(tmp_path: Path) -> None:
    clean, worse = np.array([0, 1, 2, 0]), np.array([0, 2, 2, 1])
    np.savez(tmp_path / "a.npz", clean_label=clean, worse_label=worse)
    torch.save({"clean_label": clean, "worse_label": worse}, tmp_path / "a.pt")
    torch.save({"worse_label": torch.from_numpy(worse)}, tmp_path / "b.pt")
    for file in ("a.npz", "a.pt", "b.pt"):
        found = apply(f"human:{tmp_path / file}#worse_label", torch.from_numpy(clean), 3)
        assert found.labels.tolist() == worse.tolist()
        assert found.rate == 0.5
        assert found.transition.tolist() == [[0.5, 0.5, 0], [0, 0, 1], [0, 0, 1]]


def test_human_labels_of_other_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, clean_label=[0, 1, 2, 0], worse_label=[0, 2, 2, 3])
    bad: list[tuple[list[int], str, str]] = [
        ([0, 1, 1, 0], "#worse_label", "other true labels than the data for 1 of 4 images"),
        ([0, 1, 2], "#worse_label", "has 4 labels and the data 3 images"),
        ([0, 1, 2, 0], "#worse_label", "human label of row 3 is 3"),
        ([0, 1, 2, 0], "#worst_label", r"Did you mean 'worse_label'"),
        ([0, 1, 2, 0], "", r"say human:.*#ARRAY"),
    ]
    for labels, array, message in bad:
        with pytest.raises(UserError, match=message):
            apply(f"human:{path}{array}", torch.tensor(labels), 3)
    path.with_suffix(".pt").write_bytes(b"no torch file")
    with pytest.raises(UserError, match="is not a file of labels that torch can read"):
        apply(f"human:{path.with_suffix('.pt')}#a", torch.tensor([0, 1]), 3)
    torch.save([1, 2], path.with_suffix(".pt"))
    with pytest.raises(UserError, match="holds list, not arrays"):
        apply(f"human:{path.with_suffix('.pt')}#a", torch.tensor([0, 1]), 3)


def test_code_in_a_label_file_does_not_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"worse_label": Runs()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="is not a file of labels"):
        apply(f"human:{tmp_path / 'a.pt'}#worse_label", torch.tensor([0, 1]), 3)


HUMAN_RATES = {
    "cifar10n-aggre": 0.0903,
    "cifar10n-random1": 0.1723,
    "cifar10n-random2": 0.1812,
    "cifar10n-random3": 0.1764,
    "cifar10n-worse": 0.4021,
    "cifar100n-fine": 0.4020,
}
"""As the authors print them, in percent with two decimals; the published file of ``aggre`` has 9.01."""


def test_human_labels_have_the_published_rates(real_data: Path, cache: Path) -> None:
    for name, rate in HUMAN_RATES.items():
        file = np.load(real_data / "vision" / "cifar_human_labels" / f"{name.partition('-')[0]}.npz")
        clean = torch.from_numpy(file["clean_label"].astype(np.int64))
        found = apply(f"human:{name}", clean, 100 if "100" in name else 10)
        assert found.rate == pytest.approx(rate, abs=3e-4)
