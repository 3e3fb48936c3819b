"""The names of `--trainer.strategy` that SLMS adds: Lightning's own strategies, adapted to these models.

ddp             every process holds the model; buffers stay where they are (the balance keeps its own in step)
fsdp2           parameters, gradients and optimizer sharded over all processes; a checkpoint is one file
fsdp2_sharded   the same; a checkpoint is a directory to which every process writes its shard
"""

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, PreTrainedModel

from slms.lit.lightning_internals import FullyShardStrategy
from slms.models.anatomy import family_of
from slms.models.speedups import prepare


def register() -> None:
    """Register the names with Lightning's Trainer."""
    # Lightning validates through DDP's forward, where a broadcast of buffers would wait for ranks with fewer batches.
    StrategyRegistry.register("ddp", DDPStrategy, override=True, broadcast_buffers=False)
    StrategyRegistry.register("fsdp2", FullyShardStrategy, override=True, save_distributed_checkpoint=False)
    StrategyRegistry.register("fsdp2_sharded", FullyShardStrategy, override=True, save_distributed_checkpoint=True)


def shard(net: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard each decoder block of `net`, then the rest, over the mesh's data-parallel processes, in place."""
    data = mesh["data_parallel"]
    for block in net.get_submodule(family_of(net).layers).children():
        fully_shard(block, mesh=data)
    fully_shard(net, mesh=data)


def whole(net: PreTrainedModel) -> PreTrainedModel:
    """`net` itself or, if it is sharded, an unsharded copy. Every process must call it; the first gets the copy."""
    if not any(hasattr(parameter, "device_mesh") for parameter in net.parameters()):
        return net
    weights = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not weights:  # not the first process
        return net
    copy: PreTrainedModel = AutoModelForCausalLM.from_config(net.config)
    copy.load_state_dict(weights)
    return prepare(copy).train(net.training)
