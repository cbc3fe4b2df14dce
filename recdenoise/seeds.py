"""One seed, many independent streams: every random draw follows from the run's seed and a key."""

from __future__ import annotations

import hashlib
import operator
from typing import Any

import torch

from recdenoise.errors import UserError


def whole(seed: Any) -> int:
    """A run's seed as a plain int, whatever kind of integer it was given as. Raises ``UserError`` for anything else."""
    try:
        return int(operator.index(seed))
    except TypeError:
        raise UserError(f"The seed is {seed!r}; it must be a whole number.") from None


def derive(seed: int, *key: int | str) -> int:
    """A 63-bit seed from a run's seed and a key, the same on every platform.

    Neighbouring seeds or keys give unrelated streams, which adding them up would not. NumPy's integers give what plain
    ones do.
    """
    plain = tuple(str(each) if isinstance(each, str) else operator.index(each) for each in (seed, *key))
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, seed: int, *key: int | str) -> torch.Generator:
    """A fresh generator on ``device``, seeded by :func:`derive`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *key))
