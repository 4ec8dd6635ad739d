"""What every kind of answer supplies, from the rows that train it to the form that users get.

A form is a module with the names of `Form`. It knows no torch, because exported models answer
without; metrics import it where they are computed.

Dimensions: N rows, K experts, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from moe.calibration import Calibration
from moe.data.formats import By, Columns, Example, Split, Table
from moe.data.windows import TextTokenizer, Words
from moe.decode import Floats, Logits, WindowSaid
from moe.types import TaskSpec

if TYPE_CHECKING:
    from moe.config import TaskConfig


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a request was made of, to turn positions of tokens into characters.

    Attributes:
        text: As it came; `words` counts its characters.
        context: The passage, empty without one.
        offsets: (tokens, 2) characters of the passage's tokens.
        words: Finds the words of the text; only called by forms that answer for words.
    """

    text: str
    context: str
    offsets: Any
    words: Callable[[], Words]


class LabelledRows(Protocol):
    """What a form sees of a `moe.data.tables.TaskTable`."""

    @property
    def spec(self) -> TaskSpec:
        """The task."""

    @property
    def rows(self) -> Any:
        """Columns by name, `rows[name][:]` a whole one."""

    def labels(self) -> NDArray[Any]:
        """Class of each row; -1 where the form has none."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Labelled rows of one task with what its experts said of them.

    Attributes:
        table: The rows.
        row_N: Index of each in the table.
        said: What `Form.read` returned for each.
        expert_names: All experts of the model, in the gate's order.
    """

    table: LabelledRows
    row_N: NDArray[Any]
    said: Sequence[Any]
    expert_names: Sequence[str]

    @property
    def spec(self) -> TaskSpec:
        """The task."""
        return self.table.spec

    def column(self, name: str) -> list[Any]:
        """The rows' values in a column of the table."""
        values = self.table.rows[name][:]
        return [values[row] for row in self.row_N]

    def select(self, numbers: Sequence[int]) -> Collected:
        """Some of the rows, in that order."""
        said = [self.said[number] for number in numbers]
        return replace(self, row_N=self.row_N[list(numbers)], said=said)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An answer to a labelled row as a person reads it; `score` in [0, 1]."""

    expected: str
    answered: str
    score: float
    right: bool


class Form(Protocol):
    """A kind of answer. `S` below is what `read` makes of one row, of the form's own choice."""

    # --- labelled rows ------------------------------------------------------------------------

    @property
    def GROUP_BY(self) -> By:
        """What training and validation rows must not share."""

    def read_table(self, table: Table, columns: Columns) -> list[Example]:
        """One example per row of CSV, TSV, JSON lines, Parquet, CoNLL, or of the hub."""

    def read_json(
        self, document: Any, file: str, keys: Sequence[str] | None, split: Split
    ) -> list[Example]:
        """The examples of a parsed `.json` file; `keys` are those named after `#`."""

    def build_spec(self, name: str, task: TaskConfig, train: Sequence[Example]) -> TaskSpec:
        """What the model must know of the task: its labels, for one."""

    def describe(self, spec: TaskSpec, train: Sequence[Example]) -> str:
        """What is in the training rows, for the line printed before training."""

    def encode(
        self, example: Example, spec: TaskSpec, tokenizer: TextTokenizer, offsets: Any
    ) -> dict[str, Any]:
        """The columns of the target: of those in `moe.data.tables`, or lists of integers.

        Args:
            example: The row.
            spec: Its task.
            tokenizer: Of its text.
            offsets: (tokens, 2) characters of the context's tokens.
        """

    # --- answers ------------------------------------------------------------------------------

    @property
    def EVERY_WINDOW(self) -> bool:
        """Whether later windows of a long context are read; else the first alone is."""

    @property
    def SCHEMA(self) -> dict[str, Any]:
        """JSON schema of an answer."""

    def read(self, windows: Sequence[WindowSaid], source: Source) -> Any:
        """S of one request, from its windows from left to right; nothing fitted is needed."""

    def answers(
        self,
        spec: TaskSpec,
        said: Sequence[Any],
        calibration: Calibration,
        expert_names: Sequence[str],
    ) -> list[dict[str, Any]]:
        """The public answer of each request from its S."""

    def entries(self, spec: TaskSpec, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A public answer as `transformers.pipeline` would put it."""

    def same_answer(self, ours: Logits, theirs: Logits, attention_mask: NDArray[Any]) -> Floats:
        """Share in [0, 1] of each window's answer (B,) that two backends' logits agree on."""

    # --- measuring ----------------------------------------------------------------------------

    def fit(self, collected: Collected, fitted: Calibration, out_of_scope_recall: float) -> None:
        """Puts the task's temperatures and thresholds into `fitted`.

        Args:
            collected: Validation rows.
            fitted: Its dictionaries are filled.
            out_of_scope_recall: Of the task's config, for forms that reject.
        """

    def measure(
        self,
        collected: Collected,
        calibration: Calibration,
        ok_N: NDArray[Any],
        refused_N: NDArray[Any],
    ) -> dict[str, float]:
        """The task's metrics, one of `moe.evaluation.MAIN_METRICS` among them.

        Args:
            collected: The rows.
            calibration: What to decide with.
            ok_N: Whether a row reached its task: one that did not is wrong.
            refused_N: Whether the gate abstained from it.
        """

    def row_scores(
        self, collected: Collected, calibration: Calibration, ok_N: NDArray[Any]
    ) -> dict[str, Floats]:
        """By metric a score of each row, 0-100, by whose means two models are compared."""

    def show(self, collected: Collected, calibration: Calibration) -> list[Shown]:
        """Each row's answer beside what was expected."""

    def baseline(self, train: LabelledRows, validation: LabelledRows) -> float:
        """The main metric of a trivial answer on the validation rows, in its own unit."""
