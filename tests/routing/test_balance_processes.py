"""The global batch of GLBL over several processes: two give the gradients of one."""

import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from slms.routing import GlobalBalance
from slms.routing.rules import select

N, P, K = 24, 5, 2


def _global_batch() -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.randn(4, N, P, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mask = torch.ones(4, N, dtype=torch.bool)
    mask[:, :3] = mask[:, -3:] = False  # three pads in either half
    return scores + torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0]), mask


def _train(module: GlobalBalance, scores: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Two optimizer steps of two micro-batches each; scores [2, 2·micro, N, P]; the gradient of each step's last."""
    gradients = []
    for step_scores, step_mask in zip(scores, mask, strict=True):
        for micro, m in zip(step_scores, step_mask, strict=True):
            micro = micro.flatten(0, -2).requires_grad_()
            r = select(micro, k=K)
            (gradient,) = torch.autograd.grad(module(r.probs, r.chosen, m.flatten()), micro)
        gradients.append(gradient)
        module.step()
    return gradients


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    scores, mask = _global_batch()
    scores, mask = scores.view(2, 2, N, P), mask.view(2, 2, N)
    half = slice(rank * N // 2, (rank + 1) * N // 2)
    module = GlobalBalance(P)
    gradients = _train(module, scores[:, :, None, half], mask[:, :, None, half])
    torch.save((gradients, module.average), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one_with_the_same_global_batch(tmp_path: Path, monkeypatch):
    """The mean over ranks, as DDP takes it, of the gradients is the single process's: no extra ÷ranks
    (Megatron-LM issues 3672 and 3769), and every rank sees the global frequencies."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", next(name for _, name in socket.if_nameindex() if name.startswith("lo")))
    scores, mask = _global_batch()
    module = GlobalBalance(P)
    alone = _train(module, scores.view(2, 2, 1, N, P), mask.view(2, 2, 1, N))
    mp.start_processes(_worker, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    parts = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for step in range(2):
        halves = torch.cat([gradients[step] for gradients, _ in parts]) / 2
        torch.testing.assert_close(halves, alone[step], rtol=1e-6, atol=1e-10)
    assert alone[0].abs().max() < 1e-9 < 1e-6 < alone[1].abs().max()  # the first step knows no past
    for _, average in parts:
        assert torch.equal(average, module.average)
