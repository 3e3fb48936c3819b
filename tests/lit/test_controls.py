"""Each control is what its name says, has the routed run's objective, and comes back as it was when it is resumed."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slms.lit import controls
from slms.lit.controls import CONTROLS, Plan, equal_flops, equal_neurons, make_control
from slms.lit.distill import DistillConfig
from slms.lit.language_model import LanguageModel
from slms.models.anatomy import list_layers
from slms.models.base import BaseConfig, init_base, load_base
from slms.models.convert import route
from slms.models.flops import flops_per_token
from slms.models.routed import record_routes, routed_modules
from slms.routing import RoutingConfig
from slms.routing.balance import BalanceConfig
from tests.lit.short_runs import fit_briefly

IDS = torch.randint(3, 2000, (8, 64), generator=torch.Generator().manual_seed(0))
OF_MLPS = [name for name in CONTROLS if name != "query_norm"]
ROUTING = RoutingConfig(n_pathways=32, k=11, layers=[1, 3], router="linear", mean_compensation=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Widths by time without a clock."""
    by_time = {"neurons": {"L1.mlp": 100, "L3.mlp": 90}, "routed_us": 9.0, "dense_us": {"1.0": 12.0}}
    monkeypatch.setitem(
        CONTROLS, "static_time", CONTROLS["static_time"]._replace(make=controls._static(lambda *_: by_time))
    )


def test_sizes_by_hand():
    """Equal FLOPs: 11/32 of 4·64·256, a linear router 2·64·32 and means 2·32·64 are 120 neurons of 4·64."""
    base = init_base("stories-1m")
    assert equal_neurons(base, ROUTING) == {"neurons": {"L1.mlp": 88, "L3.mlp": 88}}
    assert equal_flops(base, ROUTING) == {"neurons": {"L1.mlp": 120, "L3.mlp": 120}}
    wide = RoutingConfig(n_pathways=32, k=31, layers=[1], router="mlp")
    assert equal_flops(base, wide) == {"neurons": {"L1.mlp": 256}}  # never more than all


def test_static_flops_takes_the_routed_model_s_flops():
    base = init_base("stories-1m")
    made = make_control("static_flops", base, Plan(ROUTING, IDS))
    assert flops_per_token(made.net, 64).total_routed == flops_per_token(route(base, ROUTING, IDS), 64).total_routed


@pytest.mark.parametrize("name", OF_MLPS)
def test_every_control_is_made_and_leaves_the_base_alone(name):
    base = load_base("stories-1m").model
    before = {key: value.clone() for key, value in base.state_dict().items()}
    made = make_control(name, base, Plan(ROUTING, IDS))
    assert made.record["name"] == name and made.net is not base
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    widths = {f"L{layer.index}.mlp": layer.d_ff for layer in list_layers(made.net) if layer.d_ff < 256}
    assert widths == made.record.get("neurons", {})
    trained = {key for key, p in made.net.named_parameters() if p.requires_grad}
    assert (len(trained) < len(list(made.net.parameters()))) == (name == "frozen_router")
    assert bool(routed_modules(made.net)) == (CONTROLS[name].role == "routed")
    assert (made.net(IDS).logits - base(IDS).logits).abs().mean() < 1.0


def test_a_record_decides_in_place_of_a_measurement():
    record = {"name": "static_time", "neurons": {"L1.mlp": 31, "L3.mlp": 32}}
    made = make_control("static_time", init_base("stories-1m"), Plan(ROUTING, IDS, record=record))
    assert made.record == record and [layer.d_ff for layer in list_layers(made.net)[:4]] == [256, 31, 256, 32]
    agreed = make_control("static", init_base("stories-1m"), Plan(ROUTING, IDS, agreed=lambda r: record))
    assert [layer.d_ff for layer in list_layers(agreed.net)[:4]] == [256, 31, 256, 32]


@pytest.mark.parametrize(
    "control, routing, message",
    [
        ("dense", None, "model.control is dense and model.routing null"),
        (
            "static",
            RoutingConfig(rule="top_p"),
            "model.routing.rule top_p; it needs a rule .* or on average: top_k, contr",
        ),
    ],
)
def test_a_control_without_a_routed_run_is_refused(control, routing, message):
    with pytest.raises(ValueError, match=message):
        LanguageModel(BaseConfig(name="stories-1m"), routing, control)


def fit(control: str | None, directory: Path, steps: int = 2, resumed: Path | None = None) -> LanguageModel:
    """A run of a few steps with every term of the loss, and a checkpoint `directory`/end.ckpt."""
    base, distill = BaseConfig(name="stories-1m"), DistillConfig(logits=1.0, mlp=0.5)
    balance = BalanceConfig(bias_rate=1e-3)
    model = LanguageModel(base, ROUTING, control, balance=balance, distill=distill, calibration_tokens=256)
    model.resumed_from = resumed
    sizes = {"block_size": 32, "batch_size": 2, "train_tokens": 512, "epoch_tokens": 512, "val_tokens": 64}
    options = {"max_steps": steps, "limit_val_batches": 0, "log_every_n_steps": 1}
    trainer = fit_briefly(model, sizes, resumed, **options)
    trainer.save_checkpoint(directory / "end.ckpt")
    model.losses = {key.rpartition("/")[2] for key in trainer.callback_metrics if key.startswith("train/loss/")}
    return model


@pytest.mark.parametrize("control", [None, *OF_MLPS])
def test_every_control_trains_with_the_routed_run_s_objective(control, tmp_path):
    """All are taught by the base; the balance of pathways is a term where there are pathways."""
    model = fit(control, tmp_path)
    taught = {"lm", "distill_logits", "distill_mlp", "total"}
    assert model.losses == (taught | {"balance", "z"} if model.role == "routed" else taught)
    assert model.teacher.base is not model.net
    routers = [module.router for module in routed_modules(model.net).values()]
    fresh = route(load_base("stories-1m").model, ROUTING, model.trainer.datamodule.calibration(256))
    for router, other in zip(routers, [m.router for m in routed_modules(fresh).values()], strict=False):
        for key in ("out.weight", "selection_bias"):
            moved = (router.state_dict()[key] - other.state_dict()[key]).abs().max()
            assert (moved < 1e-5) == (control == "frozen_router"), (key, moved)


def test_a_resumed_control_keeps_the_widths_that_were_measured(tmp_path, monkeypatch):
    first = fit("static_time", tmp_path)
    slower = {"neurons": {"L1.mlp": 40, "L3.mlp": 40}}
    monkeypatch.setitem(
        CONTROLS, "static_time", CONTROLS["static_time"]._replace(make=controls._static(lambda *_: slower))
    )
    again = fit("static_time", tmp_path, steps=3, resumed=tmp_path / "end.ckpt")
    assert again.made_control == first.made_control and again.global_step == 3
    assert [layer.d_ff for layer in list_layers(again.net)[:4]] == [256, 100, 256, 90]


@pytest.mark.parametrize("name", OF_MLPS)
def test_the_controls_of_gates_have_their_cost_or_keep_them(name, monkeypatch):
    """Equal FLOPs: the gate whole and half of the rest are two thirds of an MLP."""
    if name == "static_time":  # by the clock
        monkeypatch.setitem(CONTROLS, name, CONTROLS[name]._replace(make=controls._static(controls.as_fast)))
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    routing = RoutingConfig(router="gate", n_pathways=48, k=24, every_n_layers=1)
    made = make_control(name, LlamaForCausalLM(config).eval(), Plan(routing, IDS % 64))
    width = {"dense": 48, "frozen_router": 48, "static": 24, "static_flops": 32}.get(name)
    widths = [layer.d_ff for layer in list_layers(made.net)]
    assert widths == [width] * 2 if width else all(1 <= found <= 48 for found in widths)
    frozen = {key for key, p in made.net.named_parameters() if not p.requires_grad}
    gates = {f"model.layers.{i}.mlp.W_gate" for i in range(2)}
    assert frozen == (gates if name == "frozen_router" else set())


def test_the_controls_of_heads():
    """Static heads: the same for every token, at most the FLOPs of the routed ones; no cut MLPs."""
    base = init_base("stories-1m")
    fields = {"n_shared_heads": 2, "gate": "ramp", "layers": [1, 3], "mean_compensation": True}
    routing = RoutingConfig(target="attention", k_heads=8, router="linear", **fields)
    made = make_control("static", base, Plan(routing, IDS))
    modules = routed_modules(made.net)
    assert list(modules) == ["L1.attn", "L3.attn"] and {m.config.router for m in modules.values()} == {"static"}
    with record_routes(made.net) as routes:
        made.net(IDS)
    for found in routes.values():
        assert (found.chosen == found.chosen[0]).all() and found.chosen[0].sum() == 8
    assert flops_per_token(made.net, 64).total_routed < flops_per_token(route(base, routing, IDS), 64).total_routed
    by_norm = make_control("query_norm", base, Plan(dataclasses.replace(routing, importance="loss"), IDS))
    none = {"router_bias": None, "router_init": None, "gate": None, "n_shared_heads": 0}
    wanted = route(base, dataclasses.replace(routing, router="query_norm", **none), IDS)
    assert by_norm.record == {"name": "query_norm"} and torch.equal(by_norm.net(IDS).logits, wanted(IDS).logits)
    frozen = make_control("frozen_router", base, Plan(routing, IDS))
    assert {n.split(".router.")[0][-4:] for n, p in frozen.net.named_parameters() if not p.requires_grad} == {"tion"}
    assert not routed_modules(make_control("dense", base, Plan(routing, IDS)).net)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("static_flops", {"target": "attention"}, "heads have the controls static, dense, frozen_router, query_norm"),
        ("static_time", {"target": "attention"}, "heads have the controls static, dense, frozen_router, query_norm"),
        ("static", {"target": "both", "router": "linear"}, "target both; it needs target mlp or attention"),
        ("frozen_router", {"target": "attention", "router": "query_norm"}, "there is no router"),
        ("query_norm", {"target": "attention", "router": "query_norm"}, "of heads alone that another router chooses"),
        ("query_norm", {"target": "both", "router": "linear"}, "target both and router linear; it is the control"),
    ],
)
def test_controls_that_heads_do_not_have_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        controls.check_control(name, RoutingConfig(**options))


@pytest.mark.parametrize("rule", ["controlled", "relu"])
def test_equal_time_needs_a_rule_that_runs_as_it_is_timed(rule):
    """A router under these rules decodes in PyTorch's operations, and `top_k`, which would be timed, in one call."""
    gate = "relu" if rule == "relu" else "softmax"
    with pytest.raises(ValueError, match=f"static_time and model.routing.rule {rule}"):
        controls.check_control("static_time", RoutingConfig(rule=rule, gate=gate))
    controls.check_control("static_flops", RoutingConfig(rule=rule, gate=gate))
    if rule == "controlled":
        routing = RoutingConfig(router="gate", n_pathways=48, k=16, rule=rule)
        controls.check_control("static_time", routing)
