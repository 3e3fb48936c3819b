"""A causal language model under training: dense, routed with balanced pathways, or a control of a routed one.

Shapes: `b` blocks, `t` position.
"""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from slms.data.module import TextData
from slms.lit.balances import Balances, Budgets, key_of
from slms.lit.checkpoint import CONTROL_KEY, kept_in
from slms.lit.controls import CONTROLS, Plan, make_control
from slms.lit.distill import DistillConfig, Teacher, kept_states, losses_of
from slms.lit.moves import AssignmentConfig, Moves
from slms.lit.optim import (
    OptimizerConfig,
    Trained,
    annealed_k,
    build_optimizer,
    lr_share,
    train_only,
    trained_by_default,
)
from slms.lit.optimized import OptimizedModule
from slms.lit.strategies import shard
from slms.lit.together import check_together
from slms.lit.trainer_options import data_of, logs_step, undeclared
from slms.measure.passes import document_loss, token_nats
from slms.metrics.loss import DocumentLoss
from slms.models.activations import mlp_outputs
from slms.models.anatomy import find_mlps
from slms.models.base import BaseConfig, load_base
from slms.models.convert import route
from slms.models.head import separates
from slms.models.place import place_name
from slms.models.routed import draw_pool, record_routes, routed_modules, set_ramp
from slms.models.stock import check_base
from slms.models.transformers_internals import compute_again
from slms.models.weights import model_digest
from slms.routing import Routes, RoutingConfig
from slms.routing.balance import BalanceConfig


class LanguageModel(OptimizedModule):
    """Fine-tunes (or pretrains) a base model, whose MLPs or attention heads are routed if `routing` is given.

    Args:
        base: the dense model to start from.
        routing: how to split and choose pathways; null trains the dense base itself.
        control: train, in place of the model that `routing` describes, one of its rivals with the same text, objective
            and recipe (`slms.lit.controls`): `dense` (the base), `static` (its best fixed neurons, as many as the
            routed model executes), `static_flops` and `static_time` (as many as take the routed model's FLOPs, or its
            measured decode time), `frozen_router` or, of heads, `query_norm`.
        balance: load balancing (GLBL), router z-loss and bias balancing; null takes its defaults, or with the selector
            `gate`, which has no router to balance, none.
        optimizer: AdamW and its schedule.
        distill: what is learnt: the frozen base's predictions, the text, or both.
        train: which weights change: `all`, `mlps` (every MLP and routed module, routers included) or `routers`. null
            means `mlps` if there is `routing`, else `all`. The controls of a routed run train the same.
        gate_ramp: share of the steps over which gates of kind `ramp` go from 1 to σ(score), and `relu` to the score.
        k_anneal: share of the steps over which k falls from `routing.n_pathways` to `routing.k`, under the rule
            `top_k` (and of heads from all to `routing.k_heads`); 0 starts at k.
        assignment: let neurons move between pathways while training (`slms.lit.moves`); null leaves them where the
            conversion put them, as in every control.
        calibration_tokens: training tokens that determine the partition and the routers' initialisation.
        recompute: keep only each layer's input and compute its inside again in the backward pass (gradient
            checkpointing): less memory for one more forward pass a step.

    Each validation step leaves the batch's routes in `last_routes` and returns the losses of its tokens, for callbacks.
    """

    def __init__(
        self,
        base: BaseConfig,
        routing: RoutingConfig | None = None,
        control: Literal[*CONTROLS] | None = None,  # type: ignore[valid-type]  # names of a table
        balance: BalanceConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008  frozen
        distill: DistillConfig = DistillConfig(),  # noqa: B008
        train: Trained | None = None,
        gate_ramp: float = 0.3,
        k_anneal: float = 0.0,
        assignment: AssignmentConfig | None = None,
        calibration_tokens: int = 65_536,
        recompute: bool = False,
    ):
        super().__init__()
        self.distill = distill.resolved(routing is not None)
        check_together(routing, control, balance, self.distill, assignment, gate_ramp, k_anneal)
        self.base, self.routing, self.control, self.balance = base, routing, control, balance or BalanceConfig()
        self.optimizer_config = optimizer
        self.assignment = assignment if control is None else None
        self.trained = train or trained_by_default(routing is not None)
        self.gate_ramp, self.k_anneal, self.calibration_tokens = gate_ramp, k_anneal, calibration_tokens
        self.net, self.tokenizer = load_base(base)
        if routing is not None and routing.stock:
            check_base(self.net.config, routing, self.balance.bias_rate)
        if recompute and not self.net.supports_gradient_checkpointing:
            raise ValueError(f"model.recompute is true; {type(self.net).__name__} cannot compute its layers again")
        self.recompute = recompute
        self.balances, self.budgets, self.moves = Balances(), Budgets(), Moves()
        self.val_loss = DocumentLoss()
        self.val_kl = DocumentLoss()  # KL(base ‖ model), if there is a teacher
        self.base_loss: DocumentLoss | None = None  # the base's loss by document, before any tuning
        self.last_routes: dict[str, Routes] = {}
        self._sums: list[torch.Tensor] = []  # the losses of each micro-batch since the last optimizer step
        self.teacher: Teacher | None = None
        self._taught_layers: list[int] = []  # whose MLPs' outputs are taught
        self.made_control: dict[str, Any] | None = None  # how the control was made
        self.resumed_from: Path | None = None  # the checkpoint, which the command line sets

    @property
    def role(self) -> str:
        """The kind of this run: `routed`, `static` (fixed neurons) or `dense`."""
        if self.control is not None:
            return CONTROLS[self.control].role
        return "dense" if self.routing is None else "routed"

    def setup(self, stage: str) -> None:
        """Measure the base on the validation text, then convert it, calibrated on the first training blocks."""
        if stage != "fit" or self.base_loss is not None:
            return
        data = data_of(self.trainer, TextData)
        limit = getattr(self.net.config, "max_position_embeddings", data.block_size)
        if data.block_size > limit:
            raise ValueError(f"data.block_size is {data.block_size}; the base's context holds at most {limit} tokens")
        if self.assignment is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ValueError("model.assignment is given; --trainer.strategy=fsdp2 shards what would move, so take ddp")
        self.base_digest = model_digest(self.net)
        self.base_loss = document_loss(self.net, data.val_blocks, data.batch_size)
        dense = self.net
        if self.routing is not None:
            self._convert(self.routing, data)
            self._taught_layers = self.routing.routed_layers(len(find_mlps(dense)))
        if self.distill.teaches:
            self.net = copy.deepcopy(dense) if self.net is dense else self.net
            key = self.base_digest, str(self.trainer.precision)
            if self.distill.cache and isinstance(self.trainer.strategy, ModelParallelStrategy):
                raise ValueError("model.distill.cache is true; --trainer.strategy=fsdp2 needs the base at each step")
            states = kept_states(self.distill, dense, data, key) if self.distill.cache else None
            self.teacher = Teacher(dense, states)
        train_only(self.net, self.trained)
        separates(self.net)
        if self.recompute:
            compute_again(self.net)
        self.net.train()

    def _convert(self, routing: RoutingConfig, data: TextData) -> None:
        calibration = data.calibration(self.calibration_tokens)
        if self.control is None:
            self.net = route(self.net, routing, calibration)
        else:
            record = None if self.resumed_from is None else kept_in(self.resumed_from, CONTROL_KEY)
            plan = Plan(routing, calibration, self.trainer.strategy.broadcast, record)
            self.net, self.made_control = make_control(self.control, self.net, plan)
        self.balances.follow(self.net, self.balance)
        self.budgets.follow(self.net)
        if self.assignment is not None:
            self.moves.follow(self.net, self.assignment)

    def configure_model(self) -> None:
        """Shard the model under `--trainer.strategy=fsdp2`; otherwise every process holds all of it."""
        if self.device_mesh is not None:
            for net in (self.net, *([self.teacher.base] if self.teacher else [])):
                shard(net, self.device_mesh)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        trainer, data = self.trainer, data_of(self.trainer, TextData)
        # the trainer's own estimate builds the loaders too early for a checkpoint's position in them
        batches = data.trained_batches(data.batches_per_epoch())
        epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        steps = -(-batches // trainer.accumulate_grad_batches) * epochs
        return steps if trainer.max_steps < 0 else trainer.max_steps if steps < 0 else min(steps, trainer.max_steps)

    def configure_optimizers(self):
        """Make AdamW with a warm-up–cosine schedule over the whole run."""
        optimizer = build_optimizer(self.net, self.optimizer_config, fused=self.trainer.precision != "16-mixed")
        total = self.total_steps
        return self.scheduled(optimizer, lambda step: lr_share(step, total, self.optimizer_config))

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        """Clip the gradients. Lightning refuses to for a fused optimizer under bf16, though it scales no loss there."""
        if self.trainer.precision != "bf16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val is not None and gradient_clip_val > 0:
            by_value = gradient_clip_algorithm == "value"
            clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
            clip(self.net.parameters(), gradient_clip_val)

    def on_train_batch_start(self, batch, batch_idx):
        """Anneal k from all pathways to `routing.k`, and gates from 1 to graded; draw the size of pools."""
        super().on_train_batch_start(batch, batch_idx)
        draw_pool(self.net, self.global_step)
        set_ramp(self.net, min(1.0, self.global_step / (self.gate_ramp * self.total_steps)))
        if self.k_anneal and self.routing is not None:
            share = self.global_step / (self.k_anneal * self.total_steps)
            for module in routed_modules(self.net).values():
                groups, config = module.n_groups, module.config
                module.k = groups * annealed_k(share, config.n_pathways // groups, config.k // groups)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The sum of cross-entropy, load balancing, z-loss and distillation of one batch."""
        taught = self.distill.share_at(self.global_step / self.total_steps) if self.teacher else 0.0
        layers = self._taught_layers if taught and self.distill.mlp else []
        teacher = self.teacher if taught else None
        weights = self.distill.lm or 0.0, taught * (self.distill.logits or 0.0)
        observed: AbstractContextManager[dict[str, Routes]] = (
            record_routes(self.net) if self.balances else nullcontext({})
        )
        seen = self.moves.watch(self.net, self.global_step, self.total_steps)
        with observed as routes, mlp_outputs(self.net, layers) as outputs, seen as inputs:
            tokens, wanted = losses_of(self.net, teacher, batch, *weights, layers)
        self.moves.count(self.net, routes, inputs)
        loss, terms = tokens.total, {"lm": tokens.nll}
        if self.balances:
            terms |= self.balances.terms(self.net, routes)
            weight = self.balance.weight_at(self.global_step, self.total_steps)
            loss = loss + weight * terms["balance"] + self.balance.z_weight * terms["z"]
            penalty = self.budgets.terms(self.net, routes)
            terms |= penalty
            loss = sum(penalty.values(), loss)
        if taught:
            assert tokens.kl is not None  # against the base
            errors = [(outputs[i] - wanted[i]).square().mean() / wanted[i].var() for i in layers]
            error = sum(errors[1:], errors[0]) / len(errors) if errors else loss * 0
            terms |= {"distill_logits": tokens.kl, "distill_mlp": error}
            loss = loss + taught * self.distill.mlp * terms["distill_mlp"]
        self._log_losses(terms | {"total": loss})
        return loss

    def _log_losses(self, losses: dict[str, torch.Tensor]) -> None:
        """Log the means over the optimizer step's global batch; ranks are asked only when a row is written."""
        self._sums.append(torch.stack([loss.detach().float() for loss in losses.values()]))
        mean = torch.stack(self._sums).mean(0)
        if logs_step(self.trainer, self.global_step + 1):
            mean = self.trainer.strategy.reduce(mean, reduce_op="mean")
        named = dict(zip(losses, mean, strict=True))
        self.log("train/loss/total", named.pop("total"), prog_bar=True)
        self.log_dict({f"train/loss/{name}": value for name, value in named.items()})

    def optimizer_step(self, *args, **kwargs):
        """After the optimizer's step, close the global batch: selection biases, densities, and neurons move."""
        super().optimizer_step(*args, **kwargs)
        self._sums.clear()
        with undeclared(self.trainer).profiler.profile("GlobalBalance.step"):
            self.balances.step(self.net, self.balance)
            self.budgets.step(self.net)
            self.moves.step(self.net, self.trainer.optimizers[0], self.global_step, self.total_steps)
        if self.moves and logs_step(self.trainer, self.global_step + 1):
            self.log_dict({f"assignment/moved/{place}": share for place, share in self.moves.shares(self.net).items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how the control was made, because times that decided it would be others when the run is resumed."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CONTROL_KEY] = self.made_control

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rename the keys of old checkpoints, which call the balance of L3.mlp `balances.3`."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("state_dict", {})  # of a sharded checkpoint the shards have it
        for name in [name for name in state if name.startswith("balances.")]:
            _, key, rest = name.split(".", 2)
            if key.isdigit():
                state[f"balances.{key_of(place_name(int(key)))}.{rest}"] = state.pop(name)

    def on_validation_epoch_start(self):
        """Forget the tokens of earlier validations."""
        self.val_loss.reset()
        self.val_kl.reset()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        """Per-token losses of one batch: `nll` [b, t − 1]; its routes stay in `last_routes`."""
        ids, documents = batch["input_ids"], batch["doc_ids"][:, 1:].flatten()
        with record_routes(self.net) as self.last_routes:
            nats = token_nats(self.net, ids, self.teacher.on(ids.device) if self.teacher else None)
        self.val_loss.update(nats.nll.flatten(), documents)
        if nats.kl is not None:
            self.val_kl.update(nats.kl.flatten(), documents)
        return {"nll": nats.nll}

    def on_validation_epoch_end(self):
        """Log the losses over all validation tokens, exact across ranks."""
        nats = self.val_loss.compute().value
        self.log_dict({"val/loss": nats, "val/perplexity": math.exp(nats)}, prog_bar=True)
        if self.teacher:
            self.log("val/kl", self.val_kl.compute().value, prog_bar=True)
