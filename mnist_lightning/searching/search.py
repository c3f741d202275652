"""A search from its beginning to its end."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import Trial, TrialState

from mnist_lightning.console import console, say
from mnist_lightning.data import lent
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import UserError
from mnist_lightning.files import write_whole
from mnist_lightning.processes import Signals
from mnist_lightning.searching import end
from mnist_lightning.searching.conduct import Conductor, Ended
from mnist_lightning.searching.plan import Plan, prepare
from mnist_lightning.searching.screen import Screen, final_table, in_words, seeds_in_words, shown, with_std
from mnist_lightning.searching.storage import open_database, open_journal, quiet, study_errors
from mnist_lightning.searching.study import Study, final_name
from mnist_lightning.searching.team import Team
from mnist_lightning.words import Pairs


@dataclass
class Search:
    """The trials of a study and its end, by a team of workers."""

    plan: Plan
    team: Team
    signals: Signals
    study: Study
    final: Study
    told: Pairs  # settings that follow from the data

    @classmethod
    @contextmanager
    def opened(cls, plan: Plan, team: Team, signals: Signals) -> Iterator["Search"]:
        """Reads the digits once for all workers, and opens the study or begins it."""
        with ExitStack() as stack:
            stack.enter_context(quiet())
            told = prepare(plan.data)
            _lend(plan.data, team, stack)
            stack.enter_context(study_errors(plan.folder, plan.asked.storage))
            name = plan.folder.name
            try:
                plan.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{plan.folder} cannot be made: {error.strerror}; see --trainer.default_root_dir"
                ) from error
            url = plan.asked.storage
            storage, locks = open_database(url, name) if url else open_journal(plan.folder)
            stack.callback(locks.close)
            maximize, seed = plan.asked.accuracy, plan.seed
            study = Study(name, storage, locks, maximize=maximize, space=plan.space, pruner=plan.pruner(), seed=seed)
            final = Study(final_name(name), storage, locks, maximize=maximize, seed=seed)
            study.agree(plan.terms(), plan.first)
            yield cls(plan, team, signals, study, final, told)

    # ------------------------------------------------------------------ trials

    def trials(self) -> bool:
        """Trains trials until there are as many as were asked for, or the time is up; whether the end is due."""
        asked, there = self.plan.asked, self.study.trials()
        finished = sum(trial.state.is_finished() for trial in there)
        known = f", {finished} of them are there" if finished else ""
        say(f"Study {self.plan.folder}: {asked.trials} trials{known}; {self.team.jobs} at a time")
        for one in self.plan.space:
            say(f"  {one.name}: {one.told()}")
        deadline = time.monotonic() + 60 * asked.minutes
        with Screen(self.plan.folder.name, asked.trials, asked.accuracy, deadline) as screen:
            conductor = self._conductor(self.study, "trials", self._trial, screen)
            why = conductor.carry_out(asked.trials, deadline)
        ranked = end.by_rank(self.study.trials(), asked.accuracy)
        if not ranked:
            say("No trial has come to its end")
            return False
        best = ranked[0]
        value = shown(best.value, asked.accuracy)
        say(f"The best is trial {best.number}: validation {asked.objective} {value}, {in_words(best.params)}")
        if why is Ended.TIME and self.study.of_others():
            say("The time is up; others go on with the study, and with its end")
            return False
        if why is Ended.TIME:
            say(f"The time is up after {sum(trial.state.is_finished() for trial in self.study.trials())} trials")
        return True

    def _trial(self, trial: Trial) -> tuple[Pairs, str]:
        return self._plain(self.plan.settings(trial.params)), f"trial{trial.number}"

    def _plain(self, settings: Pairs) -> Pairs:
        """As JSON has them."""
        pairs = settings + self.told
        return [(name, end.path_of(value) if isinstance(value, type) else value) for name, value in pairs]

    def _conductor(self, study: Study, folder: str, plan: Any, screen: Screen, keep: tuple[str, ...] = ()) -> Conductor:
        place, accuracy = self.plan.folder / folder, self.plan.asked.accuracy
        return Conductor(study, self.team, place, plan, accuracy, self.signals, screen.seen, keep)

    # ------------------------------------------------------------------ the end

    def finish(self) -> None:
        """Trains the best anew, writes the recipe of the winner and tests it, once."""
        asked, accuracy = self.plan.asked, self.plan.asked.accuracy
        numbers = end.best_numbers(self.study, accuracy, asked.best, self.plan.first)
        tasks = [{"of": number, "seed": seed} for seed in self.plan.seeds for number in numbers]
        self.final.wish_for(tasks)
        names = ", ".join(map(end.name_of, numbers))
        say(f"The end: {names} with {seeds_in_words(asked.seeds)} each, {len(tasks)} trainings")
        with Screen(self.final.name, len(self.final.trials()), accuracy) as screen:
            self._conductor(self.final, "final", self._training, screen, keep=("best.ckpt",)).carry_out(0)
        those = end.of_final(self.study.trials(), self.final.trials())
        if not those:
            raise UserError("no training of the end came to anything: see why above")
        winner = end.winner_of(those, accuracy)
        console.print(final_table(those, winner, accuracy))
        recipe = self.plan.folder / "best.yaml"
        write_whole(end.recipe(self.plan.start, self.plan.space, winner.params, self._about(winner, those)), recipe)
        if winner.number == end.START:
            say("No settings were better than those that it started from")
        say(f"Settings of {winner.name}: {recipe}; train with: python -m mnist_lightning fit --config {recipe}")
        self._test(winner)

    def _training(self, trial: Trial) -> tuple[Pairs, str]:
        number, seed = trial.user_attrs["of"], trial.user_attrs["seed"]
        params = {} if number == end.START else self.study.trials()[number].params
        return self._plain([*self.plan.settings(params), ("seed", seed)]), end.run_of(number, seed)

    def _about(self, winner: end.Finalist, those: list[end.Finalist]) -> list[str]:
        """What best.yaml says of itself."""
        asked, accuracy = self.plan.asked, self.plan.asked.accuracy
        lines = [f"Found by search, study {self.plan.folder.name}, {winner.name}. Validation {asked.objective}:"]
        for one in those:
            if one is winner or one.number == end.START:
                lines.append(f"{one.name}: {with_std(one.mean, one.std, len(one.values), accuracy)}")
        return lines

    def _test(self, winner: end.Finalist) -> None:
        """The winner's test accuracy, which nothing depends on; known ones are told again."""
        folder, key = self.plan.folder / "final", str(winner.number)
        known = (self.final.optuna.user_attrs.get(end.TEST) or {}).get(key)
        names = [end.run_of(winner.number, seed) for seed in sorted(winner.values)]
        if known is None or known["n"] < len(names):
            found = end.test_accuracies(self.team, folder, names)
            accuracies = [one["accuracy"] for one in found if "accuracy" in one]
            if not accuracies:
                say(f"{winner.name} was not tested: its checkpoints, or test images, are not here")
                return
            known = {"n": len(accuracies), "accuracies": accuracies, "images": found[0].get("source")}
            self.final.note(end.TEST, lambda old: {**(old or {}), key: known})
        mean, std, n = end.mean_std(known["accuracies"])
        say(f"Test accuracy of {winner.name}: {with_std(mean, std, n, True)}, on {known['images']}")
        for trial in self.final.trials(TrialState.COMPLETE):
            name = end.run_of(trial.user_attrs["of"], trial.user_attrs["seed"])
            if name not in names:
                (folder / name / "best.ckpt").unlink(missing_ok=True)
        if (folder / names[0] / "best.ckpt").exists():
            others = f", and those of {seeds_in_words(n - 1)} more" if n > 1 else ""
            say(f"Its checkpoint: {folder / names[0] / 'best.ckpt'}{others}")


def _lend(data: Any, team: Team, stack: ExitStack) -> None:
    """Puts the digits where all workers have them in memory together."""
    if not isinstance(data, MNISTDataModule) or data.hparams["classes"] or data.hparams["drawn"]:
        return
    memory = Path("/dev/shm")
    place = stack.enter_context(
        tempfile.TemporaryDirectory(
            prefix="digits-", dir=memory if memory.is_dir() else None, ignore_cleanup_errors=True
        )
    )
    try:
        lent.write(Path(place), data, "train")
    except OSError:
        return  # no room: each reads them itself
    team.lend(Path(place))
