"""Paired measurements: both sides of a case in turn, and the ratio of every pair.

What else the machine does changes from minute to minute and hits both sides of a round alike: the
ratio of a pair is steadier than either figure.
"""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

SECONDS = 0.3  # that one side of a round is measured for, at least one call


@dataclass(frozen=True, kw_only=True)
class Case:
    """Two sides that do the same work.

    Attributes:
        name: Such as `1x16`: rows x tokens.
        ours, baseline: Measure one side once; both in the unit of the benchmark.
        facts: What else is worth knowing, such as how many labels agree.
    """

    name: str
    ours: Callable[[], float]
    baseline: Callable[[], float]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of a run of `scripts/benchmark.py`.

    Attributes:
        rounds: Pairs of measurements per case.
        threads: Of both sides.
        checkpoint: Of a trained model; None builds one in the shape of `configs/local.yaml`.
        data: Folder of the files of `configs/local.yaml`, for `train` and `offline`; None takes the
            packaged samples.
        script: That runs one side in a process of its own.
        quick: A tiny form, for tests: says nothing about speed.
    """

    rounds: int = 7
    threads: int = 1
    checkpoint: str | None = None
    data: str | None = None
    script: str = "scripts/benchmark.py"
    quick: bool = False


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What `scripts/benchmark.py NAME` runs.

    Attributes:
        about: One line: what is compared.
        cases: Prepares its cases, one after another.
        unit: Of `ours` and `baseline`.
        ratio: How the two are divided.
        better: Which ratios are good.
        side: Measures one side in a process of its own; None if no case needs that.
    """

    about: str
    cases: Callable[[Options], Iterable[Case]]
    unit: str
    ratio: Literal["ours / baseline", "baseline / ours"]
    better: str
    side: Callable[..., float] | None = None


def seconds_per_call(call: Callable[[], Any], seconds: float | None = None) -> float:
    """Median time of the calls of so many seconds, by default `SECONDS`, after a first one."""
    call()
    times: list[float] = []
    end = time.perf_counter() + (SECONDS if seconds is None else seconds)
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def timed(name: str, ours: Callable[[], Any], baseline: Callable[[], Any], **facts: Any) -> Case:
    """A case in seconds per call."""
    return Case(
        name=name,
        ours=lambda: seconds_per_call(ours),
        baseline=lambda: seconds_per_call(baseline),
        facts=facts,
    )


def run_case(case: Case, rounds: int, ratio: str) -> dict[str, Any]:
    """Median, smallest and largest ratio over interleaved rounds, and the medians of both sides.

    Every other round begins with the baseline.
    """
    pairs = []
    for number in range(rounds):
        if number % 2:
            baseline = case.baseline()
            pairs.append((case.ours(), baseline))
        else:
            pairs.append((case.ours(), case.baseline()))
    up = ratio == "ours / baseline"
    ratios = sorted(ours / base if up else base / ours for ours, base in pairs)
    return {
        "ratio": {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]},
        "ours": statistics.median(ours for ours, _ in pairs),
        "baseline": statistics.median(baseline for _, baseline in pairs),
    }


def run_benchmark(
    name: str, benchmark: Benchmark, options: Options, say: Callable[[str], Any] = print
) -> dict[str, Any]:
    """Measures every case and says what came out; the report of `--json`."""
    torch.set_num_threads(options.threads)
    say(f"{name}: {benchmark.about} ({benchmark.ratio}; {benchmark.better})")
    cases, facts = {}, {}
    for case in benchmark.cases(options):
        cases[case.name] = run_case(case, options.rounds, benchmark.ratio)
        facts[case.name] = case.facts
        say(line(case, cases[case.name], benchmark.unit))
    return {"name": name, "cases": cases, "setup": setup(benchmark, options, facts)}


def line(case: Case, result: dict[str, Any], unit: str) -> str:
    """A case as text."""
    ratio = result["ratio"]
    facts = "".join(f"  {key} {value}" for key, value in case.facts.items())
    return (
        f"{case.name:<22}{ratio['median']:7.3f}x ({ratio['min']:.3f} to {ratio['max']:.3f})  "
        f"{result['ours']:.4g} against {result['baseline']:.4g} {unit}{facts}"
    )


def setup(benchmark: Benchmark, options: Options, facts: dict[str, Any]) -> dict[str, Any]:
    """What a figure belongs to: machine, versions, and how to read it."""
    packages = ("torch", "transformers", "onnxruntime", "lightning")
    return {
        "about": benchmark.about,
        "unit": benchmark.unit,
        "ratio": benchmark.ratio,
        "better": benchmark.better,
        "rounds": options.rounds,
        "threads": options.threads,
        "checkpoint": options.checkpoint or "random weights in the shape of configs/local.yaml",
        "facts": {name: found for name, found in facts.items() if found},
        "processor": processor(),
        "avx512_vnni": "avx512_vnni" in _cpu_info(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def processor() -> str:
    """What the machine calls its processor."""
    for entry in _cpu_info().splitlines():
        if entry.startswith("model name"):
            return entry.partition(":")[2].strip()
    return platform.machine()


def _cpu_info() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8") if info.is_file() else ""
