"""Probes and absorption against slow versions written from their definitions, and on planted latents."""

import pytest
import torch

from benchmarks.coder_probing import (
    KS,
    LEAST,
    RIDGE,
    Labelled,
    absorption,
    fitted,
    mean_differences,
    probed_classes,
    probing,
    site_probes,
)


def planted(seed, n=600):
    """Three classes and unknown ones; latent 4 tells class 1, two latents tell half of class 2 each."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(-1, 3, (n,), generator=generator)
    values = torch.rand(n, 7, generator=generator) * (torch.rand(n, 7, generator=generator) > 0.5)
    half = torch.rand(n, generator=generator) > 0.5
    values[:, 4] = (classes == 1) * 2.0
    values[:, 5] = ((classes == 2) & half) * 3.0
    values[:, 6] = ((classes == 2) & ~half) * 3.0
    return Labelled(values, classes)


def test_a_latent_that_tells_a_class_is_found_alone_and_two_need_two():
    train, test = planted(0), planted(1)
    assert mean_differences(train)[1].abs().argmax() == 4
    one, five, every = probing(train, test, 1), probing(train, test, 5), probing(train, test, None)
    assert 0.7 < one < 0.95 < five <= every <= 1
    shuffled = test._replace(classes=test.classes[torch.randperm(len(test.classes))])
    assert abs(probing(train, shuffled, 5) - 0.5) < 0.06


def slow_probing(train, test, k):
    """One token at a time; the regression by LBFGS on the loss as it is defined."""
    scores = []
    for c in range(3):
        rows = [i for i in range(len(train.classes)) if train.classes[i] >= 0]
        means = []
        for j in range(train.values.shape[1]):
            own = [float(train.values[i, j]) for i in rows if train.classes[i] == c]
            rest = [float(train.values[i, j]) for i in rows if train.classes[i] != c]
            means.append(abs(sum(own) / len(own) - sum(rest) / len(rest)))
        columns = sorted(range(len(means)), key=lambda j: -means[j])[:k]
        x, y = train.values[rows][:, columns].double(), (train.classes[rows] == c).double()
        mean, sd = x.mean(0), x.std(0)
        w, b = torch.zeros(k, dtype=torch.float64, requires_grad=True), torch.zeros(1, dtype=torch.float64)
        b.requires_grad_()
        optimizer = torch.optim.LBFGS([w, b], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def loss(x=x, y=y, mean=mean, sd=sd, w=w, b=b, optimizer=optimizer):
            optimizer.zero_grad()
            p = torch.sigmoid((x - mean) / sd @ w + b)
            found = -(p[y == 1].log().mean() + (1 - p[y == 0]).log().mean()) / 2 + RIDGE / 2 * (w @ w)
            found.backward()
            return found

        optimizer.step(loss)
        hits = {True: [], False: []}
        for i in range(len(test.classes)):
            if test.classes[i] >= 0:
                said = ((test.values[i, columns].double() - mean) / sd @ w + b).item() > 0
                hits[bool(test.classes[i] == c)].append(said == bool(test.classes[i] == c))
        scores.append(sum(sum(found) / len(found) for found in hits.values()) / 2)
    return sum(scores) / 3


@pytest.mark.parametrize("k", KS)
def test_probes_as_the_definition_does(k):
    noise = torch.Generator().manual_seed(5)
    train, test = (
        one._replace(values=one.values + 0.8 * torch.randn(one.values.shape, generator=noise))
        for one in (planted(2), planted(3))
    )
    assert probing(train, test, k) == pytest.approx(slow_probing(train, test, k), abs=0.002)


def test_the_regression_is_at_its_minimum():
    train = planted(4).known
    values, y = train.values + torch.randn_like(train.values), train.classes == 1
    probe = fitted(values, y, torch.tensor([4, 0]))
    x = values[:, [4, 0]].double()
    sd = x.std(0)
    w, b = (probe.weight * sd).requires_grad_(), (probe.bias + x.mean(0) @ probe.weight).requires_grad_()
    p = torch.sigmoid((x - x.mean(0)) / sd @ w + b)
    loss = -(p[y].log().mean() + (1 - p[~y]).log().mean()) / 2 + RIDGE / 2 * (w @ w)
    gradient = torch.autograd.grad(loss, [w, b])
    assert max(g.abs().max().item() for g in gradient) < 1e-8


def test_a_rare_class_is_not_probed():
    train, test = planted(0), planted(1)
    few = (train.classes == 2).nonzero()[LEAST - 1 :, 0]
    classes = train.classes.clone()
    classes[few] = 0
    for part in (Labelled(train.values, classes), test), (test, Labelled(train.values, classes)):
        assert probing(part[0], part[1], 1) != probing(train, test, 1)
    assert probed_classes(Labelled(train.values, classes), test) == [0, 1]


def slow_absorption(x_train, x_test, train, test, W_dec, b_dec):
    """One token and one latent at a time."""
    shares = []
    for c in range(3):
        known = x_train.classes >= 0
        probe = fitted(x_train.values[known], x_train.classes[known] == c, torch.arange(len(b_dec)))
        length = float(probe.weight.norm())
        unit = [float(w) / length for w in probe.weight]
        rise = []
        for j in range(train.values.shape[1]):
            own = train.values[train.classes == c, j].tolist()
            rest = train.values[(train.classes != c) & (train.classes >= 0), j].tolist()
            rise.append(sum(own) / len(own) - sum(rest) / len(rest))
        main = sorted(range(len(rise)), key=lambda j: -rise[j])[:5]
        cosines = [sum(float(W_dec[j, d]) * unit[d] for d in range(len(unit))) for j in range(len(rise))]
        hits = []
        for i in range(len(test.classes)):
            if test.classes[i] != c or not probe(x_test.values[i : i + 1]):
                continue
            whole = sum((float(x_test.values[i, d]) - float(b_dec[d])) * unit[d] for d in range(len(unit)))
            parts = [float(test.values[i, j]) * cosines[j] for j in range(len(rise))]
            top = max(range(len(parts)), key=lambda j: parts[j])
            silent = all(float(test.values[i, j]) == 0 for j in main)
            hits.append(silent and whole > 0 and cosines[top] >= 0.025 and parts[top] >= 0.4 * whole)
        shares.append(sum(hits) / len(hits))
    return sum(shares) / 3


def test_absorption_as_the_definition_has_it():
    """Words of three classes, each with a direction of its class and of its own; some words' latents hold both."""
    torch.manual_seed(0)
    d, n_words = 24, 36
    basis = torch.linalg.qr(torch.randn(d, d))[0]
    words = torch.randn(n_words, d) @ basis[3:].T @ basis[3:] * 0.5
    W_dec = torch.nn.functional.normalize(torch.cat([basis[:3], torch.randn(9, d), words]), dim=1)
    absorbs = torch.arange(n_words) % 4 == 3
    W_dec[12:][absorbs] = torch.nn.functional.normalize(
        words[absorbs] + basis[torch.arange(n_words)[absorbs] % 3], dim=1
    )

    def text(seed, n=500):
        generator = torch.Generator().manual_seed(seed)
        word = torch.randint(0, n_words, (n,), generator=generator)
        classes = word % 3
        x = basis[classes] + words[word] + 0.1 * torch.randn(n, d, generator=generator)
        acts = torch.zeros(n, 12 + n_words)
        acts[torch.arange(n), classes] = 1.0 * ~absorbs[word]
        acts[torch.arange(n), 12 + word] = 1.0
        return Labelled(x, classes), Labelled(acts, classes)

    (x_train, train), (x_test, test) = text(0), text(1)
    b_dec = torch.zeros(d)
    probes = site_probes(x_train, x_test)
    found = absorption(probes, x_test.values, train, test, W_dec, b_dec)
    assert found == pytest.approx(slow_absorption(x_train, x_test, train, test, W_dec, b_dec), abs=1e-9)
    assert 0.05 < found < 0.5
    none = test._replace(values=test.values + (torch.arange(48) < 3) * 1.0)
    assert absorption(probes, x_test.values, train, none, W_dec, b_dec) == 0
