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

from moe.abstain import Vectors
from moe.answers import label_answers, routing_answer, span_answer
from moe.data.windows import Window, make_windows, pad_windows, token_budget
from moe.explain import explanation, refusals, similarities
from moe.onnx.bundle import OnnxBundle, Precision, load_onnx
from moe.onnx.readout import Chunk, Said, span, votes
from moe.onnx.routing import decide
from moe.requests import Request, parse_request
from moe.streams import respond
from moe.types import InputError, expert_columns


class OnnxMixtureOfExperts:
    """An exported mixture that answers requests like `moe.predict.MixtureOfExperts`.

    With `int8` the scale of a layer's inputs is that of the micro-batch, so that an answer depends
    a little on its neighbours; with `fp32` it does not.

    Args:
        bundle: Graph, tokenizer, fitted numbers.
    """

    def __init__(self, bundle: OnnxBundle) -> None:
        self.bundle = bundle
        self.tasks = bundle.tasks
        self._sizes = [task.num_experts for task in self.tasks]

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
            precision: Which graph; None takes int8 if it was exported.
            threads: Threads that one request may use; None takes one per core.

        Raises:
            InputError: It is missing, damaged, or of another format version.
        """
        return cls(load_onnx(folder, precision, threads))

    def predict(
        self,
        requests: Any = None,
        *,
        text: str | None = None,
        context: str | None = None,
        tasks: Sequence[str] | None = None,
        explain: bool = False,
    ) -> Any:
        """As `moe.predict.MixtureOfExperts.predict`."""
        if requests is None:
            requests = {"text": text, "context": context}
        elif text is not None or context is not None:
            raise InputError("predict: give either requests, or text and context, not both")
        return respond(
            requests,
            parse=lambda value: self.parse(value, tasks),
            answer=lambda window: self.answer(window, explain=explain),
        )

    def parse(self, value: Any, tasks: Sequence[str] | None = None) -> Request:
        """As `moe.predict.MixtureOfExperts.parse`."""
        if tasks is not None and isinstance(value, str):
            value = {"text": value}
        if tasks is not None and isinstance(value, dict) and value.get("tasks") is None:
            value = {**value, "tasks": tasks if isinstance(tasks, str) else list(tasks)}
        return parse_request(value, self.tasks)

    def answer(self, requests: Sequence[Request], *, explain: bool = False) -> list[dict[str, Any]]:
        """Answers checked requests in their order, all in memory at once."""
        answers: list[dict[str, Any]] = [{} for _ in requests]
        for rows, chunk in self._chunks(requests):
            said = self._run(chunk)
            for row, answer in zip(rows, self._records(chunk, said, explain), strict=True):
                answers[row] = answer
        return answers

    def count_tokens(self, requests: Sequence[Request]) -> list[int]:
        """As `moe.predict.MixtureOfExperts.count_tokens`."""
        return [sum(map(len, windows)) for windows, _ in self._windows(requests)]

    def _windows(self, requests: Sequence[Request]) -> list[tuple[list[Window], Any]]:
        """For each request its windows and the character offsets of its context's tokens."""
        encode, bundle = self.bundle.tokenizer.encode, self.bundle
        texts = encode([request.text for request in requests])
        contexts = encode([request.context or "" for request in requests])
        size = {"max_length": bundle.max_length, "stride": bundle.stride}
        return [
            (make_windows(text, None if request.context is None else context, **size), offsets)
            for request, (text, _), (context, offsets) in zip(
                requests, texts, contexts, strict=True
            )
        ]

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
        encoded = self.bundle.graph.encode(pad_windows(chunk.windows, self.bundle.tokenizer))
        logits_NE = chunk.mean(encoded.gate_logits_BE)
        has_context_N = [chunk.windows[row].context_ids is not None for row in chunk.first_N]
        allowed_NT = np.array(
            [[has or not task.needs_context for task in self.tasks] for has in has_context_N]
        )
        decision = decide(
            logits_NE,
            self._sizes,
            named_NT=np.array(
                [[t.name in (r.tasks or ()) for t in self.tasks] for r in chunk.requests]
            ),
            allowed_NT=allowed_NT,
            top_k=self.bundle.top_k,
            multi_task_threshold=self.bundle.multi_task_threshold,
            selection_bias_E=self.bundle.selection_bias_E,
        )
        chosen_BE = self._needed(chunk, decision.weight_NE > 0)
        return Said(
            gate_logits_NE=logits_NE,
            pooled_ND=chunk.mean(encoded.pooled_BD),
            allowed_NT=allowed_NT,
            decision=decision,
            logits=self.bundle.graph.run_experts(encoded, chosen_BE),
        )

    def _needed(self, chunk: Chunk, chosen_NE: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(B, E): a span is looked for in every window, a label is read off the first one."""
        later_B = np.ones(len(chunk.windows), dtype=bool)
        later_B[chunk.first_N] = False
        is_span_E = np.repeat([task.type == "span" for task in self.tasks], self._sizes)
        chosen_BE: NDArray[np.bool_] = chosen_NE[chunk.owner_B]
        return chosen_BE & (is_span_E | ~later_B[:, None])

    def _records(self, chunk: Chunk, said: Said, explain: bool) -> list[dict[str, Any]]:
        decision, answers = said.decision, self._decode(chunk, said)
        reasons = self._refused(chunk, said.pooled_ND)
        records = [
            {
                **({} if request.id is None else {"id": request.id}),
                "abstained": reason is not None,
                "routing": routing_answer(self.tasks, mass_T, chosen_T, weight_E),
                **({"answers": answer} if reason is None else {"answers": {}, "reason": reason}),
            }
            for request, mass_T, chosen_T, weight_E, answer, reason in zip(
                chunk.requests,
                decision.mass_NT,
                decision.tasks_NT,
                decision.weight_NE,
                answers,
                reasons,
                strict=True,
            )
        ]
        if explain:
            for record, seen in zip(records, self._explain(said, reasons), strict=True):
                record["explanation"] = seen
        return records

    def _refused(self, chunk: Chunk, pooled_ND: Vectors) -> list[str | None]:
        """Why the gate abstains from each request, None where it does not."""
        reference = self.bundle.calibration.reference
        if reference is None:
            return [None] * len(chunk.requests)
        reasons = refusals(self.tasks, pooled_ND, reference)
        named = [request.tasks is not None for request in chunk.requests]
        return [None if is_named else r for is_named, r in zip(named, reasons, strict=True)]

    def _explain(self, said: Said, reasons: Sequence[str | None]) -> list[dict[str, Any]]:
        reference = self.bundle.calibration.reference
        distances = similarities(said.pooled_ND, reference) if reference else None
        return [
            explanation(
                self.tasks,
                probability_E=said.decision.probability_NE[row],
                mass_T=said.decision.mass_NT[row],
                answerable_T=said.allowed_NT[row],
                distance=None if distances is None else distances[row],
                reason=reason,
            )
            for row, reason in enumerate(reasons)
        ]

    def _decode(self, chunk: Chunk, said: Said) -> list[dict[str, Any]]:
        """For each request its answers by task."""
        answers: list[dict[str, Any]] = [{} for _ in chunk.requests]
        calibration = self.bundle.calibration
        for number, columns in enumerate(expert_columns(self.tasks)):
            task = self.tasks[number]
            rows = np.flatnonzero(said.decision.tasks_NT[:, number]).tolist()
            if not rows:
                continue
            if task.type == "span":
                for row in rows:
                    context = chunk.requests[row].context or ""
                    choice = span(chunk, said, columns, row)
                    answers[row][task.name] = span_answer(
                        task, choice, context, chunk.offsets[row], calibration
                    )
            else:
                said_P = votes(chunk, said, columns)
                names = self.bundle.graph.expert_names
                labels = label_answers(task, said_P, len(chunk.requests), names, calibration)
                for row, answer in labels.items():
                    answers[row][task.name] = answer
        return answers
