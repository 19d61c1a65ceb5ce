"""Which imprints the invented drugs carry: short, easily told apart, none twice."""

from __future__ import annotations

import numpy as np

from pillsnap.core.errors import ConfigError
from pillsnap.synthetic.strokes import LOGOS
from pillsnap.synthetic.vocabulary import DOSES

_LETTERS = "ABCDEFGHJKLMNPRSTUVXYZ"
_DIGITS = "12345678"
# Characters that a low-resolution picture confuses count as one, and so do a text and its half turn.
LOOKS_LIKE = str.maketrans({"S": "5", "Z": "2", "B": "8", "D": "0", "V": "U", "G": "C"})
_HALF_TURN = {
    "H": "H",
    "N": "N",
    "5": "5",
    "2": "2",
    "X": "X",
    "8": "8",
    "0": "0",
    "■": "■",
    "◆": "◆",
    "✚": "✚",
    "◯": "◯",
    "≈": "≈",
}


def canonical(text: str) -> str:
    """The form under which two imprints count as the same: confusable characters folded, half turns merged."""
    folded = text.translate(LOOKS_LIKE)
    if all(character in _HALF_TURN for character in folded):
        return min(folded, "".join(_HALF_TURN[character] for character in reversed(folded)))
    return folded


class Imprints:
    """Hands out imprints, none twice."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._used: set[str] = set()

    def _pick(self, alphabet: str) -> str:
        return alphabet[int(self._rng.integers(len(alphabet)))]

    def _candidate(self, length: int, back: bool) -> str:
        kind = self._rng.random()
        if length == 1:
            return self._pick(LOGOS if kind < 0.4 else _LETTERS + _DIGITS)
        if back and kind < 0.45:
            return DOSES[int(self._rng.integers(len(DOSES)))]
        if kind < 0.25:
            return self._pick(LOGOS) + "".join(self._pick(_DIGITS) for _ in range(length - 1))
        letters = 1 if back or length > 2 else int(self._rng.integers(1, 3))
        head = "".join(self._pick(_LETTERS) for _ in range(letters))
        return head + "".join(self._pick(_DIGITS + _LETTERS) for _ in range(length - letters))

    def take(self, length: int, back: bool, avoid: frozenset[str] = frozenset()) -> str:
        """An unused imprint of about this length without any of the characters to avoid."""
        for attempt in range(5000):
            text = self._candidate(length + attempt // 300, back)
            if len(text) > max(length, 2) + attempt // 300 or avoid & set(text.translate(LOOKS_LIKE)):
                continue
            if len(text) > 1 and text[0] == text[-1]:
                continue
            if (key := canonical(text)) not in self._used:
                self._used.add(key)
                return text
        raise ConfigError("no imprint is left: ask for fewer drugs")
