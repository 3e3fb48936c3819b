"""The best uses of each latent, against sorting all uses."""

import torch

from slms.measure.examples import BestUses


def all_uses(n_latents=6, n_blocks=9, t=8):
    """Uses at random: latent 4 seldom, latent 5 never."""
    generator = torch.Generator().manual_seed(0)
    on = torch.rand(n_blocks * t, n_latents, generator=generator) < 0.4
    on[1:, 4], on[:, 5] = False, False
    on[0, 4] = True
    positions, latents = on.nonzero().T
    values = torch.rand(len(positions), generator=generator)
    return latents, values, positions, positions // t


def by_sorting(latents, keys, positions, blocks, latent, k):
    best = {}
    for i in (latents == latent).nonzero()[:, 0].tolist():
        block = int(blocks[i])
        if block not in best or keys[i] > best[block][0]:
            best[block] = (float(keys[i]), int(positions[i]))
    return sorted(best.values(), reverse=True)[:k]


def test_best_uses_one_a_block_over_several_updates():
    latents, values, positions, blocks = all_uses()
    found = BestUses(6, 4)
    for part in (blocks < 3, (blocks >= 3) & (blocks < 5), blocks >= 5, blocks > 99):
        found.update(latents[part], values[part], positions[part], blocks[part], 2 * values[part])
    for latent in range(6):
        wanted = by_sorting(latents, values, positions, blocks, latent, 4)
        kept = found.kept.position[latent]
        assert kept[kept >= 0].tolist() == [position for _, position in wanted]
        assert torch.allclose(found.kept.value[latent][kept >= 0], 2 * torch.tensor([key for key, _ in wanted]))
    assert (found.kept.position[5] == -1).all() and (found.kept.position[4] >= 0).sum() == 1


def test_ties_keep_as_many_as_there_are():
    found = BestUses(1, 3)
    zeros = torch.zeros(5, dtype=torch.int64)
    found.update(zeros, torch.ones(5), torch.arange(5), torch.arange(5), torch.ones(5))
    assert len(set(found.kept.position[0].tolist())) == 3
