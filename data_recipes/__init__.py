"""Recipes: from a publisher's raw files to pre-split folders that RecBole reads, the same bytes every time.

Needs NumPy alone. A recipe is one file that ends in a :class:`Recipe`, and one line in :data:`RECIPES`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from data_recipes import adressa, market_bias, ml_100k
from data_recipes.errors import RecipeError
from data_recipes.manifest import SUMMARY_COLUMNS, load_manifest, summary_rows, verify_folder
from data_recipes.publish import write_folder
from data_recipes.recipe import Folder, Recipe

__all__ = [
    "RECIPES",
    "SUMMARY_COLUMNS",
    "Folder",
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
    close = difflib.get_close_matches(str(name), RECIPES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise RecipeError(f"Unknown recipe {name!r}.{hint} Valid: {', '.join(RECIPES)}.")


def build(
    name: str, out: str | Path, source: str | Path | None = None, protocols: Sequence[str] | None = None
) -> list[Path]:
    """Build protocols of a recipe under ``out``; complete folders that are there already stay as they are.

    Args:
        name: a name in :data:`RECIPES`.
        out: output folder; made where absent.
        source: the raw file, or a folder with it, in place of the recipe's own.
        protocols: which to build; None takes all.

    Returns:
        The folders, one per protocol in the recipe's order: ``out/<protocol>/<dataset>``. For RecBole, ``data_path`` is
        ``out/<protocol>`` and ``dataset`` the recipe's name; but RecBole overwrites ``data_path`` where the dataset is
        called ml-100k, so there ``config["data_path"]`` has to be set to the folder once the Config is made.

    Raises:
        RecipeError: unknown name or protocol, unusable source, or an output folder that cannot be written or is taken.
    """
    recipe = find_recipe(name)
    wanted = recipe.protocols if protocols is None else tuple(protocols)
    for protocol in wanted:
        if protocol not in recipe.protocols:
            raise RecipeError(f"{name} has no protocol {protocol!r}. Valid: {', '.join(recipe.protocols)}.")
    folders = recipe.build(None if source is None else Path(source), wanted)
    return [write_folder(folder, Path(out)) for folder in folders]
