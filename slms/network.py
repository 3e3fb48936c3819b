"""Finds out within seconds whether the Hugging Face hub answers; huggingface_hub's own retries take 25 s."""

import threading
from typing import Literal

HUB_TIMEOUT_S = 4.0
"""Longest wait for the hub's answer."""

_WORDS = {"model": "base `{}`", "dataset": "corpus {!r}"}


def hub_trouble(
    repo: str,
    revision: str | None = None,
    timeout_s: float = HUB_TIMEOUT_S,
    kind: Literal["model", "dataset"] = "model",
) -> str | None:
    """Return None if the hub answers about a repository in time, else why not; ValueError if there is no such one."""
    import huggingface_hub as hub
    import huggingface_hub.constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids asking the hub"
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            info = hub.HfApi().model_info if kind == "model" else hub.HfApi().dataset_info
            info(repo, revision=revision, timeout=timeout_s)
            answer.append(None)
        except Exception as error:  # whatever the HTTP client raises is handed to the caller below
            answer.append(error)

    # The HTTP client's timeout does not cover the look-up of the host's name, so a thread asks and we wait for it.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout_s)
    if not answer:
        return f"the hub does not answer within {timeout_s:g} s"
    if isinstance(answer[0], RepositoryNotFoundError):
        raise ValueError(f"{_WORDS[kind].format(repo)} is not on the hub, or not open to you.")
    if isinstance(answer[0], RevisionNotFoundError):
        raise ValueError(f"`base.revision` is {revision}; {repo} has no such revision on the hub.")
    return None if answer[0] is None else "the hub cannot be reached"
