"""Small training runs in processes forked from one that has imported everything, so that imports cost time only once.

A rank of several processes is told its place as torchrun or SLURM would. A process that is to die kills itself at a
step: `kill="7:0.01"` is 10 ms after step 7 began.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.processes", "train", "slms.models.routed_lm", "torch.utils.tensorboard"])
TIMEOUT = 600  # seconds; a shared machine may be slow


def make_base(folder: Path) -> None:
    """The model that the runs in `folder` start from, of two layers, in `folder`/base."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    from slms.models.io import read_tokenizer, save_model
    from slms.models.source import EMBEDDED

    tokenizer = read_tokenizer(EMBEDDED["stories-1m"])
    config = GPTNeoConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        window_size=32,
        attention_types=[[["global", "local"], 1]],
        intermediate_size=64,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    save_model(GPTNeoForCausalLM(config), tokenizer, folder / "base")


def flags(folder: Path, name: str, *more: str) -> list[str]:
    """Arguments of train.py for six steps of 8 blocks, a checkpoint every second one."""
    return [
        "--config=routed_tinystories.yaml",
        f"--model.base.name={folder / 'base'}",
        "--model.base.tokenizer=null",
        "--model.routing={n_pathways: 4, k: 2, every_n_layers: 2, last_layer: -1}",
        "--model.calibration_tokens=512",
        "--data.corpus.name=stories",
        "--data.block_size=32",
        "--data.batch_size=8",
        "--data.train_tokens=4096",
        "--data.epoch_tokens=1536",
        "--data.val_tokens=480",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
        "--checkpoint.every_n_train_steps=2",
        "--results.random_model=false",
        "--specialization.heatmaps=[]",
        f"--output_dir={folder}",
        f"--name={name}",
        *more,
    ]


def directory(folder: Path, name: str) -> Path:
    """The run directory of the one run of that name."""
    (made,) = (folder / name).iterdir()
    return made


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def torchrun(world: int) -> list[dict[str, str]]:
    """The environment of each rank as `torchrun --nproc_per_node=world` sets it."""
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test"}
    return _ranks(world, shared, "RANK", "LOCAL_RANK")


def slurm(world: int) -> list[dict[str, str]]:
    """The environment of each rank as `srun --ntasks-per-node=world` sets it."""
    shared = {
        "SLURM_NTASKS": world,
        "SLURM_NTASKS_PER_NODE": world,
        "SLURM_JOB_NAME": "test",
        "SLURM_JOB_ID": 4321,
        "SLURM_NODELIST": "localhost",
        "SLURM_NODEID": 0,
    }
    return _ranks(world, shared, "SLURM_PROCID", "SLURM_LOCALID")


def _ranks(world: int, shared: dict, rank: str, local_rank: str) -> list[dict[str, str]]:
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "GLOO_SOCKET_IFNAME": _loopback()}
    return [{name: str(value) for name, value in (shared | {rank: r, local_rank: r}).items()} for r in range(world)]


def _loopback() -> str:
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


class Run:
    """Processes of one training run.

    Args:
        log: what they print goes to `log` with the rank as its ending.
        args: of `main`.
        ranks: each rank's environment; one process by default.
        kill: for ranks that are to die, when.
        main: what each process runs; train.py by default.
    """

    def __init__(
        self,
        log: Path,
        args: list[str],
        ranks: list[dict[str, str]] | None = None,
        kill: dict[int, str] | None = None,
        main: Callable[[list[str]], None] | None = None,
    ):
        self.logs = [log.with_suffix(f".{rank}") for rank in range(len(ranks or [{}]))]
        cache = {name: os.environ[name] for name in ("SLMS_CACHE", "HF_HUB_OFFLINE")}
        self.processes = [
            CONTEXT.Process(target=_train, args=(args, cache | env, str(path), (kill or {}).get(rank), main))
            for rank, (env, path) in enumerate(zip(ranks or [{}], self.logs, strict=True))
        ]
        for process in self.processes:
            process.start()

    def join(self) -> list[int]:
        """Exit codes, −9 for a process that was killed."""
        for process in self.processes:
            process.join(TIMEOUT)
            if process.is_alive():
                process.kill()
                raise AssertionError(f"still running after {TIMEOUT} s: {self.said()}")
        return [process.exitcode for process in self.processes]

    def said(self) -> str:
        """What all processes printed."""
        return "\n".join(log.read_text() for log in self.logs if log.exists())


def _train(args: list[str], env: dict[str, str], log: str, kill: str | None, main) -> None:
    os.environ.update(env)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = ["train.py"]
    import torch

    import train

    torch.set_num_threads(1)
    if kill is not None:
        _kill_at(kill)
    (main or train.main)(args)


def _kill_at(when: str) -> None:
    """SIGKILL to this process a while after a step began: there is no warning and no clean-up."""
    from slms.lit.language_model import LanguageModel

    step, delay = int(when.split(":")[0]), float(when.split(":")[1])
    original = LanguageModel.on_train_batch_start

    def begin(self, batch, batch_idx):
        if self.global_step == step:
            threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        return original(self, batch, batch_idx)

    LanguageModel.on_train_batch_start = begin
