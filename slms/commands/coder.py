"""Opens what `sae` and `features` measure: a SAELens directory's coder at its place in a model, with text."""

import logging
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slms.commands.subject import Subject, open_model, run_base, run_text, with_text
from slms.data.corpora import EMBEDDED
from slms.data.tokenizer import special_ids
from slms.measure.passes import batches
from slms.models.base import Base, load_base
from slms.models.pair import Models, open_pair
from slms.models.sites import Site, find_pair, find_site, read_sites, site_of_hook
from slms.models.weights import model_digest
from slms.progress import progress
from slms.sae.base import Coder
from slms.sae.baselines import FixedCoder
from slms.sae.export import fold_scale
from slms.sae.load import load

logger = logging.getLogger(__name__)

SAMPLE_BLOCKS = 64  # means and baselines are fitted on these first blocks, which favours them: they are measured there


@dataclass
class OpenCoder:
    """A coder, its model and text, the sites where it reads and writes, and a sample of both, read on first use."""

    coder: Coder
    subject: Subject
    lm: Models
    """The subject's model, or that and the second one that a crosscoder of two models reads."""
    versus: str | None
    """The name of the second model."""
    source: Site
    target: Site
    batch_size: int

    @property
    def x(self) -> Tensor:
        """Activations [n, i] of the first blocks at the source, without special tokens."""
        return self._sample[0]

    @property
    def y(self) -> Tensor:
        """Activations [n, o] of the same tokens at the target."""
        return self._sample[1]

    @property
    def placed(self) -> FixedCoder:
        """The coder at its place in the model."""
        return FixedCoder(self.coder, self.source, self.target, self.x, self.y)

    @property
    def made_from(self) -> dict[str, str]:
        """What a measurement of the coder depends on, besides its model and text."""
        made = {"coder": model_digest(self.coder), "site": self.source.name, "target": self.target.name}
        return made if self.versus is None else made | {"models": model_digest(self.lm)}

    @cached_property
    def _sample(self) -> tuple[Tensor, Tensor]:
        xs, ys, special = [], [], special_ids(self.subject.tokenizer)
        first = islice(batches(self.subject.blocks, self.batch_size), -(-SAMPLE_BLOCKS // self.batch_size))
        for batch in progress(first, "sampling"):
            found = read_sites(self.lm, batch["input_ids"], list(dict.fromkeys((self.source, self.target))))
            kept = ~torch.isin(batch["input_ids"].flatten(), special) & found[self.source.name].any(1)
            xs.append(found[self.source.name][kept])
            ys.append(found[self.target.name][kept])
        return torch.cat(xs), torch.cat(ys)

    @property
    def place(self) -> str:
        """The name of the site, or of a transcoder's two sites."""
        return self.source.name if self.source == self.target else f"{self.source.name} to {self.target.name}"


def open_coder(
    directory: str,
    model: str | None = None,
    site: str | None = None,
    target: str | None = None,
    versus: str | None = None,
    batch_size: int = 16,
    **text,
) -> OpenCoder:
    """Load a coder with the model and the text that its directory names.

    The text is that of the run that trained the coder; without a run, it is the directory's `dataset_path`.

    Args:
        directory: a SAELens directory.
        model: the model it reads: a run or model directory, `stories-1m` or a hub id; by default what cfg.json names.
        site: the site it reads (`residual.3`); by default what its cfg.json names.
        target: the site that a transcoder writes; by default what its cfg.json names.
        versus: the second model that a crosscoder of two models reads; by default what its cfg.json names.
        batch_size: blocks in one forward pass.
        text: the options of `chosen_text`.

    Raises:
        ValueError: the directory is damaged, does not fit the model or site, or its text cannot be read.
    """
    read = load(Path(directory))
    coder, metadata = fold_scale(read, 1.0), read.metadata
    run = Path(directory).resolve().parent.parent
    own = run_text(run) or _named_text(directory, metadata)
    if model is not None:
        subject = with_text(model, open_model(model), own, **text)
    elif (base := run_base(str(run))) is not None:
        subject = with_text(metadata.get("model_name") or str(run), load_base(base), own, **text)
    elif metadata.get("model_name"):
        subject = with_text(metadata["model_name"], open_model(metadata["model_name"]), own, **text)
    else:
        raise ValueError(f"{directory}/cfg.json names no model; give --model")
    second, named = versus or metadata.get("versus_model_name"), site or str(metadata.get("hook_name") or "")
    if second is None and ":" in named:
        raise ValueError(
            f"{directory}: reads {named} of two models, but its cfg.json names no second one; give --versus"
        )
    lm: Models = subject.model
    if second is not None:
        lm = open_pair(Base(subject.model, subject.tokenizer), second, "--versus")
    source = _place(lm, directory, site, metadata.get("hook_name"), "site")
    written = metadata.get("hook_name_out")
    to = _place(lm, directory, target, written, "target") if target or written else source
    find_pair(lm, source.name, to.name)
    if coder.is_transcoder and to == source:
        raise ValueError(f"{directory}: a transcoder whose cfg.json names no target; give --target")
    one = torch.from_numpy(subject.blocks.input_ids[:1, :1].astype("int64"))
    width = {name: x.shape[1] for name, x in read_sites(lm, one, list(dict.fromkeys((source, to)))).items()}
    for what, site_, wanted in (("input", source, coder.d_in), ("output", to, coder.d_out)):
        if (found := width[site_.name]) != wanted:
            raise ValueError(f"{directory}: its {what} has {wanted} dimensions, but the model's site has {found}")
    return OpenCoder(coder, subject, lm, second, source, to, batch_size)


def _named_text(directory: str, metadata: dict[str, Any]) -> dict:
    """The text that a coder's cfg.json names, if it is on this machine."""
    corpus, length = metadata.get("dataset_path"), metadata.get("context_size")
    named = {"block_size": length} if isinstance(length, int) else {}
    if not isinstance(corpus, str):
        return named
    if corpus == EMBEDDED or Path(corpus).is_file():
        return named | {"corpus": corpus}
    logger.warning("%s was trained on %s, which is no file here: --corpus reads it elsewhere", directory, corpus)
    return named


def _place(lm: Models, directory: str, name: str | None, hook: str | None, flag: str) -> Site:
    if name is not None:
        return find_site(lm, name)
    if not hook:
        raise ValueError(f"{directory}/cfg.json names no hook; give --{flag}")
    return site_of_hook(lm, hook)
