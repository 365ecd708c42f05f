"""study(): the arms of one recipe x seeds, made by the commands of a workflow, measured and compared."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import one_writer
from glyphlm.base.progress import say
from glyphlm.composition.fusionsettings import FusionSettings
from glyphlm.evaluation.evaluate import parse_task
from glyphlm.experiments.recipe import settings_of
from glyphlm.runs.folder import read_summary
from glyphlm.studies.claims import check_claims
from glyphlm.studies.commands import Model, StudyCommands, Values, model_names
from glyphlm.studies.results import Choice, write_results
from glyphlm.studies.settings import Study
from glyphlm.studies.workflow import Command, failures, finished, reason, run_workflow
from glyphlm.training.settings import RANGES

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
) -> Path:
    """Make what is missing of the study in the folder `out`; its table, `out`/results.md, with what could not be made.

    The same call again goes on after any stop; where all is finished it only writes the results. `jobs` commands run at
    once; `options` are Snakemake's. `command` is what a reader types to repeat it.

    Raises:
        InputError: the study or a recipe of it contradicts itself, or as `workflow.run_workflow`.
        CommandsFailed: some commands failed; the results of the others are written.
    """
    check(settings, jobs)
    if settings.only:
        settings = replace(settings, arms={name: settings.arms[name] for name in settings.only})
    with one_writer(out):
        engine = {"out": out, "jobs": jobs, "dry_run": dry_run, "unlock": unlock, "options": options}
        return _made(settings, out, engine, command)


def _made(settings: Study, out: Path, engine: Values, command: str) -> Path:
    tuning, choices = _tune(settings, out, engine)
    if engine["dry_run"] and any(choice.values is None for choice in choices.values()):
        say("what comes after tuning is printed when the values are chosen")
        return out
    commands = StudyCommands(settings, out)
    for arm, seed in itertools.product(settings.arms, settings.seeds):
        if (values := choices[arm].values) is not None:
            commands.train(arm, seed, values)
    for name, seed in itertools.product(settings.fuse, settings.seeds):
        commands.fuse(name, settings.fuse[name], seed)
    commands.evaluate()
    run_workflow(commands.ordered, **engine)
    if engine["dry_run"]:
        return out
    every = [*{each.name: each for each in [*tuning, *commands.ordered]}.values()]
    table = write_results(settings, choices, commands.models, every, out, command)
    if failed := failures(every, out):
        name = failed[0].name
        raise CommandsFailed(f"{len(failed)} of {len(every)} commands failed ({name}: {reason(out, name)}); {table} has all "
                             "of them and the results of the others; the same command runs them again")
    return table


def check(settings: Study, jobs: int) -> None:
    """Refuse a study that cannot be made.

    Raises:
        InputError: with the value and what is allowed.
    """
    if not settings.arms or not settings.seeds:
        raise InputError(f"a study needs arms and seeds (arms: {len(settings.arms)}, seeds: {settings.seeds})")
    for name in (*settings.arms, *settings.fuse):
        if not NAME.fullmatch(name):
            raise InputError(f"{name!r} cannot name an arm; use letters, digits and underscores")
    if twice := set(settings.arms) & set(settings.fuse):
        raise InputError(f"{', '.join(sorted(twice))} names an arm and a fused model; choose another name")
    if wrong := [seed for seed in settings.seeds if seed not in RANGES["seed"]]:
        raise InputError(f"seed {wrong[0]} must be {RANGES['seed']}")
    if empty := [name for name, values in settings.tune.items() if not values]:
        raise InputError(f"tune.{empty[0]} has no values to try; give some, or remove it")
    for name, fused in settings.fuse.items():
        settings_of(FusionSettings, {key: value for key, value in fused.items() if key != "recipe"}, f"fuse.{name}")
    for task in settings.evaluate:
        parse_task(task)
    if len(set(settings.seeds)) < len(settings.seeds):
        raise InputError(f"seeds {settings.seeds} has one twice; name each once")
    wanted = {"only": settings.only, **{f"fuse {name}": fused.get("experts", [""]) for name, fused in settings.fuse.items()}}
    for name, arms in wanted.items():
        if unknown := [arm for arm in arms if arm not in settings.arms]:
            raise InputError(f"{name} names {', '.join(unknown) or 'no experts'}; the arms are {', '.join(settings.arms)}")
    if settings.claims:
        check_claims(settings.claims, model_names(settings))
    if jobs < 1:
        raise InputError(f"--jobs {jobs} is less than 1")


def _tune(settings: Study, out: Path, engine: Values) -> tuple[list[Command], dict[str, Choice]]:
    """The commands that try values with the first seed, and the values of each arm with the fewest bits per byte."""
    if not settings.tune:
        return [], {arm: Choice({}) for arm in settings.arms}
    commands, tried = StudyCommands(settings, out), {}
    combinations = [dict(zip(settings.tune, values)) for values in itertools.product(*settings.tune.values())]
    for arm in settings.arms:
        tried[arm] = [(values, commands.train(arm, settings.seeds[0], values)) for values in combinations]
    run_workflow(commands.ordered, **engine)
    done = finished(commands.ordered, out)
    best = {arm: _best([(values, _reached(model, done)) for values, model in runs]) for arm, runs in tried.items()}
    return commands.ordered, best


def _reached(model: Model, done: set[str]) -> float | None:
    summary = read_summary(model.run) if model.made_by in done else None
    return summary["bits_per_byte"]["validation"] if summary else None


def _best(tried: Sequence[tuple[Values, float | None]]) -> Choice:
    """The values with the fewest bits per byte; None where every training failed."""
    reached = [(bits, values) for values, bits in tried if bits is not None]
    return Choice(min(reached, key=lambda one: one[0])[1] if reached else None, tuple(tried))
