"""The one error of the recipes: a sentence that names the file, the line or the option and says what would be right."""

from __future__ import annotations


class RecipeError(ValueError):
    """A recipe cannot be built or a built folder cannot be used; the message is written for people."""


class MissingFiles(RecipeError):
    """Raw files of a protocol are not where they were looked for."""


def because(error: OSError) -> str:
    """Say why the operating system refused, without the errno and path that ``str(error)`` repeats."""
    return error.strerror or str(error)
