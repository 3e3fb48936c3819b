"""How much of a run's loss is distillation from the frozen base, and until when."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DistillConfig:
    """Distillation from the frozen dense base.

    Args:
        logits: weight of KL(base ‖ model) per token, in nats.
        mlp: weight of the squared error of each routed MLP's output, relative to the base output's variance.
        anneal: share of the steps over which both weights fall linearly to 0; from then on the base is not run. null
            keeps the weights.
    """

    logits: float = 0.0
    mlp: float = 0.0
    anneal: float | None = None

    def __post_init__(self):
        for name in ("logits", "mlp"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.distill.{name} is {getattr(self, name)}; it must not be negative")
        if self.anneal is not None and not 0 < self.anneal <= 1:
            raise ValueError(f"model.distill.anneal is {self.anneal}; it must lie in (0, 1]")

    def share_at(self, share: float) -> float:
        """The factor on both weights after `share` of the steps.

        >>> [DistillConfig(anneal=0.5).share_at(share) for share in (0.0, 0.25, 0.5, 1.0)]
        [1.0, 0.5, 0.0, 0.0]
        """
        return 1.0 if self.anneal is None else max(0.0, 1.0 - share / self.anneal)
