"""Both forms of a checkpoint hold what the gate abstains by, bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moe.abstain import Reference, fit_reference, stranger_scores
from moe.calibration import Calibration
from moe.checkpoint import (
    Bundle,
    identity,
    load_bundle,
    load_profile,
    save_bundle,
    save_checkpoint,
)
from moe.collect import embed
from moe.data.collate import collate_requests
from moe.data.windows import make_windows
from moe.lit import LitMixture
from moe.predict import MixtureOfExperts
from moe.types import InputError

OWN = {"sentiment": ["good film", "very bad film"], "qa": ["who led", "who was good"],
       "intent": ["led the monks", "the film"]}
STRANGE = ["123 45", "zz yy", "x x x"]
ASKED = ["the film was good", "7 7 7", "monks", "who", "zz good", "an abbot led", "qq"]
Save = Callable[[Bundle, Path], Path]


def embedded(bundle: Bundle, texts: list[str]) -> np.ndarray:
    windows = [make_windows(ids, None, max_length=32, stride=4)
               for ids, _ in bundle.tokenizer.encode(texts)]
    return embed(bundle.model, collate_requests(range(len(texts)), windows, bundle.tokenizer))


def fitted(bundle: Bundle) -> Bundle:
    """With a reference that refuses some of `ASKED` and not all."""
    own = {task: embedded(bundle, texts) for task, texts in OWN.items()}
    reference = fit_reference(own, embedded(bundle, STRANGE), [embedded(bundle, ASKED[2:4])])
    assert reference is not None
    refused = stranger_scores(embedded(bundle, ASKED), reference) > reference.threshold
    assert 0 < refused.sum() < len(ASKED)
    calibration = Calibration(temperature={"qa-0": 1.5}, second_task=0.3, reference=reference)
    return replace(bundle, calibration=calibration)


@pytest.fixture
def bundle(word_bundle: Callable[..., Bundle]) -> Bundle:
    return fitted(word_bundle())


def lit_of(bundle: Bundle) -> LitMixture:
    known = identity(bundle.config, bundle.model.tasks, bundle.model.encoder, bundle.tokenizer,
                     bundle.precision)
    lit = LitMixture(model=bundle.model, config=bundle.config, validation=(), total_steps=1,
                     identity=known)
    lit.calibration = bundle.calibration
    return lit


def lightning(bundle: Bundle) -> dict[str, Any]:
    lit = lit_of(bundle)
    content: dict[str, Any] = {"state_dict": lit.state_dict()}
    lit.on_save_checkpoint(content)
    return content


def as_file(bundle: Bundle, folder: Path) -> Path:
    torch.save(lightning(bundle), folder / "best.ckpt")
    return folder / "best.ckpt"


def as_folder(bundle: Bundle, folder: Path) -> Path:
    save_bundle(bundle, folder / "model")
    return folder / "model"


BOTH = pytest.mark.parametrize("save", [as_file, as_folder])


def same(one: Reference | None, other: Reference | None) -> bool:
    assert one is not None and other is not None
    assert one.threshold == other.threshold and set(one.exemplars) == set(other.exemplars)
    return (np.array_equal(one.centre_D, other.centre_D)
            and np.array_equal(one.strangers_XD, other.strangers_XD)
            and all(np.array_equal(v, other.exemplars[k]) for k, v in one.exemplars.items()))


# --- the reference ----------------------------------------------------------------------------


@BOTH
def test_a_reference_is_loaded_bit_by_bit(bundle: Bundle, tmp_path: Path, save: Save) -> None:
    loaded = load_bundle(save(bundle, tmp_path))
    before, after = bundle.calibration.reference, loaded.calibration.reference
    assert same(before, after)
    assert before is not None and after is not None
    asked = embedded(bundle, ASKED)
    scores = stranger_scores(asked, before)
    assert np.array_equal(stranger_scores(embedded(loaded, ASKED), after), scores)
    assert replace(loaded.calibration, reference=None) == replace(
        bundle.calibration, reference=None)
    # The kept rows are no weights.
    assert set(loaded.model.state_dict()) == set(bundle.model.state_dict())


@BOTH
def test_decisions_survive_both_forms(bundle: Bundle, tmp_path: Path, save: Save) -> None:
    bundle.model.multi_task_threshold = 0.3  # as it is after loading
    expected = MixtureOfExperts(bundle, "cpu").predict(ASKED)
    assert {answer["abstained"] for answer in expected} == {True, False}
    loaded = MixtureOfExperts.from_pretrained(save(bundle, tmp_path), "cpu")
    assert loaded.predict(ASKED) == expected
    loaded.save_pretrained(tmp_path / "again")
    assert MixtureOfExperts.from_pretrained(tmp_path / "again", "cpu").predict(ASKED) == expected


def test_kept_rows_take_two_bytes_a_number(bundle: Bundle, tmp_path: Path) -> None:
    tensors = load_file(as_folder(bundle, tmp_path) / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith("reference.")}
    assert set(kept) == {"reference.centre", "reference.strangers", "reference.exemplars.sentiment",
                         "reference.exemplars.qa", "reference.exemplars.intent"}
    assert {tensor.dtype for tensor in kept.values()} == {torch.float16}
    assert kept["reference.strangers"].shape == (3, 2 * 32)


@BOTH
def test_without_a_reference_nothing_is_kept(
    word_bundle: Callable[..., Bundle], tmp_path: Path, save: Save
) -> None:
    path = save(word_bundle(), tmp_path)
    assert load_bundle(path).calibration == Calibration()
    if path.is_dir():
        assert not any("reference" in n for n in load_file(path / "model.safetensors"))


def test_a_folder_that_lost_its_kept_rows(bundle: Bundle, tmp_path: Path) -> None:
    folder = as_folder(bundle, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    weights = {n: t for n, t in tensors.items() if not n.startswith("reference.")}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model: not a complete checkpoint.*\('centre'\)"):
        load_bundle(folder)


@BOTH
def test_an_older_checkpoint_never_abstains(
    word_bundle: Callable[..., Bundle], tmp_path: Path, save: Save
) -> None:
    path = save(word_bundle(Calibration(temperature={"qa-0": 2.0})), tmp_path)
    if path.is_dir():
        content = json.loads((path / "config.json").read_text())
        for name in ("second_task", "abstain"):
            del content["calibration"][name]
        (path / "config.json").write_text(json.dumps(content))
    else:
        saved = torch.load(path, weights_only=True)
        del saved["mixture"]["reference"]
        for name in ("second_task", "abstain"):
            del saved["mixture"]["calibration"][name]
        torch.save(saved, path)
    assert load_bundle(path).calibration == Calibration(temperature={"qa-0": 2.0})


def test_a_resumed_run_saves_what_it_took_up(
    bundle: Bundle, word_bundle: Callable[..., Bundle]
) -> None:
    content = lightning(bundle)
    resumed = lit_of(word_bundle())
    resumed.on_load_checkpoint(content)
    assert same(resumed.calibration.reference, bundle.calibration.reference)
    assert resumed.calibration.second_task == 0.3
    again: dict[str, Any] = {}
    resumed.on_save_checkpoint(again)
    before, after = (c["mixture"]["reference"] for c in (content, again))
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert again["mixture"]["calibration"] == content["mixture"]["calibration"]


# --- a second task ----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("configured", "found", "expected"), [
    (None, 0.3, 0.3), (None, None, None), (0.6, 0.3, 0.6), (0.6, None, 0.6),
])
def test_the_fitted_threshold_is_used_unless_the_config_has_one(
    word_bundle: Callable[..., Bundle], tmp_path: Path, save: Save,
    configured: float | None, found: float | None, expected: float | None,
) -> None:
    made = word_bundle(Calibration(second_task=found), multi_task_threshold=configured)
    loaded = load_bundle(save(made, tmp_path))
    assert loaded.model.multi_task_threshold == expected
    assert loaded.calibration.second_task == found
    # The config stays as it was, so that a model saved again is loaded alike.
    assert loaded.config.model.gate.multi_task_threshold == configured


# --- older and changed checkpoints ------------------------------------------------------------


@BOTH
def test_format_2_is_read_and_others_are_not(bundle: Bundle, tmp_path: Path, save: Save) -> None:
    path = save(bundle, tmp_path)
    for version in (2, 1):
        if path.is_dir():
            content = json.loads((path / "config.json").read_text())
            content["format_version"] = version
            content["tasks"] = [{k: v for k, v in task.items() if k not in (
                "experts", "trunk", "trunk_width")} for task in content["tasks"]]
            (path / "config.json").write_text(json.dumps(content))
        else:
            saved = torch.load(path, weights_only=True)
            saved["mixture"]["format_version"] = version
            torch.save(saved, path)
        if version == 2:
            assert load_bundle(path).model.tasks == bundle.model.tasks
    with pytest.raises(InputError, match="format version 1, this program reads 2 and 3"):
        load_bundle(path)


def test_a_file_is_written_whole_or_not_at_all(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(bundle, tmp_path / "new" / "m.ckpt")
    assert load_bundle(tmp_path / "new" / "m.ckpt").calibration.second_task == 0.3
    before = (tmp_path / "new" / "m.ckpt").read_bytes()

    def torn(content: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(InputError, match=r"m\.ckpt: cannot be written \(No space left"):
        save_checkpoint(bundle, tmp_path / "new" / "m.ckpt")
    assert {f.name for f in (tmp_path / "new").iterdir()} == {"m.ckpt", "SHA256SUMS"}
    assert (tmp_path / "new" / "m.ckpt").read_bytes() == before


def test_a_profile_of_older_numbers_is_none() -> None:
    assert load_profile({"spelling_N": torch.zeros(3)}) is None
