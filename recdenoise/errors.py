"""The one error that people see: a sentence that names what is wrong and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot work: an option, a file, a line, a combination.

    The command line prints the message alone and exits with code 2; from Python it is an ordinary ``ValueError``.
    """


class TrainingError(UserError):
    """Training cannot go on, for example because a loss is not a number. What was saved before stays."""


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> UserError:
    """Build the error for a name that is not in a table.

    Args:
        kind: what the name should have been, for example ``"denoiser"``.
        name: what was given.
        valid: every name that would have worked.

    Returns:
        A :class:`UserError` that lists the valid names and, where one is close, suggests it.
    """
    names = sorted(valid)
    lower = {each.lower(): each for each in names}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1)
    hint = f" Did you mean {lower[close[0]]!r}?" if close else ""
    return UserError(f"Unknown {kind} {name!r}.{hint} Valid: {', '.join(names)}.")
