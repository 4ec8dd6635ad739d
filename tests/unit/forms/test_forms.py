"""The table of forms beside the table of experts, and what each form has to supply."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from moe.experts import EXPERT_TYPES
from moe.forms import FORMS, Form
from moe.types import NEEDS_CONTEXT, ExpertType

PARTS = sorted(name for name in vars(Form) if not name.startswith("_"))


def test_every_kind_of_expert_has_a_form() -> None:
    assert set(FORMS) == set(EXPERT_TYPES) == set(get_args(ExpertType))
    assert set(NEEDS_CONTEXT) <= set(FORMS)


@pytest.mark.parametrize("kind", FORMS)
def test_a_form_supplies_everything(kind: ExpertType) -> None:
    assert len(PARTS) == 17
    for name in PARTS:
        own, wanted = getattr(FORMS[kind], name), vars(Form)[name]
        if callable(wanted):
            parameters = list(inspect.signature(wanted).parameters)[1:]
            assert list(inspect.signature(own).parameters) == parameters, name


@pytest.mark.parametrize("kind", FORMS)
def test_what_needs_a_context_is_grouped_by_it(kind: ExpertType) -> None:
    form, needs = FORMS[kind], kind in NEEDS_CONTEXT
    by, every = form.GROUP_BY, form.EVERY_WINDOW
    assert (by, every) == ("context" if needs else "text", needs)
