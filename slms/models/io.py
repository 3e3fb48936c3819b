"""Saves and loads dense or routed language models in Hugging Face format; a saved directory is whole or absent."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from slms.files import make_readable, write_atomic
from slms.models.card import CARD, model_card
from slms.models.checksums import write_checksums
from slms.models.directory import check_directory, read_object
from slms.models.hub import tokenizer_files
from slms.models.speedups import prepare

logger = logging.getLogger(__name__)


class Base(NamedTuple):
    """A language model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class Loaded(NamedTuple):
    """A language model and its tokenizer, or None if its directory has none."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: str | Path,
    card: str | None = None,
    first_rows: bool = False,
) -> Path:
    """Write model and tokenizer to a directory, which is replaced as a whole, or left unchanged if writing fails.

    What else the directory holds, such as notes or a conversion to another format, stays in it.

    card: the text of its README.md, with the hub's metadata; by default generated from the model.
    first_rows: write only the first row of each weight, as a quick test that a model of any size can be written.
    """
    target = Path(directory)
    check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        new, old = beside / "new", beside / "old"
        repair_generation(model)
        state = model.state_dict() if first_rows else {}
        weights = {name: weight[:1] if weight.dim() else weight for name, weight in state.items()} or None
        with quiet_transformers():
            model.save_pretrained(new, safe_serialization=True, state_dict=weights)
            if tokenizer is not None:
                tokenizer.save_pretrained(new)
        write_checksums(new)
        write_atomic(new / CARD, card or model_card(model))
        for file in new.rglob("*"):
            make_readable(file)
        if os.path.lexists(target):
            _keep_other_files(target, new)
            os.rename(target, old)
        os.rename(new, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def check_replaceable(target: Path) -> None:
    """Raise ValueError if `save_model` must not replace `target`, which exists and holds no model."""
    replaceable = target.is_dir() and ((target / "config.json").is_file() or not any(target.iterdir()))
    if os.path.lexists(target) and not replaceable:
        raise ValueError(f"`directory` is {target}; it exists and holds no model, so it is not replaced.")


_OF_MODEL = re.compile(
    r"(generation_|tokenizer_)?config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer\.(json|model)|vocab\.\w+|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja"
)
"""Files of a model that a smaller one, or one without a tokenizer, would otherwise inherit."""


def _keep_other_files(old: Path, new: Path) -> None:
    """Link into `new` what `old` holds beside its model; links, so that a crash at any time loses none of it."""
    made = {path.name for path in new.iterdir()}

    def left_out(place: str, names: list[str]) -> set[str]:
        return {name for name in names if name in made or _OF_MODEL.fullmatch(name)} if Path(place) == old else set()

    shutil.copytree(old, new, symlinks=True, ignore=left_out, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)


SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


def repair_generation(model: PreTrainedModel) -> None:
    """Change the model's defaults of `generate` so that transformers can save them, and say what was changed.

    Some published models have sampling values without `do_sample`, which transformers refuses to write; `do_sample` is
    then set. If that does not help, only the ids of the first and last token are kept.
    """
    config = model.generation_config
    if config is None or _is_valid(config):
        return
    sampled = copy.deepcopy(config)
    sampled.do_sample = True
    with quiet_transformers():
        bare = GenerationConfig(**{name: getattr(config, name) for name in ("bos_token_id", "eos_token_id")})
    if _is_valid(sampled):
        model.generation_config = sampled
        values = ", ".join(name for name in SAMPLING if getattr(config, name, None) is not None)
        logger.warning("generation_config has %s without do_sample; it is saved with do_sample=true", values)
    else:
        model.generation_config = bare
        logger.warning("generation_config is not valid for this transformers; only its bos and eos are saved")


def _is_valid(config: GenerationConfig) -> bool:
    with quiet_transformers():
        try:
            config.validate(strict=True)
        except ValueError:
            return False
    return True


def load_model(directory: str | Path, dtype: torch.dtype | None = None) -> Loaded:
    """Load the dense or routed model of a directory, in evaluation mode, and its tokenizer (None if it has none).

    dtype: by default as stored. Raises a one-line ValueError or OSError if the directory is missing, incomplete or
    truncated, or if its weights do not fit its configuration.
    """
    path = Path(directory).expanduser()
    check_directory(path)
    return Loaded(read_model(path, dtype), read_tokenizer(path))


def read_model(path: Path, dtype: torch.dtype | None = None, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """Load the model of a directory that :func:`check_directory` has passed; every weight must be in its files.

    Or of a GGUF file, dequantised to fp32, with the configuration that is given.
    """
    is_gguf = path.is_file()
    with quiet_transformers():
        try:
            model, info = cast(Any, AutoModelForCausalLM).from_pretrained(
                path.parent if is_gguf else path,
                **({"gguf_file": path.name, "config": config} if is_gguf else {}),
                dtype=dtype or "auto",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except pickle.UnpicklingError:
            raise ValueError(f"{path}: its pickled weights hold more than tensors, and are not loaded.") from None
        except (ValueError, OSError):
            raise
        except Exception as error:  # transformers raises anything for a configuration that fits no model
            what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise ValueError(f"{path}: transformers cannot build this model ({what}).") from error
    wrong = sorted(info["missing_keys"]) + sorted(key for key, *_ in info["mismatched_keys"])
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} weights are missing or of another shape than configured, as {wrong[0]}."
        )
    if (name := _not_finite(model)) is not None:
        raise ValueError(f"{path}: {name} holds NaN or infinity; every weight must be finite in {model.dtype}.")
    return prepare(model).eval()


def _not_finite(model: PreTrainedModel) -> str | None:
    """The first weight that is not finite, of which no measurement means anything."""
    weights = ((name, weight) for name, weight in model.named_parameters() if weight.is_floating_point())
    return next((name for name, weight in weights if not weight.isfinite().all()), None)


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a directory; None if it has none."""
    if not tokenizer_files(path):
        return None
    if (path / "tokenizer.json").is_file() and not (path / "tokenizer_config.json").is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    with quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (ValueError, OSError) as error:
            config = path / "tokenizer_config.json"
            if config.is_file() and "auto_map" in read_object(config):
                raise ValueError(f"{path}: its tokenizer is code of its own (auto_map), which is never run.") from None
            raise ValueError(f"{path}: its tokenizer cannot be loaded: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars and loading reports of transformers; errors still raise."""
    hf = transformers.utils.logging
    bars, verbosity = hf.is_progress_bar_enabled(), hf.get_verbosity()
    hf.disable_progress_bar()
    hf.set_verbosity_error()
    try:
        yield
    finally:
        hf.set_verbosity(verbosity)
        if bars:
            hf.enable_progress_bar()
