"""Inference in one line: load a checkpoint, ask, get answers in the one answer form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.abstain import Vectors
from moe.answers import label_answers, routing_answer, span_answer
from moe.checkpoint import Bundle, load_bundle, save_bundle
from moe.data.collate import RequestBatch, collate_requests
from moe.data.windows import Window, make_windows, token_budget
from moe.explain import explanation, refusals, similarities
from moe.gate import mean_per_request
from moe.readout import classifier_votes, span_choices
from moe.requests import Request, parse_request
from moe.streams import respond
from moe.types import InputError, MixtureOutput, Routing, expert_columns


class MixtureOfExperts:
    """A trained mixture that answers requests.

    Args:
        bundle: Model, tokenizer, fitted numbers.
        device: Where to compute; None takes a GPU if there is one.

    Raises:
        InputError: There is no such device.
    """

    def __init__(self, bundle: Bundle, device: str | None = None) -> None:
        self.bundle = bundle
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self.model = bundle.model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
            reason = str(error).splitlines()[0]
            raise InputError(f"device {device!r}: cannot be used ({reason})") from error
        self.tasks = self.model.tasks

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str | None = None) -> MixtureOfExperts:
        """Loads a `.ckpt`, a folder that `save_pretrained` wrote, or a hub id.

        Raises:
            InputError: It is missing, damaged, or of another format version.
        """
        return cls(load_bundle(source), device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json`, `model.safetensors`, `tokenizer.json` and a model card."""
        save_bundle(self.bundle, folder)

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

    def answer(self, requests: Sequence[Request], *, explain: bool = False) -> list[dict[str, Any]]:
        """Answers checked requests in their order, all in memory at once."""
        windows, offsets = self._windows(requests)
        answers: list[dict[str, Any]] = [{} for _ in requests]
        for rows in self._groups(requests, windows):
            batch = collate_requests(rows, [windows[row] for row in rows], self.bundle.tokenizer)
            chunk = [requests[row] for row in rows]
            said = self._run(chunk, batch, [offsets[row] for row in rows], explain)
            for row, answer in zip(rows, said, strict=True):
                answers[row] = answer
        return answers

    def count_tokens(self, requests: Sequence[Request]) -> list[int]:
        """What each request costs: the tokens of all its windows, special ones included."""
        windows, _ = self._windows(requests)
        return [sum(map(len, mine)) for mine in windows]

    def _groups(
        self, requests: Sequence[Request], windows: Sequence[Sequence[Window]]
    ) -> Iterator[list[int]]:
        """Numbers of the requests of each micro-batch, within the token budget."""
        config = self.bundle.config.data
        # Requests that name their tasks are not routed: they go in batches of their own.
        for named in (False, True):
            mine = [i for i, request in enumerate(requests) if (request.tasks is not None) == named]
            longest = [max(map(len, windows[i])) for i in mine]
            counts = [len(windows[i]) for i in mine]
            for group in token_budget(longest, config.max_tokens, config.max_padding, counts):
                yield [mine[i] for i in group]

    def _windows(self, requests: Sequence[Request]) -> tuple[list[list[Window]], list[Any]]:
        """For each request its windows and the character offsets of its context's tokens."""
        config, encode = self.bundle.config.data, self.bundle.tokenizer.encode
        texts = encode([request.text for request in requests])
        contexts = encode([request.context or "" for request in requests])
        windows = [
            make_windows(
                text_ids,
                None if request.context is None else context_ids,
                max_length=config.max_length,
                stride=config.stride,
            )
            for request, (text_ids, _), (context_ids, _) in zip(
                requests, texts, contexts, strict=True
            )
        ]
        return windows, [offsets for _, offsets in contexts]

    @torch.inference_mode()
    def _run(
        self,
        requests: Sequence[Request],
        batch: RequestBatch,
        offsets: Sequence[Any],
        explain: bool,
    ) -> list[dict[str, Any]]:
        """Answers of one micro-batch, in which all requests or none name their tasks."""
        batch = batch.to(self.device)
        output = self.model(batch.batch, tasks_BT=self._named_tasks(requests, batch))
        answers = self._decode(requests, batch, output, offsets)
        first, routing = batch.first_windows(), output.routing
        pooled_BD = mean_per_request(output.pooled_BD.float(), batch.batch.request_ids)
        pooled_ND = pooled_BD[first].cpu().numpy()
        reasons = self._refused(requests, pooled_ND)
        mass_NT = routing.task_mass_BT[first].cpu().numpy()
        chosen_NT = routing.tasks_BT[first].cpu().numpy()
        weight_NE = routing.log_weights_BE[first].exp().cpu().numpy()
        records = [
            {
                **({} if request.id is None else {"id": request.id}),
                "abstained": reason is not None,
                "routing": routing_answer(self.tasks, mass_T, chosen_T, weight_E),
                **({"answers": answer} if reason is None else {"answers": {}, "reason": reason}),
            }
            for request, mass_T, chosen_T, weight_E, answer, reason in zip(
                requests, mass_NT, chosen_NT, weight_NE, answers, reasons, strict=True
            )
        ]
        if explain:
            explained = self._explain(batch, routing, pooled_ND, reasons)
            for record, seen in zip(records, explained, strict=True):
                record["explanation"] = seen
        return records

    def _refused(self, requests: Sequence[Request], pooled_ND: Vectors) -> list[str | None]:
        """Why the gate abstains from each request, None where it does not."""
        reference = self.bundle.calibration.reference
        if reference is None or requests[0].tasks is not None:
            return [None] * len(requests)
        return refusals(self.tasks, pooled_ND, reference)

    def _explain(
        self,
        batch: RequestBatch,
        routing: Routing,
        pooled_ND: Vectors,
        reasons: Sequence[str | None],
    ) -> list[dict[str, Any]]:
        first, reference = batch.first_windows(), self.bundle.calibration.reference
        answerable_NT = self.model.answerable(batch.batch)[first].cpu().numpy()
        probability_NE = routing.probabilities_BE[first].cpu().numpy()
        mass_NT = routing.task_mass_BT[first].cpu().numpy()
        distances = similarities(pooled_ND, reference) if reference else None
        return [
            explanation(
                self.tasks,
                probability_E=probability_NE[row],
                mass_T=mass_NT[row],
                answerable_T=answerable_NT[row],
                distance=None if distances is None else distances[row],
                reason=reason,
            )
            for row, reason in enumerate(reasons)
        ]

    def _decode(
        self,
        requests: Sequence[Request],
        batch: RequestBatch,
        output: MixtureOutput,
        offsets: Sequence[Any],
    ) -> list[dict[str, Any]]:
        """For each request its answers by task."""
        answers: list[dict[str, Any]] = [{} for _ in requests]
        calibration, names = self.bundle.calibration, self.model.expert_names
        ran = {answer.expert for answer in output.experts}
        for task, columns in zip(self.tasks, expert_columns(self.tasks), strict=True):
            if ran.isdisjoint(columns):
                continue
            if task.type == "span":
                decoded = {
                    row: span_answer(
                        task, choice, requests[row].context or "", offsets[row], calibration
                    )
                    for row, choice in span_choices(output, batch, columns).items()
                }
            else:
                votes = classifier_votes(output, batch, columns)
                decoded = label_answers(task, votes, len(requests), names, calibration)
            for row, answer in decoded.items():
                answers[row][task.name] = answer
        return answers

    def _named_tasks(self, requests: Sequence[Request], batch: RequestBatch) -> Tensor | None:
        if requests[0].tasks is None:
            return None
        chosen = [
            [task.name in (request.tasks or ()) for task in self.tasks] for request in requests
        ]
        return torch.tensor(chosen, device=self.device)[batch.batch.request_ids]
