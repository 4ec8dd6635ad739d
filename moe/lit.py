"""Training with Lightning: one call of `training_step` is one optimizer step over all tasks.

With several ranks each has its share of the step's rows. Losses are divided by the rows of the
whole step and gradients added, so that a step moves the weights alike on any number of ranks.

Dimensions: E experts, T tasks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from moe.abstain import Vectors
from moe.allocator import peak_memory_gb
from moe.averaging import WeightAverage
from moe.calibration import Calibration
from moe.checkpoint import (
    arrays,
    load_profile,
    memory_tensors,
    profile_tensors,
    reference_tensors,
)
from moe.collect import Answers, collect, embed_wide
from moe.config import ExperimentConfig
from moe.data.collate import RequestBatch
from moe.data.module import Step
from moe.data.routing import RoutingTable
from moe.data.tables import TaskTable
from moe.evaluation import Evaluation, joint_score
from moe.guard import StepGuard
from moe.interrupt import StopSignals
from moe.losses import GateSums, prior_divergence, switch_balance
from moe.model import Mixture
from moe.profile import Profile
from moe.ranks import from_first, gathered, num_ranks, rank
from moe.schedule import parameter_groups, rate_factor
from moe.step_loss import StepLoss, Terms, over_ranks, tokens_over_ranks
from moe.validation import Collected, Validated, validate


class LitMixture(L.LightningModule):
    """The mixture with its joint loss, optimizer and validation.

    An optimizer step is one batch of the loader: its micro-batches are run in groups, one after
    the other, and their gradients added, with losses normalised over the rows of the whole step.
    Lightning's own accumulation knows neither a varying number of micro-batches nor that norm,
    hence manual optimization.

    Args:
        model: The mixture.
        config: Of the run.
        validation: Validation tables, in the order of the validation loaders.
        routing: Held-out routing rows, the next validation loader; None without.
        exemplars: Rows to compare with, the last loaders; empty if no text is known that
            fits no task.
        total_steps: Optimizer steps of the run, for the schedule.
        identity: What a checkpoint must hold beside weights and fitted numbers.
        stop: Where a signal to any rank is told to all.
    """

    def __init__(
        self,
        *,
        model: Mixture,
        config: ExperimentConfig,
        validation: Sequence[TaskTable],
        total_steps: int,
        identity: dict[str, Any],
        routing: RoutingTable | None = None,
        exemplars: Mapping[str, TaskTable | RoutingTable] | None = None,
        stop: StopSignals | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.config = config
        self.validation = tuple(validation)
        self.routing = routing
        self.exemplars = dict(exemplars or {})
        self.total_steps = total_steps
        self.average = WeightAverage(total_steps, config.optimizer.average)
        self.identity = identity
        self.stop = StopSignals() if stop is None else stop
        self.guard = StepGuard(config.optimizer.max_skipped)
        self.calibration = Calibration()
        self.memory: dict[str, Vectors] = {}
        self.answers: list[Answers] = []
        self.evaluation: Evaluation | None = None
        self.profile: Profile | None = None
        self._collected = Collected(answers=[])
        task_weights = [config.selected_tasks[task.name].weight for task in model.tasks]
        self.step_loss = StepLoss(config.model.loss, task_weights)
        self._clock = time.monotonic()

    # --- training -------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Other ranks drop out other units; a resumed run replaces these random states."""
        if rank() > 0:
            numbers = [self.config.seed_everything, self.trainer.global_step, rank()]
            torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))

    def training_step(self, step: Step, batch_idx: int) -> None:
        """Runs every micro-batch, clips, and moves the weights once."""
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        optimizer.zero_grad()
        groups = step.together(self.config.data.max_tokens)
        rows_T = step.micro_batches[0].step_rows_T
        sums: GateSums | None = None
        terms: list[Terms] = []
        balances = []
        for number, group in enumerate(groups, 1):
            loss = self.step_loss(self.model, group, rows_T, sums, terms)
            sums = loss.sums
            balances.append(loss.balance.detach())
            if group:
                self._backward(loss.rows + loss.balance, is_last=number == len(groups))
        assert sums is not None
        clip = self.config.optimizer.gradient_clip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip if clip > 0 else torch.inf)
        total = over_ranks(terms, signals=norm.new_tensor(self.stop.heard))
        total["loss"] = total["loss"] + torch.stack(balances).sum()
        moves = self._is_sound(total, norm)
        if not moves:
            # Without gradients AdamW moves nothing, but the step counts: plan, schedule and
            # `global_step` stay one number.
            optimizer.zero_grad()
        optimizer.step()
        scheduler.step()
        if self.config.model.loss.bias_rate > 0 and moves:
            rate = self.config.model.loss.bias_rate
            self.model.gate.update_bias(sums.chosen_E, self.model.task_sizes, rate)
        self.average.update(self.trainer.global_step, self.model)
        if self.trainer.global_step % self._log_every == 0:
            self._log_step(step, sums, total, norm)

    def _backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Adds to this rank's gradients; the last time in a step the ranks exchange theirs."""
        trainer: Any = self.trainer
        exchanges = is_last or num_ranks() == 1
        with nullcontext() if exchanges else trainer.strategy.block_backward_sync():
            # DDP takes the mean over the ranks; each has a part of a sum.
            self.manual_backward(loss * num_ranks())

    def _is_sound(self, total: Mapping[str, Tensor], norm: Tensor) -> bool:
        """Whether loss and gradient are finite, on all ranks alike.

        The one place that waits for the device, so a signal to any rank is heard of here, too.
        """
        read = torch.cat([total["loss"][None], norm[None], total["signals"]]).tolist()
        loss, length, *heard = read
        self.stop.agree(heard)
        if math.isfinite(loss + length):
            return self.guard.passes(True, self.trainer.global_step, "")
        found = f"loss {loss:.6g}, gradient norm {length:.6g}"
        print(f"step {self.trainer.global_step}: {found}: skipped", flush=True)
        return self.guard.passes(False, self.trainer.global_step, found)

    def _log_step(
        self, step: Step, sums: GateSums, total: Mapping[str, Tensor], norm: Tensor
    ) -> None:
        rows_T, names = sums.rows_T, [task.name for task in self.model.tasks]
        values: dict[str, Any] = {
            "train_loss/total": total["loss"],
            "train_loss/routing": total["routing_T"].sum() / rows_T.sum(),
            "train_loss/z": total["z"] / rows_T.sum(),
            "train_loss/routing_rows": total["routing_rows"]
            / total["num_routing_rows"].clamp_min(1.0),
            "train_loss/prior": prior_divergence(sums),
            "optimizer/gradient_norm": norm,
            "optimizer/skipped_steps": float(self.guard.skipped),
        }
        balance_T = switch_balance(sums, self.model.task_experts_TE)
        for task, name in enumerate(names):
            values[f"train_loss/answer_{name}"] = total["answer_T"][task] / rows_T[task]
            values[f"gate_balance/{name}"] = balance_T[task]
        for expert, name in enumerate(self.model.expert_names):
            values[f"gate_load/{name}"] = sums.chosen_E[expert] / sums.chosen_E.sum()
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            if not group["name"].endswith("no_decay"):
                values[f"optimizer/lr_{group['name']}"] = group["lr"]
        values |= self._speed(step) | {"step": float(self.trainer.global_step)}
        self.log_dict(values, on_step=True, batch_size=1)

    def _speed(self, step: Step) -> dict[str, float]:
        now, before = time.monotonic(), self._clock
        self._clock = now
        real, processed = tokens_over_ranks(step.micro_batches)
        steps = self._log_every
        return {
            "speed/tokens_per_second": real * steps / max(now - before, 1e-9),
            "speed/padding_share": 1 - real / processed,
            "speed/micro_batches": float(len(step.micro_batches)),
            "speed/memory_gb": peak_memory_gb(self.device),
        }

    def configure_optimizers(self) -> Any:
        """Fused AdamW over encoder, experts and gate, with warm-up and decay."""
        config, total_steps = self.config.optimizer, self.total_steps
        optimizer = AdamW(parameter_groups(self.model, config), fused=True)

        def factor(step: int) -> float:
            return rate_factor(step, total_steps, config)

        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, factor)}

    @property
    def _log_every(self) -> int:
        return int(self.trainer.log_every_n_steps)  # type: ignore[attr-defined]

    # --- validation -----------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._collected = Collected(
            answers=[[] for _ in self._asked], embedded=[[] for _ in self.exemplars]
        )

    @property
    def _asked(self) -> list[TaskTable | RoutingTable]:
        return [*self.validation, *([] if self.routing is None else [self.routing])]

    def validation_step(
        self, requests: RequestBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Collects the answers of one micro-batch, or the embeddings of exemplars."""
        tables = self._asked
        if dataloader_idx < len(tables):
            answers = collect(self.model, tables[dataloader_idx], requests)
            self._collected.answers[dataloader_idx].append(answers)
        else:
            embedded = requests.rows, embed_wide(self.model, requests)
            self._collected.embedded[dataloader_idx - len(tables)].append(embedded)

    def on_validation_epoch_end(self) -> None:
        """Fits temperatures and thresholds, then measures with them; rank 0 does, for all."""
        collected = gathered(self._collected)
        self._collected = Collected(answers=[])

        def first() -> Validated:
            rows = self.validation, self.routing, self.exemplars
            found, self.answers = validate(self.model, self.config, *rows, collected)
            return found

        found = from_first(first)
        self.calibration, self.profile = found.calibration, found.profile
        self.evaluation = found.evaluation
        if found.memory is not None:
            self.memory = found.memory
        step = float(self.trainer.global_step)
        # Lightning would put these at the number of batches; "step" is its key for the x axis.
        values = {"step": step, "val/joint_score": joint_score(self.evaluation.tasks)}
        for task, metrics in self.evaluation.tasks.items():
            values |= {f"val_{task}/{k}": float(v) for k, v in metrics.items() if k != "n"}
        values |= {f"val_gate/{k}": v for k, v in self.evaluation.gate.items()}
        values |= {f"val_load/{k}": v["load"] for k, v in self.evaluation.experts.items()}
        self.log_dict(values, batch_size=1)
        self._clock = time.monotonic()

    # --- checkpoint -----------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds all that is needed to load the model offline in a fresh process."""
        checkpoint["guard"] = self.guard.state_dict()
        if "optimizer_states" in checkpoint:  # else it is to answer with
            checkpoint["average"] = self.average.state_dict()
        checkpoint["mixture"] = {
            **self.identity,
            "calibration": self.calibration.to_dict(),
            "reference": reference_tensors(self.calibration),
            "memory": memory_tensors(self.memory),
            "profile": profile_tensors(self.profile),
            "metrics": {} if self.evaluation is None else asdict(self.evaluation),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the fitted numbers again, so that a resumed run saves them too."""
        self.guard.load_state_dict(checkpoint.get("guard", self.guard.state_dict()))
        self.average.load_state_dict(checkpoint.get("average", {}), self.model)
        saved = checkpoint["mixture"]
        kept = arrays(saved.get("reference", {}))
        self.calibration = Calibration.from_saved(saved["calibration"], kept)
        self.memory = arrays(saved.get("memory", {}))
        self.profile = load_profile(saved.get("profile"))
        if saved["metrics"]:
            self.evaluation = Evaluation(**saved["metrics"])
