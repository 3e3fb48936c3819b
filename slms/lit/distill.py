"""What a run learns: the text's next tokens (cross-entropy), what its frozen base predicts (KL), or both.

Shapes: b blocks, t position.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slms.models.activations import mlp_outputs
from slms.models.head import Head, through_head
from slms.models.token_loss import TokenLoss, next_tokens, token_loss


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
    """

    lm: float | None = None
    logits: float | None = None
    mlp: float = 0.0
    anneal: float | None = None

    def __post_init__(self):
        for name in ("lm", "logits", "mlp"):
            if (getattr(self, name) or 0.0) < 0:
                raise ValueError(f"model.distill.{name} is {getattr(self, name)}; it must not be negative")
        if self.anneal is not None and not 0 < self.anneal <= 1:
            raise ValueError(f"model.distill.anneal is {self.anneal}; it must lie in (0, 1]")

    def resolved(self, routing: bool) -> "DistillConfig":
        """Fill in the defaults of a run with or without `model.routing`.

        Raises:
            ValueError: nothing would be learnt, at some step at least, or an option would do nothing.

        >>> DistillConfig().resolved(routing=True)
        DistillConfig(lm=0.0, logits=1.0, mlp=0.0, anneal=None)
        >>> DistillConfig().resolved(routing=False)
        DistillConfig(lm=1.0, logits=0.0, mlp=0.0, anneal=None)
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


def losses_of(
    net: PreTrainedModel,
    base: PreTrainedModel | None,
    ids: Tensor,
    nll_weight: float,
    kl_weight: float,
    layers: list[int],
) -> tuple[TokenLoss, dict[int, Tensor]]:
    """Compute the losses of tokens [b, t] against the text and the base, if one teaches.

    The model runs within the base's forward pass, so that the weights of both heads are whole at once, sharded or not,
    and the logits of neither need to be kept.

    layers: whose MLPs' outputs by the base are returned too.
    """
    targets = next_tokens(ids)

    def student(theirs: tuple[Tensor, Head] | None = None) -> TokenLoss:
        def against(hidden: Tensor, head: Head) -> TokenLoss:
            return token_loss(hidden, head, targets, theirs, nll_weight, kl_weight)

        with torch.enable_grad():
            return through_head(net, ids, against)

    if base is None:
        return student(), {}
    with torch.no_grad(), mlp_outputs(base, layers) as wanted:
        return through_head(base, ids, lambda *theirs: student(theirs)), wanted
