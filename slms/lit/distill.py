"""What a run learns: the text's next tokens (cross-entropy), what its frozen base predicts (KL), or both.

Shapes: b blocks, t position.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.data.module import TextData, text_digest
from slms.lit.base_states import BaseStates
from slms.models.activations import mlp_outputs
from slms.models.head import Head, head_of, through_head
from slms.models.token_loss import TokenLoss, next_tokens, token_loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillConfig:
    """Weights of the losses that a run learns from.

    A run with `model.routing`, or a control of one, learns what its frozen base predicts and nothing else, so that
    quality is not confused with tuning to the text. A run without learns the text.

    Args:
        lm: weight of the cross-entropy with the text's next tokens. null means 0 if the run has `model.routing` and
            `logits` is not 0, else 1.
        logits: weight of KL(base ‖ model) per token, in nats. null means 1 if the run has `model.routing`, else 0.
        mlp: weight of the squared error of each routed MLP's output, relative to the base output's variance.
        anneal: share of the steps over which `logits` and `mlp` fall linearly to 0; from then on the base is not run.
            null keeps the weights.
        cache: keep the base's last hidden states of training blocks on disk (2 bytes × d_model a token), so that later
            epochs, seeds and controls do not run the base again.
        cache_dir: where they are kept; null means `base_states/` in SLMS's cache.
    """

    lm: float | None = None
    logits: float | None = None
    mlp: float = 0.0
    anneal: float | None = None
    cache: bool = False
    cache_dir: str | None = None

    def __post_init__(self):
        for name in ("lm", "logits", "mlp"):
            if (getattr(self, name) or 0.0) < 0:
                raise ValueError(f"model.distill.{name} is {getattr(self, name)}; it must not be negative")
        if self.anneal is not None and not 0 < self.anneal <= 1:
            raise ValueError(f"model.distill.anneal is {self.anneal}; it must lie in (0, 1]")
        if self.cache_dir is not None and not self.cache:
            raise ValueError(f"model.distill.cache_dir is {self.cache_dir} and cache false; it needs cache")

    def resolved(self, routing: bool) -> "DistillConfig":
        """Fill in the defaults of a run with or without `model.routing`.

        Raises:
            ValueError: nothing would be learnt, at some step at least, or an option would do nothing.

        >>> DistillConfig().resolved(routing=True)
        DistillConfig(lm=0.0, logits=1.0, mlp=0.0, anneal=None, cache=False, cache_dir=None)
        >>> DistillConfig().resolved(routing=False)
        DistillConfig(lm=1.0, logits=0.0, mlp=0.0, anneal=None, cache=False, cache_dir=None)
        """
        logits = float(routing) if self.logits is None else self.logits
        lm = float(not (routing and logits)) if self.lm is None else self.lm
        full = replace(self, lm=lm, logits=logits)
        if not (lm or full.teaches):
            raise ValueError("model.distill.lm, logits and mlp are 0; one must be positive for the model to learn")
        if self.anneal is not None and not full.teaches:
            raise ValueError(f"model.distill.anneal is {self.anneal}; it needs a positive model.distill.logits or mlp")
        if self.anneal is not None and not lm:
            raise ValueError(
                f"model.distill.anneal is {self.anneal} and lm 0; nothing would be learnt after that, so set lm too"
            )
        if self.cache and (self.mlp or not logits):
            raise ValueError(
                f"model.distill.cache is true, logits {logits} and mlp {self.mlp}; it keeps what logits needs, and mlp "
                "needs the base to run"
            )
        return full

    @property
    def teaches(self) -> bool:
        """Whether the base is run at all."""
        return bool(self.logits or self.mlp)

    def share_at(self, share: float) -> float:
        """The factor on `logits` and `mlp` after `share` of the steps.

        >>> [DistillConfig(anneal=0.5).share_at(share) for share in (0.0, 0.25, 0.5, 1.0)]
        [1.0, 0.5, 0.0, 0.0]
        """
        return 1.0 if self.anneal is None else max(0.0, 1.0 - share / self.anneal)


def kept_states(config: DistillConfig, base: PreTrainedModel, data: TextData, key: tuple[str, ...]) -> BaseStates:
    """Open the hidden states on disk of the base, named by `key`, on the training blocks of `data`.

    Raises:
        ValueError: the blocks have no numbers, or there is no room.
    """
    if data.streams:
        raise ValueError("model.distill.cache is true and data.stream too; a stream's blocks have no numbers")
    ids = data.train_blocks.input_ids
    shape = (*ids.shape, base.config.get_text_config().hidden_size)
    states = BaseStates(config.cache_dir, (*key, text_digest(ids)), shape)
    logger.info("%s holds the base's states of %d of %d blocks", states.path, len(states), len(ids))
    return states


class Teacher:
    """The frozen base, with its hidden states on disk if they are kept.

    It is no module, so that the base stays out of the state dict, and Lightning does not move it.

    Args:
        base: the dense model.
        states: None runs the base for every batch.

    Raises:
        ValueError: states are to be kept of a base whose head cannot be run alone.
    """

    def __init__(self, base: PreTrainedModel, states: BaseStates | None = None):
        self.base, self.states = base.eval().requires_grad_(False), states
        self.head = None if states is None else head_of(base)
        if states is not None and self.head is None:
            raise ValueError(f"model.distill.cache is true; the head of {type(base).__name__} cannot be run alone")

    def on(self, device: torch.device) -> PreTrainedModel:
        """Move the base to a device and return it."""
        return self.base.to(device)

    @torch.no_grad()
    def predict(self, batch: dict[str, Tensor], use: Callable[[tuple[Tensor, Head]], TokenLoss]) -> TokenLoss:
        """Call `use` with the base's hidden states [b, t, d] of a training batch, and its head."""
        ids = batch["input_ids"]
        base = self.on(ids.device)
        if self.states is None or self.head is None:
            return through_head(base, ids, lambda *theirs: use(theirs))
        kept = self.states.of(
            batch["block_ids"].tolist(), lambda rows: through_head(base, ids[rows], lambda hidden, _: hidden)
        )
        return use((kept.to(ids.device), self.head))


def losses_of(
    net: PreTrainedModel,
    teacher: Teacher | None,
    batch: dict[str, Tensor],
    nll_weight: float,
    kl_weight: float,
    layers: list[int],
) -> tuple[TokenLoss, dict[int, Tensor]]:
    """Compute the losses of a batch against the text and the base, if one teaches.

    The model runs within the base's forward pass, so that the weights of both heads are whole at once, sharded or not,
    and the logits of neither need to be kept.

    layers: whose MLPs' outputs by the base are returned too.
    """
    ids = batch["input_ids"]
    targets = next_tokens(ids)

    def student(theirs: tuple[Tensor, Head] | None = None) -> TokenLoss:
        def against(hidden: Tensor, head: Head) -> TokenLoss:
            return token_loss(hidden, head, targets, theirs, nll_weight, kl_weight)

        with torch.enable_grad():
            return through_head(net, ids, against)

    if teacher is None:
        return student(), {}
    with mlp_outputs(teacher.base, layers) as wanted:
        return teacher.predict(batch, student), wanted
