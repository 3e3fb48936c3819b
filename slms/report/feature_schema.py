"""The content of `features.json`, one dataclass for each object; docs/formats.md explains every field."""

from dataclasses import dataclass, field

from slms.measure.rows import Row

FEATURES_VERSION = 1


@dataclass(frozen=True)
class UseContext:
    """The text around one use of a feature."""

    tokens: list[int]  # indices into `vocabulary`
    activations: list[float]  # of each token; 0 where the feature is not used
    peak: int  # index of the token whose use was kept


@dataclass(frozen=True)
class LogitEffect:
    token: int  # index into `vocabulary`
    logit: float  # per unit of activation, centred over the vocabulary


@dataclass(frozen=True)
class Neighbour:
    feature: int
    cosine: float  # of the decoder rows


@dataclass(frozen=True)
class Preference:
    """What the use of a feature tells about one label family."""

    si: float | None  # adjusted mutual information of use and class, chance subtracted; at most ln 2 / H(class)
    z: float | None  # over the standard deviation that permuted labels give
    prefers: str | None  # the class that contributes most to KL(p(class | used) ‖ p(class))
    share: float | None  # p(that class | used)
    lift: float | None  # p(that class | used) / p(that class)


@dataclass(frozen=True)
class PathwayPart:
    """A pathway that brings part of a feature's rise."""

    layer: int
    pathway: int
    part: float  # share that it brings of the rise of the feature's pre-activation at its uses over its mean
    z: float | None  # over the sd with the pathway's outputs shuffled among tokens
    lift: float  # p(pathway chosen | feature used) / p(pathway chosen)


@dataclass(frozen=True)
class Feature:
    index: int
    uses: int  # tokens that use it
    density: float  # uses over tokens
    mean: float | None  # activation where it is used
    max: float | None
    community: int | None  # null if the feature is used too seldom to be placed
    histogram_from: int  # first bin: activations in [2^(i/4), 2^((i+1)/4))
    histogram: list[int]  # uses in each bin
    preferences: dict[str, Preference] = field(default_factory=dict)  # by label family
    neighbours: list[Neighbour] = field(default_factory=list)
    promoted: list[LogitEffect] = field(default_factory=list)
    suppressed: list[LogitEffect] = field(default_factory=list)
    pathways: list[PathwayPart] = field(default_factory=list)  # the largest of each routed layer, if there are any
    sources: dict[str, float] = field(default_factory=dict)  # of a crosscoder: share of the decoder's norm at each site
    strongest: list[UseContext] = field(default_factory=list)  # at most one per block
    random: list[UseContext] = field(default_factory=list)  # drawn from all uses, at most one per block


@dataclass(frozen=True)
class FeatureFamily:
    """A label family and what all features together say about it."""

    coverage: float  # share of the text's tokens whose class is known
    share: dict[str, float]  # class → p(class) among the known
    si: Row  # of one use drawn from all: load-weighted mean over features
    significant: int  # features with z above `z_bound`


@dataclass(frozen=True)
class Community:
    index: int
    size: int
    uses: int  # of its features, summed
    tokens: list[int]  # the tokens that distinguish its features' strongest uses from those of all features


@dataclass(frozen=True)
class PathwayFeatures:
    """What one pathway of a routed model writes."""

    index: int
    load: float  # share of tokens that choose it
    n_features: int  # features of whose rise it brings most in its layer, with z above `z_bound`
    features: list[int]  # those of them with the largest parts, at most 20


@dataclass(frozen=True)
class LayerPathways:
    """The pathways of one routed layer, and how far features gather in single ones."""

    layer: int
    concentration: float  # Σ largest part / Σ parts, over features; 1 if one pathway alone moves each feature
    null_mean: float  # with the layer's neurons dealt to groups of the same sizes at random
    null_sd: float
    z: float | None
    part: float | None  # median over features of the parts of all pathways together
    pathways: list[PathwayFeatures] = field(default_factory=list)


@dataclass(frozen=True)
class Writer:
    """One of the sites, or of the two models, to which a crosscoder's features write."""

    name: str
    histogram: list[int]  # used features by the share of their decoder's norm here, in ten bins from 0 to 1
    n_features: int  # used features of whose decoder's norm at least .9 lies here
    features: list[int]  # the most used of them, at most 20


@dataclass(frozen=True)
class CoActivationGraph:
    """Communities of features used together and their modularity Q against token-shuffled features."""

    q: float
    low: float | None  # 95 % interval over documents
    high: float | None
    null_mean: float
    null_sd: float
    z: float | None
    stability: float  # mean adjusted Rand index of three Leiden seeds
    tokens: int
    features: int  # in the graph
    communities: list[Community] = field(default_factory=list)


@dataclass(frozen=True)
class FeatureResults:
    directory: str
    model: str
    kind: str
    site: str
    target: str
    d_sae: int
    corpus: str
    split: str
    tokens: int  # measured: special and extreme ones are left out
    documents: int
    l0: float  # features used per token
    dead: int  # features never used
    logits: str  # how the logit effects were computed, or why there are none
    z_bound: float  # z above which one of d_sae features is expected by chance in 20 texts (Bonferroni)
    families: dict[str, FeatureFamily] = field(default_factory=dict)
    graph: CoActivationGraph | None = None  # null with too few features or tokens
    versus: str | None = None  # the second model, if the coder reads two
    writers: list[Writer] = field(default_factory=list)  # of a crosscoder: the two models, or the sites of one
    layers: list[LayerPathways] = field(default_factory=list)  # routed layers that add directly to what is read
    vocabulary: list[str] = field(default_factory=list)  # texts of the tokens that occur below
    features: list[Feature] = field(default_factory=list)
    version: int = FEATURES_VERSION
