"""A run under a rule that is held to a density: training, resuming, saving and opening it keep the density."""

from pathlib import Path

import pytest
import torch

import slms
from slms.lit import balances
from slms.lit.balances import Balances, Budgets
from slms.lit.language_model import LanguageModel
from slms.lit.resume import check_resumed
from slms.measure.dynamick import set_routed_rule
from slms.models.base import BaseConfig, init_base, random_twin
from slms.models.flops import flops_per_token
from slms.models.routed import choose_by, record_routes, routed_modules
from slms.routing import RoutingConfig
from slms.routing.balance import BalanceConfig, GlobalBalance, z_loss
from slms.routing.budget import FIRST_WEIGHT
from tests.lit.short_runs import Middle, fit_briefly

IDS = torch.randint(3, 2000, (4, 48), generator=torch.Generator().manual_seed(0))
CONFIG = RoutingConfig(n_pathways=16, k=5, layers=[1, 3], router="linear", rule="controlled", gate="unit")


def fit(directory: Path, resumed: Path | None = None, config: RoutingConfig = CONFIG) -> LanguageModel:
    """A run of four steps of two batches."""
    model = LanguageModel(BaseConfig(name="stories-1m"), config, calibration_tokens=1024)
    sizes = {"block_size": 64, "batch_size": 2, "train_tokens": 1024, "epoch_tokens": 1024, "val_tokens": 64}
    middle, steps = Middle(directory, batch=3), {"max_epochs": 1, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    fit_briefly(model, sizes, resumed, **steps, callbacks=[middle])
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlled")
    return fit(folder), folder


def test_resuming_goes_on_with_the_threshold_and_the_controller(run, tmp_path):
    whole, folder = run
    again = fit(tmp_path, folder / "middle.ckpt")
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    moved = torch.load(folder / "middle.ckpt", weights_only=True)["state_dict"]
    last, threshold = "budgets.L1_mlp.last", "net.transformer.h.1.mlp.router.threshold"
    assert moved[last] != whole.state_dict()[last] and moved[threshold] != whole.state_dict()[threshold]


def test_the_saved_model_chooses_alike_with_a_cache_or_without(run, tmp_path):
    net, tokenizer = run[0].net.eval(), run[0].tokenizer
    slms.save_model(net, tokenizer, tmp_path / "out")
    opened = slms.load_model(tmp_path / "out").model.eval()
    with torch.no_grad(), record_routes(net) as mine, record_routes(opened) as theirs:
        torch.testing.assert_close(net(IDS).logits, opened(IDS).logits)
    for place, routes in mine.items():
        assert torch.equal(routes.chosen, theirs[place].chosen)
        counts = routes.chosen.sum(1)
        assert counts.min() >= 1 and len(counts.unique()) > 3
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "num_beams": 2}
    padded, mask = torch.cat([torch.zeros_like(IDS[:, :3]), IDS], 1), torch.ones(4, 51, dtype=torch.long)
    mask[:, :3] = 0
    cached, plain = (
        opened.generate(padded, attention_mask=mask, use_cache=cache, **options) for cache in (True, False)
    )
    assert torch.equal(cached, plain)
    assert torch.equal(cached[:, 3:], opened.generate(IDS, attention_mask=mask[:, 3:], **options))


def test_costs_and_words_tell_the_mean_and_a_random_twin_runs_as_many(run):
    net = run[0].net.eval()
    flops = flops_per_token(net, 16)
    assert flops.active_fraction == pytest.approx((6 + 2 * 5 / 16) / 8)
    assert "on average 5, those above a threshold, chosen by its linear router, density 0.31" in str(net)
    twin = random_twin(net)
    with torch.no_grad(), record_routes(twin) as routes:
        twin(IDS)
    assert all((found.chosen.sum(1) == 5).all() for found in routes.values())


def test_without_calibration_the_rule_is_refused():
    with pytest.raises(ValueError, match=r"`routing.rule` is controlled; it needs calibration tokens"):
        slms.route(init_base("stories-1m"), CONFIG)


def test_a_resumed_run_keeps_its_rule_and_k_is_annealed_under_top_k_alone():
    before, now = ({"model": {"routing": {"rule": rule}}} for rule in ("top_k", "controlled"))
    for old, new in ((before, now), (now, before)):
        with pytest.raises(ValueError, match=r"--model.routing.rule is .* a resumed run must keep it"):
            check_resumed(old, new)
    check_resumed(before, {"model": {"routing": {"rule": "top_p"}}})
    with pytest.raises(ValueError, match=r"model.k_anneal is 0.5 and model.routing.rule controlled"):
        LanguageModel(BaseConfig(name="stories-1m"), CONFIG, k_anneal=0.5)


def test_under_relu_the_penalty_is_learnt_and_what_it_cannot_do_is_refused(tmp_path):
    config = RoutingConfig(n_pathways=16, k=5, layers=[1, 3], router="linear", rule="relu", mean_compensation=True)
    model = fit(tmp_path, config=config)
    assert {"train/loss/density", "train/loss/balance"} <= model.trainer.callback_metrics.keys()
    assert all(float(budget.weight) != FIRST_WEIGHT for budget in model.budgets.values())
    net = model.net.eval()
    assert all(float(module.router.ramp) > 0.9 for module in routed_modules(net).values())
    again = fit(tmp_path, tmp_path / "middle.ckpt", config)
    assert all(
        torch.equal(*pair) for pair in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    with torch.no_grad(), record_routes(net) as routes:
        net(IDS)
    for found in routes.values():
        torch.testing.assert_close(found.gates, found.scores.relu(), rtol=0.2, atol=0.2)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}
    assert torch.equal(*(net.generate(IDS, use_cache=cache, **options) for cache in (True, False)))
    refused = pytest.raises(ValueError, match=r"`routing.rule` is relu; its gates are 0 where it does not choose")
    with refused, choose_by(net, {"L1.mlp": lambda x, routes: routes.chosen}):
        pass
    with pytest.raises(ValueError, match=r"--rule relu: it executes what the routers were trained to execute"):
        set_routed_rule(net, "relu", 0.5, IDS, 4)
    assert random_twin(net)(IDS).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"model.control is frozen_router and model.routing.rule relu"):
        LanguageModel(BaseConfig(name="stories-1m"), config, "frozen_router")
    with pytest.raises(ValueError, match=r"model.balance.bias_rate is 0.001 and model.routing.rule relu"):
        LanguageModel(BaseConfig(name="stories-1m"), config, balance=BalanceConfig(bias_rate=1e-3))


def test_conversion_under_relu_starts_as_near_as_under_controlled():
    base, ids = init_base("stories-1m"), IDS
    errors = []
    for rule in ("controlled", "relu"):
        fields = {
            "n_pathways": 16,
            "k": 5,
            "router": "linear",
            "rule": rule,
            "gate": "unit" if rule != "relu" else None,
        }
        with torch.no_grad():
            net = slms.route(base, RoutingConfig(**fields), ids)
            errors.append(float((net(ids).logits - base(ids).logits).square().mean()))
    assert errors[1] < 1.2 * errors[0]


def test_other_rules_need_no_budget():
    budgets = Budgets()
    budgets.follow(slms.route(init_base("stories-1m"), RoutingConfig(layers=[1])))
    assert not budgets and budgets.terms(torch.nn.Module(), {}) == {}
    assert balances.key_of("L3.mlp") == "L3_mlp"


def test_heads_are_balanced_by_group_and_have_no_budget():
    config = RoutingConfig(n_pathways=16, k=5, layers=[1], router="linear", rule="controlled", target="both", k_heads=4)
    net = slms.route(init_base("stories-1m"), config, IDS)
    balances, budgets = Balances(), Budgets()
    balances.follow(net, BalanceConfig())
    budgets.follow(net)
    assert list(balances) == ["L1_attn", "L1_mlp"] and list(budgets) == ["L1_mlp"]
    with record_routes(net) as routes:
        net(IDS)
    terms = balances.eval().terms(net, routes)
    heads, mlp = routes["L1.attn"], routes["L1.mlp"]
    assert heads.chosen.sum(1).eq(4).all()
    wanted = [GlobalBalance(16).eval()(r.probs, r.chosen) for r in (heads, mlp)]
    torch.testing.assert_close(terms["balance"], torch.stack(wanted).mean())
    torch.testing.assert_close(terms["z"], torch.stack([z_loss(heads.scores), z_loss(mlp.scores)]).mean())
    assert budgets.terms(net, routes) == {}
    budgets.step(net)
    balances.step(net, BalanceConfig(bias_rate=0.01))


def test_shared_heads_do_not_take_part_in_the_balance():
    config = RoutingConfig(target="attention", k_heads=8, n_shared_heads=3, layers=[1], router="linear")
    net = slms.route(init_base("stories-1m"), config, IDS)
    balances = Balances()
    balances.follow(net, BalanceConfig())
    with record_routes(net) as routes:
        net(IDS)
    found, router = routes["L1.attn"], routed_modules(net)["L1.attn"].router
    rest = ~router.shared
    assert rest.sum() == 13
    terms = balances.eval().terms(net, routes)
    torch.testing.assert_close(terms["balance"], GlobalBalance(13).eval()(found.probs[:, rest], found.chosen[:, rest]))
    torch.testing.assert_close(terms["z"], z_loss(found.scores[:, rest]))
    balances.train().terms(net, routes)
    balances.step(net, BalanceConfig(bias_rate=0.01))
    load = found.chosen.float().mean(0)
    wanted = 0.01 * (load[rest].mean() - load[rest]).sign()
    torch.testing.assert_close(router.selection_bias[rest], wanted - wanted.mean())
    assert router.selection_bias[router.shared].eq(0).all()
