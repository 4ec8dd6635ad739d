"""Each operation on a tiny model: what it changes, what it leaves, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from moe.bricks.bring import bring
from moe.bricks.command import bricks_parser, run_bricks
from moe.bricks.fit import FitConfig, named_groups
from moe.bricks.grow import grow
from moe.bricks.merge import healing_fit, merge, merged_weights
from moe.bricks.proof import digest, digests
from moe.bricks.remove import remove
from moe.bricks.update import UPDATE, update
from moe.checkpoint import Bundle, load_bundle, save_bundle, save_checkpoint
from moe.config import OptimizerConfig, TaskConfig
from moe.predict import MixtureOfExperts
from moe.types import InputError

from .conftest import FEW, OLD, texts

Old = Callable[..., Bundle]
FAST = FitConfig(epochs=12, batch_size=8, optimizer=OptimizerConfig(expert_lr=3e-3))
ASKED = [*texts(OLD["sentiment"], 5, 7), *texts("monks led 7 9", 5, 8), "cat purr paw", "zz 8 9"]


def config(rows: Path) -> TaskConfig:
    return TaskConfig(type="classifier", train=str(rows))


def grown(bundle: Bundle, rows: Path, epochs: int = 12) -> Bundle:
    fit = replace(FAST, epochs=epochs)
    return grow(bundle, task="topic", config=config(rows), fit=fit).bundle


# --- grow and remove --------------------------------------------------------------------------


def test_a_grown_task_answers_and_the_old_ones_do_not_move(old_model: Old, new_rows: Path) -> None:
    bundle = old_model()
    before = digests(bundle)
    made = grow(bundle, task="topic", config=config(new_rows), fit=FAST)
    assert made.difference.changed == () and made.difference.removed == ()
    assert set(made.difference.same) == set(before)
    metrics = made.bundle.metrics["tasks"]["topic"]
    assert metrics["accuracy"] >= 0.9 and metrics["routing_accuracy"] == 1.0
    answer = MixtureOfExperts(made.bundle, "cpu").predict("cat purr paw cat")
    assert answer["answers"]["topic"]["label"] == "cats"
    old = MixtureOfExperts(bundle, "cpu")
    new = MixtureOfExperts(made.bundle, "cpu")
    named = [{"text": text, "tasks": ["sentiment", "intent"]} for text in ASKED]
    assert [a["answers"] for a in new.predict(named)] == [a["answers"] for a in old.predict(named)]


def test_requests_of_old_tasks_are_refused_as_before(old_model: Old, new_rows: Path) -> None:
    bundle = old_model()
    old, new = (MixtureOfExperts(b, "cpu") for b in (bundle, grown(bundle, new_rows)))
    asked = [*ASKED, *texts("7 zz an 9", 20, 3)]
    pairs = [(a, b) for a, b in zip(old.predict(asked), new.predict(asked), strict=True)
             if b["routing"][0]["task"] != "topic"]
    assert len(pairs) > 10 and any(a["abstained"] for a, _ in pairs)
    assert all(a["abstained"] == b["abstained"] for a, b in pairs)
    assert bundle.calibration.reference is not None


@pytest.mark.parametrize("abstains", [True, False])
def test_removing_what_was_grown_gives_the_same_outputs(
    old_model: Old, new_rows: Path, tmp_path: Path, abstains: bool
) -> None:
    bundle = old_model(abstains)
    made = remove(grown(bundle, new_rows, epochs=1), task="topic").bundle
    assert digests(made) == digests(bundle)
    save_checkpoint(made, tmp_path / "back.ckpt")
    back = MixtureOfExperts.from_pretrained(tmp_path / "back.ckpt", "cpu")
    assert back.predict(ASKED, explain=True) == MixtureOfExperts(bundle, "cpu").predict(
        ASKED, explain=True)
    assert set(made.config.tasks) == set(bundle.config.tasks)
    assert [e["operation"] for e in made.history] == ["grow", "remove"]


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_grown_model_is_loaded_as_it_was_saved(
    old_model: Old, new_rows: Path, tmp_path: Path, form: str
) -> None:
    made = grown(old_model(), new_rows, epochs=1)
    path = tmp_path / ("m.ckpt" if form == "file" else "m")
    (save_checkpoint if form == "file" else save_bundle)(made, path)
    loaded = load_bundle(path)
    assert digests(loaded) == digests(made)
    assert loaded.history == made.history and loaded.model.tasks == made.model.tasks
    assert MixtureOfExperts(loaded, "cpu").predict(ASKED) == MixtureOfExperts(
        made, "cpu").predict(ASKED)


def test_also_for_adds_an_expert_between_those_of_other_tasks(
    old_model: Old, tmp_path: Path
) -> None:
    rows = [f"{t},{'good' if i % 2 else 'bad'}" for i, t in enumerate(texts("cat dog 5", 40))]
    (tmp_path / "more.csv").write_text("\n".join(["text,label", *rows]))
    bundle = old_model()
    made = grow(bundle, task="sentiment", config=config(tmp_path / "more.csv"), also=True, fit=FEW)
    names = made.bundle.model.expert_names
    assert names[:4] == ("sentiment-0", "sentiment-1", "sentiment-2", "qa-0")
    assert made.difference.changed == ()
    assert [*made.bundle.memory] == [*bundle.memory]
    counts = [made.bundle.config.tasks["sentiment"].experts]
    for name in ("sentiment-1", "sentiment-2"):
        made = remove(made.bundle, expert=name)
        counts.append(made.bundle.config.tasks["sentiment"].experts)
    assert counts == [3, 2, 1]


def test_what_grow_refuses(old_model: Old, new_rows: Path) -> None:
    bundle = old_model()
    with pytest.raises(InputError, match=r"--task 'qa': the model has this task already"):
        grow(bundle, task="qa", config=config(new_rows), fit=FEW)
    with pytest.raises(InputError, match=r"--also-for 'nix': no such task; .* \['intent', 'qa'"):
        grow(bundle, task="nix", config=config(new_rows), also=True, fit=FEW)
    shorter = {name: rows[:, : bundle.model.gate.dim] for name, rows in bundle.memory.items()}
    for memory in ({}, shorter):  # none, and one of an older program
        forgetful = replace(bundle, memory=memory)
        with pytest.raises(InputError, match=r"remembers no rows.*sentiment\.csv.*--old_root"):
            grow(forgetful, task="topic", config=config(new_rows), fit=FEW)


def test_removing_an_expert_of_several(old_model: Old) -> None:
    bundle = old_model()
    made = remove(bundle, expert="intent-2")
    assert made.bundle.model.expert_names == (
        "sentiment-0", "sentiment-1", "qa-0", "intent-0", "intent-1", "intent-3")
    assert made.difference.changed == ()
    assert {n.rpartition(".")[0] for n in made.difference.removed if n.startswith("cal")} == {
        "calibration.temperature"}
    again = remove(made.bundle, task="sentiment").bundle
    assert [task.name for task in again.model.tasks] == ["qa", "intent"]
    assert set(again.memory) == {"qa", "intent"} and set(again.config.tasks) == {"qa", "intent"}
    assert MixtureOfExperts(again, "cpu").predict("good film")["routing"][0]["task"] == "intent"


def test_what_remove_refuses(old_model: Old, new_rows: Path) -> None:
    bundle = old_model()
    with pytest.raises(InputError, match="--expert 'intent-9': no such expert; the model has"):
        remove(bundle, expert="intent-9")
    for task in ("sentiment", "qa"):
        bundle = remove(grown(bundle, new_rows, 1) if task == "sentiment" else bundle,
                        task=task).bundle
    with pytest.raises(InputError, match="no expert would be left that the gate was trained with"):
        remove(bundle, task="intent")


# --- update and merge -------------------------------------------------------------------------


def mood_rows(folder: Path) -> Path:
    rows = [f"{t} good,good" for t in texts("film was", 20)]
    rows += [f"{t} bad,bad" for t in texts("film was", 20, 1)]
    (folder / "mood.csv").write_text("\n".join(["text,label", *rows]))
    return folder / "mood.csv"


def test_an_update_changes_one_expert(old_model: Old, tmp_path: Path) -> None:
    bundle = old_model()
    made = update(bundle, expert="sentiment-1", config=config(mood_rows(tmp_path)), fit=FEW)
    assert made.difference.changed
    assert all(n.startswith("experts.sentiment-1.") for n in made.difference.changed)
    assert made.difference.added == made.difference.removed == ()
    fresh = update(bundle, expert="sentiment-1", config=config(mood_rows(tmp_path)), fit=FEW,
                   fresh=True)
    assert digests(fresh.bundle) != digests(made.bundle)


@pytest.mark.parametrize("change", [{"dropout": 0.5}, {"state_dropout": 0.5}])
def test_dropout_while_an_expert_is_trained(
    old_model: Old, tmp_path: Path, change: dict[str, float]
) -> None:
    bundle, rows = old_model(), config(mood_rows(tmp_path))
    plain, dropped = (
        update(bundle, expert="sentiment-1", config=rows, fit=replace(FEW, **more)).bundle
        for more in ({}, change)
    )
    assert digests(plain) != digests(dropped)
    modules = dropped.model.experts["sentiment-1"].modules()
    assert {m.p for m in modules if isinstance(m, torch.nn.Dropout)} == {0.0}  # its own again


def test_a_grown_expert_starts_as_an_encoder_layer(old_model: Old, new_rows: Path) -> None:
    still = replace(FEW, steps=1, optimizer=OptimizerConfig(expert_lr=1e-12))
    grown = grow(old_model(), task="topic", config=config(new_rows), fit=still).bundle.model
    mine = grown.experts["topic-0"].trunk.attention.query.weight
    theirs = grown.encoder.transformer.layer[-1].attention.q_lin.weight
    assert_close(mine, theirs, atol=1e-8, rtol=1e-6)


def test_optimizer_state_goes_by_name(old_model: Old) -> None:
    expert = old_model().model.experts["qa-0"]
    optimizer = torch.optim.AdamW(named_groups(expert, FitConfig().optimizer))
    names = [n for group in optimizer.state_dict()["param_groups"] for n in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in expert.named_parameters())


def test_merged_weights_by_hand() -> None:
    one, two = ({"w": torch.tensor(values)} for values in ([1.0, 4.0, 0.0], [3.0, -2.0, 0.0]))
    base = {"w": torch.tensor([1.0, 1.0, 0.0])}
    assert merged_weights((one, two), "average")["w"].tolist() == [2, 1, 0]
    # changes (0, 3, 0) and (2, -3, 0)
    assert merged_weights((one, two), "task-arithmetic", base)["w"].tolist() == [3, 1, 0]
    # a fifth of three numbers is one: (0, 3, 0) and (0, -3, 0), whose signs cancel
    assert merged_weights((one, two), "ties", base)["w"].tolist() == [1, 1, 0]
    more = {"w": torch.tensor([3.0, -1.0, 0.0])}  # its change (2, -2, 0) keeps both: they are equal
    assert merged_weights((one, more), "ties", base)["w"].tolist() == [3, 4, 0]
    fisher = ({"w": torch.tensor([3.0, 0.0, 0.0])}, {"w": torch.tensor([1.0, 5.0, 0.0])})
    assert_close(merged_weights((one, two), "fisher", None, fisher)["w"],
                 torch.tensor([1.5, -2.0, 0.0]))
    for method in ("task-arithmetic", "ties"):  # without a base it is the mean
        assert_close(merged_weights((one, two), method)["w"], torch.tensor([2.0, 1.0, 0.0]))  # type: ignore[arg-type]


def test_a_merge_keeps_the_mass_of_the_task(old_model: Old, hand_batch) -> None:
    bundle = old_model()
    made = merge(bundle, experts=("intent-0", "intent-2"), method="average").bundle
    assert made.model.expert_names[3:] == ("intent-0", "intent-1", "intent-3")
    with torch.no_grad():
        mass = [b.model(hand_batch).routing.task_mass_BT for b in (bundle, made)]
    # A request of two windows averages their logits, after the sum over the two experts.
    assert_close(mass[0], mass[1], atol=1e-4, rtol=1e-3)
    assert_close(mass[0][[0, 1, 4, 5]], mass[1][[0, 1, 4, 5]])
    key = "classifier.weight"
    parents = [bundle.model.experts[f"intent-{n}"].state_dict()[key] for n in (0, 2)]
    assert_close(made.model.experts["intent-0"].state_dict()[key], sum(parents) / 2)
    assert made.calibration.temperature == {"qa-0": 1.5, "intent-0": 0.7}
    assert made.calibration.saturation == {}


def test_a_merge_averages_what_was_fitted(old_model: Old) -> None:
    bundle = old_model()
    bundle = replace(bundle, calibration=replace(
        bundle.calibration, temperature={"intent-0": 1.0, "intent-2": 2.0, "intent-1": 9.0},
        saturation={"intent-2": 4.0, "intent-1": 3.0}))
    made = merge(bundle, experts=("intent-0", "intent-2"), method="average").bundle.calibration
    assert made.temperature == {"intent-0": 1.5, "intent-1": 9.0}
    # Without a saturation is with an infinite one: (1 / inf + 1 / 4) / 2 = 1 / 8.
    assert made.saturation == {"intent-0": 8.0, "intent-1": 3.0}


@pytest.mark.parametrize("method", ["fisher", "ties"])
def test_two_checkpoints_of_one_expert_and_healing(
    old_model: Old, tmp_path: Path, method: str
) -> None:
    bundle, rows = old_model(), config(mood_rows(tmp_path))
    halves = [update(bundle, expert="sentiment-0", config=rows, fit=replace(FEW, seed=seed)).bundle
              for seed in (0, 1)]
    made = merge(halves[0], experts=("sentiment-0", "sentiment-0"), method=method,  # type: ignore[arg-type]
                 other=halves[1], base=bundle, config=rows, healing=replace(FEW, steps=3))
    assert {n.partition(".weight")[0].partition(".bias")[0].split(".")[1]
            for n in made.difference.changed if n.startswith("experts")} == {"sentiment-0"}
    assert made.bundle.history[-1]["about"]["healing_steps"] == 3


def test_healing_is_gentler_than_an_update() -> None:
    assert healing_fit(7).steps == 7
    assert healing_fit(7).optimizer.expert_lr < UPDATE.optimizer.expert_lr
    with pytest.raises(InputError, match="--healing_steps 0: expected at least 1"):
        healing_fit(0)


def test_what_merge_refuses(old_model: Old, new_rows: Path) -> None:
    bundle = old_model()
    with pytest.raises(InputError, match="they answer 'qa' and 'intent'"):
        merge(bundle, experts=("qa-0", "intent-1"), method="average")
    with pytest.raises(InputError, match="intent-1 intent-1: name two different"):
        merge(bundle, experts=("intent-1", "intent-1"), method="average")
    with pytest.raises(InputError, match="needs rows of the task: give --train"):
        merge(bundle, experts=("intent-1", "intent-2"), method="fisher")
    other = old_model()
    with torch.no_grad():
        next(other.model.encoder.parameters()).add_(1.0)
    with pytest.raises(InputError, match=r"--from: its encoder differs in embeddings\.word"):
        merge(bundle, experts=("qa-0", "qa-0"), method="average", other=other)


def test_an_expert_comes_from_another_checkpoint(old_model: Old, new_rows: Path) -> None:
    bundle = old_model()
    made = bring(bundle, expert="topic-0", other=grown(bundle, new_rows))
    assert made.difference.changed == ()
    answer = MixtureOfExperts(made.bundle, "cpu").predict("dog bark leash bark")
    assert answer["answers"]["topic"]["label"] == "dogs"
    again = bring(made.bundle, expert="topic-0", other=grown(bundle, new_rows)).bundle
    assert again.model.expert_names[-2:] == ("topic-0", "topic-1")
    with pytest.raises(InputError, match=r"'qa-7'.*the model has"):
        bring(bundle, expert="qa-7", other=bundle)


def test_a_task_that_was_trained_jointly_is_brought_with_its_trunk(old_model: Old) -> None:
    whole = old_model()
    few = remove(whole, task="intent").bundle
    back = bring(few, expert="intent-1", other=whole).bundle
    name = back.model.tasks[-1].expert_names[0]
    ours = back.model.experts[name].state_dict()
    theirs = whole.model.experts["intent-1"].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


# --- the command ------------------------------------------------------------------------------


def command(*words: object) -> None:
    run_bricks(bricks_parser(None).parse_args([str(word) for word in words]))


def test_the_whole_walk_by_command(
    old_model: Old, new_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, out = tmp_path / "start.ckpt", tmp_path / "grown.ckpt"
    save_checkpoint(old_model(), start)
    command("grow", "--ckpt", start, "--out", out, "--task", "topic", "--train", new_rows,
            "--epochs", 1)
    said = capsys.readouterr().out
    assert "experts.topic-0                0        0     20        0" in said
    command("show", out)
    shown = capsys.readouterr().out
    assert "topic-0" in shown and "grow" in shown and " rows, SHA-256 " in shown
    command("update", "--ckpt", out, "--out", tmp_path / "u.ckpt", "--expert", "topic-0",
            "--train", new_rows, "--epochs", 1)
    command("merge", "--ckpt", out, "--out", tmp_path / "m.ckpt", "--experts", "topic-0",
            "--from", tmp_path / "u.ckpt", "--method", "average")
    command("remove", "--ckpt", tmp_path / "m.ckpt", "--out", tmp_path / "r.ckpt",
            "--task", "topic")
    capsys.readouterr()
    command("compare", start, tmp_path / "r.ckpt")
    same = len(digests(load_bundle(start)))
    assert f"{same} of {same} are SHA-256-equal" in capsys.readouterr().out
    assert [e["operation"] for e in load_bundle(tmp_path / "r.ckpt").history] == [
        "grow", "merge", "remove"]
    with pytest.raises(InputError, match=r"grown\.ckpt: is there already"):
        command("remove", "--ckpt", start, "--out", out, "--task", "qa")
    with pytest.raises(InputError, match=r"expected a file that ends in \.ckpt"):
        command("remove", "--ckpt", start, "--out", tmp_path / "x", "--task", "qa")
    assert not [f for f in tmp_path.iterdir() if f.name.endswith(".partial")]


def test_a_digest_sees_type_shape_and_bytes() -> None:
    ones = torch.ones(2, 3)
    assert digest(ones) == digest(ones.clone().T.contiguous().T)
    assert len({digest(ones), digest(ones.T), digest(ones.half()), digest(ones * 2)}) == 4


# --- looking inside ---------------------------------------------------------------------------


def test_the_analysis_writes_figures_and_numbers(
    old_model: Old, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe.bricks import analyse as module

    bundle = remove(remove(old_model(), task="qa").bundle, task="intent").bundle
    tasks = {"sentiment": replace(bundle.config.tasks["sentiment"], train=str(mood_rows(tmp_path)),
                                  labels=["bad", "good"])}
    bundle = replace(bundle, config=replace(bundle.config, tasks=tasks))
    report = module.analyse(bundle, tmp_path / "inside", rows=4)
    kept = json.loads((tmp_path / "inside" / "analysis.json").read_text())["kept"]["sentiment"]
    assert set(kept["best neurons"]) == {"0.05", "0.1", "0.2", "0.4", "0.7", "1.0"}
    names = {file.name for file in (tmp_path / "inside").glob("*.png")}
    assert {"neurons-specialised.png", "kept-sentiment.png", "gate-prototypes.png",
            "words-sentiment.png"} <= names
    assert list((tmp_path / "inside").glob("events.*"))
    assert "best neurons" in module.analysis_text(report, "x")


def test_neurons_that_serve_one_task_and_balanced_bricks() -> None:
    from moe.bricks.neurons import best_bricks, best_neurons, emergent_bricks, served_tasks

    rate_TNF = np.array([[[0.8, 0.3, 0.1]], [[0.2, 0.2, 0.4]]])
    assert served_tasks(rate_TNF).tolist() == [[0, -1, 1]]  # 4 times, 1.5 times, 4 times
    patterns = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=bool).repeat(4, 0).T.repeat(3, 0)
    owner = emergent_bricks(patterns.T, size=6)  # twelve neurons, of which six fire together
    assert sorted(np.bincount(owner)) == [6, 6]
    weight = np.array([[3.0, 1.0, 2.0, 0.5]])
    assert best_neurons(weight, 0.5).tolist() == [[True, False, True, False]]
    owners = np.array([[0, 0, 1, 1]])  # together 4 and 2.5
    assert best_bricks(weight, owners, 0.5).tolist() == [[True, True, False, False]]
