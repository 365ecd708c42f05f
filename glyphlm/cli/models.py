"""The verbs that make models: quickstart, train, grow, fuse, plan, study. Each calls one library function."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from glyphlm.base.names import RESULTS, SUMMARY
from glyphlm.base.outputs import check_file, write_atomic
from glyphlm.base.progress import IS_MAIN, working
from glyphlm.base.records import read_json, read_json_lines, to_json
from glyphlm.cli.parser import TEXTS, Parser, print_results, settings_from
from glyphlm.composition.settings import FusionSettings
from glyphlm.experiments.recipe import GrowthRecipe, Recipe
from glyphlm.planning.settings import PlanSettings
from glyphlm.studies.settings import Study


def run_quickstart(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "quickstart",
        "The whole way on a phrase book in English, Russian and Chinese that needs no network: tokenizer, substrates, "
        "shards, a frozen glyph model, its trainable twin, a frozen token-bits model, and a report.",
        "glyphlm quickstart --out runs/quickstart",
    )
    parser.add_out("folder of everything", default=Path("runs/quickstart"))
    parser.add_threads()
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of each arm (default: about 5 minutes)")
    parser.add_argument("--font", nargs="*", default=[], help="font files, in order of preference")
    options = parser.read(arguments)
    from glyphlm.studies.quickstart import quickstart

    page = quickstart(options.out, options.steps, options.font)
    print_results(options, str(page), _summaries(path.parent for path in sorted(options.out.glob(f"runs/*/{SUMMARY}"))))


def _summaries(runs: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """summary.json of each run, with its folder."""
    return ({"folder": str(run), **read_json(run / SUMMARY)} for run in runs)


def run_train(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "train",
        "Train the model of a recipe; any of its values can be overridden. The same command resumes after a stop.",
        "glyphlm train recipe.yaml --train.steps 2000 --out runs/mine",
    )
    parser.usage = "glyphlm train RECIPE [--section.key VALUE ...] --out RUN"
    parser.add_recipe()
    parser.add_argument("--dry_run", action="store_true", help="check everything up to the first step, and train nothing")
    parser.add_out("run folder", required=True)
    parser.add_threads()
    options, recipe = parser.read_recipe(arguments, Recipe)
    from glyphlm.experiments.train_recipe import run_recipe  # loads transformers, which --help need not wait for

    summary = run_recipe(recipe, options.out, f"glyphlm train {shlex.join(arguments)}", options.dry_run)
    if IS_MAIN:
        print_results(options, "", [{"folder": str(options.out), **summary}])


def run_grow(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "grow",
        "Grow a model in the stages of a recipe: train some layers, freeze them, train new ones on top. Each stage is a run "
        "folder (OUT/stage-1, stage-2 ..) that loads like any other, and so are the controls of the same shape, trained all "
        "at once. The same command resumes after a stop; with more stages it grows the model further.",
        "glyphlm grow recipe.yaml --out runs/grown\n"
        "  glyphlm grow recipe.yaml --growth.base runs/mine --growth.start zero --out runs/mine-grown",
    )
    parser.usage = "glyphlm grow RECIPE [--section.key VALUE ...] --out FOLDER"
    parser.add_recipe()
    parser.add_out("folder of the stages", required=True)
    parser.add_threads()
    options, recipe = parser.read_recipe(arguments, GrowthRecipe)
    from glyphlm.experiments.grow_recipe import run_growth
    from glyphlm.pages.report import write_report

    runs = run_growth(recipe, options.out, f"glyphlm grow {shlex.join(arguments)}")
    if IS_MAIN:
        with working("writing the report"):
            page = write_report(runs, options.out / "report.html", f"{options.out.name}, grown")
        print_results(options, str(page), _summaries(runs))


def run_fuse(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "fuse",
        "Fuse models that were trained apart over one vocabulary into one, without training: a run folder that generates, "
        "is scored and loads like any other. A fused run among them counts as its experts, so that experts can join one "
        "after another, and leave again (--without). With --level bytes experts have any vocabularies, and may be models of "
        "other libraries (folders that transformers read, or hf:NAME). Trained methods (gate, head, adapter) belong into a "
        "recipe: fusion: {experts: [...], method: gate}, for glyphlm train.",
        "glyphlm fuse runs/en-ru runs/en-zh --out runs/moe\n"
        "  glyphlm fuse runs/moe runs/en-de --out runs/three\n"
        "  glyphlm fuse runs/three --without 3 --out runs/two\n"
        "  glyphlm fuse runs/en-ru runs/en-zh --method weighted_logits --weights 0.7 0.3 --out runs/mixed\n"
        "  glyphlm fuse runs/en-ru hf:EleutherAI/pythia-70m --level bytes --method posterior --reset 0.01 --out runs/docked",
    )
    parser.usage = "glyphlm fuse RUN RUN [RUN ...] [--method METHOD] --out FOLDER"
    parser.add_argument("experts", nargs="+", metavar="RUN", help="run folders, of single or fused models")
    others = ("experts", "without", "routers", "weights", "allow_different_substrates", "top_k", "rank")
    parser.add_settings(FusionSettings, skip=others)
    parser.add_argument("--routers", nargs="+", default=[], metavar="RUN", help="of router: small runs, one an expert")
    parser.add_argument("--without", nargs="+", type=int, default=[], metavar="N", help="experts to leave out, from 1 on")
    parser.add_argument("--weights", nargs="+", type=float, help="of the runs, in their order, with the sum 1")
    parser.add_switch("--allow_different_substrates", "fuse experts that read other codes or tables")
    parser.add_out("run folder to write", required=True)
    options = parser.read(arguments)
    from glyphlm.composition.fuse import fuse

    with working("fusing"):
        fuse(settings_from(options, FusionSettings), options.out, f"glyphlm fuse {shlex.join(arguments)}")
    print_results(options, str(options.out), _summaries([options.out]))


def run_plan(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "plan",
        "Estimate what a recipe costs before anything is built: parameters, memory, FLOPs, time and money, the largest "
        "micro-batch that fits, and what would save. Planned for this machine, a few training steps are timed.",
        "glyphlm plan recipe.yaml\n  glyphlm plan recipe.yaml --gpu h200 --gpus 8 --parallel fsdp2 --price-per-hour 3",
    )
    parser.usage = "glyphlm plan RECIPE [--section.key VALUE ...] [options]"
    parser.add_recipe()
    parser.add_settings(PlanSettings, skip=("measure",))
    parser.add_switch("--measure", "time training steps here", default=True)
    parser.add_out("also write the plan to this file, as JSON")
    options, recipe = parser.read_recipe(arguments, GrowthRecipe)
    from glyphlm.planning.plan import make_plans
    from glyphlm.planning.text import plan_text

    if options.out:
        check_file(options.out, ('"flops_per_token"', '"forecast"'), "plan.json")
    plans = make_plans(recipe, settings_from(options, PlanSettings))
    print_results(options, "\n".join(map(plan_text, plans)).removesuffix("\n"), plans)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.out, to_json(plans if recipe.stages else plans[0]))


def run_study(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "study",
        "Train the arms of a recipe with several seeds, grow, fuse and evaluate them, and write OUT/results.md with "
        "intervals over seeds. Every step is a glyphlm command; Snakemake runs those that are not finished, here or on a "
        "cluster. The same command resumes after a stop. A step that fails does not stop others; the exit code is then 2.",
        "glyphlm study recipes/study_freezing.yaml --profile laptop --out runs/freezing --jobs 2\n"
        "  glyphlm study study.yaml --data en.txt ru.txt --evaluate bpb=held_out.txt mmlu=mmlu/test --out runs/mine\n"
        "  glyphlm study study.yaml --out runs/mine --jobs 20 -- --executor slurm --default-resources slurm_partition=gpu",
    )
    parser.usage = "glyphlm study STUDY [--key VALUE ...] --out FOLDER [-- OPTIONS OF SNAKEMAKE]"
    parser.add_recipe("study")
    parser.add_argument("--seeds", type=int, nargs="+", help="each arm is trained once with each (default: 1 2 3)")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="the arms to make (default: all)")
    parser.add_argument("--evaluate", nargs="+", metavar="NAME=PATH", help="tasks of glyphlm eval for all models")
    parser.add_argument("--data", nargs="+", metavar="TEXT|NAME=PATH",
                        help=f"instead of the data of the recipe; {TEXTS}, and examples, as NAME=PATH")
    parser.add_argument("--jobs", type=int, default=1, help="commands that run at once; here they share the cores")
    parser.add_argument("--dry_run", action="store_true", help="print what would run, and why, and run nothing")
    parser.add_argument("--unlock", action="store_true", help="resume after a kill: remove the lock of Snakemake")
    parser.add_out("folder of everything", required=True)
    place = arguments.index("--") if "--" in arguments else len(arguments)
    ours, of_snakemake = arguments[:place], arguments[place + 1 :]
    given, settings = parser.read_recipe(ours, Study, "study", ("seeds", "only", "evaluate", "data"))
    from glyphlm.studies.workflow import check_installed

    check_installed()
    from glyphlm.studies.study import study  # loads transformers, which --help need not wait for

    command = f"glyphlm study {shlex.join(ours)}"
    table = study(settings, given.out, given.jobs, given.dry_run, given.unlock, of_snakemake, command)
    print_results(given, str(table), [] if given.dry_run else read_json_lines(given.out / RESULTS))
