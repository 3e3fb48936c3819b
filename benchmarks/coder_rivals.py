"""The trainers that `benchmarks.coders` compares: ours, SAELens's and dictionary_learning's.

Each library uses its own trainer, losses, initial weights and normalisation of the input. Steps, batches, learning rate
and the shares of warm-up and decay are the same for all, AuxK is on in all at its usual weight, and thresholds average
over the same share of the run. A latent is dead after a hundredth of the run with ours and a twentieth with the others
(their best of the two: with a hundredth, SAELens had FVU .031, not .029; stories260K, TopK, k 32).

Shapes: n tokens, d width of the site, s latents.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slms.models.sites import Site
from slms.sae.base import Coder
from slms.sae.coders import BatchTopK, build_coder
from slms.sae.config import CoderConfig, CoderSpec
from slms.sae.export import fold_scale
from slms.sae.fit import fit
from slms.sae.optim import CoderOptimizerConfig
from slms.sae.training_coder import TrainingCoder

Kind = Literal["topk", "batch_topk"]
SAMPLE = 65_536
OURS = CoderOptimizerConfig()


class Task(NamedTuple):
    """The task that every library gets.

    Attributes:
        train: [n, d] float32.
        kind: TopK or BatchTopK.
        d_sae: s.
        k: latents for each token.
        batch_size: tokens in a step.
        steps: training steps, one batch each.
        seed: seed of the initial weights and of the order of the batches.
        lr: peak learning rate.
    """

    train: np.ndarray
    kind: Kind
    d_sae: int
    k: int
    batch_size: int
    steps: int
    seed: int
    lr: float

    def batches(self) -> Iterator[Tensor]:
        """Yield `steps` batches [batch_size, d]; each pass uses every row at most once."""
        generator = np.random.default_rng(self.seed)
        while True:
            order = generator.permutation(len(self.train))
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                yield torch.from_numpy(self.train[np.sort(order[start : start + self.batch_size])])

    @property
    def warmup(self) -> int:
        """Steps of linear warm-up."""
        return OURS.warmup(self.steps)

    def sample(self) -> Tensor:
        """The first rows, for scales and centres."""
        return torch.from_numpy(np.array(self.train[:SAMPLE]))


def ours(task: Task) -> Coder:
    """Train the coder that a run of `train.py` would train on these batches."""
    torch.manual_seed(task.seed)
    here, sample = Site("residual", 0), task.sample()
    config = CoderConfig(kind=task.kind, d_sae=task.d_sae, k=task.k, seed=task.seed)
    training = TrainingCoder(CoderSpec(here.name, coder=config), here, here, sample, sample)
    batches = ({here.name: batch} for batch in task.batches())
    return fit(training, batches, task.steps, CoderOptimizerConfig(lr=task.lr)).folded()


def saelens(task: Task) -> Coder:
    """Train with SAELens, on input scaled to E‖x‖ = √d as its `expected_average_only_in` does."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(task.seed)
    sample = task.sample()
    d = sample.shape[1]
    scale = d**0.5 / sample.norm(dim=1).mean().item()
    sizes: dict[str, Any] = {"d_in": d, "d_sae": task.d_sae, "k": task.k, "dtype": "float32", "device": "cpu"}
    sae = (
        TopKTrainingSAE(TopKTrainingSAEConfig(**sizes))
        if task.kind == "topk"
        else BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes))
    )
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            device="cpu",
            autocast=False,
            lr=task.lr,
            total_training_samples=task.steps * task.batch_size,
            lr_end=task.lr / 10,
            lr_scheduler_name="constant",
            lr_warm_up_steps=task.warmup,
            lr_decay_steps=int(OURS.decay * task.steps),
            adam_beta1=0.9,
            adam_beta2=0.999,
            n_restart_cycles=1,
            train_batch_size_samples=task.batch_size,
            dead_feature_window=max(task.steps // 20, 1),
            feature_sampling_window=2000,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=(batch * scale for batch in task.batches()),
    )
    trainer.fit()
    threshold = sae.topk_threshold if task.kind == "batch_topk" else None
    return _coder(task, sae.W_enc.T, sae.b_enc, sae.W_dec, sae.b_dec, threshold, scale, unit_norm=False)


def dictionary_learning(task: Task) -> Coder:
    """Train with dictionary_learning, on input scaled to E‖x‖² = 1 as its `normalize_activations` does."""
    from dictionary_learning.trainers import BatchTopKTrainer, TopKTrainer

    sample = task.sample()
    scale = sample.square().sum(1).mean().rsqrt().item()
    trainer = (TopKTrainer if task.kind == "topk" else BatchTopKTrainer)(
        steps=task.steps,
        activation_dim=sample.shape[1],
        dict_size=task.d_sae,
        k=task.k,
        layer=0,
        lm_name="",
        lr=task.lr,
        device="cpu",
        seed=task.seed,
        warmup_steps=task.warmup,
        decay_start=int((1 - OURS.decay) * task.steps),
        threshold_start_step=task.warmup,
        auxk_alpha=1 / 32,
        threshold_beta=1 - 1 / min(max(task.steps // 50, 10), 1000),
    )
    trainer.dead_feature_threshold = max(task.steps * task.batch_size // 20, 1)
    for step, batch in zip(range(task.steps), task.batches(), strict=False):
        trainer.update(step, batch * scale)
    ae = trainer.ae
    threshold = ae.threshold if task.kind == "batch_topk" else None
    return _coder(
        task, ae.encoder.weight, ae.encoder.bias, ae.decoder.weight.T, ae.b_dec, threshold, scale, unit_norm=True
    )


@torch.no_grad()
def _coder(
    task: Task,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    threshold: Tensor | None,
    scale: float,
    unit_norm: bool,
) -> Coder:
    """A coder of ours that computes on x what these weights (rows are latents) compute on scale·x.

    Without `unit_norm`, activations are multiplied by the norms of W_dec's rows, and rows are divided by them.
    """
    coder = build_coder(CoderConfig(kind=task.kind, d_sae=task.d_sae, k=task.k), W_enc.shape[1])
    coder.unit_norm = unit_norm
    assert coder.b_enc is not None
    for ours, theirs in ((coder.W_enc, W_enc), (coder.b_enc, b_enc), (coder.W_dec, W_dec), (coder.b_dec, b_dec)):
        ours.copy_(theirs)
    if isinstance(coder, BatchTopK):
        assert threshold is not None
        coder.threshold.copy_(threshold)
    return fold_scale(coder, scale).eval().requires_grad_(False)


PACKAGES = {"saelens": "sae_lens", "dictionary_learning": "dictionary_learning"}
LIBRARIES: dict[str, Callable[[Task], Coder]] = {
    "ours": ours,
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
}
