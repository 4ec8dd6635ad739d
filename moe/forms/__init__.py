"""The table of forms: a new kind of answer is one file beside this one and one line here."""

from __future__ import annotations

from moe.forms import classifier, span, tagger
from moe.forms.base import Collected, Form, LabelledRows, Shown, Source
from moe.types import ExpertType

__all__ = ["FORMS", "Collected", "Form", "LabelledRows", "Shown", "Source"]

FORMS: dict[ExpertType, Form] = {"classifier": classifier, "span": span, "tagger": tagger}
