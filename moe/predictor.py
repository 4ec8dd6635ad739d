"""What every predictor does alike, whatever computes: it checks, cuts, and writes the answer form.

Without torch. Dimensions: N requests, D width of the pooled embedding, E experts, T tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from moe.abstain import Vectors, nearest_cosines, refusal_scores
from moe.answers import routing_answer
from moe.calibration import Calibration
from moe.data.text import restore_offsets
from moe.data.windows import TextTokenizer, Window, Words, make_windows
from moe.decode import Floats, WindowSaid
from moe.explain import explanation, refusals, similarities
from moe.forms import FORMS, Source
from moe.requests import Request, parse_request
from moe.streams import respond
from moe.types import InputError, TaskSpec

Explain = bool | Literal["embedding"]


class Predictor(ABC):
    """A trained mixture that answers requests.

    Args:
        tasks: What it can answer.
        tokenizer: The encoder's.
        calibration: Fitted numbers.
        max_length, stride: Of the windows, in tokens.
    """

    def __init__(
        self,
        tasks: tuple[TaskSpec, ...],
        tokenizer: TextTokenizer,
        calibration: Calibration,
        *,
        max_length: int,
        stride: int,
    ) -> None:
        self.tasks = tasks
        self._tokenizer = tokenizer
        self._calibration = calibration
        self._window_size = {"max_length": max_length, "stride": stride}

    @abstractmethod
    def answer(
        self, requests: Sequence[Request], *, explain: Explain = False
    ) -> list[dict[str, Any]]:
        """Answers checked requests in their order, all in memory at once.

        Args:
            requests: Checked.
            explain: Adds to each answer what the gate saw (`moe.explain.explanation`); with
                `embedding` also the vector that it read, (D,) float16.
        """

    def predict(
        self,
        requests: Any = None,
        *,
        text: str | None = None,
        context: str | None = None,
        tasks: Sequence[str] | None = None,
        explain: bool = False,
    ) -> Any:
        """Answers one request (a dict), several (a list in their order) or a stream (an iterator).

        Args:
            requests: A text, a request object, an iterable of these, or a `datasets.Dataset` with
                the columns text, context, tasks, id. What has no length, such as a generator, is
                read and answered in windows of 512 requests.
            text: Of a single request, instead of `requests`.
            context: Its passage.
            tasks: Its tasks, or those of every request that names none.
            explain: Adds to each answer what the gate saw (`moe.explain.explanation`).

        Raises:
            InputError: A request is malformed; nothing is computed, or nothing of its window.
        """
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
        """One checked request.

        Args:
            value: A text or a request object.
            tasks: Its tasks if it names none.

        Raises:
            InputError: It is malformed.
        """
        if tasks is not None and isinstance(value, str):
            value = {"text": value}
        if tasks is not None and isinstance(value, dict) and value.get("tasks") is None:
            value = {**value, "tasks": tasks if isinstance(tasks, str) else list(tasks)}
        return parse_request(value, self.tasks)

    def count_tokens(self, requests: Sequence[Request]) -> list[int]:
        """What each request costs: the tokens of all its windows, special ones included."""
        return [sum(map(len, windows)) for windows, _ in self._windows(requests)]

    def _windows(self, requests: Sequence[Request]) -> list[tuple[list[Window], Any]]:
        """For each request its windows and the character offsets of its context's tokens."""
        texts = self._tokenizer.encode([request.text for request in requests])
        contexts = self._tokenizer.encode([request.context or "" for request in requests])
        return [
            (
                make_windows(
                    text, None if request.context is None else context, **self._window_size
                ),
                offsets,
            )
            for request, (text, _), (context, offsets) in zip(
                requests, texts, contexts, strict=True
            )
        ]

    def _decode(
        self,
        requests: Sequence[Request],
        said: Sequence[Mapping[int, Sequence[WindowSaid]]],
        offsets: Sequence[Any],
    ) -> list[dict[str, Any]]:
        """For each request its answers by task.

        Args:
            requests: N requests.
            said: For each task the windows of the requests that reached it, by their number.
            offsets: For each request the character offsets of its context's tokens.
        """
        answers: list[dict[str, Any]] = [{} for _ in requests]
        names = [name for task in self.tasks for name in task.expert_names]
        for task, windows in zip(self.tasks, said, strict=True):
            form = FORMS[task.type]
            read = [
                form.read(own, self._source(requests[row], offsets[row]))
                for row, own in windows.items()
            ]
            decoded = form.answers(task, read, self._calibration, names) if read else []
            for row, answer in zip(windows, decoded, strict=True):
                answers[row][task.name] = answer
        return answers

    def _source(self, request: Request, offsets: Any) -> Source:
        def words() -> Words:
            found = self._tokenizer.words(request.text)
            return replace(found, offsets_W2=restore_offsets(request.original, found.offsets_W2))

        context = request.context or ""
        return Source(text=request.original, context=context, offsets=offsets, words=words)

    def _cosines(
        self, requests: Sequence[Request], pooled_ND: Vectors, explain: Explain
    ) -> dict[str, Floats] | None:
        """What abstaining and its explanation compare, None where neither has anything to say."""
        reference = self._calibration.reference
        asked = bool(explain) or any(request.tasks is None for request in requests)
        return nearest_cosines(pooled_ND, reference) if reference and asked else None

    def _refused(
        self,
        requests: Sequence[Request],
        cosines: Mapping[str, Floats] | None,
        mass_NT: Any,
        chosen_NT: Any,
    ) -> list[str | None]:
        """Why the gate abstains from each request, None where it does not or tasks are named."""
        reference = self._calibration.reference
        if reference is None or cosines is None:
            return [None] * len(requests)
        named = [request.tasks is not None for request in requests]
        first_N = np.where(chosen_NT, mass_NT, -1.0).argmax(1)
        reasons = refusals(self.tasks, cosines, reference, first_N.tolist())
        return [None if is_named else r for is_named, r in zip(named, reasons, strict=True)]

    def _records(
        self,
        requests: Sequence[Request],
        answers: Sequence[dict[str, Any]],
        reasons: Sequence[str | None],
        *,
        mass_NT: Any,
        chosen_NT: Any,
        weight_NE: Any,
    ) -> list[dict[str, Any]]:
        """The answer form of each request; one that is refused has no answers but a reason."""
        return [
            {
                **({} if request.id is None else {"id": request.id}),
                "abstained": reason is not None,
                "routing": routing_answer(self.tasks, mass_T, chosen_T, weight_E),
                **({"answers": answer} if reason is None else {"answers": {}, "reason": reason}),
            }
            for request, answer, reason, mass_T, chosen_T, weight_E in zip(
                requests, answers, reasons, mass_NT, chosen_NT, weight_NE, strict=True
            )
        ]

    def _explain(
        self,
        requests: Sequence[Request],
        records: Sequence[dict[str, Any]],
        reasons: Sequence[str | None],
        pooled_ND: Vectors,
        cosines: Mapping[str, Floats] | None,
        *,
        probability_NE: Any,
        mass_NT: Any,
        answerable_NT: Any,
        explain: Explain,
    ) -> None:
        """Adds to each record what the gate saw."""
        reference = self._calibration.reference
        distances = strangeness = None
        if cosines is not None and reference is not None:
            first = [record["routing"][0]["task"] for record in records]
            distances = similarities(cosines)
            strangeness = refusal_scores(cosines, reference, first)[0].tolist()
        broken = self._tokenizer.fragmentation([request.text for request in requests])
        for row, (record, reason) in enumerate(zip(records, reasons, strict=True)):
            record["explanation"] = explanation(
                self.tasks,
                probability_E=probability_NE[row],
                mass_T=mass_NT[row],
                answerable_T=answerable_NT[row],
                distance=None if distances is None else distances[row],
                strangeness=None if strangeness is None else strangeness[row],
                fragmentation=broken[row],
                reason=reason,
            )
            if explain == "embedding":
                record["explanation"]["embedding"] = pooled_ND[row].astype(np.float16)
