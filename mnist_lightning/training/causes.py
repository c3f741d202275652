"""Why a training cannot start, has ended, or has nothing left to do: the true cause, and what to do."""

import gc
import os
import re
import traceback
from contextlib import suppress
from itertools import chain, count
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from mnist_lightning.data.loader import TensorLoader
from mnist_lightning.errors import BadSetting, UserError, of_another_process
from mnist_lightning.models import DigitClassifier
from mnist_lightning.run import Run

# ---------------------------------------------------------------------- before it starts


def refuse_lone_images(trainer: Trainer, module: LightningModule) -> None:
    """Raises BadSetting where batch normalisation would meet one value a channel: it has no variance."""
    loader: Any = trainer.train_dataloader
    if not isinstance(loader, TensorLoader) or not _leaves_one(loader.size, loader, trainer.num_training_batches):
        return
    if layers := _with_one_value(module, loader):
        size = loader.global_batch_size // loader.world_size
        others = chain(range(size - 1, 1, -1), count(size + 1))
        better = next(other for other in others if not _leaves_one(loader.size, loader, None, other))
        on = "" if loader.world_size == 1 else " on a process"
        raise BadSetting(
            f"--data.batch_size {size} leaves a mini-batch of one image{on}, which batch normalisation ({layers[0]}) "
            f"cannot take: --data.batch_size {better} leaves none"
        )


def _leaves_one(images: int, loader: TensorLoader, batches: Any = None, batch_size: int | None = None) -> bool:
    """Whether some rank gets a single image of a mini-batch."""
    world = loader.world_size
    size = loader.global_batch_size if batch_size is None else batch_size * world
    last = images % size or size
    cut = batches is not None and batches < -(-images // size)  # the last is not reached
    return size < 2 * world or (last < 2 * world and not cut)


def _with_one_value(module: nn.Module, loader: TensorLoader) -> list[str]:
    """Layers of batch normalisation that get one value a channel of one image."""
    found: list[str] = []
    training = [layer for layer in module.modules() if layer.training]
    hooks = []
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, SyncBatchNorm) and layer.training:
            hooks.append(layer.register_forward_pre_hook(
                lambda layer, args, name=name: found.append(name) if args[0].numel() == args[0].shape[1] else None
            ))  # fmt: skip
    if not hooks:
        return []
    image = loader.images[:1] if loader.prepare is None else loader.prepare(loader.images[:1])
    module.eval()  # changes nothing, and draws nothing
    try:
        with torch.no_grad(), suppress(Exception):  # a module of the user's need have no forward
            module(image.to(next(module.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
        for layer in training:
            layer.training = True
    return found


# ---------------------------------------------------------------------- when it has ended


def limit_in_force(trainer: Trainer) -> str | None:
    """What has ended the training before its last epoch, or keeps it from its first step."""
    timers = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]
    if any(seconds is not None and seconds <= 0 for seconds in timers):
        return "--trainer.max_time is used up"
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return f"--trainer.max_steps is {trainer.max_steps}"
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopped_epoch:
            return f"EarlyStopping ended it, as {callback.monitor} was no better"
    if trainer.limit_train_batches == 0:
        return "--trainer.limit_train_batches is 0"
    if trainer.max_epochs not in (None, -1) and trainer.current_epoch >= trainer.max_epochs:
        limit = repr(trainer.limit_train_batches)
        limited = "" if limit == "1.0" else f", of {trainer.num_training_batches} batches each"
        return f"--trainer.max_epochs is {trainer.max_epochs}{limited}"
    return None


def told(error: BaseException, trainer: Trainer, module: Any, run: Run | None) -> UserError | None:
    """What a person is told of an error whose cause is known; None: of others."""
    text = str(error)
    go_on = f"continue with {run.words('last')}" if run and run.last.exists() else "start again"
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        port = os.environ.get("MASTER_PORT", "of this training")
        return UserError(
            f"the port {port} is in use, by another training or program: set the variable MASTER_PORT to a free one"
        )
    if came := re.search(r"(\d+)/(\d+) clients joined", text):
        return UserError(f"only {came[1]} of {came[2]} processes came: start as many as the training is told to have")
    if isinstance(error, ValueError) and "more than 1 value per channel" in text:
        return UserError(
            "a mini-batch has one image, which batch normalisation cannot take: choose a batch size that leaves none, "
            f"or drop_last; then {go_on}"
        )
    if is_of_memory(error):
        return _of_memory(error, trainer, module, go_on)
    if isinstance(error, Exception) and of_another_process(error):
        return UserError(f"another process of this run has ended: see why there, then {go_on}")
    return None


def is_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had too little memory."""
    named = "out of memory" in str(error) or "can't allocate memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and named)


def _of_memory(error: BaseException, trainer: Trainer, module: Any, go_on: str) -> UserError:
    """Names a batch size that does fit, found by trying, and how to train alike with it."""
    device = trainer.strategy.root_device
    where = f"the memory of {device}" if device.type != "cpu" else "the machine's memory"
    loader: Any = trainer.train_dataloader
    size = loader.global_batch_size // loader.world_size if isinstance(loader, TensorLoader) else None
    evaluates = any(
        "evaluation_loop" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)
    )
    if size is None or evaluates:
        what = "in evaluating" if evaluates else "in training"
        return UserError(f"{where} does not suffice {what}: free some of it, or take smaller batches; then {go_on}")
    traceback.clear_frames(error.__traceback__)  # which hold what filled it
    fitting = next((part for part in range(size // 2, 0, -1) if size % part == 0 and _fits(module, part, device)), None)
    if fitting is None:
        return UserError(f"{where} does not suffice for one image: take a smaller network, or free some of it")
    steps = size // fitting * trainer.accumulate_grad_batches
    return UserError(
        f"{where} does not suffice for --data.batch_size {size}: free some of it and {go_on}; or start anew with "
        f"--data.batch_size {fitting} --trainer.accumulate_grad_batches {steps}, which fits and trains alike"
    )


def _fits(module: Any, images: int, device: torch.device) -> bool:
    """Whether a step of so many images does; of a module that is not of this project it is assumed."""
    if not isinstance(module, DigitClassifier):
        return True
    module.zero_grad(set_to_none=True)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        logits = module.to(device).train()(torch.zeros(images, 1, 28, 28, device=device))
        torch.nn.functional.cross_entropy(
            logits.float(), torch.zeros(images, dtype=torch.long, device=device)
        ).backward()
    except (RuntimeError, ValueError, MemoryError):
        return False
    return True
