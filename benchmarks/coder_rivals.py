"""The trainers that `benchmarks.coders` compares: ours, SAELens's and dictionary_learning's.

Shapes: n tokens, d width of the site, s latents.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slms.models.sites import Site
from slms.sae.config import CoderConfig, CoderSpec
from slms.sae.fit import fit
from slms.sae.optim import CoderOptimizerConfig
from slms.sae.training_coder import TrainingCoder

Kind = Literal["topk", "batch_topk"]
Recipe = Literal["default", "scaled"]
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
        lr: peak learning rate; None means the library's own.
        recipe: `default` or `scaled`.
    """

    train: np.ndarray
    kind: Kind
    d_sae: int
    k: int
    batch_size: int
    steps: int
    seed: int
    lr: float | None
    recipe: Recipe

    def batches(self) -> Iterator[Tensor]:
        """Yield `steps` batches [batch_size, d]; each pass uses every row at most once."""
        generator = np.random.default_rng(self.seed)
        while True:
            order = generator.permutation(len(self.train))
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                yield torch.from_numpy(self.train[np.sort(order[start : start + self.batch_size])])

    def sample(self) -> Tensor:
        """The first rows, for scales and centres."""
        return torch.from_numpy(np.array(self.train[:SAMPLE]))


class Trained(NamedTuple):
    """A trained coder as plain functions of activations.

    Attributes:
        pre: x [n, d] → activations [n, s] before selection, at least 0.
        decode: activations [n, s] → ŷ [n, d].
        threshold: BatchTopK uses the latents above it; None for TopK.
    """

    pre: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    threshold: float | None


def ours(task: Task) -> Trained:
    """Train the coder that a run of `train.py` would train on these batches."""
    torch.manual_seed(task.seed)
    here, sample = Site("residual", 0), task.sample()
    config = CoderConfig(kind=task.kind, d_sae=task.d_sae, k=task.k, seed=task.seed)
    training = TrainingCoder(CoderSpec(here.name, coder=config), here, here, sample, sample)
    batches = ({here.name: batch} for batch in task.batches())
    coder = fit(training, batches, task.steps, CoderOptimizerConfig(lr=task.lr)).folded()
    threshold = coder.threshold.item() if task.kind == "batch_topk" else None
    return Trained(lambda x: (coder.project(x) + coder.b_enc).relu(), coder.decode, threshold)


def saelens(task: Task) -> Trained:
    """Train with SAELens, on input scaled to E‖x‖ = √d as its `expected_average_only_in` does."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(task.seed)
    sample = task.sample()
    d, scaled = sample.shape[1], task.recipe == "scaled"
    scale = d**0.5 / sample.norm(dim=1).mean().item()
    sizes = {"d_in": d, "d_sae": task.d_sae, "k": task.k, "dtype": "float32", "device": "cpu"}
    sae = (
        TopKTrainingSAE(TopKTrainingSAEConfig(**sizes))
        if task.kind == "topk"
        else BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes))
    )
    lr = task.lr or 3e-4
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            device="cpu",
            autocast=False,
            lr=lr,
            total_training_samples=task.steps * task.batch_size,
            lr_end=lr / 10,
            lr_scheduler_name="constant",
            lr_warm_up_steps=task.steps // 20 if scaled else 0,
            lr_decay_steps=int(OURS.decay * task.steps) if scaled else 0,
            adam_beta1=0.9,
            adam_beta2=0.999,
            n_restart_cycles=1,
            train_batch_size_samples=task.batch_size,
            dead_feature_window=max(task.steps // 20, 1) if scaled else 1000,
            feature_sampling_window=2000,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=(batch * scale for batch in task.batches()),
    )
    trainer.fit()
    sae.eval()
    norms = sae.W_dec.norm(dim=1)

    def pre(x: Tensor) -> Tensor:
        return ((sae.process_sae_in(x * scale) @ sae.W_enc + sae.b_enc) * norms).relu()

    def decode(acts: Tensor) -> Tensor:
        return ((acts / norms) @ sae.W_dec + sae.b_dec) / scale

    return Trained(pre, decode, sae.topk_threshold.item() if task.kind == "batch_topk" else None)


def dictionary_learning(task: Task) -> Trained:
    """Train with dictionary_learning, on input scaled to E‖x‖² = 1 as its `normalize_activations` does."""
    from dictionary_learning.trainers import BatchTopKTrainer, TopKTrainer

    sample = task.sample()
    scaled = task.recipe == "scaled"
    scale = sample.square().sum(1).mean().rsqrt().item()
    options: dict[str, float] = {"warmup_steps": 1000} if not scaled else {"warmup_steps": task.steps // 20}
    if scaled:
        options |= {
            "decay_start": int((1 - OURS.decay) * task.steps),
            "threshold_start_step": task.steps // 20,
            "auxk_alpha": 1 / 32,
            "threshold_beta": 1 - 1 / min(max(task.steps // 50, 10), 1000),
        }
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
        **options,
    )
    if scaled:
        trainer.dead_feature_threshold = max(task.steps * task.batch_size // 20, 1)
    for step, batch in zip(range(task.steps), task.batches(), strict=False):
        trainer.update(step, batch * scale)
    ae = trainer.ae.eval()

    def pre(x: Tensor) -> Tensor:
        return ae.encoder(x * scale - ae.b_dec).relu()

    threshold = ae.threshold.item() if task.kind == "batch_topk" else None
    return Trained(pre, lambda acts: ae.decode(acts) / scale, threshold)


PACKAGES = {"saelens": "sae_lens", "dictionary_learning": "dictionary_learning"}
LIBRARIES: dict[str, Callable[[Task], Trained]] = {
    "ours": ours,
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
}
