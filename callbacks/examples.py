"""Shows example features in TensorBoard while coders train: the strongest uses of a few latents, each epoch."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from slms.callbacks.tensorboard import writers
from slms.measure.classes import token_texts
from slms.measure.examples import BestUses
from slms.report.words import markdown


class FeatureExamples(Callback):
    """Writes a table of features with their strongest uses on the first rank's validation text.

    It shows the same latents every epoch, an even spread of the first epoch's densities, so that you see them settle.

    Args:
        n_features: latents to show of each coder; 0 shows none.
        n_uses: strongest uses to show of each latent.
        before: tokens of context before a use.
        after: tokens of context after a use.
    """

    def __init__(self, n_features: int = 12, n_uses: int = 4, before: int = 12, after: int = 3):
        given = {"n_features": n_features, "n_uses": n_uses, "before": before, "after": after}
        for name, value in given.items():
            least = 1 if name == "n_uses" else 0
            if value < least:
                raise ValueError(f"examples.{name} is {value}; it must be at least {least}")
        self.n_features, self.n_uses, self.before, self.after = n_features, n_uses, before, after
        self.chosen: dict[str, list[int]] = {}
        self._begin()

    def _begin(self) -> None:
        self.ids: list[Tensor] = []
        self.block_size = 1
        self.best: dict[str, BestUses] = {}
        self.uses: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """The latents that are shown, for a checkpoint."""
        return {"chosen": self.chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the checkpoint's latents."""
        self.chosen = state_dict["chosen"]

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the previous epoch."""
        self._begin()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Mapping[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Offer the latents that each coder used in the batch; `outputs` maps a coder's label to `Used`."""
        if trainer.sanity_checking or not trainer.is_global_zero or not self.n_features:
            return
        ids, first = batch["input_ids"].cpu(), sum(part.numel() for part in self.ids)
        self.ids.append(ids.flatten())
        self.block_size = ids.shape[1]
        for label, used in outputs.items():
            on = used.values > 0
            latents, values = used.picks.indices[on].cpu(), used.values[on].float().cpu()
            positions = first + used.rows.nonzero()[:, 0][used.picks.rows[on]].cpu()
            n_latents = used.picks.n_latents
            best = self.best.setdefault(label, BestUses(n_latents, self.n_uses))
            best.update(latents, values, positions, positions // ids.shape[1], values)
            counted = torch.bincount(latents, minlength=n_latents)
            self.uses[label] = self.uses.get(label, torch.zeros_like(counted)) + counted

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write one text for each coder."""
        if trainer.sanity_checking or not self.ids:
            return
        ids = torch.cat(self.ids)
        distinct, index = ids.unique(return_inverse=True)
        words = token_texts(getattr(pl_module, "tokenizer", None), distinct.tolist())
        texts = [words[i] for i in index.tolist()]
        for label, best in self.best.items():
            chosen = self.chosen.setdefault(label, _spread(self.uses[label], self.n_features))
            table = self._table(chosen, best, self.uses[label] / len(ids), texts)
            for writer in writers(trainer):
                writer.add_text(f"val/features/{label}", table, trainer.global_step)

    def _table(self, chosen: list[int], best: BestUses, density: Tensor, texts: list[str]) -> str:
        lines = ["| feature | density | max | strongest uses |", "| ---: | ---: | ---: | --- |"]
        for latent in chosen:
            found = [self._context(p, texts) for p in best.kept.position[latent].tolist() if p >= 0]
            most = f"{best.kept.value[latent, 0]:.2f}" if found else "–"
            lines.append(f"| {latent} | {density[latent]:.2%} | {most} | {'<br>'.join(found) or 'not used'} |")
        return "\n".join(lines)

    def _context(self, position: int, texts: list[str]) -> str:
        first = position // self.block_size * self.block_size
        before = "".join(texts[max(position - self.before, first) : position])
        after = "".join(texts[position + 1 : min(position + 1 + self.after, first + self.block_size)])
        peak = texts[position]
        return f"{markdown(before)}{' ' * peak.startswith(' ')}**{markdown(peak.strip()) or '␣'}**{markdown(after)}"


def _spread(uses: Tensor, n: int) -> list[int]:
    """At most n latents in use, at even steps from the most to the least used."""
    alive = uses.argsort(descending=True, stable=True)[: int((uses > 0).sum())]
    if not len(alive):
        return []
    return alive[torch.linspace(0, len(alive) - 1, min(n, len(alive))).round().long()].tolist()
