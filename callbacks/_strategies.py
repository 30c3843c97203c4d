"""Strategies under which monitors cannot measure, and refuse to."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from lightning_linf.lightning_packages import is_either


def refuse_flat_shards(caller: str, trainer: Trainer) -> None:
    """Refuse strategies that join parameters to flat vectors and cut these between ranks."""
    if is_either(trainer.strategy, FSDPStrategy, DeepSpeedStrategy):
        raise MisconfigurationException(
            f"{caller}: expected whole parameters, or those that fully_shard makes, got "
            f"{type(trainer.strategy).__name__}, whose flat pieces do not tell where they belong. "
            "Use Trainer(strategy='ddp'), or ModelParallelStrategy with fully_shard in "
            "configure_model, or remove the callback."
        )


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
