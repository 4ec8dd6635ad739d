"""Who may import whom, read off the source without running it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "moe"

LAYERS = {
    0: {"types", "config", "model_config", "gate_brick", "attention", "fused"},
    1: {"allocator", "durable", "guard", "interrupt", "ranks", "tensors", "untrusted",
        "encoder", "pretrained", "gate", "decision", "dispatch", "losses", "metrics", "decode",
        "schedule", "experts.__init__", "experts.base", "experts.classifier", "experts.span",
        "experts.tagger", "experts.trunk", "data.__init__", "data.augment", "data.cleaning",
        "data.collate", "data.files", "data.formats", "data.tags", "data.text",
        "data.windows"},
    2: {"model", "build", "averaging", "step_loss", "validation", "abstain", "calibration",
        "explain", "fitting", "readout", "collect",
        "evaluation", "profile", "forms.__init__", "forms.base", "forms.classifier", "forms.span",
        "forms.tagger", "data.sources", "data.routing", "data.tables", "data.mixing",
        "data.prepare", "data.module"},
    3: {"lit", "checkpoint", "checkpoint_io", "checkpoint_reading", "callbacks", "plots",
        "pictures"},
    5: {"batch_prediction", "pipeline", "benchmarks.__init__", "benchmarks.events",
        "chaos.__init__", "chaos.checks", "chaos.corruption", "chaos.events", "chaos.hostile",
        "chaos.hostile_folders", "chaos.hostile_values", "chaos.hostile_zips", "chaos.kills",
        "chaos.nonfinite", "chaos.one_of_two", "chaos.parity", "chaos.process", "chaos.processes",
        "chaos.project", "chaos.report", "chaos.resume", "chaos.shared_rows", "chaos.soak",
        "events.__init__", "events.client", "events.embedded", "events.kafka", "events.link",
        "events.messages", "events.metrics", "events.nats", "events.run", "events.settings",
        "events.worker", "server.__init__", "server.admission", "server.app", "server.batcher",
        "server.edge", "server.engine", "server.errors", "server.feedback", "server.logs",
        "server.metrics", "server.model", "server.page", "server.program", "server.reload",
        "server.run", "server.schema", "server.service", "server.settings"},
}
REST = 4  # predict, training, cli, runs, and whatever is not listed: nothing below may import it
MAY_IMPORT = {
    "lightning": {"lit", "callbacks", "pictures", "checkpoint_io", "data.module", "launch",
                  "training", "cli", "batch_prediction"},
    "transformers": {"encoder", "fused", "pretrained", "model", "build", "data.windows",
                     "checkpoint", "pipeline", "bricks.extract", "benchmarks.library",
                     "benchmarks.models", "benchmarks.train", "chaos.project"},
    "fastapi": {"server.app"},
    "starlette": {"server.app", "server.feedback", "server.page", "server.service"},
    "uvicorn": {"server.run"},
    "prometheus_client": {"server.metrics", "events.metrics", "events.run"},
    "faststream": {"events.kafka", "events.nats"},
}
LONGEST_ENTRY_POINT = 70  # lines


def modules() -> dict[str, Path]:
    """Every file of the package by its name: `gate`, `data.collate`, `experts.__init__`."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = {".".join(f.relative_to(PACKAGE).with_suffix("").parts): f for f in files}
    # The package's own door loads the topmost layer when it is asked for.
    return {name: file for name, file in names.items() if name != "__init__"}


MODULES = modules()


def layer(name: str) -> int:
    return next((number for number, names in LAYERS.items() if name in names), REST)


def imported(file: Path) -> set[str]:
    """Full names of all that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import in line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(file: Path) -> set[str]:
    """Modules of this package that a file imports."""
    found = set()
    for name in imported(file):
        parts = name.split(".")
        if parts[0] == "moe" and len(parts) > 1:
            # `moe.data.collate.Window`, `moe.data.formats`, or `moe.experts.Expert`
            for end in (len(parts), len(parts) - 1):
                path = ".".join(parts[1:end])
                if path in MODULES or f"{path}.__init__" in MODULES:
                    found.add(path if path in MODULES else f"{path}.__init__")
                    break
    return found


def package(name: str) -> str:
    return name.rpartition(".")[0]


def test_the_table_names_files_that_are_there() -> None:
    listed = set().union(*LAYERS.values())
    assert listed <= set(MODULES), sorted(listed - set(MODULES))


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_or_stay_in_their_package(name: str) -> None:
    for other in own_imports(MODULES[name]):
        mine, theirs = layer(name), layer(other)
        # In the two lowest layers neighbours do not know each other.
        alike = mine == theirs and (mine != 1 or package(name) == package(other) != "")
        assert theirs < mine or alike, f"{name} (layer {mine}) imports {other} (layer {theirs})"


def test_no_module_needs_itself() -> None:
    waiting = {name: own_imports(file) for name, file in MODULES.items()}
    while waiting:
        free = {name for name, needs in waiting.items() if not needs & set(waiting)}
        assert free, f"a circle among {sorted(waiting)}"
        waiting = {name: needs for name, needs in waiting.items() if name not in free}


@pytest.mark.parametrize(("library", "allowed"), MAY_IMPORT.items())
def test_who_may_import_a_framework(library: str, allowed: set[str]) -> None:
    users = {name for name, file in MODULES.items()
             if any(i.split(".")[0] == library for i in imported(file))}
    assert users, f"nobody imports {library}: has it another name?"
    assert users <= allowed, sorted(users - allowed)


def test_decoding_needs_numpy_alone() -> None:
    roots = {name.split(".")[0] for name in imported(MODULES["decode"])}
    assert roots == {"__future__", "collections", "dataclasses", "numpy"}


@pytest.mark.parametrize("name", ["train.py", "eval.py"])
def test_entry_points_are_thin(name: str) -> None:
    file = ROOT / name
    if not file.is_file():
        pytest.skip(f"there is no {name}")
    assert len(file.read_text(encoding="utf-8").splitlines()) < LONGEST_ENTRY_POINT


# --- the reader of imports itself -------------------------------------------------------------


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text("from moe.gate import route\nfrom moe.data import formats\nimport moe.types\n"
                    "def f():\n    from moe.experts import Expert\n    import lightning as L\n")
    assert own_imports(file) == {"gate", "data.formats", "types", "experts.__init__"}
    assert "lightning" in imported(file)
