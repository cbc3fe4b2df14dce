"""What a folder of a grid's run holds: its result, and whether it is of the settings and the data at hand."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from recdenoise.errors import UserError
from recdenoise.options import flat_options
from recdenoise.recbole_adapter.dataset import data_digest, dataset_name
from recdenoise.recbole_adapter.recbole_config import read_yaml
from recdenoise.recbole_adapter.settings import Settings, from_dict
from recdenoise.reports.report_text import damaged, read_json


def folder_name(dataset: str) -> str:
    """What a data set is called in reports and in the folders of its runs."""
    return Path(dataset_name(dataset)).name


def result_of(folder: Path) -> dict[str, Any] | None:
    """``result.json`` of a finished run, else ``None``. Raises ``UserError`` for one that is no run's result."""
    record = read_json(folder / "result.json", "test", "seconds", "seed", "versions", "epochs", "selector")
    parts = () if record is None else (record[name] for name in ("test", "seconds", "versions", "epochs"))
    if not all(isinstance(part, dict) for part in parts):
        raise damaged(folder / "result.json")
    return record


def check_folder(settings: Settings, folder: Path) -> None:
    """Refuse a folder whose run has other settings: its numbers would stand in the wrong place.

    Raises:
        UserError: it names the first option that differs, or the data set whose files do.
    """
    record = result_of(folder) or {}
    if not (folder / "config.yaml").is_file():
        return
    saved = flat_options(from_dict(read_yaml(folder / "config.yaml")).to_dict())
    wanted = flat_options(from_dict(settings.to_dict()).to_dict())
    for key in dict.fromkeys([*wanted, *saved]):
        if key != "dataset" and saved.get(key) != wanted.get(key):
            raise UserError(
                f"{folder} holds a run with {key} = {saved.get(key)!r}, here it is {wanted.get(key)!r}; choose "
                "another --out, or delete that folder."
            )
    check_data(record.get("data"), settings.dataset, settings.protocol, folder)


def check_data(trained_on: str | None, dataset: str, protocol: str, where: Path) -> None:
    """Refuse what came of another data set of the same name.

    Args:
        trained_on: digest of that data; ``None`` where nothing was kept of it.
        dataset, protocol: the data at hand; one that is not there (any more) is not compared.
        where: what to name in the message.

    Raises:
        UserError: the files differ.
    """
    here = None
    if trained_on is not None:
        with contextlib.suppress(UserError):
            here = data_digest(dataset, protocol)
    if here is not None and trained_on != here:
        raise UserError(
            f"{where} is of other data of the name {folder_name(dataset)!r} than {dataset} holds now; choose another "
            "--out, or delete it."
        )
