"""`eval.py perplexity`: the loss of a model on text, with its interval."""

import json
import math
from pathlib import Path

from slms.commands.subject import open_subject
from slms.files import write_atomic
from slms.measure.passes import document_loss
from slms.plain import to_plain
from slms.report.tables import interval


def perplexity(
    model: str,
    batch_size: int = 16,
    output_dir: str = "artifacts",
    **text,
) -> None:
    """Mean next-token loss in nats and its exponential, with a 95 % bootstrap interval over documents.

    Args:
        model: a run directory, a model directory, `stories-1m` or a Hugging Face id.
        batch_size: blocks of one forward pass.
        output_dir: perplexity.json goes to OUTPUT_DIR/perplexity/.
    """
    subject = open_subject(model, **text)
    loss = document_loss(subject.model, subject.blocks, batch_size).compute()
    result = {
        "model": model,
        **subject.text,
        "nats": loss.value,
        "low": loss.low,
        "high": loss.high,
        "perplexity": math.exp(loss.value),
        "tokens": loss.n,
        "documents": int(subject.blocks.doc_ids.max()) + 1,
    }
    path = write_atomic(
        Path(output_dir) / "perplexity" / "perplexity.json", json.dumps(to_plain(result), indent=1) + "\n"
    )
    print(f"{model} on {subject.source}: {loss.n:,} tokens, {result['documents']:,} documents")
    print(f"loss        {loss.value:.4f} nats/token   95 % {interval(loss.low, loss.high, 4)}")
    low_high = math.exp(loss.low), math.exp(loss.high)
    print(f"perplexity  {math.exp(loss.value):.3f}           95 % {interval(*low_high)}")
    print(f"written to {path}")
