"""Finds models of the Hugging Face hub in the local cache, or downloads them."""

from fnmatch import fnmatch
from pathlib import Path

from slms.models.directory import weight_files

_PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
_SAFE = ["model*.safetensors", "model.safetensors.index.json"]
_TOKENIZER = ["tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json"]


def cached_snapshot(
    repo: str, revision: str | None = None, *, config: bool = True, weights: bool = True, tokenizer: bool = False
) -> Path | None:
    """Return the directory of a hub model in the local cache if it holds the requested parts, else None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # The pattern limits which files huggingface_hub itself requires; the parts are checked below.
        path = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        return None
    lacking = (
        (config and not (path / "config.json").is_file())
        or (weights and not weight_files(path))
        or (tokenizer and not tokenizer_files(path))
    )
    return None if lacking else path


def tokenizer_files(path: Path) -> list[Path]:
    """List the files of a tokenizer in a directory."""
    return sorted(file for pattern in _TOKENIZER for file in path.glob(pattern))


def download(repo: str, revision: str | None, patterns: list[str], weights: bool) -> Path:
    import huggingface_hub as hub
    import huggingface_hub.errors

    try:
        if weights:
            files = [f.rfilename for f in hub.HfApi().model_info(repo, revision=revision).siblings or []]
            patterns = patterns + (_SAFE if any(fnmatch(f, _SAFE[0]) for f in files) else _PICKLED)
        return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=[*patterns, *_TOKENIZER]))
    except hub.errors.HfHubHTTPError as error:
        raise OSError(f"{repo} could not be downloaded: {str(error).splitlines()[0]}") from None
