"""The verbs that use models: generated text, scores, probes, reports. Each calls one library function."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glyphlm.analysis.settings import ProbeSettings
from glyphlm.base.progress import working
from glyphlm.cli.parser import Parser, print_results, reading_of, settings_from
from glyphlm.evaluation.settings import TASK_NAMES, EvalSettings
from glyphlm.runs.sampling import Sampling

RUNS = "a run folder, hf:OWNER/NAME[@REVISION], or a folder that transformers read without remote code"


def run_generate(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "generate",
        "Continue prompts with a trained run; the text appears as it is written.",
        'glyphlm generate runs/mine --prompt "Hello, мир! " --temperature 0.8\n'
        '  glyphlm generate hf:me/mine@v1 --prompt "Hello" --device cuda --json',
    )
    parser.add_argument("run", metavar="RUN", help=RUNS)
    parser.add_argument("--prompt", action="append", required=True, help="text to continue; may be given several times")
    parser.add_settings(Sampling)
    parser.add_device()
    parser.add_threads()
    options = parser.read(arguments)
    from glyphlm.runs.generate import stream
    from glyphlm.runs.opening import open_model

    sampling, opened = settings_from(options, Sampling), open_model(options.run, options.device)
    for prompt in options.prompt:
        ids = opened.prompt_ids(prompt)
        pieces = stream(opened, ids, sampling)
        if options.json:
            row = {"run": opened.name, "prompt": prompt, "text": "".join(pieces), "settings": sampling.describe()}
            print_results(options, "", [row])
            continue
        print(opened.tokenizer.decode(ids), end="", flush=True)
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
        finally:  # so that an error has a line of its own
            print()


def run_chat(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "chat",
        "Talk with a run, or with several side by side: a frozen model and its twin answer the same line. A run with a chat "
        "template, as training on examples (sft) writes it, answers questions; another one continues the text so far. "
        "/reset starts over, /settings shows or changes the sampling (/settings temperature 0.5), /quit ends.",
        "glyphlm chat runs/frozen runs/twin --max-new-tokens 60",
    )
    parser.usage = "glyphlm chat RUN [RUN ...] [options]"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=RUNS)
    parser.add_settings(Sampling)
    parser.add_device()
    parser.add_threads()
    options = parser.read(arguments)
    from glyphlm.cli.conversation import converse
    from glyphlm.runs.opening import open_model

    converse([open_model(run, options.device) for run in options.runs], settings_from(options, Sampling), options.json)


def run_eval(arguments: Sequence[str]) -> None:
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
    parser.add_device()
    parser.add_reading()
    parser.add_out("also keep all rows in this file")
    parser.add_threads()
    options = parser.read(arguments)
    from glyphlm.base.progress import say
    from glyphlm.base.threads import sharing_cores
    from glyphlm.evaluation.evaluate import evaluate
    from glyphlm.evaluation.text import beside_line, comparison_table, published_lines, result_table

    given = options.runs, options.tasks, options.out, options.device, reading_of(options)
    with sharing_cores():
        found = evaluate(*given, settings_from(options, EvalSettings), options.log_items)
    tables = result_table(found.rows), published_lines(found.rows), comparison_table(found.comparisons)
    print_results(options, "\n\n".join(filter(None, tables)), (row.to_json() for row in (*found.rows, *found.comparisons)))
    for row in found.rows:
        if row.protocol == "sampled" and not row.subject and not options.json:
            say(beside_line(row))  # to stderr: stdout holds lines in the published format, which can be parsed


def run_probe(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "probe",
        "Probe the representations of trained runs layer by layer: nearest neighbours of words, and how well script, case, "
        "category and translations can be predicted, next to chance and to the same model untrained. The last layer is "
        "printed; all layers go into probes.jsonl, probes.svg and neighbours.txt.",
        "glyphlm probe runs/frozen runs/twin --words Germany 国 --out probes/\n"
        "  glyphlm probe runs/* --pairs words.tsv --text held_out.txt --out probes/\n"
        "  glyphlm probe runs/glyph runs/random --unseen held_out.txt --oracle runs/all --text text.jsonl --out unseen/",
    )
    parser.usage = "glyphlm probe RUN [RUN ...] [options] --out FOLDER"
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, side by side in the plot")
    parser.add_settings(ProbeSettings, skip=("words", "tsne"))
    parser.add_argument("--words", nargs="*", default=[], metavar="WORD",
                        help="texts whose nearest neighbours are listed (default: five of the names that are translated)")
    parser.add_argument("--tsne", action="store_true", help="also draw tsne.png: the tokens of each script in the plane, "
                        "at the codes, the middle block and the final norm (extra tsne)")
    parser.add_argument("--unseen", metavar="CHARACTERS", help="instead: what the runs know about characters that training "
                        "never showed, in --text; a file of them, spans such as U+0400-04FF, or categories such as So")
    parser.add_argument("--oracle", metavar="RUN", help="with --unseen: a run that saw these characters in training")
    parser.add_device()
    parser.add_out("folder of the rows, the plot and the neighbours", required=True)
    options = parser.read(arguments)
    if options.unseen:
        _probe_unseen(options)
        return
    from glyphlm.analysis.probes import probe, table

    rows = probe(options.runs, options.out, settings_from(options, ProbeSettings), options.device)
    print_results(options, table(rows), rows)


def _probe_unseen(options: Any) -> None:
    """What runs know about characters that they were not trained on.

    Raises:
        InputError: no text with these characters is named.
    """
    from glyphlm.analysis.unseen import probe_unseen, table
    from glyphlm.base.errors import InputError
    from glyphlm.data.exclusion import characters_of

    if not options.text:
        raise InputError(f"--unseen {options.unseen} needs a text that holds these characters; name it with --text")
    rows = probe_unseen(options.runs, characters_of(options.unseen), options.text, options.out, options.oracle)
    print_results(options, table(rows), rows)


def run_report(arguments: Sequence[str]) -> None:
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
    parser.add_argument("--unseen", type=Path, metavar="FOLDER",
                        help="what glyphlm probe --unseen has written: adds its table and pictures")
    parser.add_out("the page", default=Path("report.html"))
    options = parser.read(arguments)
    from glyphlm.pages.report import write_report

    inputs = {name: options[name] for name in ("published", "logs", "unseen")}
    with working("writing the report"):
        page = write_report(options.runs, options.out, options.title, **inputs)
    print_results(options, str(page), [{"page": str(page)}])


def run_show(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "show",
        "Show on one HTML page how a run reads a text: each token's picture, code and nearest tokens, the prediction after "
        "each layer, and the next token beside that of a twin. glyphlm serve shows the same page for text that is typed.",
        "glyphlm show runs/quickstart/runs/glyph --twin runs/quickstart/runs/twin --out page.html\n"
        '  glyphlm show runs/mine --text "Hello, мир! " --text 你好 --out page.html',
    )
    parser.add_argument("run", metavar="RUN", help="run folder: trained, grown, fused or imported")
    parser.add_argument("--twin", metavar="RUN", help="a run over the same tokenizer, shown beside it")
    parser.add_argument("--text", action="append", default=[], help="text to show; may be given several times (default: "
                        "prepared texts in several scripts, and samples of the run)")
    parser.add_out("the page", default=Path("page.html"))
    options = parser.read(arguments)
    from glyphlm.pages.show import write_show

    page = write_show(options.run, options.out, options.twin, options.text)
    print_results(options, str(page), [{"page": str(page)}])
