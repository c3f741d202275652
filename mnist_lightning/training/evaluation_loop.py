"""QuickEvaluation: Lightning's own loop to validate and to test, without what nobody asked for at each batch."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from mnist_lightning.training.heard import EVALUATION, heard, is_known, moves, overrides
from mnist_lightning.training.optimization import QuickLog

Heard = tuple[str, list[Callable[..., Any]]]  # a hook, and who listens to it


class QuickEvaluation(_EvaluationLoop):
    _quick = False
    _start: Heard = ("", [])
    _end: Heard = ("", [])
    _log: QuickLog | None = None

    def on_run_start(self) -> None:
        super().on_run_start()
        self._quick = is_known(self.trainer, self._data_fetcher)
        self._planned_on: tuple[int, ...] = ()

    def teardown(self) -> None:
        super().teardown()
        self._start, self._end, self._log = ("", []), ("", []), None  # they hold the module

    def _look(self, dataloader_idx: int) -> None:
        """Plans anew where somebody has joined or left."""
        facts = (dataloader_idx, *map(id, self.trainer.callbacks))
        if self._planned_on != facts:
            self._planned_on = facts
            self._plan(dataloader_idx)

    def _plan(self, dataloader_idx: int) -> None:
        trainer, module = self.trainer, self.trainer.lightning_module
        stage = "test" if trainer.testing else "validation"
        own = {
            hook: [getattr(module, hook)]
            for hook in (*EVALUATION[stage], "log")
            if overrides(module, hook, LightningModule)
        }
        self._start, self._end = (
            (hook, [*(partial(one, trainer, module) for one in heard(trainer, hook)), *own.get(hook, ())])
            for hook in EVALUATION[stage]
        )
        self._step, step = f"{stage}_step", getattr(module, f"{stage}_step")
        self._takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
        self._log = None if "log" in own else QuickLog(trainer, module, self._results, self._step)
        assert self._combined_loader is not None
        loaders = self._combined_loader.flattened
        one_by_one = self._is_sequential or len(loaders) == 1
        self._moves = not one_by_one or moves(trainer, loaders[dataloader_idx])
        self._indexed = self._is_sequential and len(loaders) > 1

    def _evaluation_step(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
        if not self._quick:
            return super()._evaluation_step(batch, batch_idx, dataloader_idx, dataloader_iter)
        trainer, progress, results = self.trainer, self.batch_progress, self._results
        self._look(dataloader_idx)
        module: Any = trainer.lightning_module
        connector, names = trainer._logger_connector, vars(module)
        if self._moves:
            batch = trainer.precision_plugin.convert_input(batch)
            batch = module._on_before_batch_transfer(batch, dataloader_idx=dataloader_idx)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=dataloader_idx)
        index = (dataloader_idx,) if self._indexed else ()
        progress.increment_ready()
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, dataloader_idx if index else None
        self._tell(self._start, batch, batch_idx, *index)
        progress.increment_started()
        outer, names["_current_fx_name"] = names["_current_fx_name"], self._step
        if self._log is not None:
            names["log"] = self._log
        try:
            numbers = (batch_idx, *index) if self._takes_index else index
            output = getattr(trainer.strategy, self._step)(batch, *numbers)
        finally:
            names["_current_fx_name"] = outer
            if self._log is not None:
                names.pop("log", None)
        progress.increment_processed()
        self._look(dataloader_idx)
        self._tell(self._end, output, batch, batch_idx, *index)
        shown = any(item.meta.on_step for item in results.values())
        if shown:
            connector.on_batch_end()
        results.batch = results.batch_size = None
        progress.increment_completed()
        if not trainer.sanity_checking:
            self._has_run = True
            if shown:
                connector.update_eval_step_metrics(self._seen_batches_per_dataloader[dataloader_idx])
            self._seen_batches_per_dataloader[dataloader_idx] += 1
        if not progress.is_last_batch and trainer.received_sigterm:
            raise SIGTERMException

    def _tell(self, whom: Heard, *args: Any) -> None:
        names = vars(self.trainer.lightning_module)
        outer, names["_current_fx_name"] = names["_current_fx_name"], whom[0]
        for hear in whom[1]:
            hear(*args)
        names["_current_fx_name"] = outer


QuickEvaluation.__name__ = _EvaluationLoop.__name__  # by which Lightning's messages and profilers call it
