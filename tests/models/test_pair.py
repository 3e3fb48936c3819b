"""Two models read the same tokens: activations by hooks of one's own, names of sites there and back, refusals."""

import pytest
import torch
from transformers import GPTNeoForCausalLM

from slms.data.module import BlockOrder
from slms.models.activation_stream import ActivationStream
from slms.models.base import Base, load_base
from slms.models.collect import Collector
from slms.models.pair import Pair, models_of, open_pair
from slms.models.sites import find_pair, find_site, hf_name, read_sites, replaced, site_of_hook, site_width
from slms.sae.evaluate import _mean_nll, _patched, _written
from tests.models.test_sites import IDS, gpt_neo, routed
from tests.tiny import tiny_config


def other(**options):
    torch.manual_seed(1)
    sizes = {"num_layers": 3, "max_position_embeddings": 16, "intermediate_size": 20}
    return GPTNeoForCausalLM(tiny_config(31, **sizes | options)).eval()


@pytest.fixture
def pair():
    return Pair(gpt_neo(), routed(other()))


def by_hook(model, ids, layer):
    """The output [n, d] of a layer, by a hook."""
    found = []
    handle = model.transformer.h[layer].register_forward_hook(
        lambda _, __, out: found.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(ids)
    handle.remove()
    return found[0].flatten(0, 1)


def test_a_site_is_read_in_both_models(pair):
    site = find_site(pair, "residual.1")
    assert site.name == "base:residual.1+routed:residual.1"
    assert site_width(pair, site) == 16
    x = read_sites(pair, IDS, [site])[site.name]
    assert torch.equal(x, torch.cat([by_hook(pair[of], IDS, 1) for of in ("base", "routed")], dim=1))
    several = find_site(pair, "residual.0+mlp_out.1")
    assert [part.name for part in several.parts] == [
        f"{of}:{s}" for of in pair.names for s in ("residual.0", "mlp_out.1")
    ]
    assert find_site(pair, site.name) == site == site_of_hook(pair, site.hook_name)
    assert hf_name(pair, site) == "base:transformer.h.1+routed:transformer.h.1"
    apart = find_site(pair, "base:mlp_out.1+routed:pathway.1.2")
    assert read_sites(pair, IDS, [apart])[apart.name].shape == (24, 16)


def test_the_stream_holds_the_same_tokens_of_both(pair):
    site, special = find_site(pair, "residual.2"), torch.tensor([30])
    blocks = torch.randint(30, (12, 12), generator=torch.Generator().manual_seed(0)).numpy()
    collect = Collector(pair, [site], blocks, BlockOrder(12, 2, 3, 0), special, 1e9)
    stream = ActivationStream(collect, collect.tokens, 16, 0, prefetch=False)
    by_hand = {of: by_hook(net, torch.from_numpy(blocks), 2) for of, net in models_of(pair).items()}
    for _ in range(6):
        base, second = next(stream)[site.name].chunk(2, dim=1)
        at = torch.cdist(base.double(), by_hand["base"].double()).argmin(1)
        torch.testing.assert_close(base, by_hand["base"][at])
        torch.testing.assert_close(second, by_hand["routed"][at])


def test_each_model_is_patched_by_its_own_part(pair):
    site, rows = find_site(pair, "residual.1"), torch.arange(24) % 3 > 0
    new = torch.randn(24, 16)
    with _patched(pair, site, rows, new):
        nats = _mean_nll(_written(pair, site, IDS), IDS)
    slow = []
    for (of, net), part in zip(models_of(pair).items(), new.chunk(2, dim=1), strict=True):
        alone = find_site(net, "residual.1")
        with torch.no_grad(), replaced(net, alone, alone, lambda x, y, p=part: torch.where(rows[:, None], p, y)):
            logits = net(IDS).logits[:, :-1]
        slow.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten(), reduction="none"))
        assert of in pair.names
    torch.testing.assert_close(nats, (slow[0] + slow[1]) / 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("residual.7", "site 'residual.7' is not in the base model; the nearest"),
        ("pathway.1.0", "site 'pathway.1.0' is not in the base model"),
        ("routed:residual.1", "reads nothing of the base model; name a site of both"),
        ("residual.1+routed:residual.1", "every part begins with base: or routed:, or none does"),
        ("other:residual.1+base:residual.1", "every part begins with base: or routed:"),
        ("residual.1+neurons.1", "has parts of 8, 20, 8, 20 dimensions; one is needed"),
    ],
)
def test_sites_that_two_models_lack(pair, name, said):
    with pytest.raises(ValueError, match=said):
        find_site(pair, name)


def test_other_pairs():
    with pytest.raises(ValueError, match=r"has parts of 8, 12 dimensions; one is needed"):
        find_site(Pair(gpt_neo(), other(hidden_size=12)), "residual.1")
    with pytest.raises(ValueError, match="a crosscoder reconstructs what it reads"):
        find_pair(Pair(gpt_neo(), other()), "mlp_in.1", "mlp_out.1")
    assert Pair(gpt_neo(), other()).names == ["base", "versus"]


def test_second_models_that_are_refused(tmp_path):
    base = load_base("stories-1m")
    with pytest.raises(ValueError, match=r"^model.versus \S+missing: .*no directory"):
        open_pair(base, str(tmp_path / "missing"), "model.versus")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"^model.versus \S+run: the run has no finished model/ directory$"):
        open_pair(base, str(tmp_path / "run"), "model.versus")
    bigger = base.tokenizer.__class__.from_pretrained(base.tokenizer.name_or_path)
    bigger.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=r"vocabulary of [\d,]+ tokens is not the base's \([\d,]+ tokens\); both"):
        open_pair(Base(base.model, bigger), "stories-1m", "model.versus")
