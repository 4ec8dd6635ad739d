"""The suite of an evaluation gate: a YAML file that says what is measured and what is allowed.

All scores are in points, 0-100, better if higher unless a rule says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser

from moe.config import TaskConfig
from moe.data.augment import PERTURBATIONS
from moe.data.sources import Split
from moe.durable import digest
from moe.model_config import check, check_range
from moe.types import InputError

Outcome = Literal["pass", "refuse"]
SCORED = ("accuracy", "in_scope_accuracy", "oos_recall", "f1", "exact_match")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is allowed of one metric, or of several.

    A limit on a change is decided on the interval of the difference candidate minus baseline: an
    interval inside the limit passes, one outside is refused, and one that lies across it is
    `when_unsure`. Absolute limits are decided on the candidate's own value.

    Rules that pass when unsure refuse by proof of harm. Each of them could by chance, so
    their intervals share the suite's confidence (Bonferroni). Rules that refuse when unsure demand
    proof of no harm, and more of them only make passing harder: each interval has it by itself.

    Attributes:
        max_drop: Largest fall against the baseline, in the metric's own unit.
        max_rise: Largest rise, for metrics of which less is better.
        max_ratio: Largest candidate / baseline, for latency and size.
        min: Smallest value.
        max: Largest value.
        when_unsure: What an interval across a limit means.
    """

    max_drop: float | None = None
    max_rise: float | None = None
    max_ratio: float | None = None
    min: float | None = None
    max: float | None = None
    when_unsure: Outcome = "refuse"

    def __post_init__(self) -> None:
        limits = [getattr(self, f.name) for f in fields(self) if f.name != "when_unsure"]
        check(any(v is not None for v in limits), f"a rule without a limit, got {self}")
        check_range("rules.*", self, "max_drop max_rise", 0)
        check_range("rules.*", self, "max_ratio", 1)


@dataclass(frozen=True, kw_only=True)
class JudgedTask:
    """Labelled rows of a task.

    Attributes:
        type: `classifier` or `span`.
        rows: SOURCE (`docs/data.md`).
        split: Which part of a source that holds several.
        text: Column of the text; None finds it.
        context: Column of the passage; None finds it.
        label: Column of the label; None finds it.
        labels: Names for numbered labels, in their order.
        out_of_scope: Label of the rows that belong to no class, or None.
    """

    type: Literal["classifier", "span"]
    rows: str
    split: Split = "validation"
    text: str | None = None
    context: str | None = None
    label: str | None = None
    labels: list[str] | None = None
    out_of_scope: str | None = None

    @property
    def config(self) -> TaskConfig:
        """As the config of a training, to read rows by."""
        return TaskConfig(
            type=self.type, train=self.rows, text=self.text, context=self.context, label=self.label
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what is measured on its rows."""
        if self.type == "span":
            return ("f1", "exact_match", "routing_accuracy", "abstain_rate")
        first = ("accuracy",)
        if self.out_of_scope is not None:
            first = ("in_scope_accuracy", "oos_recall")  # type: ignore[assignment]
        return (*first, "routing_accuracy", "abstain_rate", "ece")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How the time of a single request is measured.

    Attributes:
        requests: Requests of the rows, each asked alone, in turn of both sides.
        repeats: Times that each is asked; its fastest counts.
    """

    requests: int = 30
    repeats: int = 5

    def __post_init__(self) -> None:
        check_range("latency", self, "requests repeats", 1)


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What a candidate must share with the baseline, beside its scores.

    Attributes:
        tasks: `kept`: every task of the baseline is there; new ones may come.
        labels: `same`: the same names in the same order; `kept`: none is missing.
        experts: `kept`: no task has fewer experts, and an export holds all of its own.
        tokenizer: `same`: of the same content.
        fitted: `kept`: thresholds and temperatures that the baseline has are there.
    """

    tasks: Literal["kept", "any"] = "kept"
    labels: Literal["same", "kept", "any"] = "same"
    experts: Literal["kept", "any"] = "kept"
    tokenizer: Literal["same", "any"] = "same"
    fitted: Literal["kept", "any"] = "kept"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is measured, and what is allowed.

    Attributes:
        tasks: Rows by task.
        root: Folder of relative sources.
        routing: SOURCE of routing rows: requests in hard forms, and texts that fit no task.
        rows: Most rows of each task, and of its out-of-scope rows; None takes all.
        perturbed_rows: Most rows of each task under a perturbation.
        perturbations: Of `moe.data.augment.PERTURBATIONS`.
        canaries: JSON-lines file beside the suite: requests with what must be answered.
        latency: How it is measured; None leaves it out.
        structure: What must be shared with the baseline.
        rules: By metric, or by a pattern such as `*/ece` or `*@typos`; the first that fits counts,
            what fits none is reported only.
        confidence: Of the intervals, in (0, 1), two-sided: of each one whose rule refuses when
            unsure, shared by those whose rules pass (`Rule`).
        draws: Of the bootstrap, at least.
        seed: Of row choice and bootstrap.
    """

    tasks: dict[str, JudgedTask]
    rules: dict[str, Rule]
    root: str = "."
    routing: str | None = None
    rows: int | None = None
    perturbed_rows: int = 300
    perturbations: list[str] = field(default_factory=lambda: sorted(PERTURBATIONS))
    canaries: str | None = None
    latency: Latency | None = field(default_factory=Latency)
    structure: Structure = field(default_factory=Structure)
    confidence: float = 0.95
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check(len(self.tasks) > 0, "tasks must name at least one task, got {}")
        check(len(self.rules) > 0, "rules must have at least one rule, got {}")
        check_range("suite", self, "rows perturbed_rows", 1)
        check_range("suite", self, "draws", 100)
        check_range("suite", self, "confidence", 0.5, 0.99)
        for name in self.perturbations:
            check(
                name in PERTURBATIONS,
                f"perturbations: no such kind {name!r}, known: {sorted(PERTURBATIONS)}",
            )

    def metrics(self, experts: Sequence[str] = ()) -> list[str]:
        """Names of all that is measured, for a candidate with these experts."""
        names = [f"{task}/{m}" for task, judged in self.tasks.items() for m in judged.metrics]
        for kind in self.perturbations:
            names += [f"{n}@{kind}" for n in names if "@" not in n and _is_perturbed(n)]
        if self.routing is not None:
            names += ["routing/accuracy", "routing/strangers_refused"]
        names += [f"expert/{name}" for name in experts]
        if self.latency is not None:
            names += ["latency/median_ms", "latency/p95_ms"]
        return [*names, "size/bytes"]

    def rule(self, metric: str) -> Rule | None:
        """The first rule whose pattern fits a metric."""
        return next((r for name, r in self.rules.items() if fnmatchcase(metric, name)), None)

    def family(self, experts: Sequence[str]) -> int:
        """How many metrics share the confidence, for a candidate with these experts."""
        return sum(_refuses_by_proof(self.rule(name)) for name in self.metrics(experts))

    def confidence_of(self, metric: str, family: int) -> float:
        """Confidence of a metric's interval, where `family` metrics share it."""
        if not _refuses_by_proof(self.rule(metric)):
            return self.confidence
        return 1 - (1 - self.confidence) / family

    def check_rules(self, experts: Sequence[str]) -> None:
        """Raises InputError if a rule fits no metric: it would judge nothing."""
        metrics = self.metrics(experts)
        for pattern in self.rules:
            check(
                any(fnmatchcase(metric, pattern) for metric in metrics),
                f"rules: {pattern!r} fits no metric, measured are {metrics}",
            )


def _refuses_by_proof(rule: Rule | None) -> bool:
    """Whether a rule has a limit on a change, and an interval must show that it is broken."""
    if rule is None or rule.when_unsure == "refuse":
        return False
    return any(limit is not None for limit in (rule.max_drop, rule.max_rise, rule.max_ratio))


def _is_perturbed(metric: str) -> bool:
    return metric.rpartition("/")[2] in (*SCORED, "routing_accuracy", "abstain_rate")


def load_suite(path: str | Path) -> Suite:
    """The suite of a YAML file.

    Raises:
        InputError: It cannot be read, has an unknown key, or a value outside its range.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Suite)
    if not Path(path).is_file():
        raise InputError(f"--suite {path}: no such file")
    try:
        suite = Suite(**vars(parser.instantiate(parser.parse_path(str(path)))))
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(f"--suite {path}: {' '.join(str(error).split())}") from error
    return suite


def suite_hash(path: str | Path) -> str:
    """SHA-256 of the file, so that a report says by which rules."""
    return digest(Path(path))


def rules_text(rule: Rule) -> str:
    """A rule in words, such as `max_drop 2, min 80`."""
    values: Mapping[str, Any] = vars(rule)
    limits = [f"{k} {v:g}" for k, v in values.items() if isinstance(v, int | float)]
    return ", ".join(limits)
