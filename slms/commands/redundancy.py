"""`eval.py redundancy`: the loss of a routed model without its best pathways, or with those of a domain alone."""

from dataclasses import astuple
from functools import partial

from slms.commands.subject import open_subject, results_of, short_name
from slms.measure.classes import OF_DOCUMENTS, check_families
from slms.measure.redundancy import Losses, disabled_rows
from slms.measure.retention import FEWEST, domains_of, retention_rows, uses_by_document
from slms.measure.rows import COLUMNS
from slms.models.routed import routed_modules
from slms.progress import progress
from slms.report.artifacts import write_csv, write_json
from slms.report.palette import write_figure
from slms.report.provenance import command_line, hardware, versions
from slms.report.redundancy import redundancy_figure, redundancy_table


def redundancy(
    model: str,
    n_tokens: int = 65_536,
    disabled: list[int] | None = None,
    shares: list[float] | None = None,
    domains: str = "domain",
    draws: int = 3,
    batch_size: int = 16,
    seed: int = 0,
    output_dir: str = "artifacts",
    **text,
) -> None:
    """The loss of a routed model without each token's best pathways, and with the pathways of one domain alone.

    First, every token loses its m best pathways in every place, with the next best in their place or without (the test
    of DeepSeekMoE), beside losing m random ones of those it chose. Then, on a text whose documents have a domain, only
    the pathways that a domain uses most exist (the retention curve of EMO), beside random subsets of equal size and the
    set of another domain; half of a domain's documents choose its set, the others are scored. Each loss is kept as soon
    as it is measured.

    Args:
        model: a run directory, or the directory of a routed model.
        n_tokens: tokens to measure on.
        disabled: how many of its best pathways a token loses; by default 1, 2, 4 and 8.
        shares: shares of the pathways to keep for a domain; by default .5, .25 and .125.
        domains: the label family that names a document's domain; left out if the text has no such labels.
        draws: random subsets of each size.
        batch_size: blocks in one forward pass.
        seed: seed of what is random.
        output_dir: redundancy.csv, redundancy.json, redundancy.png and .svg go to OUTPUT_DIR/redundancy/NAME/TEXT/.
    """
    disabled, shares = disabled or [1, 2, 4, 8], shares or [0.5, 0.25, 0.125]
    if wrong := [m for m in disabled if m < 1]:
        raise ValueError(f"--disabled {wrong[0]}: it must be at least 1")
    if wrong_shares := [share for share in shares if not 0 < share <= 1]:
        raise ValueError(f"--shares {wrong_shares[0]}: it must be above 0 and at most 1")
    if draws < 1:
        raise ValueError(f"--draws {draws}: it must be at least 1")
    if domains not in OF_DOCUMENTS:
        raise ValueError(f"--domains {domains}: it must be a family of whole documents, {' or '.join(OF_DOCUMENTS)}")
    subject = open_subject(model, n_tokens=n_tokens, **text)
    net, blocks = subject.model.eval(), subject.blocks
    if not routed_modules(net):
        raise ValueError(f"--model {model}: a dense model has no pathways")
    if domains != "domain":
        check_families(blocks, domains=[domains])
    options = {"disabled": disabled, "shares": shares, "domains": domains, "draws": draws, "seed": seed}
    directory, journal = results_of(subject, output_dir, "redundancy", **options, batch_size=batch_size)
    losses = Losses(net, blocks, batch_size, journal)
    rows = list(progress(disabled_rows(losses, disabled, seed), "disabling", 3 + 2 * len(disabled)))
    print(redundancy_table(rows), flush=True)
    found = domains_of(blocks, domains) if domains in blocks.labels else []
    if found:
        uses = journal.part("uses", partial(uses_by_document, net, blocks, batch_size), batch_size=batch_size)
        total = 3 * len(found) * len(shares)
        kept = list(progress(retention_rows(losses, uses, found, shares, draws, seed), "keeping", total))
        print(redundancy_table(kept), flush=True)
        rows += kept
    else:
        why = (
            f"none has {FEWEST} documents; more --n_tokens bring more"
            if domains in blocks.labels
            else "the text names none"
        )
        print(f"no subsets were kept for domains: {why}")
    write_csv(directory / "redundancy.csv", COLUMNS, map(astuple, rows))
    about = {"model": model, **subject.text, **options, "command": command_line()}
    write_json(
        directory / "redundancy.json",
        about | {"rows": rows, "versions": versions(), "hardware": hardware(net.device)},
    )
    write_figure(directory / "redundancy.png", redundancy_figure(short_name(model), rows))
    print(f"written to {directory}")
