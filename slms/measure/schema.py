"""The content of `llm_routing_results.json`, one dataclass an object; docs/formats.md explains every field.

Units: nats, tokens, seconds, FLOPs per token (a multiply and an add count two). Shares lie in [0, 1].
"""

from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1
Role = Literal["dense", "static", "routed"]


@dataclass(frozen=True)
class Estimate:
    """A measured number with its uncertainty and its null. Every field is null where it was not measured."""

    value: float | None = None
    low: float | None = None  # 95 % interval over documents
    high: float | None = None
    n: int = 0  # tokens behind the number
    null_mean: float | None = None  # what choices independent of the labels score; value has it subtracted
    null_sd: float | None = None  # standard deviation of value under that null
    z: float | None = None  # value / null_sd
    ceiling: float | None = None  # the most that the pathways' loads allow
    random_model: float | None = None  # the same number of a randomly initialised model on the same text

    def __post_init__(self):
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low is {self.low}; it must be at most high ({self.high})")


@dataclass(frozen=True)
class Loss:
    """Mean next-token loss over validation tokens; the interval is over documents."""

    nats: float
    low: float | None
    high: float | None
    perplexity: float
    documents: int
    tokens: int


@dataclass(frozen=True)
class LossDifference:
    """Model minus dense base on the same tokens, documents resampled in pairs."""

    nats: float
    low: float | None
    high: float | None
    documents: int


@dataclass(frozen=True)
class DocumentSums:
    """Per validation document: what a later paired comparison with another run needs."""

    nats: list[float]  # summed over the document's predicted tokens
    tokens: list[int]

    def __post_init__(self):
        if len(self.nats) != len(self.tokens):
            raise ValueError(f"nats has {len(self.nats)} entries, tokens {len(self.tokens)}; one each a document")


@dataclass(frozen=True)
class Losses:
    model: Loss
    dense: Loss | None = None  # the base that the run started from, before any tuning
    difference: LossDifference | None = None
    by_document: DocumentSums | None = None  # of the model


@dataclass(frozen=True)
class Compute:
    """FLOPs per token of a forward pass, for the measured density."""

    active_fraction: float  # share of all MLP neurons executed
    mlp_dense: float
    mlp_routed: float  # router included
    total_dense: float  # embedding head included
    total_routed: float
    mlp_saved: float  # 1 − mlp_routed / mlp_dense
    total_saved: float


@dataclass(frozen=True)
class Token:
    text: str  # as the tokenizer decodes it: whitespace is part of it
    count: int
    lift: float  # p(token | pathway) / p(token)


@dataclass(frozen=True)
class Pathway:
    index: int
    tokens: int  # how many tokens chose it
    load: float  # share of this layer's choices; uniform is 1 / n_pathways
    purity: float | None = None
    purity_legacy: float | None = None
    entropy: float | None = None  # nats
    top_tokens: list[Token] = field(default_factory=list)
    profile: dict[str, dict[str, float]] = field(default_factory=dict)  # family → class → p(class | pathway)


@dataclass(frozen=True)
class Layer:
    layer: int
    n_pathways: int
    chosen_per_token: float  # mean over tokens
    density: float  # share of this layer's neurons executed
    purity: Estimate
    purity_legacy: Estimate
    entropy: Estimate
    utilization: Estimate
    effective_pathways: float | None  # exp(entropy of the load) / n_pathways
    max_violation: float | None  # largest load over the mean load, minus 1
    si: dict[str, Estimate] = field(default_factory=dict)  # per label family
    si_given_token: dict[str, Estimate] = field(default_factory=dict)
    pathways: list[Pathway] = field(default_factory=list)

    def __post_init__(self):
        if len(self.pathways) > self.n_pathways:
            raise ValueError(f"pathways has {len(self.pathways)} entries; n_pathways is {self.n_pathways}")


@dataclass(frozen=True)
class Labels:
    """A label family: the classes that pathways are compared with."""

    coverage: float  # share of validation tokens whose class is known
    share: dict[str, float]  # class → p(class) among the known


@dataclass(frozen=True)
class Base:
    name: str
    source: Literal["hub", "embedded", "local"]  # what was really used; local is a directory
    asked: str = ""  # what the configuration named


@dataclass(frozen=True)
class Data:
    name: str
    source: Literal["hub", "embedded", "local"]  # local is a file
    train_tokens: int | None = None  # available to train on
    validation_tokens: int | None = None
    validation_documents: int | None = None


@dataclass(frozen=True)
class Run:
    name: str
    role: Role
    command: str
    config_digest: str | None  # sha256 of the resolved config.yaml
    seed: int | None
    started: str  # ISO 8601, UTC
    seconds: float
    steps: int
    tokens_trained: int
    versions: dict[str, str]
    hardware: dict[str, str]


@dataclass(frozen=True)
class LegacyLayer:
    """The sources' field names. Purity here is purity_legacy, means run over pathways with at least 10 tokens."""

    avg_purity: float | None
    std_purity: float | None
    max_purity: float | None
    avg_normalized_entropy: float | None
    pathway_utilization: float
    active_pathways: int
    total_pathways: int


@dataclass(frozen=True)
class Results:
    run: Run
    base: Base
    data: Data
    losses: Losses
    compute: Compute | None = None
    routing: dict[str, Any] | None = None  # RoutingConfig.to_dict(), null for a dense run
    layers: list[Layer] = field(default_factory=list)
    labels: dict[str, Labels] = field(default_factory=dict)
    legacy: dict[str, LegacyLayer] = field(default_factory=dict)  # "layer_3" → …
    schema_version: int = SCHEMA_VERSION
