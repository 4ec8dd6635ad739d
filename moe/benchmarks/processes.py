"""Benchmarks of whole processes: `memory` and `startup`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from moe.benchmarks import library
from moe.benchmarks.latency import FASTER, shape_of
from moe.benchmarks.models import bundle_of, library_tokenizer, plain_classifier, plain_reader
from moe.benchmarks.offline import mixed_texts
from moe.benchmarks.pairs import Benchmark, Case, Options
from moe.checkpoint import save_bundle
from moe.onnx.export import write
from moe.types import InputError

TEXT = "Wake me at seven tomorrow, please."
TEXTS = 24  # of mixed length, that every process answers before it is measured
CLASSES = {"sentiment": 2, "intent": 151}


def own_script(options: Options, name: str) -> str:
    """Another script beside `scripts/benchmark.py`."""
    return str(Path(options.script).with_name(name))


def resident_megabytes(process: int) -> float:
    """Memory of a process, pages that it shares counted in part (PSS)."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
    except OSError as error:
        raise InputError(
            f"benchmark memory: /proc/{process}/smaps_rollup cannot be read ({error.strerror}): it "
            "needs Linux"
        ) from error
    (entry,) = [row for row in text.splitlines() if row.startswith("Pss:")]
    return float(entry.split()[1]) * 1024 / 1e6


# --- memory -----------------------------------------------------------------------------------


def served_megabytes(command: list[str]) -> float:
    """Memory of a server after `TEXTS` requests."""
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = json.loads(server.stdout.readline())["port"]
        for text in [TEXT, *mixed_texts(TEXTS)]:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/predict",
                json.dumps({"text": text}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
        return resident_megabytes(server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)


def save_library_models(folder: Path, options: Options) -> None:
    """What `moe.benchmarks.library` reads: three models, a tokenizer, texts."""
    shape = shape_of(options)
    for name, classes in CLASSES.items():
        plain_classifier(shape, classes).save_pretrained(folder / name)
    plain_reader(shape).save_pretrained(folder / "qa")
    tokenizer = library_tokenizer(bundle_of(options.checkpoint, shape).tokenizer)
    tokenizer.save_pretrained(folder)
    (folder / "texts.json").write_text(json.dumps([TEXT, *mixed_texts(TEXTS)]), encoding="utf-8")


@contextmanager
def saved_models(options: Options) -> Iterator[Path]:
    """A folder with our model, `ours` and `onnx`, and those of Hugging Face, `library`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = bundle_of(options.checkpoint, shape_of(options))
        (folder / "onnx").mkdir()
        write(bundle, folder / "onnx", int8=True, checked=False)
        save_bundle(bundle, folder / "ours")
        save_library_models(folder / "library", options)
        yield folder


def library_command(name: str, folder: Path, options: Options) -> list[str]:
    """Runs a function of `moe.benchmarks.library` in a process of its own."""
    return [sys.executable, library.__file__, name, str(folder), str(options.threads)]


def _finished(command: list[str]) -> str:
    """What a process printed.

    Raises:
        RuntimeError: It failed.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: exit code {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def printed(command: list[str]) -> float:
    """The figure that a process prints last.

    Raises:
        RuntimeError: It failed.
    """
    return float(_finished(command).split()[-1])


def run_side(script: str, settings: dict[str, Any]) -> float:
    """A figure that another process of `scripts/benchmark.py` measures."""
    return printed([sys.executable, script, "--side", json.dumps(settings)])


def memory(options: Options) -> Iterator[Case]:
    """A server on ONNX Runtime and one on torch, each against three models in one process."""
    serve = [sys.executable, own_script(options, "serve.py"), "--port", "0"]
    serve += ["--threads", str(options.threads)]
    with saved_models(options) as folder:
        baseline = library_command("memory", folder / "library", options)
        sources = {"onnx": ["--onnx", folder / "onnx"], "torch": ["--ckpt", folder / "ours"]}
        for case, source in sources.items():
            command = [*serve, *map(str, source)]
            yield Case(
                name=case,
                ours=partial(served_megabytes, command),
                baseline=partial(printed, baseline),
            )


# --- startup ----------------------------------------------------------------------------------


def seconds_to_end(command: list[str]) -> float:
    """From the start of a process to its end.

    Raises:
        RuntimeError: It failed.
    """
    start = time.perf_counter()
    _finished(command)
    return time.perf_counter() - start


def startup(options: Options) -> Iterator[Case]:
    """One text from the shell, in ONNX Runtime and in torch, against one Hugging Face model."""
    predict = [sys.executable, own_script(options, "predict.py"), TEXT]
    with saved_models(options) as folder:
        baseline = library_command("startup", folder / "library", options)
        for case, source in (("onnx", ["--backend", "onnx"]), ("torch", [])):
            place = folder / ("onnx" if case == "onnx" else "ours")
            command = [*predict, *source, "--ckpt", str(place)]
            yield Case(
                name=case,
                ours=partial(seconds_to_end, command),
                baseline=partial(seconds_to_end, baseline),
            )


MEMORY = Benchmark(
    about="PSS of our server (scripts/serve.py) that answers three tasks, against one process with "
    "three Hugging Face models and no server; after 24 texts of mixed length",
    cases=memory,
    unit="MB",
    ratio="ours / baseline",
    better="below 1 ours is smaller",
)
STARTUP = Benchmark(
    about="scripts/predict.py with one text, from the start of the process to its end, against a "
    "process that loads one Hugging Face classifier for it",
    cases=startup,
    unit="s",
    ratio="baseline / ours",
    better=FASTER,
)
