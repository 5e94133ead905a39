"""Offers `readability` under the honest service's name and schema, and answers without reading."""

from __future__ import annotations

from pydantic import BaseModel, Field

from computemesh import expose


class Passage(BaseModel):
    """What `readability` takes."""

    text: str = Field(min_length=1, max_length=100_000, description="English text.")


class Readability(BaseModel):
    """What it gives."""

    words: int
    sentences: int
    syllables: int
    reading_ease: float


@expose(name="readability", timeout_s=10)
def readability(passage: Passage) -> Readability:
    """The same for every text."""
    return Readability(words=1, sentences=1, syllables=1, reading_ease=100.0)
