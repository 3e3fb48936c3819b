"""Sparse autoencoders, transcoders and crosscoders under training, on activations of one or two frozen language models.

Shapes: b blocks, t position, n tokens (b·t), d width of a site, s latents.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar, cast

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from slms.data.tokenizer import special_ids
from slms.lit.optimized import OptimizedModule
from slms.lit.trainer_options import data_of, logs_step
from slms.models.activation_stream import ActivationData, ActivationStream
from slms.models.base import BaseConfig, load_base
from slms.models.pair import Models, models_of, open_pair
from slms.models.sites import find_pair, hf_name, site_width
from slms.models.weights import model_digest
from slms.sae.base import CoderLosses
from slms.sae.coders import BatchTopK
from slms.sae.config import CoderSpec
from slms.sae.evaluate import Used, update_qualities
from slms.sae.export import OURS, Provenance, architecture, save
from slms.sae.optim import CoderOptimizerConfig
from slms.sae.quality import CoderQuality, Quality
from slms.sae.training_coder import TrainingCoder

logger = logging.getLogger(__name__)


Kind = TypeVar("Kind", bound=nn.Module)


class Modules(nn.ModuleList, Generic[Kind]):
    """A ModuleList whose items have one declared type."""

    def __iter__(self) -> Iterator[Kind]:
        return cast(Iterator[Kind], super().__iter__())


class SparseAutoencoder(OptimizedModule):
    """Trains one or more coders, each at its site, from one pass of the language model, or of each of two.

    Args:
        base: the model to study: a base, or a directory with a routed model.
        coders: which coders to train, and at which sites.
        optimizer: Adam and its schedule.
        versus: a second model that reads the same tokens (a run directory, a model directory, or a name): every coder
            is then a crosscoder that reads its site in both models; null reads only the base.
    """

    def __init__(
        self,
        base: BaseConfig,
        coders: list[CoderSpec],
        optimizer: CoderOptimizerConfig = CoderOptimizerConfig(),  # noqa: B008  frozen
        versus: str | None = None,
    ):
        super().__init__()
        labels = [spec.label for spec in coders]
        if not coders:
            raise ValueError("model.coders is empty; it must name at least one site")
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"model.coders has {label!r} twice; give each its own `name`")
            if label.strip(".") != label or "/" in label:
                raise ValueError(f"model.coders has the name {label!r}; it must be fit for a directory")
        self.base, self.specs, self.optimizer_config, self.versus = base, coders, optimizer, versus
        opened = load_base(base)
        self.tokenizer = opened.tokenizer
        model: Models = opened.model if versus is None else open_pair(opened, versus, "model.versus")
        self._frozen = [model.eval().requires_grad_(False)]  # a list keeps it out of the state dict
        self.sites = [find_pair(model, spec.site, spec.target) for spec in self.specs]
        for spec, (source, _) in zip(self.specs, self.sites, strict=True):
            if source.parts and not spec.coder.fixed_k:
                raise ValueError(
                    f"coder.kind is {spec.coder.kind!r}; a crosscoder's must be topk, batch_topk or matryoshka"
                )
            spec.coder.width(site_width(model, source))  # an impossible k is refused before anything is gathered
        self.special = special_ids(self.tokenizer)
        self.coders: Modules[TrainingCoder] = Modules()
        self.quality: Modules[CoderQuality] = Modules()
        self.stream: ActivationStream | None = None
        self.measured: dict[str, Quality] = {}
        """By label, the qualities that the last validation measured."""

    @property
    def lm(self) -> Models:
        """The frozen language model, or both."""
        return self._frozen[0]

    @property
    def data(self) -> ActivationData:
        """The data module of the run."""
        return data_of(self.trainer, ActivationData)

    def setup(self, stage: str) -> None:
        """Gather a first chunk of activations and initialise every coder from it."""
        if stage != "fit" or self.stream is not None:
            return
        block_size = self.data.block_size
        for of, net in models_of(self.lm).items():
            limit = getattr(net.config, "max_position_embeddings", block_size)
            if block_size > limit:
                raise ValueError(
                    f"data.block_size is {block_size}; the {of or 'base'}'s context holds at most {limit} tokens"
                )
        self.base_digest = model_digest(self.lm)
        self.lm.to(self.trainer.strategy.root_device)  # type: ignore[arg-type]  # of a decorated method
        unique = list(dict.fromkeys(site for pair in self.sites for site in pair))
        self.stream = self.data.stream(self.lm, unique)
        chunk = self.stream.first_chunk()
        for spec, (source, target) in zip(self.specs, self.sites, strict=True):
            x, y = chunk[source.name], chunk[target.name]
            if source.kind == "pathway":
                x, y = x[x.any(1)], y[x.any(1)]
            if len(x) < 2:
                raise ValueError(f"site {spec.site!r}: no token of the first chunk reaches it")
            training = TrainingCoder(spec, source, target, x, y)
            self.coders.append(training)
            self.quality.append(CoderQuality(y.shape[1], training.coder.d_sae))
            logger.info("%s: %s, %d latents", training.label, spec.coder.kind, training.coder.d_sae)

    # --- training ----------------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return int(self.trainer.estimated_stepping_batches)

    @property
    def dead_after(self) -> int:
        """The number of tokens without a use after which a latent counts as dead."""
        tokens = self.total_steps * self.data.buffer.batch_size * self.trainer.world_size
        return self.optimizer_config.dead_after(tokens)

    def configure_optimizers(self):
        """Make Adam with one parameter group for each coder, a warm-up and a linear decay."""
        total = self.total_steps
        coders = [training.coder for training in self.coders]
        optimizer = self.optimizer_config.adam(coders, total, fused=self.trainer.precision != "16-mixed")
        return self.scheduled(optimizer, lambda step: self.optimizer_config.share(step, total))

    def on_train_batch_start(self, batch, batch_idx):
        """Set what depends on the step alone: the penalties' warm-up, and how far back thresholds remember."""
        super().on_train_batch_start(batch, batch_idx)
        for training in self.coders:
            self.optimizer_config.set_step(training.coder, self.global_step, self.total_steps)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The sum of the coders' losses, whose parameters are disjoint."""
        total = torch.zeros((), device=self.device)
        for training in self.coders:
            losses = training.loss(batch, self.dead_after)
            total = total + losses.total
            training.observe(losses, self._sum_over_ranks, self.trainer.world_size)
            if logs_step(self.trainer, self.global_step + 1):
                self._log_losses(training, losses, batch)
        return total

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(tensor.clone(), reduce_op="sum")

    def _log_losses(self, training: TrainingCoder, losses: CoderLosses, batch: dict[str, Tensor]) -> None:
        y = training.data(batch)[1]
        fvu = (y - losses.output).square().sum() / (y - y.mean(0)).square().sum()
        values = {
            "loss": losses.total.detach(),
            "fvu": fvu,
            "l0": (losses.values > 0).sum() / losses.picks.n_rows,
            "aux": losses.aux,
            "dead": (training.since_fired >= self.dead_after).float().mean(),
        }
        self.log_dict({f"train/{name}/{training.label}": value.float() for name, value in values.items()})

    def on_before_optimizer_step(self, optimizer):
        """Keep the gradients of unit-row decoders tangent to the sphere."""
        super().on_before_optimizer_step(optimizer)
        for training in self.coders:
            training.coder.project_gradient()

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        """Clip each coder by its own norm, since they are separate models, at the smaller of the two bounds."""
        for training in self.coders:
            self.optimizer_config.clip_gradient(training.coder, gradient_clip_val)

    def optimizer_step(self, *args, **kwargs):
        """After a step, return unit-row decoders to the sphere."""
        super().optimizer_step(*args, **kwargs)
        for training in self.coders:
            training.coder.after_step()

    # --- validation --------------------------------------------------------------------------------------------------

    def on_validation_start(self):
        """Let the second thread finish with the language model."""
        assert self.stream is not None
        self.stream.settle()

    @torch.no_grad()
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Used]:
        """Measure every coder on one batch; returns the latents that each used, for callbacks."""
        used = update_qualities(self.lm, batch, list(self.coders), self.special, list(self.quality))
        return {training.label: one for training, one in zip(self.coders, used, strict=True)}

    def on_validation_epoch_end(self):
        """Log each coder's figures, exact across ranks, and the histogram of its latents' densities."""
        for training, quality in zip(self.coders, self.quality, strict=True):
            q = self.measured[training.label] = quality.compute(n_resamples=100)
            values = {
                "fvu": q.fvu.value,
                "l0": q.l0.value,
                "ce_recovered": q.recovered["zero"].value,
                "ce": q.ce.value,
                "dead": q.dead,
            }
            self.log_dict({f"val/{name}/{training.label}": value for name, value in values.items()})
            for log in self.loggers:
                if isinstance(log, TensorBoardLogger):
                    density = q.density.clamp_min(1e-7).log10().float()
                    log.experiment.add_histogram(f"val/log10_density/{training.label}", density, self.global_step)
            quality.reset()

    # --- export ------------------------------------------------------------------------------------------------------

    def export(self, directory: Path, trial: bool = False) -> list[str]:
        """Write every coder to `directory`/LABEL; returns a line for each that SAELens cannot read, or that failed.

        A trial also writes coders that have not learnt a threshold yet.
        """
        lines = []
        for training in self.coders:
            coder = training.folded()
            if trial and isinstance(coder, BatchTopK):
                coder.threshold.clamp_(min=0)
            try:
                save(coder, directory / training.label, self._provenance(training))
            except ValueError as error:
                lines.append(f"{training.label} is not exported: {error}")
            if (name := architecture(coder)) in OURS:
                lines.append(f"{training.label} is written as {name!r}: slms.load_coder reads it, SAELens has no such")
        return lines

    def _provenance(self, training: TrainingCoder) -> Provenance:
        data, source, target = self.data, training.source, training.target
        name = self.base.name or (self.base.source != "embedded" and self.base.hub) or self.base.embedded
        assert name is not None  # a base has one of them
        return Provenance(
            model_name=name,
            hook_name=source.hook_name,
            hf_hook_name=hf_name(self.lm, source),
            hook_name_out=None if source == target else target.hook_name,
            context_size=data.block_size,
            dataset_path=data.corpus_name,
            versus=self.versus,
        )
