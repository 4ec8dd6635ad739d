"""Texts of the packaged samples: what an export is checked on, and what 8 bits are decided on."""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path

from moe.checkpoint import Bundle
from moe.data.sources import Example, read_source
from moe.data.windows import PaddedWindows, Window, make_windows, pad_windows
from moe.types import ExpertType

TEXTS = 512  # that an export is checked on
ROUNDING_TEXTS, ROUNDING_ROWS = 96, 16  # by which rounding is decided; rows of a micro-batch
SAMPLES: dict[str, ExpertType] = {
    "sample:sentiment": "classifier",
    "sample:qa": "span",
    "sample:intent": "classifier",
}
TAGGED: dict[str, ExpertType] = {"sample:slots": "tagger"}  # where a model has taggers


def text_windows(bundle: Bundle, first: int, last: int) -> list[Window]:
    """First windows of some rows of the samples, one of which has passages.

    Args:
        bundle: For its tokenizer and window size.
        first, last: Which rows, counted over all samples in turn.
    """
    size = {"max_length": bundle.config.data.max_length, "stride": bundle.config.data.stride}
    tagged = any(task.type == "tagger" for task in bundle.model.tasks)
    samples = {**SAMPLES, **(TAGGED if tagged else {})}
    columns: list[list[Example]] = [
        read_source(name, root=Path(), split="train", type=kind) for name, kind in samples.items()
    ]
    mixed = (column[number % len(column)] for number in count() for column in columns)
    examples = list(islice(mixed, first, last))
    texts = bundle.tokenizer.encode([example.text for example in examples])
    contexts = bundle.tokenizer.encode([example.context or "" for example in examples])
    return [
        make_windows(text, context, **size)[0]
        for (text, _), (context, _) in zip(texts, contexts, strict=True)
    ]


def rounding_samples(bundle: Bundle) -> list[PaddedWindows]:
    """Texts to decide by what is rounded: those after the texts of the check, in micro-batches."""
    windows = sorted(text_windows(bundle, TEXTS, TEXTS + ROUNDING_TEXTS), key=len)
    groups = [
        windows[first : first + ROUNDING_ROWS] for first in range(0, len(windows), ROUNDING_ROWS)
    ]
    return [pad_windows(group, bundle.tokenizer) for group in groups]
