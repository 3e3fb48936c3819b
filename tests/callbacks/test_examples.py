"""Example features show the strongest uses in the validation text, the same latents every epoch, and tokens as text."""

import lightning as L
import pytest
import torch

from slms.callbacks.examples import FeatureExamples, _spread
from slms.sae.evaluate import Used
from slms.sae.sparse import Picks

TEXTS = ["<|endoftext|>", " dog", " cat", "|", "*b*", " <script>", "\n"]


class Tokens:
    """A tokenizer of seven tokens."""

    def convert_ids_to_tokens(self, ids):
        return [TEXTS[i] for i in ids]

    def decode(self, ids, **_):
        return "".join(TEXTS[i] for i in ids)


class Writer:
    """What TensorBoard was given."""

    def __init__(self):
        self.texts = []

    def add_text(self, *args):
        self.texts.append(args)


@pytest.fixture
def logged(monkeypatch):
    """A trainer whose TensorBoard keeps texts, and the texts."""
    writer, trainer = Writer(), L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    monkeypatch.setattr("slms.callbacks.examples.writers", lambda _: [writer])
    return trainer, writer.texts


def epoch(callback, trainer, strengths):
    """Two blocks of six tokens, latent 0 at ` dog`s of one strength each, latent 1 at `<script>`, latent 2 nowhere."""
    module = L.LightningModule()
    module.tokenizer = Tokens()
    callback.on_validation_epoch_start(trainer, module)
    for block, strength in zip(torch.tensor([[0, 2, 1, 3, 4, 5], [0, 1, 6, 1, 5, 2]]), strengths, strict=True):
        rows = block != 0
        at = [(i, 0 if token == 1 else 1) for i, token in enumerate(block[rows].tolist()) if token in (1, 5)]
        indices = torch.tensor([latent for _, latent in at])
        offsets = torch.bincount(torch.tensor([i for i, _ in at]), minlength=5).cumsum(0)
        picks = Picks(indices, torch.nn.functional.pad(offsets, (1, 0)), 3)
        values = torch.where(indices == 0, strength, 0.5)
        callback.on_validation_batch_end(
            trainer, module, {"mine": Used(rows, picks, values)}, {"input_ids": block[None]}, 0
        )
    callback.on_validation_epoch_end(trainer, module)


def test_strongest_uses_as_a_table(logged):
    trainer, texts = logged
    epoch(FeatureExamples(before=2, after=1), trainer, (1.0, 3.0))
    ((tag, table, step),) = texts
    assert (tag, step) == ("val/features/mine", 0)
    lines = table.splitlines()
    assert len(lines) == 2 + 2  # the third latent is not used
    assert lines[2].startswith("| 0 | 25.00% | 3.00 | ")
    strong, weak = lines[2].split(" | ")[-1].removesuffix(" |").split("<br>")
    assert strong == "&#60;&#124;endoftext&#124;&#62; **dog**⏎"
    assert weak.endswith("endoftext&#124;&#62; cat **dog**&#124;")
    assert "**&#60;script&#62;**" in lines[3] and "<script" not in table
    assert table.count("\n") == 3


def test_each_token_is_decoded_once(logged, monkeypatch):
    asked = []
    decode = Tokens.decode
    monkeypatch.setattr(Tokens, "decode", lambda self, ids, **_: asked.append(tuple(ids)) or decode(self, ids))
    epoch(FeatureExamples(), logged[0], (1.0, 3.0))
    assert asked and len(asked) <= len(TEXTS)


def test_the_latents_of_the_first_epoch_stay_and_are_checkpointed(logged):
    trainer, texts = logged
    callback = FeatureExamples(n_features=1)
    epoch(callback, trainer, (1.0, 3.0))
    again = FeatureExamples(n_features=2)
    again.load_state_dict(callback.state_dict())
    epoch(again, trainer, (9.0, 3.0))
    assert "| 9.00 |" in texts[1][1] and len(texts[1][1].splitlines()) == 3


def test_none_are_shown(logged):
    trainer, texts = logged
    epoch(FeatureExamples(n_features=0), trainer, (1.0, 3.0))
    assert texts == []
    with pytest.raises(ValueError, match=r"examples\.n_uses is 0; it must be at least 1"):
        FeatureExamples(n_uses=0)


def test_spread():
    assert _spread(torch.tensor([5, 0, 9, 1, 7]), 3) == [2, 0, 3]  # 9 7 5 1: the ends and the middle
    assert _spread(torch.tensor([0, 4]), 3) == [1] and _spread(torch.zeros(2, dtype=torch.int64), 3) == []
