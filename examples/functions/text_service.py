"""A worker's own functions: `mesh worker join HOST:PORT --functions examples/functions/text_service.py`.

Then anybody may publish

    mesh task submit function function_name=readability data='{"text": "Nobody has to trust the seller."}'
"""

from __future__ import annotations

import re

from pydantic import BaseModel, Field

from computemesh import expose

VOWELS: set[str] = set()


class Passage(BaseModel):
    """What `readability` takes."""

    text: str = Field(min_length=1, max_length=100_000, description="English text.")


class Readability(BaseModel):
    """What it gives; `reading_ease` is Flesch's (1948): above 60 is plain English."""

    words: int
    sentences: int
    syllables: int
    reading_ease: float


def init() -> None:
    """Runs once, before the first call: the place to load a model."""
    VOWELS.update("aeiouy")


@expose(name="readability", timeout_s=10)
def readability(passage: Passage) -> Readability:
    """Flesch reading ease: 206.835 - 1.015 words per sentence - 84.6 syllables per word."""
    words = re.findall(r"[A-Za-z']+", passage.text) or ["-"]
    sentences = max(1, len(re.findall(r"[.!?]+", passage.text)))
    syllables = sum(_syllables(word.lower()) for word in words)
    ease = 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words)
    return Readability(words=len(words), sentences=sentences, syllables=syllables, reading_ease=round(ease, 2))


def _syllables(word: str) -> int:
    groups = sum(here in VOWELS and before not in VOWELS for before, here in zip(" " + word, word, strict=False))
    return max(1, groups - word.endswith("e"))
