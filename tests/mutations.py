"""Damaged copies of files, by a seed: flipped bits, other bytes, cuts, pieces left out, twice or from elsewhere."""

from __future__ import annotations

import numpy as np

#: what readers of numbers, text, JSON and archives have stumbled over
WORDS = (
    *(
        b"\x00",
        b"\xff" * 8,
        b"NaN",
        b"-1",
        b"1e999",
        b"null",
        b"{}",
        b"[",
        b'"',
        b"PK\x03\x04",
        b"\xef\xbb\xbf",
    ),
    b"999999999",
)


def mutated(content: bytes, seed: int) -> bytes:
    """One damaged copy, never the same as the content."""
    random = np.random.default_rng(seed)
    while (found := _once(content, random)) == content:
        pass
    return found


def _once(content: bytes, random: np.random.Generator) -> bytes:
    place, other = random.integers(len(content), size=2)
    length = 1 + int(random.integers(min(64, len(content))))
    before, after = content[:place], content[place:]
    return random.choice(np.array(
        [
            before + bytes([after[0] ^ (1 << int(random.integers(8)))]) + after[1:],
            before + bytes([int(random.integers(256))]) + after[1:],
            before,
            before + after[length:],
            before + after[:length] + after,
            before + content[other : other + length] + after[length:],
            before + WORDS[int(random.integers(len(WORDS)))] + after,
            before + random.bytes(length) + after[length:],
        ],
        dtype=object,
    ))  # fmt: skip
