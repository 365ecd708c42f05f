"""The verbs that exchange models: import, export, push, serve. Each calls one library function."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from glyphlm.base.errors import InputError
from glyphlm.base.progress import working
from glyphlm.cli.parser import Parser, print_build, print_results, settings_from
from glyphlm.interop.settings import ImportSettings, ServeSettings

RUN = "run folder, or hf:OWNER/NAME[@REVISION]"


def run_import(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "import",
        "Make a run folder from a published checkpoint, a folder or a name on the Hub. Its Python files are never run: "
        "tensors are found by their shapes and places, and what does not fit is refused. What shapes cannot show is an "
        "option; --check prints the loss of a text under each.",
        'glyphlm import best_bvv_ru/ --check "The capital of France is Paris."\n'
        "  glyphlm import best_bvv_ru/ --rotation interleaved --out runs/best_bvv_ru",
    )
    parser.add_argument("source", metavar="SRC", help="folder of the checkpoint, or hf:OWNER/NAME[@REVISION]")
    flags = {"signed": "codes made of bits are -1 and 1, not 0 and 1", "trainable": "further training changes the table"}
    parser.add_settings(ImportSettings, flags)
    parser.add_argument("--check", metavar="TEXT", help="print the loss of this text under each candidate; write nothing")
    parser.add_out("run folder")
    options = parser.read(arguments)
    from glyphlm.interop.import_model import check, import_checkpoint, readings_text

    settings = settings_from(options, ImportSettings)
    if options.check is None and options.out is None:
        raise InputError("give --out RUN for the run folder, or --check TEXT to try")
    with working(f"reading {options.source}"):
        if options.check is not None:
            rows = check(options.source, options.check, settings)
            text = readings_text(rows)
        else:
            command = f"glyphlm import {shlex.join(arguments)}"
            summary = import_checkpoint(options.source, options.out, settings, command)
            rows, text = [{"folder": str(options.out), **summary}], ""
    print_results(options, text, rows)


def run_export(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "export",
        "Write a run for other tools: as a stock GPT-NeoX folder, which transformers, vLLM and others open without "
        "glyphlm and without remote code, or as a GGUF file for llama.cpp. What they cannot express is reported or refused.",
        "glyphlm export runs/mine --to gpt_neox --out exports/mine\n"
        "  glyphlm export runs/mine --to gguf --quantize q8_0 --out exports/mine-gguf",
    )
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("--to", choices=("gpt_neox", "gguf"), required=True, help="what to write")
    parser.add_argument("--quantize", choices=("f32", "f16", "q8_0"), default="f32", help="gguf: how matrices are stored")
    parser.add_argument("--fold_head_bias", action="store_true", help="move the head's bias into the final norm, if exact")
    parser.add_out("folder to write", required=True)
    options = parser.read(arguments)
    if options.to == "gpt_neox" and options.quantize != "f32":
        raise InputError(f"--quantize {options.quantize} applies only to --to gguf; gpt_neox is written in float32")
    from glyphlm.interop.run import Run

    more = {"quantize": options.quantize} if options.to == "gguf" else {}
    with working(f"exporting {options.run}"):
        written = Run(options.run).export(options.out, options.to, fold_head_bias=options.fold_head_bias, **more)
    print_build(options, written)


def run_pull(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "pull",
        "Download a run of the Hub: weights, config, tokenizer, records; never its Python files. It goes into the cache of "
        "the Hub, where every verb that reads a run finds hf:OWNER/NAME without network; with --out also into a folder.",
        "glyphlm pull hf:me/mine@v1\n  glyphlm pull hf:me/mine --out runs/mine --json",
    )
    parser.add_argument("name", metavar="hf:OWNER/NAME[@REVISION]", help="repository, with a branch, tag or commit")
    parser.add_out("also make this run folder of it")
    options = parser.read(arguments)
    from glyphlm.base.hub import pull
    from glyphlm.base.outputs import sha256_file

    found = pull(options.name)
    if options.out:
        from glyphlm.interop.import_model import import_checkpoint

        with working(f"writing {options.out}"):
            import_checkpoint(str(found.folder), options.out, ImportSettings(), f"glyphlm pull {shlex.join(arguments)}")
    weights = {path.name: sha256_file(path) for path in sorted(found.folder.glob("*.safetensors"))}
    row = {"repo": found.repo, "revision": found.revision, "folder": str(options.out or found.folder), "sha256": weights}
    lines = [f"{name:9} {row[name]}" for name in ("repo", "revision", "folder")]
    lines += [f"sha256    {digest}  {name}" for name, digest in weights.items()]
    print_results(options, "\n".join(lines), [row])


def run_push(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "push",
        "Upload a run, or an export of one, to the Hugging Face Hub. The card of a run is rewritten with its current "
        "results. Training state is not uploaded.",
        "glyphlm push runs/mine --repo me/mine --license apache-2.0 --language en ru",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, or folder of glyphlm export")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="repository; it is created if it does not exist")
    parser.add_argument("--private", action="store_true", help="make it private")
    parser.add_argument("--license", help="as the Hub spells it, such as apache-2.0")
    parser.add_argument("--language", nargs="+", default=[], help="codes of the languages of the training text")
    parser.add_argument("--datasets", nargs="+", default=[], help="names on the Hub, besides the recipe's hf:NAME")
    options = parser.read(arguments)
    from glyphlm.interop.run import Run
    from glyphlm.runs.card import CardSettings

    url = Run(options.run).push(options.repo, options.private, settings_from(options, CardSettings))
    print_results(options, url, [{"run": str(options.run), "repo": options.repo, "url": url}])


def run_serve(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "serve",
        "Answer OpenAI clients with a run (pip install 'glyphlm[serve]'): GET /health and /v1/models, POST /v1/completions "
        "and /v1/chat/completions, also as streams. Requests name the model by the name of the run folder; chat needs a "
        "chat template in chat_template.jinja or tokenizer_config.json of the run. With --server vllm a GPT-NeoX export of "
        "the run, kept in RUN/.served, is served by vLLM; its command is printed, to be run again with options of its own.",
        "glyphlm serve runs/mine --port 8000",
        json=False,
    )
    parser.add_argument("run", metavar="RUN", help=f"{RUN}, or a folder that transformers read without remote code")
    parser.add_settings(ServeSettings)
    options = parser.read(arguments)
    from glyphlm.interop.serve import serve

    serve(options.run, settings_from(options, ServeSettings))
