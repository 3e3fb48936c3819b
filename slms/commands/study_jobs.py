"""The runs that a study needs: what has ended, and trainings in processes of their own, one a time or one a GPU."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from slms.lit.checkpoint import newest_checkpoint
from slms.measure.study import ROUTED
from slms.report.results import RESULTS_FILE

TRAIN = (sys.executable, "-c", "from slms.main import train; train()")


class Job(NamedTuple):
    """One run that a study needs."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """The run's name, and that of its directory in the study's."""
        return f"{self.arm}-s{self.seed}"

    @property
    def flags(self) -> list[str]:
        """The options of train.py that make it this run."""
        seeds = [f"--{name}={self.seed}" for name in ("seed_everything", "data.seed", "model.routing.seed")]
        return [*seeds, *([] if self.arm == ROUTED else [f"--model.control={self.arm}"])]


def _runs_of(place: Path, job: Job) -> list[Path]:
    """The directories of a job's runs, the newest last; an embedded stand-in adds to the name."""
    found = [path for name in (job.name, f"{job.name}-embedded") for path in (place / name).glob("*/config.yaml")]
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def finished_run(place: Path, job: Job) -> Path | None:
    """The directory of a job's newest run that has results."""
    return next((run for run in reversed(_runs_of(place, job)) if (run / RESULTS_FILE).is_file()), None)


def job_log(place: Path, job: Job) -> Path:
    """The file with what a job prints."""
    return place / f"{job.name}.log"


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, as Ctrl-C raises KeyboardInterrupt, so that trainings are stopped too."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python lets no handler be set
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Processes:
    """Processes that are stopped together; none starts after that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: list[subprocess.Popen] = []
        self.stopped = False

    def start(self, words: Sequence[str], **options: Any) -> subprocess.Popen:
        """Start one; raises ValueError if they are stopped."""
        with self._lock:
            if self.stopped:
                raise ValueError("the others have been stopped")
            self._started.append(subprocess.Popen(words, **options))
            return self._started[-1]

    def stop(self) -> bool:
        """Stop all of them; return whether this call is the first."""
        with self._lock:
            if self.stopped:
                return False
            self.stopped = True
            for process in self._started:
                process.terminate()
            return True


def train_at_once(
    place: Path, jobs: Sequence[Job], config: Path, overrides: Sequence[str], devices: Sequence[int]
) -> None:
    """Train jobs, one at a time on each GPU; if one fails, or this process is interrupted, the others are stopped.

    Raises:
        ValueError: a training failed.
    """
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for device in devices:
        free.put(device)
    processes = Processes()

    def train(job: Job) -> bool:
        """Whether it was trained; False if it was stopped."""
        device = free.get()
        try:
            if not processes.stopped:
                print(f"{job.name}: training on GPU {device}, log in {job_log(place, job)}", flush=True)
                train_job(place, job, config, overrides, device, processes)
                return True
        except (ValueError, OSError):
            if processes.stop():
                raise
        finally:
            free.put(device)
        return False

    with ThreadPoolExecutor(len(devices)) as pool:
        try:
            waiting = {pool.submit(train, job): job for job in jobs}
            for i, done in enumerate(as_completed(waiting), start=1):
                if done.result():
                    print(f"{waiting[done].name}: trained, {i} of {len(jobs)}", flush=True)
        except BaseException:
            processes.stop()
            raise


def train_job(
    place: Path,
    job: Job,
    config: Path,
    overrides: Sequence[str],
    device: int | None = None,
    processes: Processes | None = None,
) -> Path:
    """Train a job in a process of its own, or go on with its stopped run; return the run's directory.

    device: the only GPU that the process sees; processes: those among which it starts.

    Raises:
        ValueError: the training failed, or the processes are stopped; the message is the last line that it printed.
    """
    flags = [f"--config={config}", *overrides, *job.flags, f"--output_dir={place}", f"--name={job.name}"]
    stopped = [run for run in _runs_of(place, job) if (run / "checkpoints").is_dir() and newest_checkpoint(run)]
    if stopped:
        flags.append(f"--ckpt_path={stopped[-1]}")
    sees = dict(os.environ)
    if device is not None:  # torch counts those that this process sees
        visible = sees.get("CUDA_VISIBLE_DEVICES")
        sees["CUDA_VISIBLE_DEVICES"] = str(device) if visible is None else visible.split(",")[device]
    log = job_log(place, job)
    with log.open("a", encoding="utf-8") as file:
        print(f"\n== {job.name}: train.py {' '.join(flags)}", file=file, flush=True)
        start = log.stat().st_size
        start_one = (processes or Processes()).start
        process = start_one([*TRAIN, *flags], stdout=file, stderr=subprocess.STDOUT, env=sees)
        try:
            code = process.wait()
        finally:  # also where this process is interrupted
            if process.poll() is None:
                process.terminate()
                process.wait()
    run = finished_run(place, job)
    if code or run is None:
        with log.open(encoding="utf-8", errors="replace") as file:
            file.seek(start)
            said = [line.strip() for line in re.split(r"[\r\n]+", file.read()) if line.strip()]
        raise ValueError(
            f"{job.name} ended with code {code} ({said[-1] if said else 'it said nothing'}); {log} has more"
        )
    return run
