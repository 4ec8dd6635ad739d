"""Rows about requests, written beside the service: no text, bounded memory, bounded disk.

Rows wait in a bounded queue for one thread, which writes them as Parquet parts. A part appears
complete or not at all. What cannot be written is dropped and counted: telemetry may be lost, the
service may not.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from moe.monitor.rows import Row, part_table
from moe.types import InputError

log = logging.getLogger("moe.server")
_STALE = 3600.0  # seconds after which a half-written part belongs to a process that is gone


class TelemetryWriter:
    """Writes rows as Parquet parts in a folder.

    Args:
        folder: Of the parts; several processes may share it.
        max_bytes: Most bytes of parts in the folder; the oldest are deleted.
        part_rows: Rows of a part.
        part_seconds: Time after which a part is written with fewer.
        waiting_rows: Most rows in memory that wait to be taken.
        dropped: Called with the number of rows that were lost, on any thread.

    Raises:
        InputError: The folder cannot be written, or pyarrow is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_bytes: int = 2**30,
        part_rows: int = 2000,
        part_seconds: float = 60.0,
        waiting_rows: int = 10_000,
        dropped: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.folder = Path(folder)
        self._max_bytes, self._part_rows = max_bytes, part_rows
        self._part_seconds = part_seconds
        self._dropped = dropped
        self._queue: queue.Queue[Row | None] = queue.Queue(waiting_rows)
        self._rows: list[Row] = []
        self._number = 0
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="telemetry", daemon=True)
        self._prepare()

    def _prepare(self) -> None:
        try:
            import pyarrow.parquet  # noqa: F401  # before the first request, not at the first part
        except ImportError as error:
            raise InputError(
                "--telemetry needs pyarrow, which is not installed: pip install pyarrow"
            ) from error
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".{os.getpid()}.partial"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"--telemetry {self.folder}: cannot be written ({error.strerror})"
            ) from error

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def record(self, row: Row) -> None:
        """Takes a row, or drops it if too many wait; never blocks."""
        try:
            self._queue.put_nowait(row)
        except queue.Full:
            self._dropped(1)

    def close(self, seconds: float = 5.0) -> None:
        """Writes what waits, within that time."""
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _work(self) -> None:
        since, is_open = time.monotonic(), True
        while is_open:
            try:
                row = self._queue.get(
                    timeout=max(0.01, since + self._part_seconds - time.monotonic())
                )
            except queue.Empty:
                pass
            else:
                is_open = row is not None
                if row is not None:
                    since = self._take(row, since)
            if not is_open or time.monotonic() - since >= self._part_seconds:
                self._flush()
                since = time.monotonic()

    def _take(self, row: Row, since: float) -> float:
        """Keeps a row; returns when the oldest kept one came."""
        if self._rows and not _alike(row, self._rows[0]):
            self._flush()  # a part is of one model
        if not self._rows:
            since = time.monotonic()
        self._rows.append(row)
        if len(self._rows) >= self._part_rows:
            self._flush()
        return since

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        try:
            self._write(rows)
            self._trim()
            self._failing = False
        except Exception as error:  # a full disk, a folder that is gone: the service goes on
            self._dropped(len(rows))
            if not self._failing:  # once, not with every part
                fields = {"rows": len(rows), "error": f"{type(error).__name__}: {error}"[:300]}
                log.error("telemetry is lost", extra={"fields": fields})
            self._failing = True

    def _write(self, rows: Sequence[Row]) -> None:
        import pyarrow.parquet as pq

        moment = datetime.fromtimestamp(rows[0].time, UTC).strftime("%Y%m%dT%H%M%S%f")
        name = f"part-{moment}-{os.getpid()}-{self._number:06d}.parquet"
        self._number += 1
        partial = self.folder / f".{name}.partial"
        try:
            pq.write_table(part_table(rows), partial, compression="zstd")
            os.replace(partial, self.folder / name)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _trim(self) -> None:
        """Deletes the oldest parts above the size bound, and what a killed process left."""
        for left in self.folder.glob(".part-*.partial"):
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink(missing_ok=True)
        parts = sorted(self.folder.glob("part-*.parquet"))
        sizes = [_size(part) for part in parts]
        total = sum(sizes)
        for part, size in zip(parts[:-1], sizes, strict=False):
            if total <= self._max_bytes:
                break
            part.unlink(missing_ok=True)
            total -= size


def _alike(row: Row, other: Row) -> bool:
    return (row.model, row.experts, row.embedding is None) == (
        other.model,
        other.experts,
        other.embedding is None,
    )


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:  # another process was first
        return 0
