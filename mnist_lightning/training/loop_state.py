"""Where a training stands between two batches, in Lightning's terms: what RunKeeper saves, and how it is put back.

The states that Lightning saves itself lose work or repeat it if they are taken inside an epoch.
"""

from operator import attrgetter
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import Metric

SHOWN = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")
Place = dict[str, int]  # epochs done, batches done of the next, optimizer steps that these come to, batches an epoch


def place_of(trainer: Trainer, between_epochs: bool = False) -> Place:
    """Where the training stands. (A callback of Lightning's may save at an epoch's end that is not yet counted.)"""
    loop: Any = trainer.fit_loop.epoch_loop
    epoch, batch = trainer.fit_loop.epoch_progress.current.processed, loop.batch_progress.current.ready
    counted = trainer.fit_loop.epoch_progress.current.started == epoch
    if between_epochs or (counted and loop._num_ready_batches_reached()):
        batch = 0
    elif batch and loop._num_ready_batches_reached():
        epoch, batch = epoch + 1, 0
    elif counted and batch:  # the epoch was ended early
        epoch -= 1
    limit = trainer.num_training_batches
    whole = int(limit) if limit != float("inf") else 0
    step, total = trainer.global_step, loop.batch_progress.total.ready
    # by hand there can be several steps in a batch, or none
    rows = step if trainer.lightning_module.automatic_optimization else loop._batches_that_stepped
    return {"epoch": epoch, "batch": batch, "step": step, "rows": rows, "total": total, "batches": whole}


def ends_early(trainer: Trainer) -> bool:
    """Whether this is the last batch of the training, and not of an epoch."""
    if not trainer.should_stop and (trainer.max_steps == -1 or trainer.global_step < trainer.max_steps):
        return False
    loop: Any = trainer.fit_loop.epoch_loop
    return loop.done and not loop._num_ready_batches_reached()


def ends(trainer: Trainer) -> bool:
    """Whether no epoch comes after this one, at its end."""
    epochs = trainer.fit_loop.epoch_progress.current.processed
    limits = (trainer.max_epochs, epochs), (trainer.max_steps, trainer.global_step)
    return trainer.should_stop or any(most is not None and 0 <= most <= done for most, done in limits)


def accumulates(trainer: Trainer) -> bool:
    """Whether there are gradients that wait for more batches; no checkpoint holds them."""
    return trainer.fit_loop._should_accumulate()


def stops_anywhere(trainer: Trainer) -> bool:
    """Whether a training can go on from inside an epoch: its loaders tell their place, or draw the same order again."""
    return all(
        hasattr(loader, "load_state_dict")
        or (isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset))
        for loader in trainer.fit_loop._combined_loader.flattened
    )


def loader_states(trainer: Trainer) -> list[Any]:
    """Where the loaders are, if all tell; else they begin anew and pass over what has been."""
    combined = trainer.fit_loop._combined_loader
    loaders = [] if combined is None else combined.flattened
    told = all(hasattr(loader, "load_state_dict") for loader in loaders)
    return [loader.state_dict() for loader in loaders] if told else []


def go_on_from(trainer: Trainer, place: Place, sums: dict[str, Any], loaders: list[Any]) -> dict[str, Any]:
    """The state of Lightning's loops at that place, as a checkpoint holds it."""
    epoch, batch, step = place["epoch"], place["batch"], place["step"]
    loop: Any = trainer.fit_loop.epoch_loop
    loop.exactly_resumed, loop.resumed_sums = True, sums
    state = trainer.fit_loop.state_dict()
    started = epoch + 1 if batch else epoch
    for count in ("total", "current"):
        seen = batch if count == "current" else place["total"]
        optimizer = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        for progress, ready, done in (
            (state["epoch_progress"], started, epoch),
            (state["epoch_loop.batch_progress"], seen, seen),
            (optimizer["step"], step, step),
            (optimizer["zero_grad"], step, step),
            (state["epoch_loop.manual_optimization.optim_step_progress"], step, step),
        ):
            known = progress[count]
            known.update({key: done if key in ("processed", "completed") else ready for key in known})
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = place["rows"]
    state["state_dict"]["combined_loader"] = loaders
    return {"fit_loop": state}


def epoch_sums(trainer: Trainer, inside: bool) -> dict[str, Any]:
    """What is shown, and inside an epoch what it has logged and the states of the module's metrics, as plain values."""
    connector: Any = trainer._logger_connector
    if hasattr(trainer.fit_loop.epoch_loop, "_collect"):
        trainer.fit_loop.epoch_loop._collect(now=True)  # not as whoever looked last has left it
        trainer.fit_loop.epoch_loop.rows.write()
    shown = {name: dict(sorted(getattr(connector, name).items())) for name in SHOWN}
    if not inside:
        return {"logged": [], "metrics": {}, "shown": shown}
    logged = []
    for item in trainer.fit_loop.epoch_loop._results.values():
        meta = item.meta
        if not item.has_reset:
            logged.append({
                "meta": {
                    "fx": meta.fx, "name": meta.name, "prog_bar": meta.prog_bar, "logger": meta.logger,
                    "on_step": meta.on_step, "on_epoch": meta.on_epoch, "reduce_fx": meta.reduce_fx.__name__,
                    "add_dataloader_idx": meta.add_dataloader_idx, "metric_attribute": meta.metric_attribute,
                },
                "sync": {"_should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only},
                "value": item.value if item.is_tensor else None, "shown": item._forward_cache,
                "images": getattr(item, "cumulated_batch_size", None),
            })  # fmt: skip
    metrics = {}
    for name, metric in trainer.lightning_module.named_modules():
        if isinstance(metric, Metric):
            states = metric.metric_state  # first: it can count what waits
            if metric._update_count:
                how = {key: getattr(reduce, "__name__", "") for key, reduce in metric._reductions.items()}
                metrics[name] = {"count": metric._update_count, "states": states, "how": how}
    return {"logged": logged, "metrics": metrics, "shown": shown}


def merged(ranks: list[dict[str, Any]], world_size: int, rank: int) -> dict[str, Any]:
    """A rank's sums, from those of all ranks that were; for another number of ranks the first has all."""
    if not ranks:
        return {"logged": [], "metrics": {}, "shown": {}}
    if len(ranks) == world_size:
        return ranks[rank]

    def together(values: list[Any], how: str) -> Any:
        if isinstance(values[0], list):
            return [part for value in values for part in value]
        if not isinstance(values[0], Tensor):
            return values[0]
        if how.endswith(("max", "min")):  # which all ranks may have
            return getattr(torch.stack(values), f"a{how[-3:]}")(0)
        if how == "dim_zero_cat":
            return torch.cat(values)
        total = torch.stack(values).sum(0) / (len(values) if how == "dim_zero_mean" else 1)
        return total.to(values[0].dtype) * (rank == 0)

    logged = [
        {**one[0], **{key: together([e[key] for e in one], one[0]["meta"]["reduce_fx"]) for key in ("value", "images")}}
        for one in zip(*(sums["logged"] for sums in ranks), strict=True)
    ]
    metrics = {}
    for name, kept in ranks[0]["metrics"].items() if rank == 0 else ():
        states = {
            key: together([sums["metrics"][name]["states"][key] for sums in ranks if name in sums["metrics"]], how)
            for key, how in kept["how"].items()
        }
        metrics[name] = {**kept, "states": states}
    return {"logged": logged, "metrics": metrics, "shown": ranks[0]["shown"]}


class _Resumed(_Sync):
    """Of a value that was logged before: whether ranks share it tells the next `self.log`; one process never did."""

    def __eq__(self, other: object) -> bool:
        self.should = other.should
        return True


def restore_sums(loop: Any, sums: dict[str, Any]) -> None:
    """Puts `epoch_sums` back, once the training has begun."""
    trainer, results = loop.trainer, loop._results
    module, device = trainer.lightning_module, trainer.strategy.root_device
    for name, values in sums["shown"].items():
        getattr(trainer._logger_connector, name).update(values)
    for name, kept in sums["metrics"].items():
        metric = module.get_submodule(name)
        for key, value in kept["states"].items():
            setattr(metric, key, [part.to(device) for part in value] if isinstance(value, list) else value.to(device))
        metric._update_count = kept["count"]
    for kept in sums["logged"]:
        meta = _Metadata(**kept["meta"])
        meta.sync = _Resumed(fn=trainer.strategy.reduce, **kept["sync"])
        item = _ResultMetric(meta, kept["value"] is not None)
        item.value = kept["value"] if item.is_tensor else attrgetter(str(meta.metric_attribute))(module)
        if kept["images"] is not None:
            item.cumulated_batch_size = kept["images"]
        item._forward_cache, item._update_count = kept["shown"], 1
        results[f"{meta.fx}.{meta.name}"] = item.to(device)
    if sums["logged"]:
        trainer._logger_connector._first_loop_iter = False  # else Lightning takes this batch for the epoch's first
