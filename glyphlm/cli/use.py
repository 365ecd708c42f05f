"""The verbs that use models: generated text, scores, probes, reports. Each calls one library function."""

from collections.abc import Sequence
from pathlib import Path

from glyphlm.analysis.settings import ProbeSettings
from glyphlm.cli.parser import Parser, reading_of, settings_from
from glyphlm.evaluation.settings import TASK_NAMES, EvalSettings
from glyphlm.runs.sampling import Sampling


def run_generate(arguments: Sequence[str]) -> None:
    """glyphlm generate."""
    parser = Parser.of(
        "generate",
        "Continue prompts with a trained run.",
        'glyphlm generate runs/mine --prompt "Hello, мир! " --temperature 0.8',
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("--prompt", action="append", required=True, help="text to continue; may be given several times")
    parser.add_settings(Sampling)
    options = parser.read(arguments)
    from glyphlm.runs.generate import generate

    for text in generate(options.run, options.prompt, settings_from(options, Sampling)):
        print(text)


def run_eval(arguments: Sequence[str]) -> None:
    """glyphlm eval."""
    parser = Parser.of(
        "eval",
        "Evaluate models on benchmark questions and on texts. Results are printed, and kept in results.jsonl of each "
        "run; several models are compared with the first on the same items. The same command resumes after a stop.",
        "glyphlm eval runs/mine runs/twin --tasks mmlu=mmlu/test boolq=boolq.jsonl bpb=held_out.txt --out results.jsonl\n"
        "  glyphlm eval runs/mine --tasks mmlu=hf: --protocol sampled",
    )
    parser.usage = "glyphlm eval RUN [RUN ...] --tasks NAME=PATH [NAME=PATH ...] [options]"
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="run folders, other folders that transformers read without remote code, or hf:NAME")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="NAME=PATH",
                        help="bpb=TEXT: bits per byte; questions in their original files, or hf: for the Hub: "
                        f"{', '.join(TASK_NAMES)}")
    parser.add_settings(EvalSettings)
    parser.add_argument("--log_items", type=Path, metavar="FOLDER", help="also keep a log of each item, to score again")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_reading()
    parser.add_out("also keep all rows in this file")
    parser.add_threads()
    options = parser.read(arguments)
    from glyphlm.base.devices import resolve_device
    from glyphlm.base.progress import say
    from glyphlm.base.threads import sharing_cores
    from glyphlm.evaluation.evaluate import evaluate
    from glyphlm.evaluation.text import beside_line, comparison_line, result_line

    settings = settings_from(options, EvalSettings)
    device = resolve_device(options.device)
    with sharing_cores():
        found = evaluate(options.runs, options.tasks, options.out, device, reading_of(options), settings, options.log_items)
    for row in found.rows:
        print(result_line(row))
        if row.protocol == "sampled" and not row.subject:
            say(beside_line(row))  # apart from the published lines, which can be read again as such
    for row in found.comparisons:
        print(comparison_line(row))


def run_probe(arguments: Sequence[str]) -> None:
    """glyphlm probe."""
    parser = Parser.of(
        "probe",
        "Probe the representations of trained runs layer by layer: nearest neighbours of words, and how well script, case, "
        "category and translations can be predicted, next to chance and to the same model untrained. The last layer is "
        "printed; all layers go into probes.jsonl, probes.svg and neighbours.txt.",
        "glyphlm probe runs/frozen runs/twin --words Germany 国 --out probes/\n"
        "  glyphlm probe runs/* --pairs words.tsv --text held_out.txt --out probes/",
    )
    parser.usage = "glyphlm probe RUN [RUN ...] [options] --out FOLDER"
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, side by side in the plot")
    parser.add_settings(ProbeSettings, skip=("words",))
    parser.add_argument("--words", nargs="*", default=[], metavar="WORD",
                        help="texts whose nearest neighbours are listed (default: five of the names that are translated)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_out("folder of the rows, the plot and the neighbours", required=True)
    options = parser.read(arguments)
    from glyphlm.analysis.probes import probe, table
    from glyphlm.base.devices import resolve_device

    settings = settings_from(options, ProbeSettings)
    print(table(probe(options.runs, options.out, settings, resolve_device(options.device))))


def run_report(arguments: Sequence[str]) -> None:
    """glyphlm report."""
    parser = Parser.of(
        "report",
        "Compare finished runs on one HTML page that opens without network: curves, samples, results of glyphlm eval.",
        "glyphlm report runs/* --out report.html\n"
        "  glyphlm report runs/frozen runs/twin --logs logs --published published/*.txt --out report.html",
    )
    parser.usage = "glyphlm report RUN [RUN ...] [options] --out FILE"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders; other paths are passed over")
    parser.add_argument("--title", default="GlyphLM report", help="heading of the page")
    parser.add_argument("--published", nargs="*", type=Path, default=[], metavar="FILE",
                        help="files of published benchmark lines, shown next to results of the sampled protocol")
    parser.add_argument("--logs", type=Path, metavar="FOLDER",
                        help="what glyphlm eval --log-items has filled: adds the differences of the runs from the first")
    parser.add_out("the page", default=Path("report.html"))
    options = parser.read(arguments)
    from glyphlm.analysis.report import write_report

    inputs = {name: options[name] for name in ("published", "logs")}
    print(write_report(options.runs, options.out, options.title, **inputs))


def run_show(arguments: Sequence[str]) -> None:
    """glyphlm show."""
    parser = Parser.of(
        "show",
        "Show on one HTML page how a run reads a text: each token's picture, code and nearest tokens, the prediction after "
        "each layer, and the next token beside that of a twin. glyphlm serve shows the same page for text that is typed.",
        "glyphlm show runs/quickstart/runs/glyph --twin runs/quickstart/runs/twin --out page.html\n"
        '  glyphlm show runs/mine --text "Hello, мир! " --text 你好 --out page.html',
    )
    parser.add_argument("run", help="run folder: trained, grown, fused or imported")
    parser.add_argument("--twin", metavar="RUN", help="a run over the same tokenizer, shown beside it")
    parser.add_argument("--text", action="append", default=[], help="text to show; may be given several times (default: "
                        "prepared texts in several scripts, and samples of the run)")
    parser.add_out("the page", default=Path("page.html"))
    options = parser.read(arguments)
    from glyphlm.analysis.show import write_show

    print(write_show(options.run, options.out, options.twin, options.text))
