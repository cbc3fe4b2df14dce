"""Recipes: from a publisher's raw files to pre-split folders that RecBole reads, the same bytes every time.

Needs NumPy alone. A recipe is one file that ends in a :class:`Recipe`, and one line in :data:`RECIPES`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data_recipes import adressa, csv_table, market_bias, ml_100k
from data_recipes.archive import is_archive, unpack
from data_recipes.download import fetch
from data_recipes.errors import MissingFiles, RecipeError
from data_recipes.images import IMAGE_RECIPES
from data_recipes.manifest import SUMMARY_COLUMNS, load_manifest, summary_rows, verify_folder
from data_recipes.publish import workspace, write_folder
from data_recipes.recipe import Folder, Job, Recipe

__all__ = [
    "IMAGE_RECIPES",
    "RECIPES",
    "SUMMARY_COLUMNS",
    "Folder",
    "MissingFiles",
    "Recipe",
    "RecipeError",
    "build",
    "find_recipe",
    "load_manifest",
    "summary_rows",
    "verify_folder",
]

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (ml_100k.RECIPE, *market_bias.RECIPES, adressa.RECIPE)}
"""Every recipe by name."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe called ``name``.

    Raises:
        RecipeError: there is none; the message lists the names.
    """
    if name in RECIPES:
        return RECIPES[name]
    if name == csv_table.NAME:
        raise RecipeError(
            "csv is a table of one's own: recdenoise data build csv --from FILE --user COLUMN --item COLUMN --out DIR."
        )
    close = difflib.get_close_matches(str(name), [*RECIPES, *IMAGE_RECIPES], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise RecipeError(f"Unknown recipe {name!r}.{hint} Valid: {', '.join([*RECIPES, csv_table.NAME, *IMAGE_RECIPES])}.")


def build(
    recipe: str | Recipe,
    out: str | Path,
    source: str | Path | None = None,
    protocols: Sequence[str] | None = None,
    *,
    downloads: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Path]:
    """Build protocols of a recipe under ``out``; complete folders that are there already stay as they are.

    Args:
        recipe: a name in :data:`RECIPES`, or a recipe such as :func:`data_recipes.csv_table.csv_recipe` makes.
        out: output folder; made where absent.
        source: the raw file, or a folder or an archive with it; None takes the recipe's own place, or downloads.
        protocols: which to build; None takes all whose raw files can be had.
        downloads: where downloads are kept; by default ``out/.downloads/<recipe>``.
        say: told which protocols were left out, and why, and which earlier builds from other data were replaced.

    Returns:
        The folders, one per protocol in the recipe's order: ``out/<protocol>/<dataset>``. For RecBole, ``data_path`` is
        ``out/<protocol>`` and ``dataset`` the recipe's name; but RecBole overwrites ``data_path`` where the dataset is
        called ml-100k, so there ``config["data_path"]`` has to be set to the folder once the Config is made.

    Raises:
        RecipeError: unknown name or protocol, unusable source, or an output folder that cannot be written or is taken.
    """
    if isinstance(recipe, str):
        recipe = find_recipe(recipe)
    wanted = recipe.protocols if protocols is None else tuple(protocols)
    for protocol in wanted:
        if protocol not in recipe.protocols:
            raise RecipeError(f"{recipe.name} has no protocol {protocol!r}. Valid: {', '.join(recipe.protocols)}.")
    with workspace(Path(out)) as work, _unpacked(source, work) as (place, unpacked):
        if not recipe.files:
            return [write_folder(folder, Path(out), say) for folder in recipe.build(Job(place, wanted, work, unpacked))]
        kept = Path(downloads) if downloads is not None else Path(out) / ".downloads" / recipe.name
        built: list[Path] = []
        missing: list[RecipeError] = []
        for protocol in wanted:
            try:
                raw = fetch(recipe.files[protocol], kept) if place is None else place
                built += [
                    write_folder(folder, Path(out), say)
                    for folder in recipe.build(Job(raw, [protocol], work, unpacked))
                ]
            except MissingFiles as error:
                if protocols is not None:
                    raise
                missing.append(error)
        if missing and not built:
            raise missing[0]
        for reason in missing:
            if say is not None:
                say(f"One protocol is not built: {reason}")
        return built


@contextmanager
def _unpacked(source: str | Path | None, work: Callable[[], Path]) -> Iterator[tuple[Path | None, bool]]:
    """Give the source, or where an archive was unpacked to, and whether it was one.

    Raises:
        RecipeError: a broken archive; or what is raised inside, with the archive named in place of the hidden folder.
    """
    place = None if source is None else Path(source)
    if place is None or not is_archive(place):
        yield place, False
        return
    folder = unpack(place, work() / "unpacked")
    try:
        yield folder, True
    except RecipeError as error:
        raise type(error)(str(error).replace(str(folder), str(place))) from error
