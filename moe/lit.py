"""Training with Lightning: one call of `training_step` is one optimizer step over all tasks.

Dimensions: E experts, T tasks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from moe.abstain import Vectors
from moe.allocator import peak_memory_gb
from moe.calibration import Calibration
from moe.checkpoint import (
    arrays,
    load_profile,
    memory_tensors,
    profile_tensors,
    reference_tensors,
)
from moe.collect import Answers, collect, embed_deep, join
from moe.config import ExperimentConfig
from moe.data.collate import RequestBatch
from moe.data.module import Step
from moe.data.routing import RoutingTable
from moe.data.tables import TaskTable
from moe.evaluation import Evaluation, evaluate, joint_score
from moe.fitting import fit_abstain, fit_calibration, remembered
from moe.guard import StepGuard
from moe.losses import (
    GateSums,
    balance_loss,
    gate_sums,
    prior_divergence,
    routing_loss,
    switch_balance,
    z_loss,
)
from moe.model import Mixture
from moe.profile import Profile, validation_profile
from moe.schedule import parameter_groups, rate_factor
from moe.types import Batch, MixtureOutput


class LitMixture(L.LightningModule):
    """The mixture with its joint loss, optimizer and validation.

    An optimizer step is one batch of the loader: its micro-batches are run one after the other
    and their gradients added, with losses normalised over the rows of the whole step. Lightning's
    own accumulation knows neither a varying number of micro-batches nor that norm, hence manual
    optimization.

    Args:
        model: The mixture.
        config: Of the run.
        validation: Validation tables, in the order of the validation loaders.
        routing: Held-out routing rows, the next validation loader; None without.
        exemplars: Rows to compare with, the last loaders; empty if no text is known that
            fits no task.
        total_steps: Optimizer steps of the run, for the schedule.
        identity: What a checkpoint must hold beside weights and fitted numbers.
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
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.config = config
        self.validation = tuple(validation)
        self.routing = routing
        self.exemplars = dict(exemplars or {})
        self.total_steps = total_steps
        self.identity = identity
        self.guard = StepGuard(config.optimizer.max_skipped)
        self.calibration = Calibration()
        self.memory: dict[str, Vectors] = {}
        self.answers: list[Answers] = []
        self.evaluation: Evaluation | None = None
        self.profile: Profile | None = None
        self._parts: list[list[Answers]] = []
        self._embedded: list[list[Vectors]] = []
        weights = [config.selected_tasks[task.name].weight for task in model.tasks]
        self.register_buffer("task_weight_T", torch.tensor(weights), persistent=False)
        self._clock = time.monotonic()

    # --- training -------------------------------------------------------------------------

    def training_step(self, step: Step, batch_idx: int) -> None:
        """Runs every micro-batch, clips, and moves the weights once."""
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        optimizer.zero_grad()
        sums: GateSums | None = None
        terms: list[dict[str, Tensor]] = []
        for group in step.together(self.config.data.max_tokens):
            losses = []
            for batch, output in zip(group, self.model.forward_together(group), strict=True):
                loss, sums, logged = self._micro_batch(batch, output, sums)
                losses.append(loss)
                terms.append(logged)
            self.manual_backward(torch.stack(losses).sum())
        clip = self.config.optimizer.gradient_clip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip if clip > 0 else torch.inf)
        moves = self._is_sound(norm, terms)
        if not moves:
            # Without gradients AdamW moves nothing, but the step counts: plan, schedule and
            # `global_step` stay one number.
            optimizer.zero_grad()
        optimizer.step()
        scheduler.step()
        assert sums is not None
        if self.config.model.loss.bias_rate > 0 and moves:
            rate = self.config.model.loss.bias_rate
            self.model.gate.update_bias(sums.chosen_E, self.model.task_sizes, rate)
        if self.trainer.global_step % self._log_every == 0:
            self._log_step(step, sums, terms, norm)

    def _is_sound(self, norm: Tensor, terms: Sequence[Mapping[str, Tensor]]) -> bool:
        """Whether loss and gradient are finite: the one place that waits for the device."""
        loss = torch.stack([term["loss"] for term in terms]).sum()
        if bool(torch.isfinite(loss + norm)):
            return self.guard.passes(True, self.trainer.global_step, "")
        found = f"loss {loss:.6g}, gradient norm {norm:.6g}"
        print(f"step {self.trainer.global_step}: {found}: skipped", flush=True)
        return self.guard.passes(False, self.trainer.global_step, found)

    def _micro_batch(
        self, batch: Batch, output: MixtureOutput, earlier: GateSums | None
    ) -> tuple[Tensor, GateSums, dict[str, Tensor]]:
        """Loss of a micro-batch as its part of the step's loss, sums so far, terms to log."""
        weights = self.config.model.loss
        model, experts_TE = self.model, self.model.task_experts_TE
        assert batch.step_rows_T is not None and batch.target_BT is not None
        answer_B = model.answer_loss(output, batch)
        routing_B = routing_loss(output.routing.logits_BE, batch.target_BT, experts_TE)
        z_B = z_loss(output.routing.logits_BE)
        chosen_BE = model.inference_choice(output.routing)
        sums = gate_sums(output.routing, chosen_BE, batch.task_ids, experts_TE)
        if earlier is not None:
            sums = earlier + sums
        balance = balance_loss(
            sums, batch.step_rows_T, experts_TE, switch=weights.switch, prior=weights.prior
        )
        weight_B = self.task_weight_T[batch.task_ids]  # type: ignore[index]
        row_B = weight_B * answer_B + weights.routing * routing_B + weights.z * z_B
        loss = row_B.sum() / batch.step_rows_T.sum() + balance
        own_BT = model.own_tasks(batch).float()
        logged = {
            "answer_T": answer_B.detach() @ own_BT,
            "routing_T": routing_B.detach() @ own_BT,
            "routing_rows": routing_B.detach() @ (1 - own_BT.sum(1)),
            "num_routing_rows": (1 - own_BT).prod(1).sum(),
            "z": z_B.detach() @ own_BT.sum(1),
            "loss": loss.detach(),
        }
        return loss, sums.detach(), logged

    def _log_step(
        self, step: Step, sums: GateSums, terms: list[dict[str, Tensor]], norm: Tensor
    ) -> None:
        total = {name: sum(term[name] for term in terms) for name in terms[0]}
        rows_T, names = sums.rows_T, [task.name for task in self.model.tasks]
        values: dict[str, Any] = {
            "train_loss/total": total["loss"],
            "train_loss/routing": total["routing_T"].sum() / rows_T.sum(),  # type: ignore[union-attr]
            "train_loss/z": total["z"] / rows_T.sum(),
            "train_loss/routing_rows": total["routing_rows"]
            / total["num_routing_rows"].clamp_min(1.0),  # type: ignore[union-attr]
            "train_loss/prior": prior_divergence(sums),
            "optimizer/gradient_norm": norm,
            "optimizer/skipped_steps": float(self.guard.skipped),
        }
        balance_T = switch_balance(sums, self.model.task_experts_TE)
        for task, name in enumerate(names):
            values[f"train_loss/answer_{name}"] = total["answer_T"][task] / rows_T[task]  # type: ignore[index]
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
        processed = sum(batch.input_ids.numel() for batch in step.micro_batches)
        real = sum(int(batch.attention_mask.sum()) for batch in step.micro_batches)
        steps = self._log_every
        return {
            "speed/tokens_per_second": real * steps / max(now - before, 1e-9),
            "speed/padding_share": 1 - real / processed,
            "speed/micro_batches": float(len(step.micro_batches)),
            "speed/memory_gb": peak_memory_gb(self.device),
        }

    def configure_optimizers(self) -> Any:
        """Fused AdamW over encoder, experts and gate, with linear warm-up and decay."""
        groups = parameter_groups(self.model, self.config.optimizer)
        optimizer = AdamW(groups, fused=True)
        optimizer_config, total = self.config.optimizer, self.total_steps

        def factor(step: int) -> float:
            return rate_factor(step, total, optimizer_config)

        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, factor)}

    @property
    def _log_every(self) -> int:
        return int(self.trainer.log_every_n_steps)  # type: ignore[attr-defined]

    # --- validation -----------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._parts = [[] for _ in self._asked]
        self._embedded = [[] for _ in self.exemplars]

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
            self._parts[dataloader_idx].append(answers)
        else:
            self._embedded[dataloader_idx - len(tables)].append(embed_deep(self.model, requests))

    def on_validation_epoch_end(self) -> None:
        """Fits temperatures and thresholds, then measures with them."""
        answers = [join(parts) for parts in self._parts]
        self._parts = []
        self.answers = answers[: len(self.validation)]
        routing = None if self.routing is None else (self.routing, answers[-1])
        recalls = {k: t.out_of_scope_recall for k, t in self.config.selected_tasks.items()}
        names = self.model.expert_names
        self.calibration = fit_calibration(self.validation, self.answers, names, recalls, routing)
        if self.exemplars and routing is not None:
            found = zip(self.exemplars, self._embedded, strict=True)
            embedded = {name: np.concatenate(parts) for name, parts in found}
            self._embedded = []
            self.memory = remembered(embedded)
            read = {name: rows_XP[:, : self.model.gate.dim] for name, rows_XP in embedded.items()}
            reference = fit_abstain(read, self.answers, routing)
            self.calibration = replace(self.calibration, reference=reference)
        if self.model.multi_task_threshold is not None:  # set by hand
            self.calibration = replace(
                self.calibration, second_task=self.model.multi_task_threshold
            )
        measured = self.validation, self.answers, self.calibration, self.model.tasks
        self.evaluation = evaluate(*measured)
        self.profile = validation_profile(*measured, self.config.data)
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
        saved = checkpoint["mixture"]
        kept = arrays(saved.get("reference", {}))
        self.calibration = Calibration.from_saved(saved["calibration"], kept)
        self.memory = arrays(saved.get("memory", {}))
        self.profile = load_profile(saved.get("profile"))
        if saved["metrics"]:
            self.evaluation = Evaluation(**saved["metrics"])
