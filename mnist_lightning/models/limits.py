"""What blocks of steps do not go together with."""

from typing import Any

from lightning.pytorch import callbacks

from mnist_lightning.errors import BadSetting

# These run steps of their own, or want a module of another structure.
REFUSED = (callbacks.BatchSizeFinder, callbacks.LearningRateFinder, callbacks.BackboneFinetuning)
BY_BATCH = (callbacks.WeightAveraging,)


def check_use(trainer: Any) -> None:
    """Raises BadSetting for callbacks, and a use from Python, that would fail obscurely or give wrong results."""
    if trainer.datamodule is None:
        raise BadSetting("an MLP or CNN takes its batches from an MNISTDataModule: give it as datamodule=")
    for callback in trainer.callbacks:
        name = type(callback).__name__
        if isinstance(callback, REFUSED):
            raise BadSetting(f"--trainer.callbacks {name} does not work with these modules: leave it out")
        if isinstance(callback, BY_BATCH) and trainer.datamodule.steps_per_block > 1:
            raise BadSetting(f"--trainer.callbacks {name} acts once a block: give --data.steps_per_block 1 with it")
