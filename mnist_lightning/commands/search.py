"""`search`: better settings for a recipe, by many short trainings."""

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mnist_lightning.errors import needs
from mnist_lightning.processes import Interrupted, Signals
from mnist_lightning.searching.flags import split
from mnist_lightning.words import Pairs, merged, pairs_of_words, with_files

USAGE = """usage: python -m mnist_lightning search [--config NAME|FILE …] [--SETTING VALUE …]

Trains a recipe many times with other settings, ends early what is no good, and keeps everything in
checkpoints/STUDY/. Trials are compared on validation images. In the end the best settings are trained anew with several
seeds beside the recipe's own; the winner is written to checkpoints/STUDY/best.yaml, for fit --config, and tested once.
The same command goes on after any interruption; in more terminals, or on machines that see the folder, it joins in.

  --trials N             how many trials the study is to have (50)
  --minutes M            give out no more after so long; trials that run then wait for the same command to go on
  --space FILE           what may be set to what, as YAML; without, what the recipe's own values suggest:
                           model.lr: {log: [1e-4, 1e-2]}
                           model.dropout: {uniform: [0.0, 0.6], step: 0.1}
                           model.hidden: [[64], [128], [256, 128]]
                           data.batch_size: {int: [32, 256]}
  --study NAME           the folder's name (that of the recipe with -search)
  --objective accuracy|loss        on the validation images (accuracy)
  --pruner hyperband|median|none   what ends a trial early (hyperband)
  --jobs N               trials beside each other (one a core; on a GPU one)
  --best K               how many of the best are trained anew (3); 0: none
  --seeds N              with how many seeds each (3)
  --storage postgresql://USER@HOST/DATABASE   for machines that share no folder

Besides, all settings of fit: --config, --model.…, --data.…, --trainer.…, --seed; see fit --help.
"""


def command(name: str, words: list[str], signals: Signals) -> None:
    """Searches, alone or together with others, and tells what was found."""
    pairs = pairs_of_words(words)
    if any(flag == "help" for flag, _ in pairs):
        print(USAGE, end="")
        return
    asked, settings = split(pairs)
    with needs("search", "search"):
        import optuna  # noqa: F401
    from mnist_lightning.searching.team import Team, cores

    again = f"python -m mnist_lightning search {shlex.join(words)}".rstrip()
    with ExitStack() as stack:
        team = Team(asked.jobs or (1 if _has_gpu(settings) else cores()))  # they import torch while this process does
        stack.callback(team.end)
        from mnist_lightning.searching.plan import make_plan
        from mnist_lightning.searching.search import Search

        signals.imported()
        plan = make_plan(settings, asked)
        stack.enter_context(_stoppable(signals, plan.folder, again))
        search = stack.enter_context(Search.opened(plan, team, signals))
        if search.trials() and plan.asked.best:
            search.finish()


@contextmanager
def _stoppable(signals: Signals, folder: Path, again: str) -> Iterator[None]:
    """A signal is noted and looked for, so that no trial is left half told; then it says how to go on."""
    signals.deferred = True
    try:
        yield
        if signals.received:
            raise Interrupted(signals.received)
    except Interrupted as interrupted:
        interrupted.told = f"stopped; the study {folder} is intact: go on with {again}"
        raise
    finally:
        signals.deferred = False


def _has_gpu(settings: Pairs) -> bool:
    """Whether trials train on a GPU, which one then has to itself; asked of the system, as torch takes seconds."""
    accelerator = merged(with_files(settings)).get("trainer.accelerator", "auto")
    return accelerator != "cpu" and any(Path("/proc/driver/nvidia/gpus").glob("*"))
