"""Rows: what loggers are given while a training runs."""

from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, stack

from mnist_lightning.training import graphs

WAITING = 64  # rows


class Rows:
    """Gives loggers what was logged, as Lightning does; from a GPU, which is not waited for, several rows at once."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._waiting: list[tuple[int, int, dict[str, Any]]] = []  # step, epoch, values

    def add(self) -> None:
        """What was logged until now, if a row is due."""
        trainer, connector, loop = self.trainer, self.trainer._logger_connector, self.trainer.fit_loop.epoch_loop
        if trainer.strategy.root_device.type != graphs.DEVICE or loop.several is None:
            connector.update_train_step_metrics()
        elif (connector.should_update_logs or trainer.fast_dev_run) and (values := connector.metrics["log"]):
            self._waiting.append((loop._batches_that_stepped, trainer.current_epoch, values))
            if len(self._waiting) == WAITING:
                self.write()

    def write(self) -> None:
        """Gives loggers the rows that wait."""
        rows, self._waiting = self._waiting, []
        kinds: dict[Any, list[Any]] = {}
        for *_, values in rows:
            for name, value in values.items():
                if isinstance(value, Tensor):
                    kinds.setdefault((value.device, value.dtype), []).append((value.reshape(()), values, name))
        for found in kinds.values():
            numbers = stack([value for value, _, _ in found]).tolist()  # one look at the device for all
            for (_, values, name), number in zip(found, numbers, strict=True):
                values[name] = number
        for step, epoch, values in rows:
            own = values.pop("step", None)
            known = values if own is not None else {"epoch": epoch} | values
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics=known, step=step if own is None else int(own))
                logger.save()
