"""`eval.py study`: whether routing beats its controls, over seeds."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from slms.commands.arguments import published
from slms.commands.study_jobs import Job, ends_on_sigterm, finished_run, job_log, train_at_once, train_job
from slms.commands.subject import open_model, run_base
from slms.files import sole_owner
from slms.lit.controls import CONTROLS, check_control
from slms.lit.parser import find_config, known_configs, read_yaml, trains_coders
from slms.measure.journal import Journal, digest
from slms.measure.study import (
    ROUTED,
    Arm,
    Documents,
    Speedups,
    StudyRun,
    arms_of,
    documents_of,
    measure_speedups,
    study_run,
)
from slms.models.base import load_base
from slms.report.artifacts import own_directory, write_csv, write_json
from slms.report.palette import write_figure
from slms.report.provenance import command_line, hardware, versions
from slms.report.results import RESULTS_FILE, read_results
from slms.report.study import STUDY_COLUMNS, study_figure, study_table
from slms.routing import RoutingConfig

logger = logging.getLogger(__name__)

OWN = (
    "seed_everything",
    "data.seed",
    "model.routing.seed",
    "model.control",
    "name",
    "output_dir",
    "ckpt_path",
    "config",
)
"""Options of train.py that the study itself sets."""


def other_versions(first: Mapping[str, str], second: Mapping[str, str]) -> str:
    """Name what differs between the versions of two runs.

    >>> other_versions({"slms": "1.0", "torch": "2.13.0"}, {"slms": "1.1", "torch": "2.13.0"})
    'slms 1.1, not 1.0'
    """
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return ", ".join(f"{name} {second.get(name)}, not {first.get(name)}" for name in names)


@published(config="recipe")
def study(
    recipe: str,
    seeds: list[int] = [0, 1, 2],  # noqa: B006  a default for the help; it is not changed
    controls: list[str] | None = None,
    overrides: list[str] | None = None,
    devices: list[int] | None = None,
    runs: str = "runs",
    seconds: float = 4.0,
    output_dir: str = "artifacts",
) -> None:
    """Train a routed config and its controls over seeds, and say by a fixed rule which beats which.

    What is missing is trained, one run after the other, and a stopped run is resumed; the table is written after every
    run. The verdict needs three seeds (slms/measure/study.py has the rule).

    Args:
        recipe: a config of train.py that routes; you may also write --config.
        seeds: the seeds of every arm, each once.
        controls: dense, static, static_flops, static_time, frozen_router, query_norm; by default all that it can have.
        overrides: options of train.py for every run; you may also give them as they are (--trainer.max_steps=30).
        devices: numbers of GPUs on each of which one run trains at a time; the table then follows when all have ended.
        runs: the runs go to RUNS/study-NAME-DIGEST/ARM-sSEED/, and what they print to ARM-sSEED.log beside it.
        seconds: how long to time each arm, half of it a token and half a prompt; 0 does not time it.
        output_dir: study.csv, study.json, study.png and .svg go to OUTPUT_DIR/study/CONFIG/ARMS/.
    """
    changed, rivals = _checked(recipe, seeds, controls, overrides or [])
    if devices is not None and (not devices or len(set(devices)) < len(devices) or min(devices) < 0):
        raise ValueError(f"--devices {','.join(map(str, devices))}: give the numbers of GPUs, each once, from 0")
    if devices and max(devices) >= (count := torch.cuda.device_count()):
        raise ValueError(f"--devices {max(devices)}: there is no such GPU; PyTorch finds {count}, counted from 0")
    names = [ROUTED, *rivals]
    path = find_config(recipe)
    assert path is not None, recipe  # it has been checked
    made_from = {"config": read_yaml(path), "overrides": sorted(changed)}
    timing = {"seconds": seconds, "hardware": hardware()} if seconds else {}
    shown = made_from | {"seeds": seeds, "controls": rivals} | timing
    directory = own_directory(output_dir, "study", path.stem, "arms", shown)
    speeds = Journal(directory.parent / "measured", timing)
    place = Path(runs) / f"study-{path.stem}-{digest(made_from)}"
    place.mkdir(parents=True, exist_ok=True)
    about = {
        "config": path.name,
        "overrides": changed,
        "command": command_line(),
        "seeds": seeds,
        "controls": rivals,
    }
    made: list[StudyRun] = []
    first: dict[str, str] = {}
    documents: dict[tuple[str, int], Documents] = {}
    arms: list[Arm] = []
    jobs = [Job(arm, seed) for seed in seeds for arm in names]
    with sole_owner(place), ends_on_sigterm():
        if devices:
            train_at_once(place, [job for job in jobs if finished_run(place, job) is None], path, changed, devices)
        for i, job in enumerate(jobs, start=1):
            run = finished_run(place, job)
            if run is None:
                print(f"{job.name}: training, run {i} of {len(jobs)}, log in {job_log(place, job)}", flush=True)
                run = train_job(place, job, path, changed)
            results = read_results(run)
            first = first or results.run.versions
            if other := other_versions(first, results.run.versions):
                logger.warning("%s was trained by other versions than %s: %s", job.name, jobs[0].name, other)
            speed = _speed(speeds, run, seconds) if job.seed == seeds[0] and seconds else Speedups()
            made.append(study_run(job.arm, job.seed, str(run), results, speed))
            documents[job.arm, job.seed] = documents_of(results)
            print(f"{job.name}: {made[-1].nats:.4f} nats after {made[-1].steps} steps", flush=True)
            arms = arms_of(sorted(made, key=lambda run: names.index(run.arm)), documents)
            _write(directory, path.stem, made, arms, about)
    print(f"\n{study_table(made, arms)}\n\nwritten to {directory}")


def _checked(
    config: str, seeds: Sequence[int], controls: Sequence[str] | None, overrides: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The overrides as options, with two dashes, and the controls; raises ValueError for what can be no study."""
    path = find_config(config)
    if path is None:
        raise ValueError(f"--config {config}: no such file; {known_configs()}")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"--seeds {','.join(map(str, seeds))}: give one or more, each once, from 0")
    for name in controls or ():
        if name not in CONTROLS:
            raise ValueError(f"--controls {name}: it must be one of {', '.join(CONTROLS)}")
    if controls is not None and len(set(controls)) < len(controls):
        raise ValueError(f"--controls {','.join(controls)}: give each once")
    options = [f"--{word.removeprefix('--')}" for word in overrides]
    for option in options:
        name = option[2:].partition("=")[0]
        if "=" not in option:
            raise ValueError(f"--overrides {option}: it must be an option with its value, as in --trainer.max_steps=30")
        if name in OWN:
            raise ValueError(f"--overrides {option}: the study sets {name} itself")
    if trains_coders(["--config", config, *options]):
        raise ValueError(f"--config {config}: it trains sparse autoencoders; a study compares routed models")
    model = _model_section(path)
    given = {option[2:].partition("=")[0]: option.partition("=")[2] for option in options}
    if given.get("model.routing", model.get("routing")) in (None, "null") and not any(
        name.startswith("model.routing.") for name in given
    ):
        raise ValueError(f"--config {config}: it routes nothing (model.routing is null), so it has no controls")
    return options, _controls(controls, model.get("routing"), given)


def _model_section(config: Path) -> dict[str, Any]:
    """What a config says of the model; raises ValueError if this, or the config itself, is no mapping."""
    content = _from_yaml(config.read_bytes(), f"--config {config}")
    model = content.get("model") if isinstance(content, dict) else None
    for where, value in (("it", content), ("model", model)):
        if not isinstance(value, dict | None):
            raise ValueError(f"--config {config}: {where} is {value!r:.60}; it must be a mapping of options")
    return model or {}


def _from_yaml(text: str | bytes, option: str) -> Any:
    """What YAML text holds; raises ValueError, which names the option that gave the text, if it is no YAML."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{option}: it is no YAML: {error}") from error


def _controls(asked: Sequence[str] | None, routing: object, given: Mapping[str, str]) -> list[str]:
    """The asked controls, or all that a routing (as in the YAML, then as given in options) can have.

    Raises:
        ValueError: the routing is none, or cannot have an asked control.
    """
    said = {
        name: _from_yaml(value, f"--{name} {value}")
        for name, value in given.items()
        if f"{name}.".startswith("model.routing.")
    }
    values = said.pop("model.routing", routing)
    if not isinstance(values, dict | None):  # a file, which the training reads
        return list(CONTROLS if asked is None else asked)
    own = {name.removeprefix("model.routing."): value for name, value in said.items()}
    config = RoutingConfig.from_dict((values or {}) | own)
    for name in asked or ():
        check_control(name, config)
    return [name for name in CONTROLS if _has(config, name)] if asked is None else list(asked)


def _has(routing: RoutingConfig, control: str) -> bool:
    try:
        check_control(control, routing)
    except ValueError:
        return False
    return True


def _speed(speeds: Journal, run: Path, seconds: float) -> Speedups:
    """The run's speed over its base's, measured once for all studies that time it alike."""

    def measure() -> dict[str, float | None]:
        base = run_base(str(run))
        assert base is not None, run
        return measure_speedups(load_base(base).model, open_model(str(run)).model, seconds)._asdict()

    written = (run / RESULTS_FILE).stat().st_mtime_ns
    made = speeds.part(f"speed-{run.parent.name}", measure, run=str(run), written=written)
    return Speedups(**made)


def _write(directory: Path, name: str, runs: Sequence[StudyRun], arms: Sequence[Arm], about: dict) -> None:
    write_csv(directory / "study.csv", STUDY_COLUMNS, runs)
    found = {
        "command": command_line(),
        "arms": [arm._asdict() for arm in arms],
        "versions": versions(),
        "hardware": hardware(),
    }
    write_json(directory / "study.json", about | found)
    write_figure(directory / "study.png", study_figure(name, runs, arms))
