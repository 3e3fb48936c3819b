import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from slms.models import clustering
from slms.models.clustering import balanced_assignment, balanced_kmeans, nested, spectral_embedding, swap_refinement


def sizes_of(f: int, p: int) -> np.ndarray:
    return np.array([f // p + (i < f % p) for i in range(p)])


def blocks(f: int, p: int, rng: np.random.Generator, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A graph with p planted groups of the sizes above, and its labels in random order."""
    labels = rng.permutation(np.repeat(np.arange(p), sizes_of(f, p)))
    graph = (labels[:, None] == labels) + noise * rng.random((f, f))
    return (graph + graph.T) / 2, labels


def same_groups(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a[:, None] == a) == (b[:, None] == b)).all())


@pytest.mark.parametrize(("f", "p"), [(1, 1), (5, 5), (37, 4), (64, 16), (172, 16)])
@pytest.mark.parametrize("dead", [False, True])
def test_assignment_is_the_optimum_of_the_expanded_square_problem(f, p, dead):
    rng = np.random.default_rng(f)
    gain, sizes = rng.normal(size=(f, p)), sizes_of(f, p)
    if dead:
        gain[: f // 2] = 0.0
    labels = balanced_assignment(gain, sizes).labels
    columns = np.repeat(np.arange(p), sizes)
    rows, best = linear_sum_assignment(-gain[:, columns])
    assert (np.bincount(labels, minlength=p) == sizes).all()
    assert gain[np.arange(f), labels].sum() == pytest.approx(gain[:, columns][rows, best].sum(), abs=1e-9)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_assignment_of_nearly_equal_gains_ends(scale):
    """Ties and rounding once closed a circle of moves that seemed to pay, and the search followed it for ever."""
    rng = np.random.default_rng(0)
    for trial in range(150):
        p, each = int(rng.integers(3, 17)), int(rng.integers(2, 12))
        gain, sizes = np.round(rng.random((p * each, p)), 1), np.full(p, each)
        gain = scale * (gain + 1e-12 * rng.random(gain.shape)) if trial % 2 else scale * gain
        labels = balanced_assignment(gain, sizes).labels
        assert (np.bincount(labels, minlength=p) == sizes).all()
        rows, columns = linear_sum_assignment(-np.repeat(gain, each, 1))
        best = gain[rows, columns // each].sum()
        assert gain[np.arange(len(gain)), labels].sum() == pytest.approx(best, rel=1e-11)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_gains_that_are_not_finite_are_refused(value):
    gain = np.random.default_rng(0).random((16, 4))
    gain[3, 2] = value
    with pytest.raises(ValueError, match="gains of an assignment hold NaN or infinity"):
        balanced_assignment(gain, sizes_of(16, 4))


def test_assignment_from_any_prices_is_as_good():
    rng = np.random.default_rng(0)
    gain, sizes = rng.normal(size=(60, 7)), sizes_of(60, 7)
    cold = balanced_assignment(gain, sizes)
    warm = balanced_assignment(gain, sizes, prices=rng.normal(size=7) * 3)
    value = [gain[np.arange(60), a.labels].sum() for a in (cold, warm)]
    assert value[0] == pytest.approx(value[1], abs=1e-9)


def test_kmeans_finds_planted_clusters_and_keeps_the_sizes():
    rng = np.random.default_rng(1)
    truth = rng.permutation(np.repeat(np.arange(6), 8))
    features = 4.0 * rng.normal(size=(6, 8))[truth] + 0.3 * rng.normal(size=(48, 8))
    assert same_groups(balanced_kmeans(features, sizes_of(48, 6), np.random.default_rng(2)), truth)
    uneven = balanced_kmeans(features, sizes_of(48, 5), np.random.default_rng(2))
    assert (np.bincount(uneven) == sizes_of(48, 5)).all()


def test_kmeans_of_identical_rows_is_balanced():
    labels = balanced_kmeans(np.zeros((20, 3)), sizes_of(20, 6), np.random.default_rng(0))
    assert (np.bincount(labels, minlength=6) == sizes_of(20, 6)).all()


@pytest.mark.parametrize("f", [24, 200])
def test_spectral_embedding_separates_planted_communities(f):
    """24 items take the dense eigensolver, 200 the iterative one."""
    rng = np.random.default_rng(3)
    graph, truth = blocks(f, 4, rng, noise=0.3)
    graph[0] = graph[:, 0] = 0.0
    embedding = spectral_embedding(graph, 4)
    assert embedding.shape == (f, 4) and not embedding[0].any()
    within = (embedding[1:] @ embedding[1:].T)[truth[1:, None] == truth[1:]]
    across = (embedding[1:] @ embedding[1:].T)[truth[1:, None] != truth[1:]]
    assert within.min() > 0.9 and across.max() < 0.5


def test_swaps_reach_a_graph_no_single_swap_can_improve():
    rng = np.random.default_rng(4)
    graph = rng.normal(size=(30, 30))
    graph = graph + graph.T
    start = np.repeat(np.arange(4), sizes_of(30, 4))
    labels = swap_refinement(graph, start, 4)

    def within(labels: np.ndarray) -> float:
        return (graph * (labels[:, None] == labels) * (1 - np.eye(30))).sum()

    assert within(labels) > within(start)
    assert (np.bincount(labels) == np.bincount(start)).all()
    for a in range(4):
        for b in range(4):
            loss = [graph[i, labels == a].sum() - graph[i, i] - graph[i, labels == b].sum() for i in range(30)]
            i = min((i for i in range(30) if labels[i] == a), key=lambda i: loss[i])
            back = [graph[j, labels == b].sum() - graph[j, j] - graph[j, labels == a].sum() for j in range(30)]
            j = min((j for j in range(30) if labels[j] == b), key=lambda j: back[j])
            swapped = labels.copy()
            swapped[i], swapped[j] = labels[j], labels[i]
            assert within(swapped) <= within(labels) + 1e-9


def test_swaps_recover_planted_groups_from_a_spoiled_start():
    rng = np.random.default_rng(5)
    graph, truth = blocks(40, 4, rng, noise=0.2)
    start = truth.copy()
    swapped = rng.permutation(40)[:12]
    start[swapped] = truth[np.roll(swapped, 1)]
    assert same_groups(swap_refinement(graph, start, 4), truth)


@pytest.mark.parametrize(("f", "p"), [(36, 9), (37, 9), (40, 12), (18, 18)])
def test_many_groups_are_found_within_communities_and_keep_their_sizes(monkeypatch, f, p):
    monkeypatch.setattr(clustering, "MOST_GROUPS", 4)
    rng, asked = np.random.default_rng(0), []

    def by_value(items: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Groups of neighbours in the order of their value."""
        asked.append(len(sizes))
        labels = np.empty(len(items), np.int64)
        labels[values[items].argsort()] = np.repeat(np.arange(len(sizes)), sizes)
        return labels

    values, items = rng.random(50), rng.permutation(50)[:f]
    labels = nested(by_value, items, sizes_of(f, p))
    assert np.array_equal(labels, by_value(items, sizes_of(f, p))), (
        "here, the best in each community are the best of all"
    )
    assert max(asked[:-1]) <= 4 and len(asked) > 3
