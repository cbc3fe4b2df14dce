"""The rule that makes a row clean: ``rating >= 5 and not dwell < 10``, read and applied to columns, never evaluated."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from data_recipes.errors import RecipeError

OPERATORS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))|(?P<operator>[<>=!]=?)|(?P<bracket>[()])"
    r"|`(?P<quoted>[^`]+)`|(?P<word>[^\W\d][\w.]*))"
)
_DEEPEST = 50
_GRAMMAR = "a rule compares columns with numbers, as in: rating >= 5 and not (dwell < 10 or `read time` == 0)"
Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Rule:
    """A rule that was read.

    Attributes:
        text: as given.
        columns: the columns that it names, in order, each once.
    """

    text: str
    columns: tuple[str, ...]
    _decide: Callable[[Columns], np.ndarray]

    def __call__(self, values: Columns) -> np.ndarray:
        """Tell for every row whether it is clean.

        Args:
            values: ``(n,)`` float64 of each column that the rule names; NaN where a cell is empty.

        Returns:
            ``(n,)`` bool. A row with an empty cell in a column of the rule is never clean.
        """
        clean = self._decide(values)
        for name in self.columns:
            clean = clean & ~np.isnan(values[name])
        return clean


def read_rule(text: str) -> Rule:
    """Read a rule: comparisons ``column operator number``, joined by ``and``, ``or``, ``not`` and brackets.

    A column whose name is no plain word stands in backquotes.

    Raises:
        RecipeError: anything else; the message shows where.
    """
    reader = _Reader(text)
    decide = reader.any_of()
    if reader.kind != "end":
        raise reader.mistake("and, or, or the end")
    return Rule(text.strip(), tuple(dict.fromkeys(reader.columns)), decide)


class _Reader:
    """One pass over the tokens of a rule."""

    def __init__(self, text: str) -> None:
        self.text, self.end, self.depth = text, 0, 0
        self.columns: list[str] = []
        self.step()

    def step(self) -> None:
        """Go to the next token."""
        rest = self.text[self.end :]
        self.start = self.end + len(rest) - len(rest.lstrip())
        if not rest.strip():
            self.kind, self.token = "end", ""
            return
        match = _TOKEN.match(self.text, self.end)
        if match is None:
            self.kind, self.token = "unknown", self.text[self.start]
            raise self.mistake("a column, an operator or a number")
        self.kind, self.token, self.end = str(match.lastgroup), match[str(match.lastgroup)], match.end()
        if self.kind == "word" and self.token.lower() in ("and", "or", "not"):
            self.kind = self.token.lower()

    def mistake(self, due: str) -> RecipeError:
        found = f"{self.token!r} at character {self.start + 1}" if self.kind != "end" else "its end"
        return RecipeError(f"The clean rule {self.text!r} has {found} where {due} is due; {_GRAMMAR}.")

    def any_of(self) -> Callable[[Columns], np.ndarray]:
        """``all_of (or all_of)*``."""
        left = self.all_of()
        while self.kind == "or":
            self.step()
            left = _joined(np.logical_or, left, self.all_of())
        return left

    def all_of(self) -> Callable[[Columns], np.ndarray]:
        """``term (and term)*``."""
        left = self.term()
        while self.kind == "and":
            self.step()
            left = _joined(np.logical_and, left, self.term())
        return left

    def term(self) -> Callable[[Columns], np.ndarray]:
        """``not term``, a bracket or a comparison."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise RecipeError(f"The clean rule nests more than {_DEEPEST} levels deep.")
        try:
            if self.kind == "not":
                self.step()
                inner = self.term()
                return lambda values: ~inner(values)
            if (self.kind, self.token) == ("bracket", "("):
                self.step()
                inner = self.any_of()
                if (self.kind, self.token) != ("bracket", ")"):
                    raise self.mistake("a closing bracket")
                self.step()
                return inner
            return self.comparison()
        finally:
            self.depth -= 1

    def comparison(self) -> Callable[[Columns], np.ndarray]:
        """``column operator number``."""
        if self.kind not in ("word", "quoted"):
            raise self.mistake("a column's name")
        column = self.token
        self.step()
        if self.kind != "operator" or self.token not in OPERATORS:
            raise self.mistake(f"one of {' '.join(OPERATORS)}")
        compare = OPERATORS[self.token]
        self.step()
        if self.kind != "number":
            raise self.mistake("a number")
        number = float(self.token)
        self.step()
        self.columns.append(column)
        return lambda values: compare(values[column], number)


def _joined(
    join: Callable[[np.ndarray, np.ndarray], np.ndarray],
    left: Callable[[Columns], np.ndarray],
    right: Callable[[Columns], np.ndarray],
) -> Callable[[Columns], np.ndarray]:
    return lambda values: join(left(values), right(values))
