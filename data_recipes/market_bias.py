"""ModCloth and Electronics: the published random split (``paper``), and a new one from the raw csv (``clean``).

Both come from the marketBias collection; the authors of DeCA numbered users and items from 0 and cut the rows 8:1:1 at
random. Their seed is not known, so the split itself can only be read from their files.

Source: "Label Denoising through Cross-Model Agreement", section 5.1 and Table 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.atomic_yaml import recbole_yaml
from data_recipes.csv_rows import Table
from data_recipes.csv_table import TableOptions, table_folder
from data_recipes.errors import RecipeError
from data_recipes.interactions import Interactions, inter_file
from data_recipes.manifest import check_figures, describe
from data_recipes.recipe import Folder, Job, RawFile, Recipe
from data_recipes.split_files import check_source, read_rows, require_files
from data_recipes.table_split import Counts, Cut

CLEAN_RATING = 5
"""The clean test holds the interactions with this rating."""
DECA_FILES = "https://raw.githubusercontent.com/wangyu-ustc/DeCA/8b04aa8c24c08c4519f559d25e4c3da34fe97bd3/data"
"""The DeCA authors' folder of split files, at one commit."""
DECA_PAGE = "https://github.com/wangyu-ustc/DeCA"
RAW_FILES = "https://raw.githubusercontent.com/MengtingWan/marketBias/master/data"
"""The publisher's folder. Its files carry no published sha256: they are checked by the counts of Table 1."""
LICENCE = "The publisher names no licence and asks for a citation; the repository holds none of it."
CITATION = (
    "Mengting Wan, Jianmo Ni, Rishabh Misra and Julian McAuley. 2020. Addressing Marketing Bias in Product "
    "Recommendations. WSDM 2020. https://doi.org/10.1145/3336191.3371855"
)


@dataclass(frozen=True)
class Shop:
    """What tells one of the two data sets from the other."""

    name: str
    title: str
    reference: dict[str, Any]
    """Table 1: name, users, items, rows, sparsity."""
    users: int
    """Distinct users in the split files: ids run from 0 to one less."""
    files: tuple[RawFile, RawFile, RawFile, RawFile]
    """Split files of train, valid, test and clean test."""
    raw: RawFile
    """The publisher's csv."""
    notes: tuple[str, ...]

    @property
    def items(self) -> int:
        """Distinct items in the split files."""
        return int(self.reference["items"])

    @property
    def rows(self) -> int:
        """Rows of train, valid and test together."""
        return int(self.reference["rows"])


MODCLOTH = Shop(
    name="modcloth",
    title="ModCloth",
    reference={"name": "paper, Table 1", "users": 44_783, "items": 1_020, "rows": 99_893, "sparsity": 0.99781},
    users=44_784,
    files=(
        RawFile(
            "modcloth.train.rating",
            f"{DECA_FILES}/modcloth/modcloth.train.rating",
            939_314,
            "e4698402116e8b621c66c79405b0309df8da9991fa6669dd9f2768acf7559ced",
            "859487a344543b34d9d420157de272d53b2e001f978bf6c36c5030722e0fa367",
        ),
        RawFile(
            "modcloth.valid.rating",
            f"{DECA_FILES}/modcloth/modcloth.valid.rating",
            117_484,
            "216e8b73e746972087833ebc5b94ac0f1667041ab2be5efd3472c75d4526d511",
            "de5e82f14b5d78982f66c772ced06be6f5b5fc2c1e0b037f6260cd5f83310b1f",
        ),
        RawFile(
            "modcloth.test.noisy",
            f"{DECA_FILES}/modcloth/modcloth.test.noisy",
            117_230,
            "19e35598ad18039061cdcbf04b55635eda7e6f43ce48f9f6312c2ee21d86fdd4",
            "be254c8b43e49550a46fc2a9a82dde62b2fc7903ceaf8d5b08e80657f7046968",
        ),
        RawFile(
            "modcloth.test.negative",
            f"{DECA_FILES}/modcloth/modcloth.test.negative",
            63_903,
            "83c9d9cd457733a364d42cff5298d82413892d46292522590ac3449372558387",
            "d2a09162d6af9755ef801420be387f7a40906c4e03f81282fde5dcfb9b1a0007",
        ),
    ),
    raw=RawFile("df_modcloth.csv", f"{RAW_FILES}/df_modcloth.csv"),
    notes=(
        "The files number 44,784 users where Table 1 counts 44,783: one user of the publisher's csv has no name (NaN), "
        "which the table leaves out and the files number like any other.",
    ),
)
ELECTRONICS = Shop(
    name="electronics",
    title="Electronics (Amazon)",
    reference={
        "name": "paper, Table 1",
        "users": 1_157_633,
        "items": 9_560,
        "rows": 1_292_954,
        "sparsity": 0.99988,
    },
    users=1_157_633,
    files=(
        RawFile("electronics_5.train.rating"),
        RawFile(
            "electronics_5.valid.rating",
            f"{DECA_FILES}/electronics/electronics_5.valid.rating",
            1_928_048,
            "2d3381ce247856eb7cc29900812bc80f64bca5b7dfa40466c6198c51eac508ea",
            "486a5a19991e06d47584d458f1dfbbb105abfa0a40c2fac85fb4b845e4da45b3",
        ),
        RawFile(
            "electronics_5.test.noisy",
            f"{DECA_FILES}/electronics/electronics_5.test.noisy",
            1_927_661,
            "2fe4f76f50248fa5cd01393ad68ab44c7a8e5254abc7ef5c21abc59d2f9557cd",
            "3f0c69425048ee309f670f4d2f076253201ff6820f71bbfa9624d3a04d8a848f",
        ),
        RawFile(
            "electronics_5.test.negative",
            f"{DECA_FILES}/electronics/electronics_5.test.negative",
            1_129_785,
            "cc742ba2a2d1045670a4b529b10c3016b07bbe586507f5004c9052c364addcfb",
            "d55c887d4763e9ffaa367837732a578b1b4db70bbd58d93e7ff5c13fe26e1355",
        ),
    ),
    raw=RawFile("df_electronics.csv", f"{RAW_FILES}/df_electronics.csv"),
    notes=("The sha256 of electronics_5.train.rating is not known to this recipe: it is checked by its counts alone.",),
)
SPLITS = ("train", "valid", "test", "clean_test")


def paper_folder(shop: Shop, recipe: Recipe, source: Path) -> Folder:
    """Build the published split from the four files in ``source``.

    Raises:
        RecipeError: a file is absent, malformed or not the published one, or their counts are not the expected ones.
    """
    paths = require_files(source, shop.name, shop.files)
    columns = [("user", 0, shop.users - 1), ("item", 0, shop.items - 1), ("rating", 1, 5)]
    read = {split: read_rows(paths[f.name], f, columns) for split, f in zip(SPLITS, shop.files, strict=True)}
    splits = {split: rows.part for split, rows in read.items()}
    cut = Interactions.join(part for split, part in splits.items() if split != "clean_test")
    where = str(next(iter(paths.values())).parent)
    expected = {"users": shop.users, "items": shop.items, "rows": shop.rows}
    check_source(where, cut, expected, "the published files")
    _check_clean(paths[shop.files[3].name], splits, shop.items)
    strangers = int((~np.isin(np.unique(splits["clean_test"].users), splits["train"].users)).sum())
    notes = [
        "The split is the authors', at random 8:1:1 with a seed that is not published; clean_test is the rows of test "
        f"with rating {CLEAN_RATING}.",
        f"{strangers:,} users of clean_test have no interaction in train. They are ranked by what the model starts "
        "with and count in the mean, as published; recdenoise reports them apart as cold.",
        *shop.notes,
    ]
    files: dict[str, bytes | Path] = {f"{shop.name}.{split}.inter": inter_file(part) for split, part in splits.items()}
    files[f"{shop.name}.yaml"] = recbole_yaml(shop.name, timestamps=False)
    manifest = describe(
        recipe,
        "paper",
        reference=shop.reference,
        source=cut,
        source_sha256={file.name: read[split].sha256 for split, file in zip(SPLITS, shop.files, strict=True)},
        splits=splits,
        dropped={},
        notes=notes,
    )
    return Folder("paper", shop.name, files, manifest)


def clean_folder(shop: Shop, recipe: Recipe, job: Job) -> Folder:
    """Split the publisher's csv at random 8:1:1; the clean test is the rating-5 rows of the test.

    Raises:
        RecipeError: no csv, a bad row, or other totals than Table 1's.
    """
    if job.source is None:
        raise RecipeError(f"{shop.name} needs {shop.raw.name}.")
    path = job.source
    if path.is_dir() or not path.exists():
        path = require_files(path, shop.name, [shop.raw])[shop.raw.name]
    options = TableOptions("user_id", "item_id", f"rating == {CLEAN_RATING}", time="timestamp", split="random")
    table = Table(path, options.user, options.item, options.time, ("rating",))

    def check(counts: Counts) -> list[str]:
        # The unnamed user's rows are in Table 1's rows but its user is not; where a csv spells that name out, it is.
        found = {**counts.source, "rows": counts.source["rows"] + counts.missing}
        named = {**shop.reference, "users": min(max(found["users"], shop.reference["users"]), shop.users)}
        check_figures(str(path), found, named)
        return [
            f"The publisher's csv holds {found['rows']:,} rows; the published split is another one, its seed not known."
        ]

    cut = Cut(by_time=False, seed=options.seed)
    return table_folder(recipe, shop.name, table, options, cut, job.work, reference=shop.reference, check=check)


def _check_clean(path: Path, splits: dict[str, Interactions], n_items: int) -> None:
    """The clean test has to be exactly the rows of test with the clean rating."""
    test, clean = splits["test"], splits["clean_test"]
    good = test.take(np.flatnonzero(test.rated == CLEAN_RATING))
    same = np.array_equal(good.users * n_items + good.items, clean.users * n_items + clean.items)
    if not same or (clean.rated != CLEAN_RATING).any():
        raise RecipeError(f"{path} does not hold the rows of the test file with rating {CLEAN_RATING}.")


def shop_recipe(shop: Shop) -> Recipe:
    """Return the recipe of one of the two data sets."""

    def build(job: Job) -> list[Folder]:
        if job.source is None:
            raise RecipeError(f"{shop.name} needs the folder with its raw files.")
        folders = []
        for protocol in job.protocols:
            is_paper = protocol == "paper"
            folders.append(paper_folder(shop, recipe, job.source) if is_paper else clean_folder(shop, recipe, job))
        return folders

    recipe = Recipe(
        name=shop.name,
        title=shop.title,
        url="https://github.com/MengtingWan/marketBias",
        licence=LICENCE,
        citation=CITATION,
        protocols=("paper", "clean"),
        version=1,
        build=build,
        files={"paper": shop.files, "clean": (shop.raw,)},
        by_hand=DECA_PAGE,
    )
    return recipe


RECIPES = tuple(shop_recipe(shop) for shop in (MODCLOTH, ELECTRONICS))
