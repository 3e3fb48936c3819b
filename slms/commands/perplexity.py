"""`eval.py perplexity`: the loss of a model on text, with its interval."""

import math
from dataclasses import asdict

from slms.commands.subject import open_subject, results_of
from slms.measure.passes import document_loss
from slms.measure.results import sums_of
from slms.report.artifacts import write_json
from slms.report.tables import interval


def perplexity(
    model: str,
    batch_size: int = 16,
    output_dir: str = "artifacts",
    **text,
) -> None:
    """Mean next-token loss in nats and its exponential, with a 95 % bootstrap interval over documents.

    If the command is killed, give it again and it continues where it stopped.

    Args:
        model: a run directory, a model directory, `stories-1m` or a Hugging Face id.
        batch_size: blocks in one forward pass.
        output_dir: perplexity.json goes to OUTPUT_DIR/perplexity/NAME/TEXT/.
    """
    subject = open_subject(model, **text)
    directory, journal = results_of(subject, output_dir, "perplexity")
    sums = document_loss(subject.model, subject.blocks, batch_size, journal)
    loss = sums.compute()
    result = {
        "model": model,
        **subject.text,
        "nats": loss.value,
        "low": loss.low,
        "high": loss.high,
        "perplexity": math.exp(loss.value),
        "tokens": loss.n,
        "documents": subject.blocks.n_documents,
        "by_document": asdict(sums_of(sums)),
    }
    path = write_json(directory / "perplexity.json", result)
    print(f"{model} on {subject.source}: {loss.n:,} tokens, {result['documents']:,} documents")
    print(f"loss        {loss.value:.4f} nats/token   95 % {interval(loss.low, loss.high, 4)}")
    low_high = math.exp(loss.low), math.exp(loss.high)
    print(f"perplexity  {math.exp(loss.value):.3f}           95 % {interval(*low_high)}")
    print(f"written to {path}")
