"""The shuffled stream of activations: what it holds, what it leaves out, and that it resumes exactly."""

import pytest
import torch

from slms.models.activation_stream import ActivationLoader, ActivationStream, BufferConfig
from slms.models.collect import Chunk

TOKENS, D = 40, 3


def numbered(k):
    """Chunk k: row i is token 40·k + i of an endless text; every seventh is not to be trained on."""
    ids = torch.arange(TOKENS) + TOKENS * k
    return Chunk({"residual.0": ids[:, None].repeat(1, D).float(), "mlp_out.0": -ids[:, None].float()}, ids % 7 != 0)


def stream(prefetch=False, seed=0, batch_size=8):
    return ActivationStream(numbered, TOKENS, batch_size, seed, prefetch)


def tokens(batches):
    return [int(token) for batch in batches for token in batch["residual.0"][:, 0]]


def test_every_kept_token_once_but_for_the_periods_remainders():
    seen = tokens(next(s) for s in [stream()] for _ in range(100))
    assert len(seen) == len(set(seen)) == 800
    assert all(token % 7 for token in seen)
    periods = 800 // 32 + 2
    assert max(seen) < periods * TOKENS
    early = [token for token in range(15 * TOKENS) if token % 7]
    assert len(set(early) - set(seen)) < 8 * 16  # at most a batch less one is dropped a period


def test_sites_stay_aligned_and_batches_mix_two_chunks():
    made = stream()
    batches = [next(made) for _ in range(20)]
    for batch in batches:
        assert torch.equal(batch["residual.0"][:, :1], -batch["mlp_out.0"])
    chunks = [{token // TOKENS for token in tokens([batch])} for batch in batches[4:]]
    assert all(max(c) - min(c) <= 1 for c in chunks)
    assert sum(len(c) == 2 for c in chunks) > len(chunks) / 2


def test_order_depends_on_the_seed_only():
    a, b, c = stream(), stream(prefetch=True), stream(seed=1)
    assert [tokens([next(a)]) for _ in range(40)] == [tokens([next(b)]) for _ in range(40)]
    assert tokens([next(a)]) != tokens([next(c)])


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 2, 3, 11, 12, 13, 29])
def test_resumes_exactly_and_makes_two_chunks_only(stop, prefetch):
    made = []
    whole = ActivationLoader(stream(), 10)
    seen, position = [], whole.state_dict()
    for _ in range(4):
        for batch in whole:
            seen.append(tokens([batch]))
            if len(seen) == stop:
                position = whole.state_dict()
    fresh = ActivationStream(lambda k: made.append(k) or numbered(k), TOKENS, 8, 0, prefetch)
    resumed = ActivationLoader(fresh, 10)
    resumed.load_state_dict(position)
    rest = [tokens([batch]) for batch in resumed]
    assert len(rest) == 10 - stop % 10
    assert len(set(made)) <= len(rest) // 4 + 5
    assert min(made) >= position["period"] - 1
    while len(rest) + stop < 40:
        rest += [tokens([batch]) for batch in resumed]
    assert rest == seen[stop:]


def test_seeking_back_in_the_same_stream():
    made = stream(prefetch=True)
    first = [tokens([next(made)]) for _ in range(15)]
    made.seek(0, 0)
    assert [tokens([next(made)]) for _ in range(15)] == first


def test_an_error_in_the_second_thread_is_raised():
    def broken(k):
        if k == 2:
            raise ValueError("chunk 2 cannot be made")
        return numbered(k)

    made = ActivationStream(broken, TOKENS, 8, 0, prefetch=True)
    with pytest.raises(ValueError, match="chunk 2"):
        for _ in range(40):
            next(made)


def test_too_few_tokens_to_train_on():
    nothing = ActivationStream(
        lambda k: Chunk({"x": torch.zeros(TOKENS, 1)}, torch.arange(TOKENS) < 3), TOKENS, 8, 0, False
    )
    with pytest.raises(ValueError, match=r"only 3 tokens"):
        next(nothing)


@pytest.mark.parametrize(
    ("option", "value"), [("batch_size", 0), ("chunk_tokens", 0), ("lm_batch_size", 0), ("max_norm", 1.0)]
)
def test_impossible_options(option, value):
    with pytest.raises(ValueError, match=rf"data\.buffer\.{option} is {value}"):
        BufferConfig(**{option: value})
    with pytest.raises(ValueError, match=r"must be at most data\.buffer\.chunk_tokens"):
        BufferConfig(batch_size=100, chunk_tokens=99)


@pytest.mark.parametrize("prefetch", [False, True])
def test_the_first_chunk_is_gathered_once(prefetch):
    gathered = []

    def collect(k):
        gathered.append(k)
        return numbered(k)

    made = ActivationStream(collect, TOKENS, 8, 0, prefetch)
    first = made.first_chunk()["residual.0"][:, 0]
    assert first.tolist() == [token for token in range(TOKENS) if token % 7]
    next(made)
    made.settle()
    assert gathered == [0, 1] if prefetch else gathered == [0]
