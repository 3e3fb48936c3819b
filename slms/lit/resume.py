"""Decides what a resumed run may change: each new value is used from then on, or refused by name."""

from collections.abc import Iterator, Mapping
from typing import Any

from slms.lit.controls import CONTROLS
from slms.routing import RULES

USED = """
    ckpt_path name output_dir seed_everything
    trainer checkpoint evolution examples kernels nan_guard progress results specialization
    model.optimizer model.balance model.distill model.gate_ramp model.k_anneal model.recompute
    model.routing.backend model.routing.gate model.routing.k model.routing.rule model.routing.tau model.routing.top_p
    data.batch_size data.num_workers data.val_tokens data.corpus.validation data.buffer.cache data.buffer.prefetch
""".split()
"""Sections and options whose new values apply from the resumed step on. The checkpoint's loader refuses a batch_size
that changes the blocks of a step."""

COMPARED = ["model.base", "model.versus", "data.corpus"]
"""Sources that you may name differently, as when a directory moves; the checkpoint has digests of weights and text."""

KEPT = """
    trainer.overfit_batches model.routing model.control model.train model.assignment model.calibration_tokens
    model.coders
    data.block_size data.buffer data.epoch_tokens data.seed data.stream data.train_tokens
""".split()
"""Options on which the checkpoint's weights and its position in the text depend. The longest entry that an option
begins with decides: `model.routing.k` is used, the rest of `model.routing` is kept."""


OLDER = {"train": "all", "assignment": None}
"""What runs of language models did before these options of `model` existed."""


def check_resumed(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the configuration of a run with that of its continuation.

    Args:
        before: the run's `config.yaml`.
        now: the resolved configuration of this process.

    Raises:
        ValueError: an option that must be kept has changed; the message names it with both values.
    """
    trained = ["coders" if "coders" in config.get("model", {}) else "a language model" for config in (before, now)]
    if trained[0] != trained[1]:
        raise ValueError(f"--ckpt_path is a checkpoint of {trained[0]}; the configuration trains {trained[1]}")
    if "model" in before and "coders" not in before["model"]:
        before = {**before, "model": {**OLDER, **before["model"]}}
    control = now.get("model", {}).get("control")
    static = control in CONTROLS and CONTROLS[control].role == "static"
    streamed = bool(now.get("data", {}).get("stream"))  # a stream's text has no digest
    for option, old, new in changes(before, now):
        fate = fate_of(option)
        if option == "model.routing.rule" and any(RULES[rule].held for rule in (old, new)):
            fate = "kept"  # its checkpoints hold what others do not
        if static and option.startswith("model.routing."):
            fate = "kept"  # it decided which neurons there are
        if fate == "kept" or (fate == "compared" and streamed and option.startswith("data.")):
            raise ValueError(
                f"--{option} is {_shown(new)}; the run was started with {_shown(old)}, and a resumed run must keep it"
            )


def fate_of(option: str) -> str:
    """What happens to an option that has changed: it is `used`, `compared` or `kept`.

    >>> [fate_of(f"model.{name}") for name in ("routing.k", "routing.seed", "base.name", "optimizer.lr")]
    ['used', 'kept', 'compared', 'used']
    """
    found = {
        entry: fate
        for fate, table in (("used", USED), ("compared", COMPARED), ("kept", KEPT))
        for entry in table
        if option == entry or option.startswith(f"{entry}.")
    }
    if not found:
        raise KeyError(f"{option} is in no table of {__name__}")
    return found[max(found, key=len)]


def changes(before: Any, now: Any, option: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield option, old and new value wherever two configurations differ, except options that only one of them has.

    >>> list(changes({"a": {"b": 1, "c": 2}, "d": [{"e": 1}]}, {"a": {"b": 3}, "d": [{"e": 2}], "f": 0}))
    [('a.b', 1, 3), ('d.0.e', 1, 2)]
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in filter(now.__contains__, before):
            yield from changes(before[key], now[key], f"{option}.{key}" if option else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from changes(old, new, f"{option}.{i}")
    elif before != now:
        yield option, before, now


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value!s:.80}"
