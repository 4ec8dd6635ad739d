"""A directory of released models: `models/NAME/VERSION`, and a link `current` to one of them.

    models/assistant/
      v1/  manifest.json  report.json  report.md  report.xml  model.ckpt
      v2/  manifest.json  ...                                 model/...
      current -> v2

A version appears complete or not at all and is never changed; `current` is replaced in one step, so
that a reader sees the old version or the new one. Standard library alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moe.durable import digest
from moe.release.hashing import SINGLE, combined_hash, model_files
from moe.types import InputError

CURRENT, MANIFEST, REPORT = "current", "manifest.json", "report.json"
_FORMAT = 1


class Refused(RuntimeError):
    """A model that may not be served: entry points print the reason and exit with code 1."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a version is.

    Attributes:
        version: `v1`, `v2`, ...
        model: The model inside the version's folder: `model.ckpt`, or the folder `model`.
        backend: `torch` or `onnx`.
        precision: Of an export, `fp32` or `int8`; None for torch.
        hash: One SHA-256 for the model's files.
        files: SHA-256 by name of every file beside the manifest.
        replaces: The version that was current before, None for the first.
        promoted: When, UTC.
        canaries: Requests with what must be answered; the server asks some before it swaps.
        format: Of this file.
    """

    version: str
    model: str
    backend: str
    precision: str | None
    hash: str
    files: Mapping[str, str]
    replaces: str | None
    promoted: str
    canaries: Sequence[Mapping[str, Any]] = field(default=())
    format: int = _FORMAT


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a version.

    Raises:
        InputError: There is none, or it is of another form.
    """
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest(**values)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{folder}: no readable {MANIFEST} ({' '.join(str(error).split())[:120]}): expected a "
            "version that scripts/gate.py promote wrote"
        ) from error
    if manifest.format != _FORMAT:
        raise InputError(
            f"{folder}: manifest format {manifest.format!r}, this program reads {_FORMAT}"
        )
    return manifest


def verify(folder: Path) -> Manifest:
    """The manifest of a version whose files are all there and unchanged.

    Raises:
        InputError: No manifest, or a file is missing, changed, or too many.
    """
    manifest = read_manifest(folder)
    found = {name: path for name, path in model_files(folder).items() if name != MANIFEST}
    for name in sorted(found.keys() ^ manifest.files.keys()):
        state = "is not in the manifest" if name in found else "is missing"
        raise InputError(f"{folder}: {name} {state}: promote the model again")
    for name, path in found.items():
        if digest(path) != manifest.files[name]:
            raise InputError(
                f"{folder}: {name} is not the file that was promoted (SHA-256 differs): promote "
                "the model again"
            )
    if _hash_of(manifest.files, manifest.model) != manifest.hash:
        raise InputError(f"{folder}: the hash in {MANIFEST} is not that of the model's files")
    return manifest


def _hash_of(files: Mapping[str, str], model: str) -> str:
    """Of the model among a version's files, as `model_hash` of where it came from."""
    if model == SINGLE:
        return combined_hash({SINGLE: files.get(SINGLE, "")})
    inside = f"{model}/"
    return combined_hash(
        {name.removeprefix(inside): h for name, h in files.items() if name.startswith(inside)}
    )


class Registry:
    """The released versions of one model.

    Args:
        folder: `models/NAME`; `promote` creates it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def current(self) -> Path | None:
        """The folder of the version that is to be served, None before the first."""
        try:
            return self.folder / os.readlink(self.folder / CURRENT)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(
                f"{self.folder / CURRENT}: expected a link to a version ({error.strerror})"
            ) from error

    def versions(self) -> list[str]:
        """`v1`, `v2`, ... in the order in which they were promoted."""
        names = [path.name for path in self.folder.glob("v*") if path.name[1:].isdecimal()]
        return sorted(names, key=lambda name: int(name[1:]))

    def promote(self, source: Path, report: Path) -> str:
        """Takes in a model that passed the gate and makes it current; returns its version.

        Args:
            source: The candidate, as it was judged.
            report: The JSON of the check.

        Raises:
            Refused: The report refuses, is of another model, or compared with another version
                than the current one.
            InputError: There is no such model or report.
        """
        judged = _read_report(report)
        with self._locked():
            before = self._admit(judged, report)
            version = f"v{max((int(name[1:]) for name in self.versions()), default=0) + 1}"
            folder = self._copy(version, source, report)
            try:
                self._write_manifest(folder, version, judged, before)
                os.replace(folder, self.folder / version)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._point(version)
        return version

    def rollback(self, to: str | None = None) -> tuple[str, str]:
        """Makes an earlier version current again; returns the versions before and after.

        Args:
            to: Which one; None takes the one that the current version replaced.

        Raises:
            InputError: There is no such version, or its files are not those that were promoted.
        """
        with self._locked():
            current = self.current()
            if current is None:
                raise InputError(f"{self.folder}: no version is current, so none can be taken back")
            target = to or read_manifest(current).replaces
            if target is None:
                raise InputError(f"{current}: the first version, there is none before it")
            if target not in self.versions():
                raise InputError(
                    f"{self.folder}: no version {target!r}, the versions are {self.versions()}"
                )
            verify(self.folder / target)
            self._point(target)
        return current.name, target

    def _admit(self, judged: Mapping[str, Any], report: Path) -> str | None:
        """The version that a judged model replaces."""
        if not judged["passed"]:
            raise Refused(f"{report}: the gate refused this model: nothing is promoted")
        current = self.current()
        if current is None:
            return None
        baseline = judged["baseline"] or {"hash": None}
        manifest = read_manifest(current)
        if baseline["hash"] != manifest.hash:
            raise Refused(
                f"{report}: compares with the model {str(baseline['hash'])[:12]}, but {current} "
                f"is {manifest.hash[:12]}: check again with --baseline {self.folder}"
            )
        return current.name

    def _copy(self, version: str, source: Path, report: Path) -> Path:
        if not source.exists():
            raise InputError(f"{source}: no such model")
        folder = self.folder / f".{version}.{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if source.is_file():
            shutil.copyfile(source, folder / SINGLE)
        else:
            shutil.copytree(source, folder / "model")
        for file in sorted(report.parent.glob(f"{report.stem}.*")):
            if file.suffix in (".json", ".md", ".xml"):
                shutil.copyfile(file, folder / f"report{file.suffix}")
        return folder

    def _write_manifest(
        self,
        folder: Path,
        version: str,
        judged: Mapping[str, Any],
        before: str | None,
    ) -> None:
        model = SINGLE if (folder / SINGLE).is_file() else "model"
        files = {name: digest(path) for name, path in model_files(folder).items()}
        candidate, found = judged["candidate"], _hash_of(files, model)
        if found != candidate["hash"]:  # of the copy: nothing can change after this look
            raise Refused(
                f"the model with the hash {found[:12]} is not the one that was judged, "
                f"{candidate['hash'][:12]}: check it again"
            )
        manifest = Manifest(
            version=version,
            model=model,
            backend=candidate["backend"],
            precision=candidate["precision"],
            hash=found,
            files=files,
            replaces=before,
            promoted=datetime.now(UTC).isoformat(timespec="seconds"),
            canaries=judged["canaries"],
        )
        text = json.dumps(asdict(manifest), indent=2) + "\n"
        with (folder / MANIFEST).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _point(self, version: str) -> None:
        link = self.folder / f".{CURRENT}.{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(version)
        os.replace(link, self.folder / CURRENT)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One change of the registry at a time, over all processes."""
        import fcntl  # here: the server reads a registry on systems without it

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror})") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _read_report(report: Path) -> dict[str, Any]:
    try:
        judged: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        judged["passed"], judged["candidate"]["hash"], judged["baseline"], judged["canaries"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--report {report}: cannot be read ({' '.join(str(error).split())[:120]}): expected "
            "the report.json of scripts/gate.py check"
        ) from error
    return judged
