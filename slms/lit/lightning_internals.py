"""Every place where SLMS reaches into Lightning beyond what it documents: look here first when a new release breaks.

FullyShardStrategy   ModelParallelStrategy's number of processes and whether it saves shards

An override names only the arguments that it uses and hands on the others as they came.
"""

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy

from slms.files import PART


class FullyShardStrategy(ModelParallelStrategy):
    """FSDP2 over all processes: data parallel, no tensor parallelism."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, **kwargs)

    def setup_environment(self, *args: Any, **kwargs: Any) -> None:
        """Shard over every process of every node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment(*args, **kwargs)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write shards beside the target and then take its place, so that a kill leaves the previous checkpoint."""
        if not self._save_distributed_checkpoint:
            return super().save_checkpoint(checkpoint, filepath, *args, **kwargs)
        target = Path(self.broadcast(filepath))
        part, old = target.with_name(f"{PART}new-{target.name}"), target.with_name(f"{PART}old-{target.name}")
        super().save_checkpoint(checkpoint, part, *args, **kwargs)
        self.barrier()
        if self.is_global_zero:
            if target.exists():
                target.rename(old)
            part.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        self.barrier()
