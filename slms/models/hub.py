"""The Hugging Face hub and its local cache, without its long retries: what is cached, who answers, what to take."""

import threading
from fnmatch import fnmatch
from pathlib import Path

from slms.models.directory import weight_files

HUB_TIMEOUT_S = 4.0
"""Longest wait for the hub's answer; huggingface_hub's own retries take 25 s."""

_PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
_SAFE = ["model*.safetensors", "model.safetensors.index.json"]
_TOKENIZER = ["tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json"]


def hub_trouble(repo: str, revision: str | None = None, timeout_s: float = HUB_TIMEOUT_S) -> str | None:
    """None if the hub answers about a repository in time, else why not; ValueError where it knows no such one."""
    import huggingface_hub as hub
    import huggingface_hub.constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids asking the hub"
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            hub.HfApi().model_info(repo, revision=revision, timeout=timeout_s)
            answer.append(None)
        except Exception as error:  # whatever the HTTP client raises is handed to the caller below
            answer.append(error)

    # A timeout of the HTTP client does not cover the look-up of the host's name: ask aside, wait so long and no longer.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout_s)
    if not answer:
        return f"the hub does not answer within {timeout_s:g} s"
    if isinstance(answer[0], RepositoryNotFoundError):
        raise ValueError(f"base `{repo}` is not on the hub, or not open to you.")
    if isinstance(answer[0], RevisionNotFoundError):
        raise ValueError(f"`base.revision` is {revision}; {repo} has no such revision on the hub.")
    return None if answer[0] is None else "the hub cannot be reached"


def cached_snapshot(
    repo: str, revision: str | None = None, *, config: bool = True, weights: bool = True, tokenizer: bool = False
) -> Path | None:
    """The directory of a hub model in the local cache if it holds the parts asked for, else None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # The pattern limits what huggingface_hub itself asks to be complete; the parts are checked below.
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
    """The files of a tokenizer in a directory."""
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
