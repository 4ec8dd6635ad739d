"""The predictor on an exported graph: the same answers without torch.

numpy, tokenizers and onnxruntime alone.

Dimensions: B windows, N requests, E experts, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.data.windows import pad_windows, token_budget
from moe.decode import WindowSaid
from moe.forms import FORMS
from moe.onnx.bundle import OnnxBundle, Precision, load_onnx
from moe.onnx.readout import Chunk, Said, read_task
from moe.onnx.routing import decide
from moe.predictor import Explain, Predictor
from moe.requests import Request
from moe.types import expert_columns


class OnnxMixtureOfExperts(Predictor):
    """An exported mixture that answers requests like `moe.predict.MixtureOfExperts`.

    With `int8` the scale of a layer's inputs is that of the micro-batch, so that an answer depends
    a little on its neighbours; with `fp32` it does not.

    Args:
        bundle: Graph, tokenizer, fitted numbers.
    """

    def __init__(self, bundle: OnnxBundle) -> None:
        self.bundle = bundle
        super().__init__(
            bundle.tasks,
            bundle.tokenizer,
            bundle.calibration,
            max_length=bundle.max_length,
            stride=bundle.stride,
        )
        self._sizes = [task.num_experts for task in self.tasks]
        # All experts of a named task run if it has no more than a request may have.
        self._is_certain_T = [size <= bundle.top_k for size in self._sizes]

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        precision: Precision | None = None,
        threads: int | None = None,
    ) -> OnnxMixtureOfExperts:
        """Loads a folder that `scripts/export.py` wrote.

        Args:
            folder: Its `--out`.
            precision: Which graph; None chooses (`moe.onnx.bundle.load_onnx`).
            threads: Threads that one request may use; None takes one per core.

        Raises:
            InputError: It is missing, damaged, or of another format version.
        """
        return cls(load_onnx(folder, precision, threads))

    def answer(
        self, requests: Sequence[Request], *, explain: Explain = False
    ) -> list[dict[str, Any]]:
        """Answers checked requests in their order, all in memory at once."""
        answers: list[dict[str, Any]] = [{} for _ in requests]
        for rows, chunk in self._chunks(requests):
            said = self._run(chunk)
            for row, answer in zip(rows, self._said_records(chunk, said, explain), strict=True):
                answers[row] = answer
        return answers

    def _chunks(self, requests: Sequence[Request]) -> Iterator[tuple[list[int], Chunk]]:
        """Micro-batches within the token budget, each with the numbers of its requests."""
        cut = self._windows(requests)
        longest = [max(map(len, windows)) for windows, _ in cut]
        counts = [len(windows) for windows, _ in cut]
        limits = self.bundle.max_tokens, self.bundle.max_padding
        for rows in token_budget(longest, *limits, counts):
            sizes = [counts[row] for row in rows]
            yield (
                rows,
                Chunk(
                    requests=[requests[row] for row in rows],
                    windows=[window for row in rows for window in cut[row][0]],
                    owner_B=np.repeat(np.arange(len(rows)), sizes),
                    first_N=np.cumsum([0, *sizes[:-1]]),
                    offsets=[cut[row][1] for row in rows],
                ),
            )

    def _run(self, chunk: Chunk) -> Said:
        named_NT = np.array(
            [[t.name in (r.tasks or ()) for t in self.tasks] for r in chunk.requests]
        )
        certain_NT = named_NT & self._is_certain_T
        certain_BE = self._needed(chunk, np.repeat(certain_NT, self._sizes, axis=1))
        encoded = self.bundle.graph.encode(
            pad_windows(chunk.windows, self.bundle.tokenizer), certain_BE
        )
        logits_NE = chunk.mean(encoded.gate_logits_BE)
        has_context_N = [chunk.windows[row].context_ids is not None for row in chunk.first_N]
        allowed_NT = np.array(
            [[has or not task.needs_context for task in self.tasks] for has in has_context_N]
        )
        decision = decide(
            logits_NE,
            self._sizes,
            named_NT=named_NT,
            allowed_NT=allowed_NT,
            top_k=self.bundle.top_k,
            multi_task_threshold=self.bundle.multi_task_threshold,
            selection_bias_E=self.bundle.selection_bias_E,
        )
        logits = encoded.logits
        left_BE = self._needed(chunk, decision.weight_NE > 0) & ~certain_BE
        if left_BE.any():
            others = self.bundle.graph.run_experts(encoded, left_BE)
            # An expert may be certain of one request and chosen for another.
            logits = {**logits, **{e: own + logits.get(e, 0) for e, own in others.items()}}
        return Said(
            pooled_ND=chunk.mean(encoded.pooled_BD),
            allowed_NT=allowed_NT,
            decision=decision,
            logits=logits,
        )

    def _needed(self, chunk: Chunk, chosen_NE: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(B, E): forms that read one window read the first."""
        later_B = np.ones(len(chunk.windows), dtype=bool)
        later_B[chunk.first_N] = False
        every_E = np.repeat([FORMS[task.type].EVERY_WINDOW for task in self.tasks], self._sizes)
        chosen_BE: NDArray[np.bool_] = chosen_NE[chunk.owner_B]
        return chosen_BE & (every_E | ~later_B[:, None])

    def _said_records(self, chunk: Chunk, said: Said, explain: Explain) -> list[dict[str, Any]]:
        decision = said.decision
        cosines = self._cosines(chunk.requests, said.pooled_ND, explain)
        reasons = self._refused(chunk.requests, cosines, decision.mass_NT, decision.tasks_NT)
        records = self._records(
            chunk.requests,
            self._decode(chunk.requests, self._tasks_said(chunk, said), chunk.offsets),
            reasons,
            mass_NT=decision.mass_NT,
            chosen_NT=decision.tasks_NT,
            weight_NE=decision.weight_NE,
        )
        if explain:
            self._explain(
                chunk.requests,
                records,
                reasons,
                said.pooled_ND,
                cosines,
                probability_NE=decision.probability_NE,
                mass_NT=decision.mass_NT,
                answerable_NT=said.allowed_NT,
                explain=explain,
            )
        return records

    def _tasks_said(self, chunk: Chunk, said: Said) -> list[dict[int, list[WindowSaid]]]:
        return [
            read_task(chunk, said, columns, every_window=FORMS[task.type].EVERY_WINDOW)
            for task, columns in zip(self.tasks, expert_columns(self.tasks), strict=True)
        ]
