"""Paired speed and memory ratios against Hugging Face's own models: `scripts/benchmark.py`.

One table; a new benchmark is one `Benchmark` and one line here.
"""

from __future__ import annotations

from moe.benchmarks.events import EVENTS
from moe.benchmarks.experts import EXPERTS
from moe.benchmarks.latency import GATE_OVERHEAD, GPU, INT8, TWO_TASKS
from moe.benchmarks.offline import OFFLINE
from moe.benchmarks.pairs import Benchmark, Options, run_benchmark
from moe.benchmarks.processes import MEMORY, STARTUP
from moe.benchmarks.train import TRAIN
from moe.benchmarks.train_cpu import TRAIN_CPU

__all__ = ["BENCHMARKS", "Benchmark", "Options", "run_benchmark"]

BENCHMARKS: dict[str, Benchmark] = {
    "two-tasks": TWO_TASKS,
    "gate-overhead": GATE_OVERHEAD,
    "int8": INT8,
    "offline": OFFLINE,
    "events": EVENTS,
    "experts": EXPERTS,
    "memory": MEMORY,
    "startup": STARTUP,
    "train": TRAIN,
    "train-cpu": TRAIN_CPU,
    "gpu": GPU,
}
