"""Loaders of planned training steps and of evaluation requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from moe.config import DataConfig
from moe.data.collate import RequestBatch, collate, collate_requests
from moe.data.mixing import PlannedRow, StepPlan, StepPlanner, neighbours
from moe.data.prepare import Tables
from moe.data.routing import RoutingTable
from moe.data.tables import TaskTable, targets, training_items
from moe.data.windows import TextTokenizer, Window, token_budget
from moe.interrupt import ignore_in_worker
from moe.ranks import num_ranks, rank, shares
from moe.types import Batch


@dataclass(frozen=True, kw_only=True)
class Step:
    """This rank's micro-batches of one optimizer step.

    Attributes:
        position: Counted from 0.
        micro_batches: At least one.
        rounds: Groups of `together` on the rank that has most.
    """

    position: int
    micro_batches: tuple[Batch, ...]
    rounds: int = 1

    def together(self, max_tokens: int) -> list[list[Batch]]:
        """Neighbouring micro-batches in groups of at most `max_tokens` tokens with padding.

        As many groups on every rank, since they exchange sums at each: where a rank has fewer, its
        first are empty.
        """
        groups = neighbours([b.input_ids.numel() for b in self.micro_batches], max_tokens)
        filled = [[self.micro_batches[i] for i in group] for group in groups]
        empty: list[list[Batch]] = [[] for _ in range(self.rounds - len(filled))]
        return empty + filled

    def to(self, *args: Any, **kwargs: Any) -> Step:
        """Every micro-batch moved as by `torch.Tensor.to`."""
        return replace(self, micro_batches=tuple(b.to(*args, **kwargs) for b in self.micro_batches))

    def pin_memory(self) -> Step:
        """Every micro-batch in page-locked memory, for the data loader."""
        return replace(self, micro_batches=tuple(b.pin_memory() for b in self.micro_batches))


class StepDataset(Dataset[Step]):
    """Turns the position of a step into the micro-batches of one rank."""

    def __init__(
        self,
        tables: Tables,
        planner: StepPlanner,
        tokenizer: TextTokenizer,
        rank: int = 0,
        num_ranks: int = 1,
    ):
        self.rank, self.num_ranks = rank, num_ranks
        self.tables: list[TaskTable | RoutingTable] = [*tables.train]
        if tables.routing_train is not None:
            self.tables.append(tables.routing_train)
        self.planner = planner
        self.tokenizer = tokenizer
        self.donors = next((t for t in tables.train if t.spec.needs_context), None)

    def __getitem__(self, position: int) -> Step:
        plan: StepPlan = self.planner.step(position, self.rank, self.num_ranks)
        rows_T = torch.tensor(plan.rows_T)
        batches = []
        for micro_batch in plan.micro_batches:
            windows = self._windows(micro_batch)
            batches.append(collate(windows, range(len(windows)), self.tokenizer, rows_T))
        return Step(position=position, micro_batches=tuple(batches), rounds=plan.rounds)

    def _windows(self, planned: Sequence[PlannedRow]) -> list[Window]:
        windows: dict[int, Window] = {}
        for stream, table in enumerate(self.tables):
            mine = [i for i, row in enumerate(planned) if row.task == stream]
            if mine:
                items = self.planner.items[stream]
                records = table.read([int(items.row[planned[i].item]) for i in mine])
                for i, record in zip(mine, records, strict=True):
                    windows[i] = self._window(planned[i], record, table)
        return [windows[i] for i in range(len(planned))]

    def _window(
        self, row: PlannedRow, record: dict[str, Any], table: TaskTable | RoutingTable
    ) -> Window:
        items = self.planner.items[row.task]
        length = (items.noised if row.noised else items.text)[row.item]
        text_ids = record["noised_ids" if row.noised else "text_ids"][:length]
        first, context_ids = int(items.first[row.item]), None
        if items.context[row.item]:
            context_ids = record["context_ids"][first : first + items.context[row.item]]
        elif row.donor >= 0 and self.donors is not None:
            passage = self.donors.read([row.donor])[0]["context_ids"]
            context_ids = passage[row.donor_first : row.donor_first + row.donor_length]
        return Window(
            text_ids=text_ids,
            context_ids=context_ids,
            first=first,
            task=table.task,
            **targets(record, length, noised=row.noised),
            targets=record.get("targets", ()),
            answered=record.get("answered", ()),
        )


class RequestDataset(Dataset[RequestBatch]):
    """A rank's share of the rows of one table, or all, in micro-batches of whole requests.

    Longest first; each row is in the share of one rank, and none is added to make shares equal.
    """

    def __init__(
        self,
        table: TaskTable | RoutingTable,
        tokenizer: TextTokenizer,
        config: DataConfig,
        rank: int = 0,
        num_ranks: int = 1,
    ):
        self.table = table
        self.tokenizer = tokenizer
        self.shape = {"max_length": config.max_length, "stride": config.stride}
        windows = [table.windows(r, **self.shape) for r in table.read(range(len(table)))]
        lengths, counts = [max(map(len, w)) for w in windows], [len(w) for w in windows]
        rows = shares([a * b for a, b in zip(lengths, counts, strict=True)], num_ranks)[rank]
        groups = token_budget(
            [lengths[i] for i in rows],
            config.max_tokens,
            config.max_padding,
            counts=[counts[i] for i in rows],
        )
        self.groups = [[rows[i] for i in group] for group in groups]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> RequestBatch:
        rows = self.groups[index]
        windows = [
            [replace(w, task=self.table.task) for w in self.table.windows(record, **self.shape)]
            for record in self.table.read(rows)
        ]
        return collate_requests(rows, windows, self.tokenizer)


class PositionSampler(Sampler[int]):
    """Positions of the optimizer steps from where training stands to the end of the epoch.

    What is done decides where an epoch begins, not the number of the epoch: Lightning's count is
    off by one after some resumptions, and an epoch that begins behind the last step would be empty
    for ever.

    Args:
        steps_per_epoch: Positions of a whole epoch.
        total_steps: Where training ends.
        done: Optimizer steps made so far, asked when an iteration begins.
    """

    def __init__(self, steps_per_epoch: int, total_steps: int, done: Callable[[], int]) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        self.done = done

    def __iter__(self) -> Iterator[int]:
        first = self.done()
        end_of_epoch = (first // self.steps_per_epoch + 1) * self.steps_per_epoch
        yield from range(first, min(end_of_epoch, self.total_steps))

    def __len__(self) -> int:
        return self.steps_per_epoch


class MixtureData(L.LightningDataModule):
    """Data of a training run.

    Args:
        tables: Tokenized rows.
        planner: Plans the training steps.
        tokenizer: For the ids of the special tokens.
        config: Windows, micro-batches, workers.
        steps_per_epoch: Optimizer steps of a pass over the data.
    """

    def __init__(
        self,
        *,
        tables: Tables,
        planner: StepPlanner,
        tokenizer: TextTokenizer,
        config: DataConfig,
        steps_per_epoch: int,
    ) -> None:
        super().__init__()
        self.tables = tables
        self.planner = planner
        self.tokenizer = tokenizer
        self.config = config
        self.sampler = PositionSampler(steps_per_epoch, len(planner), self._done)
        # A small table leaves some ranks without a row.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def _done(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_step

    def train_dataloader(self) -> DataLoader[Step]:
        """Steps from where training stands; one item is one optimizer step."""
        dataset = StepDataset(self.tables, self.planner, self.tokenizer, rank(), num_ranks())
        return self._loader(dataset, sampler=self.sampler)

    def val_dataloader(self) -> list[DataLoader[RequestBatch]]:
        """One loader per task, one of the routing rows that are fitted on, and the exemplars'."""
        tables: list[TaskTable | RoutingTable] = [*self.tables.validation]
        if self.tables.routing_validation is not None:
            tables.append(self.tables.routing_validation)
        tables += self.tables.exemplars.values()
        return [
            self._loader(RequestDataset(table, self.tokenizer, self.config, rank(), num_ranks()))
            for table in tables
        ]

    def _loader(
        self, dataset: Dataset[Any], sampler: Sampler[int] | None = None
    ) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=self.config.workers,
            worker_init_fn=ignore_in_worker,
            pin_memory=torch.cuda.is_available(),
            # Each iteration draws a seed: from the global stream, dropout would depend on how
            # often a run was interrupted.
            generator=torch.Generator(),
        )


def build_planner(
    tables: Tables, config: DataConfig, *, total_steps: int, seed: int
) -> StepPlanner:
    """The planner of a run over the training tables."""
    shape = {"max_length": config.max_length, "stride": config.stride}
    donors = next((t for t in tables.train if t.spec.needs_context), None)
    routing = tables.routing_train
    return StepPlanner(
        items=[training_items(table, **shape) for table in tables.train],
        names=[spec.name for spec in tables.specs],
        can_attach=[not spec.needs_context for spec in tables.specs],
        donors=None if donors is None else donors.lengths("context_ids"),
        mixing=config.mixing,
        batch_size=config.batch_size,
        max_tokens=config.max_tokens,
        max_padding=config.max_padding,
        max_length=config.max_length,
        attach_context=config.attach_context,
        noise=config.noise,
        total_steps=total_steps,
        seed=seed,
        routing=None if routing is None else training_items(routing, **shape),
        routing_share=config.routing_share,
    )
