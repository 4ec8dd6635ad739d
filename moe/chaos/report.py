"""What a check found: one line to read and a JSON file."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(kw_only=True)
class Report:
    """The cases of one check.

    Attributes:
        name: Of the check.
        cases: Cases tried.
        failed: Cases with a problem.
        failures: What went wrong, one line each.
        numbers: What was measured beside that.
        seconds: How long it took, set by `finish`.
    """

    name: str
    cases: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    _start: float = field(default_factory=time.monotonic, repr=False)

    def case(self, name: str, problems: list[str]) -> None:
        """Counts a case; it passed if there is no problem."""
        self.cases += 1
        self.failures += [f"{name}: {problem}" for problem in problems]
        self.failed += bool(problems)

    def finish(self, out: Path | None = None) -> str:
        """The line to print; writes the JSON file too."""
        self.seconds = round(time.monotonic() - self._start, 1)
        values = {k: v for k, v in asdict(self).items() if not k.startswith("_")}
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        numbers = "".join(f", {name} {value}" for name, value in self.numbers.items())
        passed = self.cases - self.failed
        return f"{self.name}: {passed} of {self.cases} passed in {self.seconds:.0f} s{numbers}"
