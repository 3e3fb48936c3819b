"""Reads a checkpoint with transformers alone, and writes its logits on token blocks to stdout.

This file is run as a script by `slms.measure.export`, in a process that never imports slms.

Shapes: b blocks, t position, v vocabulary.
"""

import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def main(directory: str, blocks: str) -> None:
    """Write the logits of each block [t, v] in turn, as float32 bytes; blocks is a .npy file of token ids [b, t]."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, found = cast(Any, AutoModelForCausalLM).from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, output_loading_info=True, dtype="auto"
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[what]:
            sys.exit(f"{len(found[what])} {what.replace('_', ' ')}, as {sorted(map(str, found[what]))[0]}")
    if (Path(directory) / "tokenizer_config.json").is_file():
        AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if any(name.partition(".")[0] == "slms" for name in sys.modules):
        sys.exit("slms was imported, so this proves nothing")
    model.eval()
    with torch.inference_mode():
        for ids in torch.from_numpy(np.load(blocks)):
            logits = model(ids[None]).logits[0].float().contiguous()
            sys.stdout.buffer.write(memoryview(logits.numpy()).cast("B"))


if __name__ == "__main__":
    main(*sys.argv[1:])
