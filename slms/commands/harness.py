"""`eval.py harness`: lm-eval's tasks on a dense, routed or dynamic-k model."""

from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import PreTrainedModel

from slms.commands.arguments import published
from slms.commands.subject import open_model, run_text, with_text
from slms.measure.dynamick import DENSE_RULES, ROUTED_RULES, set_routed_rule, share_out, under_rule
from slms.measure.harness import INSTALL, TaskScore, installed, score
from slms.measure.journal import identity
from slms.models.base import Base
from slms.models.dynamic import masking
from slms.models.routed import routed_modules
from slms.models.routed_mlp import check_only_mlps
from slms.report.artifacts import own_directory, write_csv, write_json
from slms.report.provenance import command_line, versions
from slms.report.tables import text_table


@published(k="density")
def harness(
    model: str,
    tasks: list[str],
    include_path: str | None = None,
    shots: int | None = None,
    limit: int | None = None,
    rule: str | None = None,
    density: float | None = None,
    corpus: str | None = None,
    calibration_tokens: int = 8192,
    batch_size: int = 16,
    output_dir: str = "artifacts",
) -> None:
    """Run tasks of lm-eval (an optional dependency: `pip install 'lm-eval[hf]'`) and report its own metrics.

    Args:
        model: a run directory, a model directory, `stories-1m` or a Hugging Face id; dense or routed.
        tasks: names of lm-eval's tasks or groups, such as `lambada_openai blimp`.
        include_path: a directory with more task files; files that name Python code are refused.
        shots: worked examples before each question; by default the task's own number.
        limit: how many documents of each task to use; by default all.
        rule: execute the MLPs under this rule of `eval.py dynamick`, for every token (`griffin`: for the second half of
            a sequence); needs --density.
        density: the share of neurons that the rule executes; for a routed model, in its routed layers. Published
            scripts call this option `--k`, which also works.
        corpus: the text that calibrates a rule; by default that of the run, or `stories` if there is no run.
        calibration_tokens: how many tokens of the corpus calibrate a rule.
        batch_size: sequences in one forward pass.
        output_dir: harness.csv and harness.json go to OUTPUT_DIR/harness/NAME/TASKS/.
    """
    if (rule is None) != (density is None):
        raise ValueError("--rule and --density belong together: a rule keeps a density")
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"--density is {density}; it must be above 0 and at most 1")
    if rule is not None and rule not in (known := dict.fromkeys((*DENSE_RULES, *ROUTED_RULES))):
        raise ValueError(f"--rule {rule}: it must be one of {', '.join(known)}")
    if not installed():
        raise ValueError(f"harness needs the package lm-eval: {INSTALL}")
    net, tokenizer = open_model(model)
    assert tokenizer is not None, model  # load_base raises without one
    made_from: dict[str, object] = {"tasks": tasks, "include_path": include_path, "shots": shots, "limit": limit}
    made_from |= {"rule": rule, "density": density, **identity(net)}
    if rule is not None and density is not None:
        own = run_text(model)
        subject = with_text(model, Base(net, tokenizer), own, corpus=corpus, split="train", n_tokens=calibration_tokens)
        made_from |= identity(net, subject.blocks)
        ids = torch.from_numpy(subject.blocks.input_ids.astype("int64"))
        net = dynamic(net, rule, density, ids, batch_size)
    with masking(net, prompt=False) if rule is not None else nullcontext():
        include = None if include_path is None else Path(include_path)
        scores = score(net, tokenizer, tasks, include, shots, limit, batch_size)
    named = "-".join(tasks) if len(tasks) <= 3 else f"{len(tasks)}-tasks"
    directory = own_directory(output_dir, "harness", model, named, made_from)
    write_csv(directory / "harness.csv", TaskScore._fields, scores)
    about: dict[str, object] = {
        "model": model,
        "rule": rule,
        "density": density,
        "limit": limit,
        "command": command_line(),
    }
    about |= {"versions": versions() | lm_eval_version()}
    write_json(directory / "harness.json", about | {"scores": [row._asdict() for row in scores]})
    print(
        f"{model}{f' under {rule} at density {density:g}' if rule else ''}, by lm-eval {lm_eval_version()['lm_eval']}\n"
    )
    print(score_table(scores))
    print(f"\nwritten to {directory}")


def dynamic(
    net: PreTrainedModel, rule: str, density: float, calibration: torch.Tensor, batch_size: int
) -> PreTrainedModel:
    """Make a model execute a share of its MLPs' neurons by a rule, calibrated on token ids [b, t]."""
    if routed_modules(net):
        check_only_mlps(net, f"--rule {rule}")
        set_routed_rule(net, rule, density, calibration, batch_size)
        return net
    made = under_rule(net, rule, calibration)
    share_out(made, "published", density)
    return made


def lm_eval_version() -> dict[str, str]:
    """The version of lm-eval that gave the numbers."""
    import importlib.metadata

    return {"lm_eval": importlib.metadata.version("lm_eval")}


def score_table(scores: list[TaskScore]) -> str:
    """The scores as a text table, one row for each metric."""
    rows = [
        [s.task, s.metric, f"{s.value:.4f}", "–" if s.stderr is None else f"{s.stderr:.4f}", f"{s.n:,}", str(s.shots)]
        for s in scores
    ]
    return text_table(["task", "metric", "value", "± se", "documents", "shots"], rows, left=2)
