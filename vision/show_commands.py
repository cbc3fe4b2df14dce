"""``recdenoise vision show``. It imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from recdenoise.errors import UserError


@click.command("show")
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET...")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("picture.png"), show_default=True, help="PNG to write."
)
@click.option("--split", default="train", show_default=True, help="Which part: train or test.")
@click.option("--columns", type=click.IntRange(1, 40), default=8, show_default=True, help="Examples of each class.")
@click.option("--by", "attribute", default=None, help="A column for each value of an attribute: bias, a, b.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which images are drawn.")
@click.option("--root", default=None, help="Folder of data sets.  [default: $RECDENOISE_DATA/vision, the cache]")
@click.option("--image-size", type=int, default=None, help="Side that the images of a folder are brought to.")
def show(
    datasets: tuple[str, ...],
    out: Path,
    split: str,
    columns: int,
    attribute: str | None,
    seed: int,
    root: str | None,
    image_size: int | None,
) -> None:
    """Draw images of a data set, a row for each class; or the same image in several sets of one base.

    \b
    recdenoise vision show colored-mnist:0.95
    recdenoise vision show colored-mnist:0.95 --by bias
    recdenoise vision show framed-cifar10:v1 framed-cifar10:v2 framed-cifar10:v3 framed-cifar10:v4

    Where the bias of a set's images is known, examples are half aligned, half conflicting, as far as there are.
    """
    from vision import data, sheet
    from vision.cli import console, prepare_process
    from vision.data import derived

    prepare_process()
    if len(datasets) > 1 and attribute is not None:
        raise UserError("--by draws one data set; leave out the others.")
    sets = [data.load(each, split=split, root=root, image_size=image_size) for each in datasets]
    titles = [derived.title(each) for each in datasets]
    bases = {title.partition(":")[0] for title in titles}
    short = [title.partition(":")[2] or title for title in titles] if len(bases) == 1 else titles
    if len(sets) > 1:
        found = sheet.side_by_side(sets, short, seed)
    elif attribute is not None:
        found = sheet.by_attribute(sets[0], attribute, seed)
    else:
        found = sheet.examples(sets[0], columns, seed)
    what = titles[0] if len(sets) == 1 else ", ".join(sorted(bases))
    sheet.draw(found, out, f"{what}, {split}")
    screen = console()
    for title, each in zip(titles, sets, strict=True):
        screen.print(f"{title}: {len(each):,} images of {each.n_classes} classes, {' x '.join(map(str, each.shape))}")
        for note in each.notes:
            screen.print(f"note: {note}", soft_wrap=True)
    screen.print(f"wrote {out}", soft_wrap=True)
