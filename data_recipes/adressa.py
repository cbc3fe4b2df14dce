"""Adressa: clicks on news, the split of DenoisingRec as DeCA uses it (``paper``), and a disjoint one (``clean``).

The publisher cut it by time. Its parts overlap a little, its clean test repeats rows, and its clean test is no part of
its test: DeCA's test is the first 10,000 rows of DenoisingRec's validation file, DeCA's validation is the rest of it.

Source: "Label Denoising through Cross-Model Agreement", section 5.1 and Table 1; "Denoising Implicit Feedback for
Recommendation", section 4.1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_recipes.atomic_yaml import recbole_yaml
from data_recipes.errors import RecipeError
from data_recipes.interactions import ATOMIC_FIELDS, Interactions, id_file, inter_file
from data_recipes.manifest import describe, sha256
from data_recipes.market_bias import DECA_FILES, DECA_PAGE
from data_recipes.recipe import Folder, Job, RawFile, Recipe
from data_recipes.split_files import check_source, find_files, read_rows, require_files

NAME = "adressa"
N_USERS, N_ITEMS = 212_231, 6_596
"""The published id space: ids run from 0 to one less. Table 1 counts these, and the rows of train alone."""
REFERENCE = {"name": "paper, Table 1", "users": N_USERS, "items": N_ITEMS, "rows": 419_491, "sparsity": 0.99970}
EXPECTED = {"users": N_USERS, "items": 6_175, "rows": 491_385}
"""Of the four files together."""
TRAIN = RawFile("adressa.train.rating")
PAIRS = RawFile(
    "adressa.train.pairs.tsv",
    rows_sha256="a938ce3f798c1476e1ef6636d5a7d4c90299653bb95c89a9d3cee7a3435517d3",
)
"""The users and items of train, in order of user and item. The rows of :data:`TRAIN` are compared with it."""
FILES = (
    TRAIN,
    RawFile(
        "adressa.valid.rating",
        f"{DECA_FILES}/adressa/adressa.valid.rating",
        630_224,
        "4cb75a6055b2c64ec9ed2c9e34783b437180fddd655167bc2f70325780e8a301",
        "ae66fd9b8d47662ab875ebb885a626b761ad4aecda4172b984d4983bddbf9b76",
    ),
    RawFile(
        "adressa.test.noisy",
        f"{DECA_FILES}/adressa/adressa.test.noisy",
        144_702,
        "b741611821311496de13ca8408b02d0da380c61126724dff7a5c1abcf14395ca",
        "394dba44fba73dbf5118260d5d71951b2429edcebd1cb73282ec2ad8eefe681c",
    ),
    RawFile(
        "adressa.test.negative",
        f"{DECA_FILES}/adressa/adressa.test.negative",
        268_923,
        "69f4efed142360c45571eeafe6ef81634ac8aa9d4c150e3f4be63c55609c4435",
        "8e72643fd116f78bc6cc39ca4b6437138ea36bc7a6cd3240a7bbde94301dc1d2",
    ),
)
_PAIR = (("user", 0, N_USERS - 1), ("item", 0, N_ITEMS - 1))
_FLAGGED = (*_PAIR, ("value", 0, 1))
SPLITS = ("train", "valid", "test", "clean_test")


def build(job: Job) -> list[Folder]:
    """Build protocols in memory.

    Args:
        job: its source is the folder with the four files; ``adressa.train.pairs.tsv`` may stand for
            ``adressa.train.rating``.

    Raises:
        RecipeError: a file is absent, malformed or not the published one.
    """
    if job.source is None:
        raise RecipeError(f"{NAME} needs the folder with its raw files.")
    splits, sums = read_splits(job.source)
    make = {"paper": paper_folder, "clean": clean_folder}
    return [make[protocol](splits, sums) for protocol in job.protocols]


def read_splits(source: Path) -> tuple[dict[str, Interactions], dict[str, str]]:
    """Read the four files as published.

    Returns:
        Interactions of train, valid, test and clean_test; train in order of user and item, with the publisher's flag
        (1 = read for more than 10 seconds) where its file has it. Then the sha256 of each file's rows by its name.

    Raises:
        RecipeError: see :func:`build`.
    """
    train_file = PAIRS if not find_files(source, NAME, [TRAIN.name]) else TRAIN
    if train_file is PAIRS and not find_files(source, NAME, [PAIRS.name]):
        train_file = TRAIN  # so that the message asks for the published name
    paths = require_files(source, NAME, [train_file, *FILES[1:]])
    columns = _FLAGGED if train_file is TRAIN else _PAIR
    read = {"train": read_rows(paths[train_file.name], train_file, columns)}
    for split, file in zip(SPLITS[1:], FILES[1:], strict=True):
        read[split] = read_rows(paths[file.name], file, _FLAGGED)
    splits = {split: rows.part for split, rows in read.items()}
    splits["train"] = _in_order(splits["train"])
    text = b"".join(b"%d\t%d\n" % pair for pair in zip(*(c.tolist() for c in _ids(splits["train"])), strict=True))
    if sha256(text) != PAIRS.rows_sha256:
        raise RecipeError(
            f"{paths[train_file.name]} does not hold the {REFERENCE['rows']:,} published pairs: sorted, its "
            f"{len(splits['train']):,} pairs have sha256 {sha256(text)}, expected {PAIRS.rows_sha256}."
        )
    where = str(next(iter(paths.values())).parent)
    check_source(where, Interactions.join(splits.values()), EXPECTED, "the published files")
    names = [train_file.name, *(file.name for file in FILES[1:])]
    return splits, {name: rows.sha256 for name, rows in zip(names, read.values(), strict=True)}


def _in_order(part: Interactions) -> Interactions:
    """Rows by user and item, so that both forms of the training file give one order."""
    return part.take(np.lexsort((part.items, part.users)))


def _keys(part: Interactions) -> np.ndarray:
    """One number for each pair."""
    return part.users * N_ITEMS + part.items


def _ids(part: Interactions) -> tuple[np.ndarray, np.ndarray]:
    return part.users, part.items


def paper_folder(splits: dict[str, Interactions], sums: dict[str, str]) -> Folder:
    """Build the split as published, overlaps and repeated rows included."""
    clean, known = splits["clean_test"], Interactions.join([splits["train"], splits["valid"]])
    masked = np.isin(np.unique(_keys(clean)), _keys(known)).sum()
    repeated = len(clean) - len(np.unique(_keys(clean)))
    notes = [
        f"The parts overlap: {masked:,} pairs of clean_test are in train or valid, which scoring masks, so they can "
        f"never be hit, yet stay in the denominators. clean_test repeats {repeated:,} rows; each pair counts once.",
    ]
    return _folder("paper", splits, splits, sums, {}, notes)


def clean_folder(splits: dict[str, Interactions], sums: dict[str, str]) -> Folder:
    """Build disjoint splits: an interaction of an earlier part leaves the later ones, and so do items not in train."""
    kept = {"train": splits["train"]}
    dropped: dict[str, int] = {}
    told = []
    for split, earlier in (("valid", ["train"]), ("test", ["train", "valid"]), ("clean_test", ["train", "valid"])):
        keys = _keys(splits[split])
        first = np.zeros(len(keys), dtype=bool)
        first[np.unique(keys, return_index=True)[1]] = True
        fresh = first & ~np.isin(keys, np.concatenate([_keys(kept[name]) for name in earlier]))
        known = np.isin(splits[split].items, splits["train"].items)
        kept[split] = splits[split].take(np.flatnonzero(fresh & known))
        dropped[split] = len(keys) - len(kept[split])
        told.append(
            f"{split} lost {(~first).sum():,} repeated rows, {(first & ~fresh).sum():,} that an earlier part has, and "
            f"{(fresh & ~known).sum():,} of items that train does not have."
        )
    notes = ["train, valid and test share no interaction, and clean_test none with train and valid.", *told]
    return _folder("clean", kept, splits, sums, dropped, notes)


def _folder(
    protocol: str,
    splits: dict[str, Interactions],
    published: dict[str, Interactions],
    sums: dict[str, str],
    dropped: dict[str, int],
    notes: list[str],
) -> Folder:
    """Write the RecBole files of a protocol, with all ids of the published id space, and describe them."""
    flagged = splits["train"].ratings is not None
    if not flagged:  # a column that one file lacks would be filled with means by RecBole
        splits = {split: part.pairs() for split, part in splits.items()}
    source = Interactions.join(published.values())
    strangers = int((~np.isin(np.unique(splits["clean_test"].users), splits["train"].users)).sum())
    silent = N_ITEMS - len(np.unique(source.items))
    told = [
        "Table 1 counts the id space (212,231 users, 6,596 items) and the rows of train alone. The files "
        f"adressa.user and adressa.item list all ids, because published results rank all 6,596 items; {silent} of "
        "them occur in no file.",
        "test is the first 10,000 rows of DenoisingRec's validation file and clean_test is its own clean test "
        "(clicks that were read for more than 10 seconds): clean_test is no part of test.",
        f"{strangers:,} users of clean_test have no interaction in train; recdenoise reports them apart as cold.",
        "rating is the publisher's flag, 1 where the click was read for more than 10 seconds."
        if flagged
        else "The files have no rating column: the training file at hand came without the publisher's flag.",
        "The rows of train are in order of user and item; the publisher's order is not kept.",
    ]
    files: dict[str, bytes | Path] = {f"{NAME}.{split}.inter": inter_file(part) for split, part in splits.items()}
    files[f"{NAME}.user"] = id_file(ATOMIC_FIELDS["users"], np.arange(N_USERS))
    files[f"{NAME}.item"] = id_file(ATOMIC_FIELDS["items"], np.arange(N_ITEMS))
    files[f"{NAME}.yaml"] = recbole_yaml(NAME, timestamps=False, ratings=flagged, id_files=True)
    manifest = describe(
        RECIPE,
        protocol,
        reference=REFERENCE,
        source=source,
        source_sha256=sums,
        splits=splits,
        dropped=dropped,
        notes=[*notes, *told],
    )
    return Folder(protocol, NAME, files, manifest)


RECIPE = Recipe(
    name=NAME,
    title="Adressa",
    url="https://github.com/WenjieWWJ/DenoisingRec",
    licence="DenoisingRec: NUS (c) NExT++, no licence for the data named; Adressavisen's terms hold for the clicks.",
    citation=(
        "Jon Atle Gulla, Lemei Zhang, Peng Liu, Ozlem Ozgobek and Xiaomeng Su. 2017. The Adressa dataset for news "
        "recommendation. WI 2017. https://doi.org/10.1145/3106426.3109436. The split: Wenjie Wang, Fuli Feng, "
        "Xiangnan He, Liqiang Nie and Tat-Seng Chua. 2021. Denoising Implicit Feedback for Recommendation. WSDM 2021. "
        "https://arxiv.org/abs/2006.04153"
    ),
    protocols=("paper", "clean"),
    version=1,
    build=build,
    files={"paper": FILES, "clean": FILES},
    by_hand=DECA_PAGE,
)
