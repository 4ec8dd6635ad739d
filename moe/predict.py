"""Inference in one line: load a checkpoint, ask, get answers in the one answer form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.abstain import stranger_scores
from moe.answers import label_answers, routing_answer, span_answer
from moe.checkpoint import Bundle, load_bundle, save_bundle
from moe.data.collate import RequestBatch, collate_requests
from moe.data.windows import Window, make_windows, token_budget
from moe.gate import mean_per_request
from moe.readout import classifier_votes, span_choices
from moe.requests import Request, parse_request
from moe.types import InputError, MixtureOutput


class MixtureOfExperts:
    """A trained mixture that answers requests.

    Args:
        bundle: Model, tokenizer, fitted numbers.
        device: Where to compute; None takes a GPU if there is one.
    """

    def __init__(self, bundle: Bundle, device: str | None = None) -> None:
        self.bundle = bundle
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = bundle.model.to(self.device).eval()
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
    ) -> Any:
        """Answers one request (a dict) or several (a list of dicts, in the same order).

        Args:
            requests: A text, a request object, or an iterable of these.
            text: Of a single request, instead of `requests`.
            context: Its passage.
            tasks: Its tasks, or those of every request that names none.

        Raises:
            InputError: A request is malformed; nothing is computed.
        """
        if requests is None:
            requests = {"text": text, "context": context}
        elif text is not None or context is not None:
            raise InputError("predict: give either requests, or text and context, not both")
        one = isinstance(requests, str | dict)
        parsed = [self._parse(value, tasks) for value in ([requests] if one else requests)]
        answers = self._answer(parsed)
        return answers[0] if one else answers

    def _parse(self, value: Any, tasks: Sequence[str] | None) -> Request:
        if tasks is not None and isinstance(value, str):
            value = {"text": value}
        if tasks is not None and isinstance(value, dict) and value.get("tasks") is None:
            value = {**value, "tasks": list(tasks)}
        return parse_request(value, self.tasks)

    def _answer(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        config, tokenizer = self.bundle.config.data, self.bundle.tokenizer
        contexts = tokenizer.encode([request.context or "" for request in requests])
        windows = self._windows(requests, [ids for ids, _ in contexts])
        answers: list[dict[str, Any]] = [{} for _ in requests]
        # Requests that name their tasks are not routed: they go in batches of their own.
        for named in (False, True):
            mine = [i for i, request in enumerate(requests) if (request.tasks is not None) == named]
            longest = [max(map(len, windows[i])) for i in mine]
            counts = [len(windows[i]) for i in mine]
            for group in token_budget(longest, config.max_tokens, config.max_padding, counts):
                rows = [mine[i] for i in group]
                batch = collate_requests(rows, [windows[row] for row in rows], tokenizer)
                chunk = [requests[row] for row in rows]
                said = self._run(chunk, batch, [contexts[row][1] for row in rows])
                for row, answer in zip(rows, said, strict=True):
                    answers[row] = answer
        return answers

    def _windows(self, requests: Sequence[Request], contexts: Sequence[Any]) -> list[list[Window]]:
        config = self.bundle.config.data
        texts = self.bundle.tokenizer.encode([request.text for request in requests])
        return [
            make_windows(
                text_ids,
                None if request.context is None else context_ids,
                max_length=config.max_length,
                stride=config.stride,
            )
            for request, (text_ids, _), context_ids in zip(requests, texts, contexts, strict=True)
        ]

    @torch.inference_mode()
    def _run(
        self, requests: Sequence[Request], batch: RequestBatch, offsets: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Answers of one micro-batch, in which all requests or none name their tasks."""
        batch = batch.to(self.device)
        output = self.model(batch.batch, tasks_BT=self._named_tasks(requests, batch))
        answers = self._decode(requests, batch, output, offsets)
        first = batch.first_windows()
        refused_N = self._refused(requests, batch, output)
        mass_NT = output.routing.task_mass_BT[first].cpu().numpy()
        chosen_NT = output.routing.tasks_BT[first].cpu().numpy()
        weight_NE = output.routing.log_weights_BE[first].exp().cpu().numpy()
        return [
            {
                **({} if request.id is None else {"id": request.id}),
                "abstained": reason is not None,
                "routing": routing_answer(self.tasks, mass_T, chosen_T, weight_E),
                **({"answers": answer} if reason is None else {"answers": {}, "reason": reason}),
            }
            for request, mass_T, chosen_T, weight_E, answer, reason in zip(
                requests, mass_NT, chosen_NT, weight_NE, answers, refused_N, strict=True
            )
        ]

    def _refused(
        self, requests: Sequence[Request], batch: RequestBatch, output: MixtureOutput
    ) -> list[str | None]:
        """Why the gate abstains from each request, None where it does not."""
        reference = self.bundle.calibration.reference
        if reference is None or requests[0].tasks is not None:
            return [None] * len(requests)
        pooled_BD = mean_per_request(output.pooled_BD.float(), batch.batch.request_ids)
        score_N = stranger_scores(pooled_BD[batch.first_windows()].cpu().numpy(), reference)
        names = ", ".join(task.name for task in self.tasks)
        return [
            f"fits no task: closer to texts outside {names} (score {score:.2f}, refused above "
            f"{reference.threshold:.2f}); name the tasks to get an answer"
            if score > reference.threshold
            else None
            for score in score_N
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
        start = 0
        for task in self.tasks:
            columns = range(start, start := start + task.num_experts)
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
