"""The files of an offline prediction: what was stopped can go on, and parts become one output.

Good rows are answered in windows of `WINDOW`; window k is the work of device k mod devices, which
appends its answers to a part file. Since every window but the last is full, the lines of a part
file say which windows are done, and joining takes blocks of `WINDOW` lines in turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

from moe.request_files import read_rows
from moe.requests import Request
from moe.streams import WINDOW, Parse, windows
from moe.types import InputError


@dataclass(frozen=True, kw_only=True)
class Job:
    """A file to answer.

    Attributes:
        ckpt: A .ckpt, a folder, or a hub id.
        input: `.jsonl`, `.csv` or `.parquet`.
        output: JSON lines, one answer per good row in the order of the input.
        error_file: JSON lines with `line` and `reason` of each bad row; None puts it beside
            `output`. There is no file if there is no bad row.
        tasks: Of every row that names none.
        explain: See `MixtureOfExperts.predict`.
        backend: `torch`, or `onnx` for an export.
        device: `cpu`, `cuda`, ...; None takes a GPU if there is one.
        devices: How many share the work.
        resume: Goes on with a stopped run, starts one if there is none.
    """

    ckpt: str
    input: Path
    output: Path
    error_file: Path | None = None
    tasks: tuple[str, ...] | None = None
    explain: bool = False
    backend: Literal["torch", "onnx"] = "torch"
    device: str | None = None
    devices: int = 1
    resume: bool = False

    @property
    def errors(self) -> Path:
        """The error file."""
        return self.error_file or self.output.with_name(f"{self.output.name}.errors.jsonl")

    @property
    def state(self) -> Path:
        """What a part file belongs to; there from the start of a run to its end."""
        return self.output.with_name(f"{self.output.name}.partial.json")

    @property
    def parts(self) -> list[Path]:
        """The part file of each device."""
        name = f"{self.output.name}.partial"
        names = [name] if self.devices == 1 else [f"{name}.{n}" for n in range(self.devices)]
        return [self.output.with_name(name) for name in names]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a job ended.

    Attributes:
        answered: Rows in the output.
        bad: Rows in the error file.
        computed: Rows that this call answered; the others were there when it resumed.
        seconds: From the first row to the last.
    """

    answered: int
    bad: int
    computed: int
    seconds: float

    def __str__(self) -> str:
        rate = self.computed / max(self.seconds, 1e-9)
        return (
            f"{self.answered + self.bad} rows: {self.answered} answered, {self.bad} bad; "
            f"{self.computed} in {self.seconds:.1f} s, {rate:.1f} rows/s"
        )


@dataclass(frozen=True, kw_only=True)
class FileWindow:
    """Requests that are answered together.

    Attributes:
        requests: `WINDOW` of them, fewer only at the end of the file.
        rows: Rows of the file read so far, bad ones included.
    """

    requests: tuple[Request, ...]
    rows: int


class FileWindows:
    """The windows of a file that are the work of one device.

    Every device reads the whole file, since only the good rows are counted; the first one writes
    the error file, from its start also when it resumes.

    Args:
        job: The file.
        parse: Checks a row.
        device: Number of the device.
        done: How many of its windows it has finished already.
    """

    def __init__(self, job: Job, parse: Parse, *, device: int, done: int) -> None:
        self.job = job
        self.parse = parse
        self.device = device
        self.done = done
        self._rows = 0

    def __iter__(self) -> Iterator[FileWindow]:
        self._rows = 0
        for number, window in enumerate(windows(self._good_rows())):
            turn, device = divmod(number, self.job.devices)
            if device == self.device and turn >= self.done:
                yield FileWindow(requests=tuple(window), rows=self._rows)

    def _good_rows(self) -> Iterator[Request]:
        for row in read_rows(self.job.input):
            self._rows += 1
            try:
                request = row.request(self.parse)
            except InputError as error:
                self._refuse(row.line, str(error))
                continue
            yield request

    def _refuse(self, line: int, reason: str) -> None:
        if self.device == 0:
            with self.job.errors.open("ab") as file:
                file.write(json_line({"line": line, "reason": reason}))


def prepare(job: Job) -> list[int]:
    """Makes part files to append to; returns how many windows each holds already.

    Raises:
        InputError: A file cannot be written, a stopped run is in the way, or the run to go on
            with was another one.
    """
    if len({path.resolve() for path in (job.input, job.output, job.errors)}) < 3:
        raise InputError(f"--output {job.output}: input, output and error file must be three files")
    identity = _identity(job)
    if not job.state.exists():
        try:
            for part in job.parts:
                part.write_bytes(b"")
            job.state.write_text(json.dumps(identity), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--output {job.output}: cannot be written ({error})") from error
    elif not job.resume:
        raise InputError(
            f"--output {job.output}: {job.state.name} is left of a stopped run: go on with "
            f"--resume, or delete {job.output.name}.partial* to start again"
        )
    saved = json.loads(job.state.read_text(encoding="utf-8"))
    for name, value in identity.items():
        if saved.get(name) != value:
            raise InputError(
                f"--resume: {name} was {saved.get(name)} when the run began and is {value}: their "
                f"answers do not go together; delete {job.output.name}.partial* to start again"
            )
    job.errors.unlink(missing_ok=True)
    return [_whole_windows(part) for part in job.parts]


def _identity(job: Job) -> dict[str, Any]:
    """What must not change between the parts of one run, as JSON values."""
    return {
        "--input": _file_identity(job.input),
        "--ckpt": _file_identity(Path(job.ckpt)),
        "--tasks": None if job.tasks is None else list(job.tasks),
        "--explain": job.explain,
        "--devices": job.devices,
        "window": WINDOW,
    }


def _file_identity(path: Path) -> list[Any]:
    if not path.exists():  # a hub id
        return [str(path)]
    # Of a folder the newest file: its weights, whatever they are called.
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    found = [file.stat() for file in files]
    return [
        str(path.resolve()),
        sum(stat.st_size for stat in found),
        max(stat.st_mtime_ns for stat in found),
    ]


def _whole_windows(part: Path) -> int:
    """Cuts a part file after its last whole window; returns how many it holds."""
    lines = position = end = 0
    part.touch()
    with part.open("r+b") as file:
        for raw in file:
            position += len(raw)
            lines += raw.endswith(b"\n")
            if lines % WINDOW == 0 and raw.endswith(b"\n"):
                end = position
        file.truncate(end)
    return lines // WINDOW


def join(job: Job) -> int:
    """Makes the output of the part files; returns its rows."""
    if job.devices == 1:
        job.parts[0].replace(job.output)
    else:
        whole = job.output.with_name(f"{job.output.name}.partial")
        with ExitStack() as stack, whole.open("wb") as output:
            files = [stack.enter_context(part.open("rb")) for part in job.parts]
            for file in cycle(files):
                window = list(islice(file, WINDOW))
                output.writelines(window)
                if len(window) < WINDOW:
                    break
        whole.replace(job.output)
        for part in job.parts:
            part.unlink()
    job.state.unlink()
    return count_lines(job.output)


def json_line(value: dict[str, Any]) -> bytes:
    """An answer as a line of a file."""
    # A lone surrogate of an `id` becomes the escape that JSON has for it.
    text = json.dumps(value, ensure_ascii=False) + "\n"
    return text.encode("utf-8", errors="backslashreplace")


def count_lines(path: Path) -> int:
    """Lines of a file, 0 if there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)
