"""Names of users and items as RecBole can read them back.

RecBole reads atomic files through pandas, which takes quotation marks for quoting and words such as ``NA`` or ``null``
for missing cells. A name that would not come back as it went is written percent-encoded, as in web addresses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# What pandas reads as missing by default, and RecBole's own padding token.
_MISREAD = frozenset(
    (
        *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
        *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "[PAD]"),
    )
)
_TROUBLE = re.compile(r'[%"\x00-\x1f\x7f\x85\u2028\u2029]')


def safe_token(token: str) -> str:
    """Return ``token``, percent-encoded where RecBole would misread it. Different names stay different."""
    if token in _MISREAD:
        return f"%{ord(token[0]):02X}{token[1:]}"
    return _TROUBLE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), token)


def safe_tokens(tokens: Sequence[str]) -> list[str]:
    """Apply :func:`safe_token` to many names."""
    search = _TROUBLE.search
    return [safe_token(token) if token in _MISREAD or search(token) else token for token in tokens]
