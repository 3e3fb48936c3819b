"""The content of `llm_routing_results.json`, one dataclass for each object; docs/formats.md explains every field.

Units: nats, tokens, seconds, FLOPs per token (a multiply and an add count two). Shares lie in [0, 1].
"""

from dataclasses import dataclass, field
from typing import Any, Literal, final

from slms.measure.rows import Row

SCHEMA = 3
Role = Literal["dense", "static", "routed"]


@dataclass(frozen=True)
class Loss:
    """Mean next-token loss over validation tokens, with an interval over documents."""

    nats: float
    low: float | None
    high: float | None
    perplexity: float
    documents: int
    tokens: int


@dataclass(frozen=True)
class LossDifference:
    """Loss of the model minus that of the dense base on the same tokens; documents are resampled in pairs."""

    nats: float
    low: float | None
    high: float | None
    documents: int


@dataclass(frozen=True)
class DocumentSums:
    """Sums for each validation document, which a later paired comparison with another run needs."""

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
    kl: LossDifference | None = None  # KL(base ‖ model), if the base taught the run


@final
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
    head_fraction: float | None = None  # share of all query heads executed, if heads are routed


@dataclass(frozen=True)
class Token:
    text: str  # as the tokenizer decodes it, with its whitespace
    count: int
    lift: float  # p(token | pathway) / p(token)


@dataclass(frozen=True)
class Pathway:
    index: int
    tokens: int  # how many tokens chose it
    load: float  # share of its place's choices; uniform is 1 over the place's pathways
    purity: float | None = None
    purity_legacy: float | None = None
    entropy: float | None = None  # nats
    top_tokens: list[Token] = field(default_factory=list)
    profile: dict[str, dict[str, float]] = field(default_factory=dict)  # family → class → p(class | pathway)


@dataclass(frozen=True)
class Labels:
    """A label family, with whose classes pathways are compared."""

    coverage: float  # share of validation tokens whose class is known
    share: dict[str, float]  # class → p(class) among the known


@dataclass(frozen=True)
class Base:
    name: str
    source: Literal["hub", "embedded", "local"]  # what was actually used; local is a directory
    asked: str = ""  # what the configuration named


@dataclass(frozen=True)
class Data:
    name: str
    source: Literal["hub", "embedded", "local"]  # local is a file
    train_tokens: int | None = None  # available to train on
    validation_tokens: int | None = None
    validation_documents: int | None = None
    validated_on: str | None = None  # what was read, in words: the file, or the corpus and its split


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
class ControlRow:
    """One number of a control, and how far the model's own is above it."""

    place: str
    metric: str
    family: str
    value: float | None  # mean over the control's seeds
    sd: float | None = None  # standard deviation over seeds
    difference: float | None = None  # the model's number minus the value, on the same tokens
    difference_low: float | None = None  # 95 % interval over documents and seeds
    difference_high: float | None = None


@dataclass(frozen=True)
class Control:
    """A control at every place: what a rival of the routers scores."""

    meaning: str
    seeds: int
    tokens: int  # on which control and model were measured for the differences
    rows: list[ControlRow] = field(default_factory=list)
    load_error: float | None = None  # largest relative error of a pathway's load against the trained router's


@dataclass(frozen=True)
class LegacyLayer:
    """The summary of `llm-routing.py`: purity is purity_legacy, means are over pathways with at least 10 tokens."""

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
    control_run: dict[str, Any] | None = None  # of a control: its name, neurons by place, the times that decided them
    rows: list[Row] = field(default_factory=list)  # every number of every routed place
    controls: dict[str, Control] = field(default_factory=dict)  # by name: `random_router`, `geometry`, …
    pathways: dict[str, list[Pathway]] = field(default_factory=dict)  # by place, all of them in order
    labels: dict[str, Labels] = field(default_factory=dict)
    legacy: dict[str, LegacyLayer] = field(default_factory=dict)  # "layer_3" → …
    schema: int = SCHEMA

    @property
    def places(self) -> list[str]:
        """The routed places, as the model computes them."""
        # Fine units are not described one by one, but have a density.
        return list(self.pathways) or [row.place for row in self.rows if row.metric == "density"]
