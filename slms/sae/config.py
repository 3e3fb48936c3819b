"""The configuration of a coder and of the site where it is trained, with every default."""

from dataclasses import dataclass, field
from typing import Literal, get_args

Kind = Literal["relu", "topk", "batch_topk", "jump_relu", "gated", "matryoshka"]


@dataclass(frozen=True)
class CoderConfig:
    """One sparse autoencoder or transcoder.

    Args:
        kind: how latents are chosen: `relu` (with an L1 penalty), `topk`, `batch_topk`, `jump_relu`, `gated`, or
            `matryoshka` (a BatchTopK coder whose prefixes of latents each reconstruct the input).
        expansion: number of latents per input dimension; ignored when `d_sae` is given.
        d_sae: number of latents.
        k: number of latents that a token uses: exactly (`topk`), on average (`batch_topk`, `matryoshka`), or as a
            target (`jump_relu`).
        sparsity: weight of the penalty, which is Σ activations for `relu` and `gated` and (L0/k − 1)² for `jump_relu`.
        aux: weight of AuxK, the loss by which dead latents learn to reconstruct the residual.
        k_aux: number of dead latents that a token uses in AuxK; null takes half the output dimension.
        bandwidth: width of the window around a threshold in which `jump_relu` learns it, in units of the scaled input
            (whose mean squared norm is 1).
        prefixes: sizes of `matryoshka`'s nested dictionaries, as ascending shares of the latents; the last must be 1.
        skip: add a linear map from the input to the output, which makes a skip-transcoder.
        seed: seeds the initial directions; by default 0, in train.py `seed_everything`.
    """

    kind: Kind = "batch_topk"
    expansion: int = 16
    d_sae: int | None = None
    k: int = 32
    sparsity: float = 1e-2
    aux: float = 1 / 32
    k_aux: int | None = None
    bandwidth: float = 1e-3
    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    skip: bool = False
    seed: int | None = None

    def __post_init__(self):
        if self.kind not in get_args(Kind):
            raise ValueError(f"coder.kind is {self.kind!r}; it must be one of {', '.join(get_args(Kind))}")
        for name in ("expansion", "d_sae", "k", "k_aux"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"coder.{name} is {value}; it must be at least 1")
        for name in ("sparsity", "aux"):
            if getattr(self, name) < 0:
                raise ValueError(f"coder.{name} is {getattr(self, name)}; it must not be negative")
        if not self.bandwidth > 0:
            raise ValueError(f"coder.bandwidth is {self.bandwidth}; it must be positive")
        if list(self.prefixes) != sorted(set(self.prefixes)) or self.prefixes[0] <= 0 or self.prefixes[-1] != 1:
            raise ValueError(f"coder.prefixes is {self.prefixes}; it must ascend from above 0 to exactly 1")

    @property
    def fixed_k(self) -> bool:
        """Whether k sets the number of latents in use; otherwise a penalty decides it."""
        return self.kind in ("topk", "batch_topk", "matryoshka")

    def width(self, d_in: int) -> int:
        """Return the number of latents for inputs of dimension d_in.

        Raises:
            ValueError: k exceeds that number.
        """
        width = self.d_sae or self.expansion * d_in
        if self.k > width:
            raise ValueError(f"coder.k is {self.k}; it must be at most the coder's {width} latents")
        return width


@dataclass(frozen=True)
class CoderSpec:
    """One coder to train.

    Args:
        site: where the coder reads its input: `residual.L`, `mlp_in.L`, `neurons.L`, `mlp_out.L` or `pathway.L.P`.
        target: the site that the coder reconstructs; null is `site` itself, which makes an autoencoder. `mlp_in.L` with
            target `mlp_out.L` makes a transcoder of layer L's MLP.
        name: the coder's name in logs and directories; by default the site, with `-to-target` for a transcoder.
        coder: the coder's kind, size and losses.
    """

    site: str
    target: str | None = None
    name: str | None = None
    coder: CoderConfig = field(default_factory=CoderConfig)

    @property
    def label(self) -> str:
        """Return `name` or its default."""
        return self.name or (self.site if self.target is None else f"{self.site}-to-{self.target}")
