"""train.py, eval.py and scripts/predict.py as a user runs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from moe import MixtureOfExperts
from moe.lit import LitMixture

ROOT = Path(__file__).parents[2]
Run = Callable[..., Any]

REQUESTS = [
    {"id": "1", "text": "i love this bus"},
    {"id": "2", "text": "who built the mill?", "context": "the mill was built in 1790 by abc."},
    {"id": "3", "text": "time please", "tasks": ["mood", "intent"]},
    {"id": "4", "text": "who built it?", "context": "the mill was good. " * 30 + "by abc."},
]


@pytest.fixture(scope="session")
def trained(project: Path, run: Run) -> Path:
    """The folder of a finished run."""
    done = run("train.py", "--config", project / "tiny.yaml")
    assert "best checkpoint:" in done.stdout
    assert "trivial" in done.stdout and "60 training" in done.stdout
    return project / "runs" / "tiny" / "version_0"


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_run_leaves_its_files(trained: Path) -> None:
    assert yaml.safe_load((trained / "config.yaml").read_text())["trainer"]["max_steps"] == 8
    assert list(trained.glob("events.out.tfevents.*"))
    best = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    last = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    assert "optimizer_states" not in best and last["optimizer_states"]
    assert last["global_step"] == 8
    encoder = [name for name in best["state_dict"] if "word_embeddings" in name]
    assert encoder == ["model.encoder.embeddings.word_embeddings.weight"]


def test_the_pictures_of_a_run_are_saved(trained: Path, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "pictures"
    lines = run("scripts/figures.py", trained, out).stdout.splitlines()
    assert {Path(line).name for line in lines} >= {"gate-routing_matrix.png", "load.png"}
    for line in lines:
        assert Path(line).read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "empty").mkdir()
    assert "has no pictures" in run("scripts/figures.py", tmp_path / "empty", out, code=2).stderr


def test_eval_repeats_the_validation_of_the_checkpoint(
    trained: Path, project: Path, run: Run
) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    out = project / "out.json"
    run("eval.py", "--ckpt", best, "--json", out)
    report = json.loads(out.read_text())
    saved = torch.load(best, weights_only=True)["mixture"]["metrics"]
    assert set(report) == {"checkpoint", "routing", "seconds", "tasks", "experts", "gate"}
    for task, metrics in saved["tasks"].items():
        assert report["tasks"][task] == pytest.approx(metrics, abs=1e-6)
    assert report["gate"] == pytest.approx(saved["gate"], abs=1e-6)
    assert sum(entry["load"] for entry in report["experts"].values()) == pytest.approx(1)


def test_eval_of_test_sources_and_oracle_routing(trained: Path, project: Path, run: Run) -> None:
    best, out = trained / "checkpoints" / "best.ckpt", project / "some.json"
    arguments = ("--ckpt", best, "--test", "mood=val.csv", "--json", out)
    run("eval.py", *arguments, "--test", "intent=intent.json#val+oos_val")
    learned = json.loads(out.read_text())
    assert set(learned["tasks"]) == {"mood", "intent"}
    assert learned["tasks"]["mood"]["n"] == 3 and learned["tasks"]["intent"]["n"] == 4
    run("eval.py", *arguments, "--routing", "oracle")
    oracle = json.loads(out.read_text())
    assert oracle["routing"] == "oracle"
    assert oracle["tasks"]["mood"]["accuracy"] >= learned["tasks"]["mood"]["accuracy"]


def test_a_copied_checkpoint_predicts_the_same_elsewhere(
    trained: Path, run_in_process: Run, tmp_path: Path
) -> None:
    expected = MixtureOfExperts.from_pretrained(trained / "checkpoints" / "best.ckpt").predict(
        REQUESTS
    )
    shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "copy.ckpt")
    lines = tmp_path / "requests.jsonl"
    lines.write_text("\n".join(json.dumps(request) for request in REQUESTS))
    done = run_in_process(
        "scripts/predict.py", "--ckpt", "copy.ckpt", "--input", lines, cwd=tmp_path
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers == json.loads(json.dumps(expected))
    assert [answer["id"] for answer in answers] == ["1", "2", "3", "4"]
    assert set(answers[2]["answers"]) == {"mood", "intent"}


def test_save_pretrained_holds_the_same_model(trained: Path, tmp_path: Path) -> None:
    model = MixtureOfExperts.from_pretrained(trained / "checkpoints" / "best.ckpt")
    model.save_pretrained(tmp_path / "model")
    again = MixtureOfExperts.from_pretrained(tmp_path / "model")
    assert again.predict(REQUESTS) == model.predict(REQUESTS)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}


def test_an_answer_does_not_depend_on_its_neighbours(trained: Path) -> None:
    model = MixtureOfExperts.from_pretrained(trained / "checkpoints" / "best.ckpt")
    together = model.predict(REQUESTS)
    for request, answer in zip(REQUESTS, together, strict=True):
        alone = model.predict(request)
        assert set(alone["answers"]) == set(answer["answers"])
        for task, said in alone["answers"].items():
            assert said.get("label") == answer["answers"][task].get("label")
            assert said["score"] == pytest.approx(answer["answers"][task]["score"], abs=1e-5)
        for ours, theirs in zip(alone["routing"], answer["routing"], strict=True):
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-5)


def test_spans_are_offsets_into_the_context(trained: Path) -> None:
    model = MixtureOfExperts.from_pretrained(trained / "checkpoints" / "best.ckpt")
    context = "  the Mill was built in 1790 by ABC. "
    answer = model.predict(text="who built the mill?", context=context, tasks=["qa"])
    said = answer["answers"]["qa"]
    if said["no_answer"]:
        assert said["start"] is None and said["text"] == ""
    else:
        assert context[said["start"] : said["end"]] == said["text"] != ""


def test_same_seed_same_weights_and_another_seed_others(
    trained: Path, project: Path, run: Run
) -> None:
    arguments = ("train.py", "--config", project / "tiny.yaml", "--trainer.default_root_dir")
    run(*arguments, project / "again")
    run(*arguments, project / "other", "--seed_everything", 1, "--trainer.max_steps", 4)
    first = state(trained / "checkpoints" / "last.ckpt")
    again = state(project / "again" / "tiny" / "version_0" / "checkpoints" / "last.ckpt")
    other = state(project / "other" / "tiny" / "version_0" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("crash_at", "saved"),
    [(2, 0), (3, 3), (5, 4), pytest.param(7, 6, marks=pytest.mark.slow)],
    ids=["nothing saved", "mid-epoch", "after validation", "epoch end"],
)
def test_a_resumed_run_ends_with_the_same_weights(
    trained: Path, project: Path, run: Run, monkeypatch: pytest.MonkeyPatch,
    crash_at: int, saved: int,
) -> None:
    """Of 8 steps an epoch has 6; every third is saved, every fourth is validated and saved."""
    step = LitMixture.training_step

    def crash(self: LitMixture, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == crash_at:
            raise RuntimeError("power cut")
        step(self, batch, batch_idx)

    root = project / f"cut-{saved}"
    arguments = ("--config", project / "tiny.yaml", "--trainer.default_root_dir", root)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(LitMixture, "training_step", crash)
        run("train.py", *arguments)
    folder = root / "tiny" / "version_0"
    last = folder / "checkpoints" / "last.ckpt"
    assert (torch.load(last)["global_step"] if last.exists() else 0) == saved
    assert "validation at step 8" in run("train.py", "--resume", folder).stdout
    first = state(trained / "checkpoints" / "last.ckpt")
    resumed = state(folder / "checkpoints" / "last.ckpt")
    assert all(torch.equal(first[name], resumed[name]) for name in first)
    assert "nothing to do" in run("train.py", "--resume", folder).stdout


def test_averaged_weights_end_alike_when_the_run_is_cut(
    project: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 14 steps the last 13 are averaged, steps 11 and 14; after step 12 it was saved."""
    step = LitMixture.training_step

    def cut(self: LitMixture, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 13:
            raise RuntimeError("power cut")
        step(self, batch, batch_idx)

    arguments = ("--config", project / "tiny.yaml", "--optimizer.average", 0.9,
                 "--optimizer.schedule", "constant", "--trainer.max_steps", 14,
                 "--trainer.val_check_interval", 14, "--trainer.default_root_dir")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(LitMixture, "training_step", cut)
        run("train.py", *arguments, project / "mean-cut")
    parts, whole = (project / name / "tiny" / "version_0" / "checkpoints"
                    for name in ("mean-cut", "mean-whole"))
    saved = torch.load(parts / "last.ckpt")
    assert saved["global_step"] == 12
    assert (saved["average"]["before"], saved["average"]["count"]) == (1, 1)
    said = run("train.py", "--resume", parts.parent, "--trainer.max_steps", 20, code=2)
    assert "--resume: its weights are averaged since optimizer step 1" in said.stderr
    run("train.py", "--resume", parts.parent)
    run("train.py", *arguments, project / "mean-whole")
    first, resumed = state(whole / "last.ckpt"), state(parts / "last.ckpt")
    assert all(torch.equal(first[name], resumed[name]) for name in first)
    assert torch.load(whole / "last.ckpt")["average"] == {}
    assert "average" not in torch.load(whole / "best.ckpt")


def test_one_task_alone(project: Path, run: Run) -> None:
    done = run(
        "train.py",
        "--config",
        project / "tiny.yaml",
        "--data.tasks",
        "[mood]",
        "--trainer.max_steps",
        2,
        "--trainer.val_check_interval",
        2,
        "--trainer.default_root_dir",
        project / "single",
    )
    assert "experts: 2" in done.stdout and "qa" not in done.stdout
    best = project / "single" / "tiny" / "version_0" / "checkpoints" / "best.ckpt"
    answer = MixtureOfExperts.from_pretrained(best).predict("good film")
    assert list(answer["answers"]) == ["mood"]


def test_no_validation_source_splits_some_off(project: Path, run: Run) -> None:
    done = run(
        "train.py",
        "--config",
        project / "tiny.yaml",
        "--data.tasks",
        "[mood]",
        "--tasks.mood.validation",
        "null",
        "--trainer.max_steps",
        1,
        "--trainer.val_check_interval",
        1,
        "--trainer.default_root_dir",
        project / "split",
    )
    assert "54 training and 6 validation rows" in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_parses(path: Path) -> None:
    from moe.cli import parse_training

    config, values = parse_training(["--config", str(path)])
    assert config.tasks and values.trainer.max_steps > 0
    assert path.read_text().startswith("#"), "a config begins with its header"


def test_the_readme_commands_are_those_of_the_repository() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "pip install -c constraints.txt -e '.[quickstart,dev]' && python train.py" in readme
    test = 'python -m pytest -q -n 2 --dist loadfile -m "not slow"'
    assert test in readme and test in (ROOT / ".ci" / "run").read_text()
