"""`--seed_everything` sets every seed that is not given."""

import pytest
import torch

from slms.callbacks import CALLBACKS, CODER_CALLBACKS
from slms.lit.cli import TrainCLI
from slms.lit.sparse_autoencoder import SparseAutoencoder
from slms.models.activation_stream import ActivationData

LANGUAGE_MODEL = ["--config=routed_tinystories.yaml", "--data.train_tokens=512", "--data.val_tokens=256"]


def made(tmp_path, *more: str) -> TrainCLI:
    return TrainCLI(CALLBACKS, [*LANGUAGE_MODEL, f"--output_dir={tmp_path}", "--trainer.accelerator=cpu", *more])


def seeds(cli: TrainCLI) -> tuple[int, ...]:
    config = cli.plain_config()
    model, data = config["model"], config["data"]
    assert cli.datamodule.seed == data["seed"]
    return config["seed_everything"], model["base"]["seed"], model["routing"]["seed"], data["seed"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], (0, 0, 0, 0)),
        (["--seed_everything=3"], (3, 3, 3, 3)),
        (["--seed_everything=3", "--data.seed=0"], (3, 3, 3, 0)),
        (["--seed_everything=3", "--model.routing.seed=1", "--model.base.seed=2"], (3, 2, 1, 3)),
        (["--data.seed=5"], (0, 0, 0, 5)),
        (["--seed_everything=false"], (False, 0, 0, 0)),
    ],
)
def test_seeds_follow_unless_given(flags, expected, tmp_path):
    assert seeds(made(tmp_path, *flags)) == expected


def test_two_seeds_start_with_other_weights_and_read_other_text(tmp_path):
    shape = ["--model.base.init=random", "--model.routing=null"]
    first, second = (made(tmp_path, *shape, f"--seed_everything={seed}") for seed in (0, 1))
    for ours, theirs in zip(first.model.net.parameters(), second.model.net.parameters(), strict=True):
        assert ours.std() == 0 or not torch.equal(ours, theirs)
    texts = []
    for cli in (first, second):
        cli.datamodule.prepare_data()
        cli.datamodule.setup("fit")
        texts.append(cli.datamodule.train_dataloader().dataset[[0]]["input_ids"])
    assert not torch.equal(*texts)


def test_seeds_of_coders_follow(tmp_path):
    args = ["--config=sae_tinystories.yaml", f"--output_dir={tmp_path}", "--trainer.accelerator=cpu"]
    sites = "[{site: residual.0, coder: {k: 4}}, {site: residual.1, coder: {k: 4, seed: 1}}]"
    args += ["--seed_everything=7", f"--model.coders={sites}"]
    cli = TrainCLI(CODER_CALLBACKS, args, SparseAutoencoder, ActivationData)
    assert [spec["coder"]["seed"] for spec in cli.plain_config()["model"]["coders"]] == [7, 1]
