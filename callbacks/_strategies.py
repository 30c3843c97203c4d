"""A strategy under which the smoothness cannot be measured."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_linf.lightning_packages import is_either


def refuse_tensor_parallelism(caller: str, trainer: Trainer) -> None:
    """Refuse parameters that are sharded in another way than by ``fully_shard`` alone."""
    strategy = trainer.strategy
    if is_either(strategy, ModelParallelStrategy):
        size = strategy.device_mesh["tensor_parallel"].size()
        if size > 1:
            raise MisconfigurationException(
                f"{caller}: expected parameters sharded by fully_shard alone, got tensor "
                f"parallelism over {size} devices. Use "
                "ModelParallelStrategy(tensor_parallel_size=1) or remove the callback."
            )
