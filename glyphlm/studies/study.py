"""study(): arms of a recipe x seeds, made by the commands of a workflow, evaluated and compared."""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import one_writer
from glyphlm.base.progress import say
from glyphlm.composition.settings import FusionSettings
from glyphlm.evaluation.evaluate import parse_task
from glyphlm.experiments.recipe import settings_of
from glyphlm.runs.folder import read_summary
from glyphlm.studies.claims import check_claims
from glyphlm.studies.commands import Model, StudyCommands, Values, model_names
from glyphlm.studies.registration import planned_power, register
from glyphlm.studies.results import Choice, write_results
from glyphlm.studies.settings import Study
from glyphlm.studies.workflow import Command, failures, finished, reason, run_workflow
from glyphlm.training.settings import RANGES

Runner = Callable[[Sequence[Command]], None]
NAME = re.compile(r"[A-Za-z0-9_]+")


class CommandsFailed(InputError):
    """Some commands of a study failed; the results of the others are written."""


def study(
    settings: Study,
    out: Path,
    jobs: int = 1,
    dry_run: bool = False,
    unlock: bool = False,
    options: Sequence[str] = (),
    command: str = "glyphlm study",
    runner: Callable[..., None] | None = None,
) -> Path:
    """Make the missing models of a study in the folder `out`, and write its results; the path of results.md.

    The same call resumes a study that was stopped. Commands are ordered by seed: a stopped study has all arms with the first
    seeds.

    Args:
        jobs: Number of commands that run at once.
        options: Options of Snakemake.
        command: The command that repeats the study, for the results.
        runner: Called in place of `workflow.run_workflow`, with the same arguments.

    Raises:
        InputError: the study or a recipe of it contradicts itself, or as `workflow.run_workflow`.
        CommandsFailed: some commands failed; the results of the others are written.
    """
    check(settings, jobs)
    if settings.only:
        settings = replace(settings, arms={name: settings.arms[name] for name in settings.only})
    for line in planned_power(settings):
        say(line)
    with one_writer(out):
        engine = {"out": out, "jobs": jobs, "dry_run": dry_run, "unlock": unlock, "options": options}
        return _made(settings, out, partial(runner or run_workflow, **engine), command, dry_run)


def _made(settings: Study, out: Path, run: Runner, command: str, dry_run: bool) -> Path:
    registered = register(settings, out) if settings.claims and not dry_run else {}
    tuning, choices = _tune(settings, out, run)
    if dry_run and any(choice.values is None for choice in choices.values()):
        say("what comes after tuning is printed when the values are chosen")
        return out
    commands = StudyCommands(settings, out)
    for seed in settings.seeds:
        for arm in settings.arms:
            if (values := choices[arm].values) is not None:
                commands.train(arm, seed, values)
        for name, fused in settings.fuse.items():
            commands.fuse(name, fused, seed)
        commands.evaluate()
    run(commands.ordered)
    if dry_run:
        return out
    every = [*{each.name: each for each in [*tuning, *commands.ordered]}.values()]
    table = write_results(settings, choices, commands.models, every, out, command, registered)
    if failed := failures(every, out):
        name = failed[0].name
        raise CommandsFailed(f"{len(failed)} of {len(every)} commands failed ({name}: {reason(out, name)}); {table} has all "
                             "of them and the results of the others; the same command runs them again")
    return table


def check(settings: Study, jobs: int) -> None:
    """Check the settings of a study.

    Raises:
        InputError: a name, seed, task, value or claim is not valid; the message has the value and what is allowed.
    """
    if not settings.arms or not settings.seeds:
        raise InputError(f"a study needs arms and seeds (arms: {len(settings.arms)}, seeds: {settings.seeds})")
    for name in (*settings.arms, *settings.fuse):
        if not NAME.fullmatch(name):
            raise InputError(f"{name!r} cannot name an arm; use letters, digits and underscores")
    if twice := set(settings.arms) & set(settings.fuse):
        raise InputError(f"{', '.join(sorted(twice))} names an arm and a fused model; choose another name")
    if wrong := [seed for seed in [*settings.seeds, *settings.tune_seeds] if seed not in RANGES["seed"]]:
        raise InputError(f"seed {wrong[0]} must be {RANGES['seed']}")
    if settings.tune and (both := sorted(set(settings.seeds) & set(settings.tune_seeds))):
        raise InputError(f"seed {both[0]} is in seeds and in tune_seeds; tune with another, so that the results are of "
                         "seeds that chose nothing")
    if settings.tune and not settings.tune_seeds:
        raise InputError("tune_seeds is empty; give a seed that is not in seeds, such as [0]")
    if empty := [name for name, values in settings.tune.items() if not values]:
        raise InputError(f"tune.{empty[0]} has no values to try; give some, or remove it")
    for name, fused in settings.fuse.items():
        settings_of(FusionSettings, {key: value for key, value in fused.items() if key != "recipe"}, f"fuse.{name}")
    for task in settings.evaluate:
        parse_task(task)
    if len(set(settings.seeds)) < len(settings.seeds):
        raise InputError(f"seeds {settings.seeds} has one twice; name each once")
    wanted = {"only": settings.only, **{f"fuse {name}": [*fused.get("experts", [""]), *fused.get("routers", [])]
                                        for name, fused in settings.fuse.items()}}
    for name, arms in wanted.items():
        if unknown := [arm for arm in arms if arm not in settings.arms]:
            raise InputError(f"{name} names {', '.join(unknown) or 'no experts'}; the arms are {', '.join(settings.arms)}")
    if settings.claims:
        check_claims(settings.claims, model_names(settings))
    if jobs < 1:
        raise InputError(f"--jobs {jobs} is less than 1")


def _tune(settings: Study, out: Path, run: Runner) -> tuple[list[Command], dict[str, Choice]]:
    """The commands that train all values with the tuning seeds, and the values with the fewest bits per byte of each arm."""
    commands, tried = StudyCommands(settings, out), {}
    choices = {arm: Choice(next(iter(_combinations(settings, arm)))) for arm in settings.arms}
    for arm in settings.arms:
        if len(combinations := _combinations(settings, arm)) > 1:
            tried[arm] = [(values, [commands.train(arm, seed, values) for seed in settings.tune_seeds])
                          for values in combinations]
    if not tried:
        return [], choices
    run(commands.ordered)
    done = finished(commands.ordered, out)
    best = {arm: _best([(values, _reached(models, done)) for values, models in runs]) for arm, runs in tried.items()}
    if unjudged := [arm for arm, runs in tried.items() if best[arm].values is None
                    and all(model.made_by in done for _, models in runs for model in models)]:
        raise InputError(f"{', '.join(unjudged)}: of so few documents none was held out, by which values could be compared; "
                         f"give more documents, or set {', '.join(settings.tune)} in these arms")
    return commands.ordered, choices | best


def _combinations(settings: Study, arm: str) -> list[Values]:
    """All combinations of the values to try, except of keys that the arm itself sets; at least the empty one."""
    free = {key: values for key, values in settings.tune.items() if not _sets(settings.arms[arm] or {}, key)}
    return [dict(zip(free, values)) for values in itertools.product(*free.values())]


def _sets(changes: Values, key: str) -> bool:
    """Whether the changes of an arm set the dotted `key`."""
    first, _, rest = key.partition(".")
    return key in changes or (first in changes and (not rest or _sets(changes[first] or {}, rest)))


def _reached(models: Sequence[Model], done: set[str]) -> float | None:
    """The mean bits per byte over the tuning seeds; None if one of the models failed."""
    summaries = [read_summary(model.run) if model.made_by in done else None for model in models]
    reached = [summary["bits_per_byte"]["validation"] for summary in summaries if summary]
    return sum(reached) / len(reached) if len(reached) == len(models) and None not in reached else None


def _best(tried: Sequence[tuple[Values, float | None]]) -> Choice:
    """The values with the fewest bits per byte."""
    reached = [(bits, values) for values, bits in tried if bits is not None]
    return Choice(min(reached, key=lambda one: one[0])[1] if reached else None, tuple(tried))
