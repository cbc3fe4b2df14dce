"""MovieLens-100K: the split behind the published tables (``paper``) and a disjoint one (``clean``).

The raw file needs no download: the recbole wheel carries GroupLens' ``u.data`` under a header line, as an example. Both
protocols cut every user's history 8:1:1 by time; they differ in what the published split did by accident:

- its order of equal timestamps is NumPy's old unstable sort (:mod:`data_recipes.numpy_order`);
- its test starts at 80% of a history, where valid starts, so test contains valid.

Source: "Label Denoising through Cross-Model Agreement", section 5.1 and Table 1.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.atomic_yaml import recbole_yaml
from data_recipes.errors import RecipeError, because
from data_recipes.interactions import ATOMIC_FIELDS, Interactions, inter_file
from data_recipes.manifest import check_totals, describe, sha256
from data_recipes.numpy_order import unstable_argsort
from data_recipes.recipe import Folder, Job, Recipe

NAME = "ml-100k"
ROWS_SHA256 = "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"
"""sha256 of the 100,000 rows with newline endings: GroupLens' ``u.data``, or RecBole's file less its header line."""
REFERENCE = {"name": "paper, Table 1", "users": 943, "items": 1682, "rows": 100_000, "sparsity": 0.93695}
WHEEL_FILE = Path("dataset_example") / NAME / f"{NAME}.inter"
HEADER = "\t".join(ATOMIC_FIELDS.values()).encode()
YAML_REMARKS = (
    "RecBole ignores data_path for a dataset of this very name (it takes the unsplit copy in its own package). So make",
    'the Config first, then set config["data_path"] to this folder itself, then create the dataset.',
)
CLEAN_RATING = 5
"""The clean test holds the interactions with this rating."""
_LIMITS = {"user": (1, None), "item": (1, None), "rating": (1, 5), "timestamp": (0, 2**53)}


def build(job: Job) -> list[Folder]:
    """Build protocols in memory.

    Args:
        job: its source is ``ml-100k.inter`` or ``u.data``, or a folder with one of them; None takes the copy in the
            recbole wheel.

    Raises:
        RecipeError: the file is absent, unreadable, malformed or another one.
    """
    ratings = read_ratings(find_source(job.source))
    make = {"paper": paper_folder, "clean": clean_folder}
    return [make[protocol](ratings) for protocol in job.protocols]


def find_source(source: Path | None) -> Path:
    """Return the raw file's path; recbole is located, never imported.

    Raises:
        RecipeError: nothing there; the message says where it looked.
    """
    if source is None:
        try:
            spec = importlib.util.find_spec("recbole")
        except ValueError:  # a module of that name sits in sys.modules without a spec
            spec = None
        places = list(spec.submodule_search_locations or []) if spec else []
        for place in places:
            if (Path(place) / WHEEL_FILE).is_file():
                return Path(place) / WHEEL_FILE
        state = f"recbole is installed in {places[0]}, without {WHEEL_FILE}" if places else "recbole is not installed"
        raise RecipeError(
            f"{NAME} is read from the recbole wheel, but {state}. "
            f"Install recbole, or give u.data from {RECIPE.url} as source."
        )
    if not source.is_dir():
        return source
    names = (f"{NAME}.inter", "u.data")
    for candidate in (source / folder / name for folder in ("", NAME) for name in names):
        if candidate.is_file():
            return candidate
    raise RecipeError(f"The folder {source} has neither {names[0]} nor {names[1]}.")


def read_ratings(path: Path) -> Interactions:
    """Read and check the 100,000 rows, in their own order.

    Raises:
        RecipeError: the file cannot be read; a row is malformed (names the line); users, items or rows are not those of
            the published data; or the sha256 differs (gives both).
    """
    try:
        text = path.read_bytes().replace(b"\r\n", b"\n")
    except FileNotFoundError:
        raise RecipeError(f"There is no file {path}.") from None
    except OSError as error:
        raise RecipeError(f"Cannot read {path}: {because(error)}.") from error
    first_line = 1
    if not text[:1].isdigit():
        header, _, text = text.partition(b"\n")
        first_line = 2
        if header != HEADER:
            raise RecipeError(
                f"{path}, line 1: found {_quoted(header)}; "
                f"expected the header {_quoted(HEADER)} or, in u.data, the first rating."
            )
    if text and not text.endswith(b"\n"):
        text += b"\n"
    found = sha256(text)
    if found != ROWS_SHA256:
        _check_rows(path, text, first_line)
    columns = np.array(text.split(), dtype=np.int64).reshape(-1, 4).T
    ratings = Interactions(*columns)
    check_totals(str(path), ratings, REFERENCE)
    if found != ROWS_SHA256:
        raise RecipeError(
            f"{path} is not the published MovieLens-100K: its rows have sha256 {found}, expected {ROWS_SHA256}. "
            "Same totals, so single values or the order of rows were changed."
        )
    return ratings


def _check_rows(path: Path, text: bytes, first_line: int) -> None:
    """Raise for the first row that is not four whole numbers within their limits."""
    for number, line in enumerate(text.split(b"\n")[:-1], start=first_line):
        fields = line.split(b"\t")
        if len(fields) != len(_LIMITS):
            raise RecipeError(
                f"{path}, line {number}: {len(fields)} tab-separated field(s) instead of 4 in {_quoted(line)}; "
                "expected user, item, rating, timestamp."
            )
        for (name, (least, most)), field in zip(_LIMITS.items(), fields, strict=True):
            # Digits only, and few enough for int64: int() alone would also take signs, spaces and underscores.
            value = int(field) if field.isdigit() and len(field) <= 16 else -1
            if value < least or (most is not None and value > most):
                valid = f"from {least} to {most}" if most is not None else f"from {least}"
                raise RecipeError(
                    f"{path}, line {number}: {name} is {_quoted(field)}; expected a whole number {valid}."
                )


def _quoted(raw: bytes) -> str:
    """Show bytes of a file in a message: one line, at most 60 characters."""
    shown = raw.decode("utf-8", "replace")
    return repr(shown if len(shown) <= 60 else shown[:57] + "...")


def _cut(ratings: Interactions, argsort: Callable[[np.ndarray], Any]) -> tuple[np.ndarray, np.ndarray]:
    """Order every user's history by time and cut it 8:1:1.

    Returns:
        Row numbers, users ascending and each user's rows in the order of ``argsort(timestamps)``; and for each of them
        0, 1 or 2: before ``int(0.8 n)``, before ``int(0.9 n)``, or after, of a history of ``n`` rows.
    """
    assert ratings.timestamps is not None
    by_user = np.argsort(ratings.users, kind="stable")
    _, starts = np.unique(ratings.users[by_user], return_index=True)
    orders, parts = [], []
    for rows in np.split(by_user, starts[1:]):
        n = len(rows)
        orders.append(rows[np.asarray(argsort(ratings.timestamps[rows]))])
        parts.append(np.repeat([0, 1, 2], np.diff([0, int(0.8 * n), int(0.9 * n), n])))
    return np.concatenate(orders), np.concatenate(parts)


def paper_folder(ratings: Interactions) -> Folder:
    """Build the published split, with its five files byte for byte beside the RecBole files."""
    order, part = _cut(ratings, lambda keys: unstable_argsort(keys.tolist()))
    train_rows = np.sort(order[part == 0])
    train_items = np.unique(ratings.items[train_rows])
    valid_noisy, valid_gone = _known(ratings, np.sort(order[part == 1]), train_items)
    test, test_gone = _known(ratings, order[part >= 1], train_items)
    valid, clean_test = _clean(ratings, valid_noisy), _clean(ratings, test)
    published = {
        "train.rating": train_rows,
        "valid.noisy": valid_noisy,
        "valid.rating": valid,
        "test.noisy": test,
        "test.negative": clean_test,
    }
    inside = len(np.intersect1d(valid, test))
    masked = len(np.intersect1d(valid, clean_test))
    notes = [
        f"valid lies inside test: {inside:,} of its {len(valid):,} rows are rows of test and of clean_test, because "
        "the published split starts test where valid starts, at 80% of a history. Early stopping on valid sees test.",
        f"Scoring masks train and valid, so {masked:,} of the {len(clean_test):,} clean positives can never be hit, "
        "yet stay in the denominators. Compare figures under this protocol with the published tables only.",
        "Equal timestamps are ordered as NumPy up to 1.24 ordered them; test and clean_test rows are by user and time, "
        "the others in the order of the raw file.",
        "valid holds the ratings of 5 alone, as published; the file valid.noisy holds all ratings.",
        "The published files number items by rank among the items of train; the .inter files keep MovieLens' own ids.",
    ]
    splits = {"train": train_rows, "valid": valid, "test": test, "clean_test": clean_test}
    folder = _folder("paper", ratings, splits, {"valid": valid_gone, "test": test_gone}, notes)
    extra = {f"{NAME}.{name}": _published_file(ratings.take(rows), train_items) for name, rows in published.items()}
    return Folder(folder.protocol, folder.dataset, {**folder.files, **extra}, folder.manifest)


def clean_folder(ratings: Interactions) -> Folder:
    """Build the disjoint split: every interaction in one part at most, every item of valid and test seen in train."""
    order, part = _cut(ratings, lambda keys: np.argsort(keys, kind="stable"))
    train = np.sort(order[part == 0])
    train_items = np.unique(ratings.items[train])
    valid, valid_gone = _known(ratings, np.sort(order[part == 1]), train_items)
    test, test_gone = _known(ratings, np.sort(order[part == 2]), train_items)
    splits = {"train": train, "valid": valid, "test": test, "clean_test": _clean(ratings, test)}
    notes = [
        "train, valid and test share no interaction; clean_test is the rows of test with rating 5.",
        "valid and test hold all ratings, so model selection sees labels as noisy as those of train.",
        "Equal timestamps keep the order of the raw file; rows of every file are in that order.",
    ]
    return _folder("clean", ratings, splits, {"valid": valid_gone, "test": test_gone}, notes)


def _known(ratings: Interactions, rows: np.ndarray, train_items: np.ndarray) -> tuple[np.ndarray, int]:
    """Keep the rows whose item train has; return them and the number of rows dropped."""
    kept = rows[np.isin(ratings.items[rows], train_items)]
    return kept, len(rows) - len(kept)


def _clean(ratings: Interactions, rows: np.ndarray) -> np.ndarray:
    return rows[ratings.rated[rows] == CLEAN_RATING]


def _folder(
    protocol: str, ratings: Interactions, rows: dict[str, np.ndarray], dropped: dict[str, int], notes: list[str]
) -> Folder:
    """Write the RecBole files of the splits given as row numbers, and describe them."""
    splits = {name: ratings.take(chosen) for name, chosen in rows.items()}
    files = {f"{NAME}.{name}.inter": inter_file(part) for name, part in splits.items()}
    files[f"{NAME}.yaml"] = recbole_yaml(NAME, timestamps=True, remarks=YAML_REMARKS)
    manifest = describe(
        RECIPE,
        protocol,
        reference=REFERENCE,
        source=ratings,
        source_sha256=ROWS_SHA256,
        splits=splits,
        dropped=dropped,
        notes=notes,
    )
    return Folder(protocol, NAME, files, manifest)


def _published_file(part: Interactions, train_items: np.ndarray) -> bytes:
    """Write one of the five published files: user, item's rank among ``train_items``, rating; no header, CRLF."""
    ranks = np.searchsorted(train_items, part.items)
    rows = zip(part.users.tolist(), ranks.tolist(), part.rated.tolist(), strict=True)
    return "".join(f"{user}\t{item}\t{rating}\r\n" for user, item, rating in rows).encode()


RECIPE = Recipe(
    name=NAME,
    title="MovieLens-100K",
    url="https://grouplens.org/datasets/movielens/100k/",
    licence="GroupLens' terms: research use, acknowledged; no redistribution and no commercial use without permission.",
    citation=(
        "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. "
        "ACM Transactions on Interactive Intelligent Systems 5, 4: 19:1-19:19. https://doi.org/10.1145/2827872"
    ),
    protocols=("paper", "clean"),
    version=1,
    build=build,
)
