"""A run that trains coders on a tiny model's activations learns, logs what it should, and resumes exactly."""

import lightning as L
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import GPTNeoForCausalLM, PreTrainedTokenizerFast

from slms.data.corpora import CorpusConfig
from slms.lit.sparse_autoencoder import SparseAutoencoder
from slms.models.activation_stream import ActivationData, BufferConfig
from slms.models.base import BaseConfig
from slms.sae.config import CoderConfig, CoderSpec
from slms.sae.evaluate import update_qualities
from slms.sae.fit import fit
from slms.sae.optim import CoderOptimizerConfig
from slms.sae.quality import CoderQuality
from slms.sae.sparse import Picks
from slms.sae.training_coder import TrainingCoder, geometric_median
from tests.tiny import tiny_config

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a tiny language model, its tokenizer and a text of its words."""
    directory = tmp_path_factory.mktemp("tiny")
    vocabulary = {"<|endoftext|>": 0, **{word: i + 1 for i, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", model_max_length=64
    ).save_pretrained(directory)
    torch.manual_seed(0)
    config = tiny_config(41, bos_token_id=0, eos_token_id=0)
    GPTNeoForCausalLM(config).save_pretrained(directory)
    generator = torch.Generator().manual_seed(0)
    stories = [" ".join(WORDS[i] for i in torch.randint(40, (30,), generator=generator)) for _ in range(200)]
    (directory / "text.txt").write_text("\n<|endoftext|>\n".join(stories))
    return directory


AUTOENCODER = CoderSpec("residual.0", coder=CoderConfig(kind="batch_topk", d_sae=32, k=4, k_aux=4))
TRANSCODER = CoderSpec("mlp_in.1", "mlp_out.1", coder=CoderConfig(kind="topk", d_sae=24, k=4, skip=True))


def make(place, coders=(AUTOENCODER, TRANSCODER), versus=None, **optimizer):
    module = SparseAutoencoder(
        BaseConfig(name=str(place)),
        list(coders),
        CoderOptimizerConfig(**{"lr": 1e-2, "dead_tokens": 400} | optimizer),
        versus,
    )
    data = ActivationData(
        CorpusConfig(name=str(place / "text.txt")),
        module.tokenizer,
        "local",
        BufferConfig(batch_size=64, chunk_tokens=512, lm_batch_size=4),
        block_size=16,
        train_tokens=None,
        epoch_tokens=64 * 20,
        val_tokens=256,
    )
    return module, data


def trainer(tmp_path, **options):
    return L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=options.pop("logger", False),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        **{"enable_checkpointing": False, "max_epochs": 2} | options,
    )


class Record(L.Callback):
    """Every step's loss; checkpoints after some steps."""

    def __init__(self, saves=()):
        self.saves, self.losses, self.directory = saves, [], None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        if trainer.global_step in self.saves:
            trainer.save_checkpoint(self.directory / f"{trainer.global_step}.ckpt")


def test_run_learns_and_reports(place, tmp_path):
    module, data = make(place)
    record = Record()
    run = trainer(tmp_path, callbacks=[record], max_epochs=4, logger=L.pytorch.loggers.TensorBoardLogger(tmp_path))
    run.fit(module, data)
    assert len(record.losses) == 80
    assert sum(record.losses[-5:]) < 0.7 * sum(record.losses[:5])
    values = {key: float(value) for key, value in run.callback_metrics.items()}
    for label in ("residual.0", "mlp_in.1-to-mlp_out.1"):
        assert 0 < values[f"val/fvu/{label}"] < 0.6
        assert values[f"val/l0/{label}"] == pytest.approx(4, abs=1)
        assert values[f"val/ce_recovered/{label}"] > 0.3
        assert 0 <= values[f"val/dead/{label}"] < 1
        assert f"train/dead/{label}" in values
    assert module.coders[0].coder.threshold > 0
    for training in module.coders:
        assert_close(training.folded().W_dec.norm(dim=1), torch.ones(training.coder.d_sae))
    assert all(not parameter.requires_grad for parameter in module.lm.parameters())
    assert not any("lm" in name or "_frozen" in name for name in module.state_dict())
    tags = _tags(tmp_path)
    assert {"train/fvu/residual.0", "val/fvu/residual.0", "val/log10_density/residual.0"} <= tags


def _tags(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(directory.rglob("events*")).parent)).Reload()
    return set(events.Tags()["scalars"]) | set(events.Tags()["histograms"])


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """A run of 40 steps with checkpoints on the way: its losses, final state and directory."""
    directory, record = tmp_path_factory.mktemp("whole"), Record((7, 20, 27))
    module, data = make(place)
    record.directory = directory
    trainer(directory, callbacks=[record]).fit(module, data)
    return record.losses, module.state_dict(), directory


@pytest.mark.parametrize("save", [7, 20, 27])
def test_resumes_bit_for_bit(place, tmp_path, whole, save):
    losses, state, directory = whole
    record, (module, data) = Record(), make(place)
    path = directory / f"{save}.ckpt"
    trainer(tmp_path, callbacks=[record]).fit(module, data, ckpt_path=path, weights_only=True)
    assert record.losses == losses[save:]
    for name, tensor in state.items():
        assert torch.equal(module.state_dict()[name], tensor), name


def test_a_model_against_itself_shares_every_latent_and_resumes(place, tmp_path):
    """Both decoders of a latent in use end alike, and a run resumes bit for bit with two models too."""
    record, (module, data) = Record((27,)), make(place, [AUTOENCODER], str(place), lr=5e-3)
    record.directory = tmp_path
    run = trainer(tmp_path, callbacks=[record])
    run.fit(module, data)
    coder = module.coders[0].folded()
    used = module.coders[0].since_fired < 400
    shares = (coder.source_norms / coder.source_norms.sum(1, keepdim=True))[used]
    assert used.sum() > 8 and ((shares - 0.5).abs() < 0.1).all()
    assert module.coders[0].source.name == "base:residual.0+versus:residual.0"
    assert 0 < float(run.callback_metrics["val/fvu/residual.0"]) < 0.6
    again, (other, data) = Record(), make(place, [AUTOENCODER], str(place), lr=5e-3)
    trainer(tmp_path, callbacks=[again]).fit(other, data, ckpt_path=tmp_path / "27.ckpt", weights_only=True)
    assert again.losses == record.losses[27:]


def test_the_plain_loop_ends_with_the_same_weights(place, tmp_path):
    module, data = make(place, coders=[AUTOENCODER])
    batches = []

    class Keep(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            batches.append({"residual.0": batch["residual.0"].clone()})

    trainer(tmp_path, callbacks=[Keep()], max_epochs=1).fit(module, data)
    sample = module.stream.first_chunk()["residual.0"]
    site = module.sites[0][0]
    plain = fit(
        TrainingCoder(AUTOENCODER, site, site, sample, sample), iter(batches), len(batches), module.optimizer_config
    )
    for name, tensor in module.coders[0].state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor), name


def test_dead_latents_are_found_and_revived(place, tmp_path):
    module, data = make(place, coders=[AUTOENCODER], dead_tokens=64)
    run = trainer(tmp_path, max_epochs=1)

    class Kill(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 0:
                module.coders[0].coder.b_enc.data[:8] = -100.0

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.since = module.coders[0].since_fired.clone()
            if batch_idx == 2:
                assert (self.since[:8] == 192).all()
                assert module.coders[0].loss(batch, 64).aux > 0

    run.callbacks.append(Kill())
    run.fit(module, data)


def test_a_perfect_coder_recovers_everything_and_zero_nothing(place):
    module, data = make(place)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))

    class Perfect:
        source = target = module.sites[0][0]
        mean, longest = torch.zeros(8), torch.tensor(torch.inf)

        def __init__(self, factor):
            self.factor = factor

        def latents(self, x):
            return Picks.of_rows(torch.zeros(len(x), 1, dtype=torch.int64), 4), torch.ones(len(x))

        def reconstruct(self, x):
            return self.factor * x

    for factor in (1.0, 0.0):
        quality = CoderQuality(8, 4)
        update_qualities(module.lm, batch, [Perfect(factor)], torch.tensor([0]), [quality], full=True)
        found = quality.compute()
        assert found.recovered["zero"].value == pytest.approx(factor, abs=1e-5)
        assert found.kl.value == pytest.approx(0, abs=1e-6) if factor else found.kl.value > 1e-4
        assert found.fvu.value == pytest.approx(0, abs=1e-9) if factor else found.fvu.value >= 1
        assert found.dead == 0.75
        assert found.l0.n == int((batch["input_ids"] != 0).sum())


def test_blocks_longer_than_the_context_are_refused(place, tmp_path):
    module, data = make(place)
    module.lm.config.max_position_embeddings = 15
    with pytest.raises(ValueError, match=r"data.block_size is 16; the base's context holds at most 15 tokens"):
        trainer(tmp_path).fit(module, data)


def test_geometric_median_resists_outliers():
    x = torch.randn(301, 3, generator=torch.Generator().manual_seed(0))
    x[0] = 1e6
    assert geometric_median(x).norm() < 0.5 < x.mean(0).norm()


def test_bad_configurations(place):
    base = BaseConfig(name=str(place))
    with pytest.raises(ValueError, match=r"site 'residual\.7'.*residual\.1"):
        SparseAutoencoder(base, [CoderSpec("residual.7")])
    with pytest.raises(ValueError, match=r"'residual\.0' twice"):
        SparseAutoencoder(base, [CoderSpec("residual.0"), CoderSpec("residual.0")])
    with pytest.raises(ValueError, match="is empty"):
        SparseAutoencoder(base, [])
    with pytest.raises(ValueError, match="directory"):
        SparseAutoencoder(base, [CoderSpec("residual.0", name="a/b")])
    with pytest.raises(ValueError, match=r"model\.optimizer\.decay is 2"):
        CoderOptimizerConfig(decay=2)
    with pytest.raises(ValueError, match=r"model\.optimizer\.lr is 0"):
        CoderOptimizerConfig(lr=0)


def test_k_beyond_the_width(place):
    with pytest.raises(ValueError, match=r"coder\.k is 17; it must be at most the coder's 16 latents"):
        make(place, coders=[CoderSpec("residual.0", coder=CoderConfig(expansion=2, k=17))])
    make(place, coders=[CoderSpec("neurons.0", coder=CoderConfig(expansion=2, k=64))])  # 32 neurons
