"""``recdenoise data``: list, build and verify data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from recdenoise.errors import UserError
from recdenoise.mistakes import Group

TABLE_OPTIONS = ("user", "item", "time", "clean", "rating", "name", "sep", "encoding", "split", "seed")
"""Options of `data build` that describe a table of one's own."""


@click.group(cls=Group)
def data() -> None:
    """Build data sets from their publishers' files, or from a table of your own: of interactions, and of images."""


@data.command("list")
def data_list() -> None:
    """List the recipes."""
    import data_recipes
    from recdenoise.cli import console
    from recdenoise.reports.terminal import plain_table

    rows = [[r.name, r.title, ", ".join(r.protocols), r.licence, r.url] for r in data_recipes.RECIPES.values()]
    rows.append(["csv", "a table of your own: user, item, rating or signal", "clean", "yours", "--from FILE"])
    console().print(plain_table(["name", "data set", "protocols", "licence", "source"], rows))
    found = data_recipes.IMAGE_RECIPES.values()
    images = [[r.name, r.title, ", ".join(r.counts), r.licence, r.url] for r in found]
    console().print(plain_table(["name", "images", "parts", "licence", "source"], images))


@data.command("build")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option("--from", "source", type=click.Path(path_type=Path), help="The publisher's file, or a folder with it.")
@click.option("--protocol", multiple=True, help="Build this one alone: paper or clean.  [default: all]")
@click.option("--user", metavar="COLUMN", help="csv: column of the user.")
@click.option("--item", metavar="COLUMN", help="csv: column of the item.")
@click.option("--time", metavar="COLUMN", help="csv: column of the time, a number or an ISO date.")
@click.option(
    "--clean", metavar="RULE", help='csv: what makes a row clean: "rating >= 5", "dwell > 10 and not ad == 1".'
)
@click.option("--rating", metavar="COLUMN", help="csv: column kept for reports.  [default: the rule's first]")
@click.option("--name", "called", metavar="NAME", help="csv: the data set's name.  [default: the file's]")
@click.option("--sep", metavar="CHARACTER", help="csv: what separates cells; tab for a tab.  [default: ,]")
@click.option("--encoding", metavar="NAME", help="csv: of the text.  [default: utf-8]")
@click.option("--split", metavar="KIND", help="csv: random, or time: by user.  [default: time where there is one]")
@click.option("--seed", type=click.IntRange(min=0), help="csv: of a random split.  [default: 2020]")
def data_build(
    name: str, out: Path, source: Path | None, protocol: tuple[str, ...], called: str | None, **table: Any
) -> None:
    """Build a data set under every protocol it has; a set of images as NAME/train.npz and NAME/test.npz.

    \b
    recdenoise data build ml-100k --out data
    recdenoise data build fashion-mnist --out data
    recdenoise data build csv --from clicks.csv --user user_id --item item_id --clean "dwell > 10" --out data
    """
    import data_recipes
    from data_recipes.csv_table import csv_recipe
    from recdenoise.cli import console
    from recdenoise.reports.terminal import plain_table

    given = {option: value for option, value in {**table, "name": called}.items() if value is not None}
    recipe: str | data_recipes.Recipe = name
    if name == "csv":
        recipe = csv_recipe(table_options(given, source))
    elif given:
        raise UserError(
            f"{', '.join(f'--{option}' for option in given)} describe a table: they go with csv, not {name}."
        )
    screen = console()
    if name in data_recipes.IMAGE_RECIPES:
        build_image_set(name, out, source, protocol)
        return

    def say(sentence: str) -> None:
        screen.print(f"note: {sentence}", soft_wrap=True)

    for folder in data_recipes.build(recipe, out, source, protocol or None, say=say):
        manifest = data_recipes.load_manifest(folder)
        rows = data_recipes.summary_rows(manifest)
        title = f"{manifest['dataset']}, protocol {manifest['protocol']}"
        screen.print(plain_table(data_recipes.SUMMARY_COLUMNS, rows, title))
        shared = ", ".join(f"{pair} {count:,}" for pair, count in manifest["overlaps"].items() if count)
        if shared:
            screen.print(f"pairs in common: {shared}", soft_wrap=True)
        for note in manifest["notes"]:
            screen.print(f"note: {note}", soft_wrap=True)
        screen.print(f"wrote {folder}\n", soft_wrap=True)


def build_image_set(name: str, out: Path, source: Path | None, protocol: tuple[str, ...]) -> None:
    """Build a recipe of images and print what it holds. Raises ``UserError`` for options that it does not have."""
    from data_recipes.images import build_images, fetch_images
    from data_recipes.images_manifest import IMAGE_COLUMNS, image_rows, verify_images
    from recdenoise.cli import console
    from recdenoise.reports.terminal import plain_table

    if protocol:
        raise UserError(f"--protocol is for interactions; {name} is a set of images and has one form.")
    folder = source if source is not None else fetch_images(name, out / ".downloads" / name)
    built = build_images(name, out, folder)[0].parent
    manifest = verify_images(built)
    screen = console()
    screen.print(plain_table(IMAGE_COLUMNS, image_rows(manifest), str(manifest["title"])))
    for note in manifest["notes"]:
        screen.print(f"note: {note}", soft_wrap=True)
    screen.print(f"wrote {built}", soft_wrap=True)


def table_options(given: dict[str, Any], source: Path | None) -> Any:
    """Options of a table from the words of the command line. Raises ``UserError`` for what is missing."""
    from data_recipes.csv_table import TableOptions

    missing = [f"--{name}" for name in ("user", "item") if name not in given] + (["--from"] if source is None else [])
    if missing:
        raise UserError(f"data build csv needs {' and '.join(missing)}; see recdenoise data build --help.")
    if "sep" in given:
        given = {**given, "separator": given["sep"]}
        del given["sep"]
    return TableOptions(**given)


@data.command("verify")
@click.argument("folder", metavar="FOLDER|NAME")
def data_verify(folder: str) -> None:
    """Check that files are the ones that were written: of a built folder, or of a recipe's build in the cache.

    \b
    recdenoise data verify data
    recdenoise data verify ml-100k
    """
    import data_recipes
    from data_recipes import images_manifest
    from recdenoise.cli import console

    for built in built_folders(folder):
        if images_manifest.is_images(built):
            manifest = images_manifest.verify_images(built)
            console().print(f"{built}: {manifest['recipe']}, all files as built", soft_wrap=True)
            continue
        manifest = data_recipes.verify_folder(built)
        console().print(
            f"{built}: {manifest['recipe']}, protocol {manifest['protocol']}, all files as built", soft_wrap=True
        )


def built_folders(place: str) -> list[Path]:
    """Folders with a manifest: ``place`` itself, those inside it, or a recipe's in the cache.

    Raises:
        UserError: a recipe that the cache does not have.
    """
    import data_recipes

    known = place in data_recipes.RECIPES or place in data_recipes.IMAGE_RECIPES
    if not known or Path(place).is_dir():
        inside = [*Path(place).glob("*/*/manifest.json"), *Path(place).glob("*/manifest.json")]
        inside = sorted(manifest.parent for manifest in inside)
        return [Path(place)] if (Path(place) / "manifest.json").is_file() or not inside else inside
    from recdenoise.recbole_adapter.dataset import cache_folder

    if place in data_recipes.IMAGE_RECIPES:
        cached = [manifest.parent for manifest in (cache_folder() / "vision" / place).glob("manifest.json")]
    else:
        cached = sorted(manifest.parent for manifest in (cache_folder() / place).glob(f"*/{place}/manifest.json"))
    if not cached:
        raise UserError(
            f"{cache_folder()} has no build of {place} yet; train builds it, or recdenoise data build does."
        )
    return cached
