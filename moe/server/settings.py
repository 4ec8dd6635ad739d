"""What the command line of the server sets, checked once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from moe.types import InputError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Most of everything; each is at least 1.

    Attributes:
        batch_tokens: Tokens of a batch; a single larger request runs alone.
        queue_items: Requests that may wait, over all connections.
        queue_tokens: Tokens that may wait.
        items: Requests in one HTTP request.
        characters: Text, context and id of one request together, in characters.
        body: Bytes of an HTTP body.
        body_seconds: Time in which a body must have arrived.
        grace_seconds: Time for accepted requests after SIGTERM.
    """

    batch_tokens: int = 1024
    queue_items: int = 256
    queue_tokens: int = 65_536
    items: int = 32
    characters: int = 20_000
    body: int = 2 * 1024 * 1024
    body_seconds: float = 10.0
    grace_seconds: float = 25.0

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value < 1:
                raise InputError(f"server: {limit.name} must be at least 1, got {value}")
        if self.items > self.queue_items:
            raise InputError(
                f"server: {self.items} requests in one body never fit a queue of "
                f"{self.queue_items}: raise --max-queue or lower --max-items"
            )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to serve.

    Attributes:
        checkpoint: A `.ckpt`, a folder or a hub id; None where `onnx` is given.
        onnx: An export of `scripts/export.py`, instead of a checkpoint.
        registry: `models/NAME` of `scripts/gate.py promote`: what is current there is served, and
            replaced when another version becomes current.
        registry_seconds: Time between two looks at what is current, at least 0.05.
        precision: Of the export, `fp32` or `int8`; None chooses (`moe.onnx.bundle.load_onnx`).
        device: `cpu`, `cuda`, ...; None takes a GPU if there is one.
        threads: CPU threads of a batch; None takes one per core.
        host: Address to listen on.
        port: TCP port; 0 takes a free one, which the first log line names.
        api_keys: Accepted bearer tokens; empty lets everyone in.
        log_texts: Whether the log holds requests and answers.
        telemetry: Folder of Parquet parts about requests, without their texts; None writes none.
        telemetry_embeddings: Whether these hold what the gate read.
        telemetry_bytes: Most bytes of the folder's parts, at least 1 MB.
        feedback: Folder of the quarantine of `POST /feedback`; None has no such route.
        feedback_per_source: Most corrections of one source in a day, at least 1.
        limits: See `Limits`.
    """

    checkpoint: str | None = None
    onnx: str | None = None
    registry: str | None = None
    registry_seconds: float = 2.0
    precision: Literal["fp32", "int8"] | None = None
    device: str | None = None
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[bytes, ...] = field(default=(), repr=False)
    log_texts: bool = False
    telemetry: str | None = None
    telemetry_embeddings: bool = False
    telemetry_bytes: int = 2**30
    feedback: str | None = None
    feedback_per_source: int = 50
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        given = [v for v in (self.checkpoint, self.onnx, self.registry) if v is not None]
        if len(given) != 1:
            raise InputError(
                f"server: give one of --ckpt PATH, --onnx DIR and --registry DIR, got {given}"
            )
        if self.feedback_per_source < 1:
            raise InputError(
                f"server: --feedback-per-source must be at least 1, got {self.feedback_per_source}"
            )
        if self.telemetry is None and self.telemetry_embeddings:
            raise InputError("server: --telemetry-embeddings goes with --telemetry DIR")
        if self.telemetry_bytes < 1_000_000:
            raise InputError(
                f"server: --telemetry-bytes must be at least 1000000, got {self.telemetry_bytes}"
            )
        if self.registry_seconds < 0.05:
            raise InputError(
                f"server: --registry-seconds must be at least 0.05, got {self.registry_seconds:g}"
            )
        if self.onnx is not None and self.device is not None:
            raise InputError(
                f"server: --device {self.device} goes with --ckpt; --onnx computes on the CPU"
            )
        if self.onnx is None and self.precision is not None:
            raise InputError(f"server: --precision {self.precision} goes with --onnx")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"server: --threads must be at least 1, got {self.threads}")
        if not 0 <= self.port < 65_536:
            raise InputError(f"server: --port must be in [0, 65535], got {self.port}")


def read_keys(path: str | Path | None) -> tuple[bytes, ...]:
    """The keys of a file, one a line; lines that are empty or begin with # do not count.

    Raises:
        InputError: The file cannot be read, or it holds no key.
    """
    if path is None:
        return ()
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"--api-key-file {path}: cannot be read ({error.strerror})") from error
    keys = tuple(key for line in lines if (key := line.strip()) and not key.startswith(b"#"))
    if not keys:
        raise InputError(f"--api-key-file {path}: no key in it, expected one a line")
    return keys


def settings_of(values: dict[str, Any]) -> Settings:
    """The settings that the values of the command line, by destination, describe."""
    limits = {f.name: values.pop(f.name) for f in fields(Limits) if f.name in values}
    keys = read_keys(values.pop("api_key_file", None))
    return Settings(**values, api_keys=keys, limits=Limits(**limits))
