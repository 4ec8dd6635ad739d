"""Hours in short: whether memory, descriptors or threads grow with steps or requests."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moe.chaos.process import fork, run_folder, train
from moe.chaos.project import BAD, GOOD, MUSIC, TIME, make_project
from moe.chaos.report import Report

SERVE = Path(__file__).parents[2] / "scripts" / "serve.py"
SETTLED = 0.3  # share of the time after which a process should not grow any more
SAMPLE_SECONDS = 0.5


@dataclass
class Watch:
    """What a process held over time, read from /proc.

    Attributes:
        seconds: Since the first look.
        memory: Resident, in bytes.
        descriptors: Open files and sockets.
        threads: Of the process.
    """

    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def look(self, process: int) -> bool:
        """Notes what it holds; False if it is gone."""
        try:
            status = Path(f"/proc/{process}/status").read_text()
            descriptors = len(os.listdir(f"/proc/{process}/fd"))
        except OSError:
            return False
        found = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE))
        if "VmRSS" not in found:  # it has ended and waits to be reaped
            return False
        self.seconds.append(time.monotonic())
        self.memory.append(int(found["VmRSS"]) * 1024)
        self.descriptors.append(descriptors)
        self.threads.append(int(found["Threads"]))
        return True

    def growth(self) -> tuple[float, float]:
        """By how many bytes the settled part grew, and twice the noise around that line."""
        first = int(len(self.memory) * SETTLED)
        seconds = np.array(self.seconds[first:])
        memory = np.array(self.memory[first:], dtype=float)
        slope, start = np.polyfit(seconds - seconds[0], memory, 1)
        noise = memory - (slope * (seconds - seconds[0]) + start)
        return float(slope * (seconds[-1] - seconds[0])), float(2 * noise.std())

    def problems(self, allowed: float) -> list[str]:
        """What grew: memory by more than the noise and `allowed` bytes, or the highest counts."""
        grown, noise = self.growth()
        found = []
        if grown > max(noise, allowed):
            found.append(f"memory grew by {grown:.0f} bytes, noise {noise:.0f}")
        half = len(self.memory) // 2
        for name in ("descriptors", "threads"):
            counts = getattr(self, name)
            if max(counts[half:]) > max(counts[int(len(counts) * SETTLED) : half]):
                found.append(f"{name} grew to {max(counts[half:])}")
        return found


def soak(scratch: Path, steps: int = 2000, minutes: float = 10.0) -> Report:
    """A training of `steps` steps, and a server under mixed requests for `minutes`."""
    report = Report(name="soak")
    config = make_project(scratch, checkpoint_every=50)
    watch = Watch()
    options = ["--config", config, "--trainer.max_steps", steps, "--trainer.val_check_interval"]
    process = fork(train(*options, max(steps // 10, 1)), scratch / "log")
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        watch.look(process)
        time.sleep(SAMPLE_SECONDS)
    best = run_folder(scratch / "runs") / "checkpoints" / "best.ckpt"
    report.case("training", watch.problems(5e6) if best.exists() else ["did not finish"])
    _note(report, "training", watch)
    watch, answered = serve_and_ask(best, minutes, scratch / "server.log")
    report.case("serving", watch.problems(5e6) if answered else ["no request was answered"])
    _note(report, "serving", watch)
    report.numbers |= {"steps": steps, "requests": answered, "minutes": minutes}
    return report


def _note(report: Report, name: str, watch: Watch) -> None:
    grown, noise = watch.growth()
    report.numbers |= {
        f"{name}_megabytes": round(watch.memory[-1] / 1e6),
        f"{name}_grown_megabytes": round(grown / 1e6, 2),
        f"{name}_noise_megabytes": round(noise / 1e6, 2),
        f"{name}_descriptors": watch.descriptors[-1],
        f"{name}_threads": watch.threads[-1],
    }


def serve_and_ask(checkpoint: Path, minutes: float, log: Path) -> tuple[Watch, int]:
    """Mixed requests, some of them wrong, to a server; what it held, and the answers it gave."""
    command = [sys.executable, str(SERVE), "--ckpt", str(checkpoint), "--port", "0"]
    watch, answered, chance = Watch(), 0, random.Random(3)
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            url = f"http://127.0.0.1:{_port(server, log)}/predict"
            until, look_at = time.monotonic() + 60 * minutes, 0.0
            while time.monotonic() < until:
                answered += _ask(url, chance)
                if time.monotonic() > look_at:
                    watch.look(server.pid)
                    look_at = time.monotonic() + SAMPLE_SECONDS
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    return watch, answered


def _port(server: subprocess.Popen[bytes], log: Path) -> int:
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        found = re.search(r'"port": ?(\d+)', log.read_text())
        if found:
            return int(found[1])
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start, see {log}")


def _ask(url: str, chance: random.Random) -> bool:
    text = " ".join(chance.choices(GOOD + BAD + TIME + MUSIC, k=chance.randint(1, 20)))
    body: dict[str, object] = {"text": text}
    kind = chance.random()
    if kind < 0.3:
        body |= {"text": "who built the mill?", "context": f"the mill was built by abc. {text}"}
    elif kind < 0.4:
        body = {"txt": text}  # is refused
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bool(answer.read())
    except urllib.error.HTTPError as error:
        error.read()
        return False
