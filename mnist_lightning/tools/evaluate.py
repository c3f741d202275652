"""`validate`, `test` and `predict`, and the test at the end of `fit`."""

import csv
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.markup import escape
from rich.table import Table

from mnist_lightning import __version__, runs
from mnist_lightning.console import console, say
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.settings import given, instantiate, option, parse, parser_of
from mnist_lightning.training.checkpoints import STATE, load_weights, model_of, read_checkpoint
from mnist_lightning.training.signals import Signals
from mnist_lightning.training.trainer import SignalsAgain, make_trainer


def evaluate(stage: str, words: list[str], signals: Signals) -> None:
    """Evaluates a checkpoint, by default the best of the newest run."""
    parser = parser_of(stage)
    config_file, run_name = option(words, "--config"), given(words, "--run")
    root = Path(given(words, "--trainer.default_root_dir") or "checkpoints")
    if {"-h", "--help"} & set(words):
        parse(parser, words)
    ckpt_path = option(words, "--ckpt_path")
    base = runs.base_name(config_file, None)
    if ckpt_path is None:
        newest = runs.named_run(root, run_name) if run_name else runs.newest_run(root, base)
        ckpt_path = "best" if (newest / "best.ckpt").exists() else "last"
    folder, file = runs.checkpoint_file(root, run_name, base, ckpt_path)
    checkpoint = read_checkpoint(file)
    trained_on = checkpoint["MNISTDataModule"]
    known = checkpoint["datamodule_hyper_parameters"] | {"source": trained_on["source"]}
    known["normalize"] = [trained_on["mean"], trained_on["std"]]
    known["steps_per_block"] = None
    parser.set_defaults({f"data.{key}": value for key, value in known.items()})
    parser.set_defaults({"trainer.precision": checkpoint[STATE]["precision"]})
    config = parse(parser, _without_config(words))
    settings = instantiate(parser, config)
    if stage == "validate" and settings.data.hparams["val_size"] != known["val_size"]:
        raise BadSetting(f"--data.val_size: {file} held out {known['val_size']} images; it was trained on the others")
    model = model_of(checkpoint, file)
    trainer = make_trainer(settings.trainer, [SignalsAgain(signals)])
    result = run_stage(trainer, model, settings.data, file, stage)
    if trainer.is_global_zero:
        tell(result, folder)


def _without_config(words: list[str]) -> list[str]:
    """`--config` only tells which run is meant: the checkpoint knows its own settings."""
    kept, skip = [], False
    for word in words:
        if word == "--config":
            skip = True
        elif skip or word.startswith("--config="):
            skip = False
        else:
            kept.append(word)
    return kept


def run_stage(trainer: Trainer, model: Any, data: MNISTDataModule, file: Path, stage: str) -> dict[str, Any]:
    """Loads the weights of `file` and runs a stage over all its images, each counted once."""
    checkpoint = read_checkpoint(file)
    load_weights(model, checkpoint, file)
    try:
        return _run_stage(trainer, model, data, file, stage, checkpoint)
    except MisconfigurationException as error:
        raise BadSetting(f"--trainer: {str(error).splitlines()[0]}") from error


def _run_stage(
    trainer: Trainer, model: Any, data: MNISTDataModule, file: Path, stage: str, checkpoint: dict[str, Any]
) -> dict[str, Any]:
    split = "val" if stage == "validate" else "test"
    result = {"source": data.source, "checkpoint": str(file)}
    if stage == "predict":
        parts = trainer.predict(model, datamodule=data)
        if not parts:
            raise UserError("nothing was predicted: see --trainer.limit_predict_batches")
        return result | {"source": data.source, "predictions": _gather(trainer, parts), "data": data}
    if stage == "validate":
        if not data.hparams["val_size"]:
            raise UserError(f"{file} was trained on all training images: there are none to validate on; use test")
        trainer.validate(model, datamodule=data, verbose=False)
        loaders: Any = trainer.val_dataloaders
        batches = trainer.num_val_batches
    else:
        trainer.test(model, datamodule=data, verbose=False)
        loaders = [trainer.test_dataloaders]
        batches = trainer.num_test_batches
    if not any(batches) or f"{split}_acc" not in trainer.callback_metrics:  # --trainer.barebones keeps nothing
        raise UserError(f"no image was evaluated: see --trainer.limit_{split}_batches")
    steps = min(batches[0] * loaders[0].steps_per_block, loaders[0].batches)  # Lightning counts blocks
    images = loaders[0].images_after(steps)  # all of them, but for such a limit
    correct = round(float(trainer.callback_metrics[f"{split}_acc"]) * images)
    return {
        "accuracy": correct / images,
        "loss": float(trainer.callback_metrics[f"{split}_loss"]),
        "images": images,
        "correct": correct,
        **result,
        "source": data.source,
        "split": split,
        "precision": str(trainer.precision),
        "epoch": checkpoint["epoch"],
        "step": checkpoint["global_step"],
        "seed": checkpoint["hyper_parameters"].get("seed"),
        "versions": {
            "mnist_lightning": __version__,
            "torch": version("torch"),
            "lightning": version("lightning"),
        },
    }


def _gather(trainer: Trainer, parts: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and probabilities of all ranks, in the order of the data set."""
    mine = (torch.cat([p for p, _ in parts]).cpu(), torch.cat([p for _, p in parts]).cpu())
    everyone = [mine]
    if trainer.world_size > 1:
        everyone = [mine] * trainer.world_size
        torch.distributed.all_gather_object(everyone, mine)
    positions, probabilities = (torch.cat(tensors) for tensors in zip(*everyone, strict=True))
    order = positions.argsort()
    return positions[order], probabilities[order]


def tell(result: dict[str, Any], folder: Path | None) -> None:
    """The table at the end, and the same in a file of the run folder."""
    place = folder or Path(result["checkpoint"]).parent
    if "predictions" in result:
        _write_predictions(result, place / "predictions.csv")
        return
    split = result["split"]
    kept = {key: value for key, value in result.items() if key != "split"}
    runs.write_whole(json.dumps(kept, indent=2) + "\n", place / f"{split}.json")
    table = Table(title=f"{'Test' if split == 'test' else 'Validation'} result", show_header=False, min_width=50)
    table.add_column()
    table.add_column(overflow="fold")  # a path is there to be copied
    source = result["source"]
    table.add_row(
        "accuracy",
        f"[bold]{result['accuracy']:.2%}[/]  ({result['correct']:,} of {result['images']:,} images)",
    )
    table.add_row("loss", f"{result['loss']:.4f}")
    table.add_row("images of", "[bold red]SYNTHETIC digits, not MNIST[/]" if source == "synthetic" else source)
    moment = f"epoch {result['epoch']}" if result["epoch"] else f"step {result['step']}"
    table.add_row("checkpoint", escape(f"{result['checkpoint']}  ({moment})"))
    table.add_row("run folder", escape(str(place)))
    console.print(table)


def _write_predictions(result: dict[str, Any], path: Path) -> None:
    """One row an image of the test set: label, predicted digit, its probability."""
    positions, probabilities = result["predictions"]
    best = probabilities.max(1)
    labels = result["data"].labels("test").cpu()[positions].tolist()
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "prediction", "probability"])
        for row in zip(positions.tolist(), labels, best.indices.tolist(), best.values.tolist(), strict=True):
            writer.writerow([*row[:3], f"{row[3]:.6f}"])
    os.replace(temporary, path)
    say(f"{len(positions):,} predictions for {result['source']} test images: {path}")
