"""The oracle chooses as many pathways as the routers, those of largest output, and its choice is executed."""

import torch

from slms.measure.choice_losses import oracle_choosers
from slms.models.contributions import contribution_norms
from slms.models.routed import choose_by, record_routes, routed_modules


def test_the_oracles_choice_is_executed_and_captures_everything(routed_with_text):
    net, blocks = routed_with_text
    net.eval()
    ids = torch.from_numpy(blocks.input_ids.astype("int64"))
    with torch.no_grad(), choose_by(net, oracle_choosers(net)), record_routes(net) as routes:
        oracle = net(ids).logits
    for place in routed_modules(net):
        assert routes[place].chosen.sum(1).eq(2).all() and routes[place].gates[routes[place].chosen].eq(1).all()
    inputs = {}
    handle = routed_modules(net)["L0.mlp"].register_forward_pre_hook(lambda m, i: inputs.update(x=i[0].flatten(0, 1)))
    with torch.no_grad(), record_routes(net) as own:
        mine = net(ids).logits
    handle.remove()
    best = contribution_norms(routed_modules(net)["L0.mlp"])(inputs["x"]).topk(2).indices
    wanted = torch.zeros(len(best), 5, dtype=torch.bool).scatter_(1, best, True)
    assert routes["L0.mlp"].chosen.equal(wanted) and not own["L0.mlp"].chosen.equal(wanted)
    assert not torch.allclose(oracle, mine)
