"""Distillation from the frozen base adds the right terms to the loss, and ends when it should."""

import lightning
import pytest
import torch
import torch.nn.functional as F

from slms.data.corpora import CorpusConfig
from slms.data.module import TextData
from slms.lit.distill import DistillConfig, losses_of
from slms.lit.language_model import LanguageModel
from slms.models.base import BaseConfig
from slms.models.routed_mlp import RoutedMLP
from slms.routing import RoutingConfig
from slms.routing.balance import BalanceConfig

STEPS = 4


def fit(distill: DistillConfig, recompute: bool = False, **more) -> tuple[LanguageModel, list[float], list[int]]:
    """A routed model after four steps, its distillation losses as logged, and the steps at which the base was run."""
    model = LanguageModel(
        BaseConfig(name="stories-1m"),
        RoutingConfig(layers=[1]),
        distill=distill,
        calibration_tokens=256,
        recompute=recompute,
        **more,
    )
    data = TextData(
        CorpusConfig(name="stories"),
        model.tokenizer,
        block_size=32,
        batch_size=2,
        train_tokens=64 * STEPS,
        epoch_tokens=64 * STEPS,
        val_tokens=64,
    )
    asked: list[int] = []
    losses: list[float] = []

    class Watch(lightning.Callback):
        def on_train_start(self, trainer, module):
            module.teacher.base.register_forward_hook(lambda *_: asked.append(module.global_step))

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(float(trainer.callback_metrics.get("train/loss/distill_logits", torch.nan)))

    trainer = lightning.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        enable_model_summary=False,
        accelerator="cpu",
        log_every_n_steps=1,
        callbacks=[Watch()],
        use_distributed_sampler=False,
    )
    trainer.fit(model, data)
    return model, losses, asked


@pytest.mark.parametrize("anneal, steps", [(None, [0, 1, 2, 3]), (0.5, [0, 1])])
def test_base_runs_as_long_as_it_teaches(anneal, steps):
    _, losses, asked = fit(DistillConfig(lm=1.0, logits=1.0, anneal=anneal))
    assert asked == steps
    assert losses[0] > 0


def test_terms_are_the_divergence_and_the_relative_error():
    model, _, _ = fit(DistillConfig(logits=1.0, mlp=1.0))
    model.zero_grad()
    ids = torch.randint(3, 2000, (2, 16), generator=torch.Generator().manual_seed(0))
    wanted, logits = model.teacher.base(ids).logits, model.net(ids).logits
    log_p, log_q = logits.log_softmax(-1), wanted.log_softmax(-1)
    kl = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    nll = F.cross_entropy(log_p[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    seen: list[torch.Tensor] = []
    handle = model.teacher.base.transformer.h[1].mlp.register_forward_hook(lambda module, args, out: seen.append(out))
    found, outputs = losses_of(model.net, model.teacher, {"input_ids": ids}, 0.3, 0.7, [1])
    handle.remove()
    torch.testing.assert_close(found.kl, kl)
    torch.testing.assert_close(found.nll, nll)
    torch.testing.assert_close(outputs[1], seen[0])
    parameters = [p for p in model.net.parameters() if p.requires_grad]
    gradients = (
        torch.autograd.grad(total, parameters, allow_unused=True) for total in (found.total, 0.3 * nll + 0.7 * kl)
    )
    for mine, of in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, of, rtol=1e-4, atol=5e-6)


def test_a_conversion_learns_the_base_alone_and_keeps_all_but_its_mlps():
    model, losses, _ = fit(DistillConfig(), balance=BalanceConfig(weight=0.0, weight_start=0.0, z_weight=0.0))
    assert model.trainer.callback_metrics["train/loss/total"] == pytest.approx(losses[-1], rel=1e-5)
    base = model.teacher.base.state_dict()
    changed = {name for name, weight in model.net.state_dict().items() if name in base and not weight.equal(base[name])}
    assert changed and all(".mlp." in name for name in changed)
    held = {id(p) for group in model.trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for name, p in model.net.named_parameters() if ".mlp." in name}


def test_validation_reports_the_divergence_from_the_base():
    model, _, _ = fit(DistillConfig())
    ids = torch.randint(3, 2000, (2, 16), generator=torch.Generator().manual_seed(0))
    model.on_validation_epoch_start()
    model.validation_step({"input_ids": ids, "doc_ids": torch.zeros_like(ids)}, 0)
    with torch.no_grad():
        q, p = (net.eval()(ids).logits[:, :-1].log_softmax(-1) for net in (model.teacher.base, model.net))
    assert float(model.val_kl.compute().value) == pytest.approx(float((q.exp() * (q - p)).sum(-1).mean()), rel=1e-4)


def test_kept_states_of_the_base_teach_alike_and_another_run_needs_no_base(tmp_path):
    _, losses, asked = fit(DistillConfig())
    kept = DistillConfig(cache=True, cache_dir=str(tmp_path))
    for steps in (asked, []):
        _, same, again = fit(kept)
        assert same[:2] == pytest.approx(losses[:2], rel=2e-3) and again == steps
        assert same == pytest.approx(losses, rel=2e-2)  # states in fp16 may turn a close choice after two steps


def test_recomputed_layers_give_the_same_training(monkeypatch):
    """Losses, routes that the balance loss counts, and weights are equal; each layer runs twice in a step."""
    ran = []
    forward = RoutedMLP.forward
    monkeypatch.setattr(RoutedMLP, "forward", lambda self, x: ran.append(torch.is_grad_enabled()) or forward(self, x))
    kept, losses, _ = fit(DistillConfig(logits=1.0, mlp=0.1))
    once = sum(ran)
    again, same_losses, _ = fit(DistillConfig(logits=1.0, mlp=0.1), recompute=True)
    assert once == STEPS and sum(ran) - once == 2 * STEPS
    assert same_losses == pytest.approx(losses, rel=1e-6)
    for name, tensor in kept.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_a_refit_to_k_pathways_and_an_annealed_k_exclude_each_other():
    routing = RoutingConfig(refit=True)
    with pytest.raises(ValueError, match=r"model.k_anneal is 0.5 and model.routing.refit true"):
        LanguageModel(BaseConfig(name="stories-1m"), routing, k_anneal=0.5)
