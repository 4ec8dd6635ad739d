"""What to do with an optimizer step whose loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Mapping

from moe.types import NonFiniteError


class StepGuard:
    """Counts steps that must not move the weights, and ends training after too many in a row.

    Args:
        limit: Skipped steps in a row that end training; 1 ends it at the first.

    Attributes:
        skipped: Steps skipped so far.
        in_a_row: Of these, those since the last good step.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.skipped = 0
        self.in_a_row = 0

    def passes(self, finite: bool, step: int, found: str) -> bool:
        """Whether the step may move the weights.

        Args:
            finite: Whether all of it is finite.
            step: Its number, counted from 0.
            found: What was found, for the message.

        Raises:
            NonFiniteError: It is the last of `limit` in a row.
        """
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.skipped += not finite
        if self.in_a_row >= self.limit:
            raise NonFiniteError(
                f"optimizer step {step}: {found}, the last of {self.in_a_row} such steps in a row "
                "(optimizer.max_skipped): the weights are those before them; lower "
                "optimizer.encoder_lr, or train in 32-true"
            )
        return finite

    def state_dict(self) -> dict[str, int]:
        """Both counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Takes up the counts of `state_dict`."""
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])
