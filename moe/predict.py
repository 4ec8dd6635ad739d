"""Inference in one line: load a checkpoint, ask, get answers in the one answer form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.checkpoint import Bundle, load_bundle, save_bundle
from moe.data.collate import RequestBatch, collate_requests
from moe.data.windows import Window, token_budget
from moe.fused import FusedLayers
from moe.gate import mean_per_request
from moe.precision import pick_device
from moe.predictor import Explain, Predictor
from moe.readout import read_task
from moe.requests import Request
from moe.types import InputError, expert_columns


class MixtureOfExperts(Predictor):
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
            self.device = pick_device(device)
            self.model = bundle.model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
            reason = str(error).splitlines()[0]
            raise InputError(f"device {device!r}: cannot be used ({reason})") from error
        is_cpu = self.device.type == "cpu"
        self.model.fused = FusedLayers(self.model.encoder) if is_cpu else None
        data = bundle.config.data
        super().__init__(
            self.model.tasks,
            bundle.tokenizer,
            bundle.calibration,
            max_length=data.max_length,
            stride=data.stride,
        )

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

    def answer(
        self, requests: Sequence[Request], *, explain: Explain = False
    ) -> list[dict[str, Any]]:
        """Answers checked requests in their order, all in memory at once."""
        cut = self._windows(requests)
        windows = [mine for mine, _ in cut]
        answers: list[dict[str, Any]] = [{} for _ in requests]
        for rows in self._groups(requests, windows):
            batch = collate_requests(rows, [windows[row] for row in rows], self.bundle.tokenizer)
            chunk = [requests[row] for row in rows]
            said = self._run(chunk, batch, [cut[row][1] for row in rows], explain)
            for row, answer in zip(rows, said, strict=True):
                answers[row] = answer
        return answers

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

    @torch.inference_mode()
    def _run(
        self,
        requests: Sequence[Request],
        batch: RequestBatch,
        offsets: Sequence[Any],
        explain: Explain,
    ) -> list[dict[str, Any]]:
        """Answers of one micro-batch, in which all requests or none name their tasks."""
        batch = batch.to(self.device)
        output = self.model(batch.batch, tasks_BT=self._named_tasks(requests, batch))
        said = [read_task(output, batch, columns) for columns in expert_columns(self.tasks)]
        answers = self._decode(requests, said, offsets)
        first, routing = batch.first_windows(), output.routing
        pooled_BD = mean_per_request(output.pooled_BD.float(), batch.batch.request_ids)
        pooled_ND = pooled_BD[first].cpu().numpy()
        mass_NT = routing.task_mass_BT[first].cpu().numpy()
        chosen_NT = routing.tasks_BT[first].cpu().numpy()
        cosines = self._cosines(requests, pooled_ND, explain)
        reasons = self._refused(requests, cosines, mass_NT, chosen_NT)
        weight_NE = routing.log_weights_BE[first].exp().cpu().numpy()
        records = self._records(
            requests, answers, reasons, mass_NT=mass_NT, chosen_NT=chosen_NT, weight_NE=weight_NE
        )
        if explain:
            self._explain(
                requests,
                records,
                reasons,
                pooled_ND,
                cosines,
                probability_NE=routing.probabilities_BE[first].cpu().numpy(),
                mass_NT=mass_NT,
                answerable_NT=self.model.answerable(batch.batch)[first].cpu().numpy(),
                explain=explain,
            )
        return records

    def _named_tasks(self, requests: Sequence[Request], batch: RequestBatch) -> Tensor | None:
        if requests[0].tasks is None:
            return None
        chosen = [
            [task.name in (request.tasks or ()) for task in self.tasks] for request in requests
        ]
        return torch.tensor(chosen, device=self.device)[batch.batch.request_ids]
