"""Whole runs whose neurons move between pathways: what is logged, resumed, saved and left alone."""

from pathlib import Path

import pytest
import torch

import slms
from slms.lit.language_model import LanguageModel
from slms.lit.moves import AssignmentConfig
from slms.lit.resume import check_resumed
from slms.models.base import BaseConfig
from slms.models.routed import routed_modules
from slms.models.routed_mlp import RoutedMLP
from slms.routing import RoutingConfig
from tests.lit.short_runs import Middle, fit_briefly

IDS = torch.randint(3, 2000, (4, 48), generator=torch.Generator().manual_seed(0))
ROUTING = RoutingConfig(
    n_pathways=16, k=5, layers=[1, 3], router="linear", gate="unit", partition="random", mean_compensation=True
)


class Watch(Middle):
    """Also keeps what is logged and where neurons are at each step."""

    def __init__(self, directory: Path):
        super().__init__(directory, batch=5)
        self.moved, self.pathways = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        if batch_idx % 2:
            self.moved.append(float(trainer.callback_metrics.get("assignment/moved/L1.mlp", -1)))
            self.pathways.append(next(iter(routed_modules(module.net, RoutedMLP).values())).pathway_of_neuron())


def fit(directory: Path, resumed: Path | None = None, **more) -> tuple[LanguageModel, Watch]:
    """A run of six steps of two batches."""
    options = {"assignment": AssignmentConfig(every=2, until=0.7, least=0.0), "calibration_tokens": 1024} | more
    model = LanguageModel(BaseConfig(name="stories-1m"), ROUTING, **options)
    sizes = {"block_size": 64, "batch_size": 2, "train_tokens": 1536, "epoch_tokens": 1536, "val_tokens": 64}
    watch = Watch(directory)
    steps = {"max_epochs": 1, "accumulate_grad_batches": 2, "limit_val_batches": 0, "log_every_n_steps": 1}
    fit_briefly(model, sizes, resumed, **steps, callbacks=[watch])
    return model, watch


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moves")
    return *fit(folder), folder


def test_a_run_moves_neurons_at_its_turns_and_says_how_many(run):
    _, watch, _ = run
    changed = [
        float((now != before).float().mean()) for before, now in zip(watch.pathways, watch.pathways[1:], strict=False)
    ]
    assert changed[0] > 0 and changed[2] > 0  # after steps 2 and 4, of 4.2 in which they may
    assert [c for i, c in enumerate(changed) if i not in (0, 2)] == [0.0, 0.0, 0.0]
    assert watch.moved[1:] == pytest.approx(changed)


def test_a_resumed_run_goes_on_bit_for_bit(run, tmp_path):
    whole, _, folder = run
    again, _ = fit(tmp_path, folder / "middle.ckpt")
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_saved_model_is_a_plain_routed_one(run, tmp_path):
    model = run[0]
    net = model.net.eval()
    slms.save_model(net, model.tokenizer, tmp_path / "out")
    opened = slms.load_model(tmp_path / "out").model
    torch.testing.assert_close(net(IDS).logits, opened(IDS).logits)
    for place, mlp in routed_modules(opened, RoutedMLP).items():
        kept = routed_modules(net, RoutedMLP)[place]
        assert torch.equal(mlp.pathway_of_neuron(), kept.pathway_of_neuron())
        assert mlp.permutation.sort().values.equal(torch.arange(256))


def test_with_every_pathway_a_run_of_frozen_mlps_is_still_the_base(tmp_path):
    model, _ = fit(tmp_path, train="routers")
    net, base = model.net.eval(), slms.load_base("stories-1m").model.eval()
    moved = [mlp.pathway_of_neuron() for mlp in routed_modules(net, RoutedMLP).values()]
    start = slms.route(base, ROUTING, IDS)
    before = [mlp.pathway_of_neuron() for mlp in routed_modules(start, RoutedMLP).values()]
    assert not any(map(torch.equal, moved, before))
    slms.models.routed.set_k(net, 16)
    torch.testing.assert_close(net(IDS).logits, base(IDS).logits, rtol=1e-5, atol=1e-4)


def test_controls_keep_their_neurons(tmp_path):
    model, watch = fit(tmp_path, control="frozen_router")
    assert not model.moves and all(map(torch.equal, watch.pathways, watch.pathways[1:]))


def test_an_old_run_had_no_moves_and_a_resumed_one_keeps_them():
    given = {"model": {"routing": {}, "assignment": {"every": 20}}}
    with pytest.raises(ValueError, match=r"--model.assignment is .*; the run was started with null"):
        check_resumed({"model": {"routing": {}}}, given)
    with pytest.raises(ValueError, match=r"--model.assignment.every is 10; the run was started with 20"):
        check_resumed(given, {"model": {"routing": {}, "assignment": {"every": 10}}})
    check_resumed({"model": {"routing": {}}}, {"model": {"routing": {}, "assignment": None}})
