"""The verbs that prepare data: tokenizers, substrates, shards. Each calls one library function."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from glyphlm.base.errors import InputError
from glyphlm.base.jobs import Submitted
from glyphlm.cli.parser import TEXTS, Parser, engine_of, print_build, print_results, reading_of, settings_from
from glyphlm.substrate.settings import SubstrateSettings
from glyphlm.tokenizer.settings import NgramSettings, TokenizerSettings


def run_tokenizer_build(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "tokenizer build",
        "Lay out a vocabulary: tokenizer.json for any library, vocab.txt for reading. The layout compact is counted on your "
        "text; bvv241-2-3, bvv241-max and bvv241-abs are built from n-gram statistics, as published; bvv241-nemo keeps "
        "another tokenizer as it is.",
        "glyphlm tokenizer build --layout compact --vocab-size 8192 --out tok/ texts/ more.jsonl.gz\n"
        "  glyphlm tokenizer build --layout bvv241-2-3 --ngrams ngrams.txt --lossless --out tok/\n"
        "  glyphlm tokenizer build --layout bvv241-nemo --from mistral-nemo/ --out tok/",
    )
    parser.add_settings(
        TokenizerSettings, {"lossless": "published layouts: characters without an id become bytes"}, skip=("path", "base")
    )
    parser.add_argument("--from", help="folder of the Hugging Face tokenizer that bvv241-nemo keeps")
    parser.add_texts(needed=False)
    parser.add_out("folder of the tokenizer", required=True)
    options = parser.read(arguments)
    from glyphlm.tokenizer.build import build_tokenizer

    settings = settings_from(options, TokenizerSettings, base=options["from"])
    build_tokenizer(options.texts, settings, options.out, reading_of(options))
    print_build(options)


def run_tokenizer_extend(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "tokenizer extend",
        "Give more characters ids of their own, after all others: in a tokenizer, or in a trained run, which then reads "
        "them at once by their codes, and with a tied head writes them. Nothing that was trained changes.",
        "glyphlm tokenizer extend runs/mine --characters U+1F600-1F64F --out runs/with-emoji\n"
        "  glyphlm tokenizer extend tok/ --characters letters.txt --out wider-tok/",
    )
    parser.add_argument("source", type=Path, metavar="DIR", help="run folder, or folder of a tokenizer")
    parser.add_argument("--characters", required=True, help="a file that holds them, spans such as U+0400-04FF, or general "
                        "categories of Unicode such as So, separated by commas")
    parser.add_out("the new folder", required=True)
    options = parser.read(arguments)
    from glyphlm.data.exclusion import characters_of
    from glyphlm.experiments.extend import extend

    extend(options.source, characters_of(options.characters), options.out)
    print_build(options)


def run_tokenizer_ngrams(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "tokenizer ngrams",
        "Count the n-grams inside words, language by language, for the layouts bvv241-2-3, bvv241-max and bvv241-abs. "
        "The same command resumes after a stop; partial counts are kept in OUT.parts, which may be removed in the end.",
        "glyphlm tokenizer ngrams --lang en=english/ --lang ru=hf:wikimedia/wikipedia:20231101.ru --out ngrams.txt",
    )
    parser.add_argument(
        "--lang", action="append", required=True, metavar="CODE=TEXT", help=f"may be given several times; {TEXTS}"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 3, 4, 5], help="lengths of the n-grams in characters")
    parser.add_settings(NgramSettings, skip=("sizes",))
    parser.add_argument("--jobs", type=int, default=1, help="processes that count, each up to 700 MB")
    parser.add_engine()
    parser.add_reading()
    parser.add_out("the file of n-gram statistics", required=True)
    options = parser.read(arguments)
    from glyphlm.tokenizer.ngram_stats import count_ngrams

    settings = settings_from(options, NgramSettings, sizes=tuple(options.sizes))
    given = _texts_by_language(options.lang), settings, options.out, reading_of(options), options.jobs
    with suppress(Submitted):
        counted = count_ngrams(*given, engine_of(options))
        print_results(options, "", ({"file": str(options.out), "lang": one.lang, "language_name": one.language_name,
                                     "ngrams": {n: len(found) for n, found in one.top_ngrams.items()}} for one in counted))


def _texts_by_language(given: Sequence[str]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for one in given:
        lang, _, text = one.partition("=")
        if not lang or not text:
            raise InputError(f"--lang {one!r} is not of the form CODE=TEXT; give, for example, --lang en=texts/en.txt")
        texts.setdefault(lang, []).append(text)
    return texts


def run_tokenizer_compare(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "tokenizer compare",
        "Encode texts with several tokenizers, ours or any Hugging Face folder with a tokenizer.json. Printed for each "
        "language: characters and bytes per token, characters without an id, documents that decoding does not give back "
        "(changed), speed of encoding. With --out also as compare.jsonl, with a plot.",
        "glyphlm tokenizer compare tok-a/ tok-b/ en=english.txt ru.jsonl.gz --limit-mb 5 --out compare/",
    )
    parser.add_argument("given", nargs="+", metavar="TOKENIZER|[LANGUAGE=]TEXT",
                        help=f"folders of tokenizers, and {TEXTS}; without LANGUAGE= a text is named as its file")
    parser.add_argument("--limit_mb", type=float, help="megabytes of each language (default: all)")
    parser.add_reading()
    parser.add_out("also write the rows and a plot into this folder")
    options = parser.read(arguments)
    from glyphlm.analysis.tokenizers import compare, split_inputs, table

    rows = compare(*split_inputs(options.given), options.limit_mb, options.out, reading_of(options))
    print_results(options, table(rows), rows)


def run_substrate_build(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "substrate build",
        "Make the code of every token: pictures of glyphs, bits of the id, random codes, a table of others, or a random "
        "start to be learned.",
        "glyphlm substrate build --tokenizer tok/ --kind glyph --n-embed 256 --out sub/\n"
        "  glyphlm substrate build --tokenizer tok/ --kind affine_bits --n-embed 16 --lift tile --out sub/\n"
        "  glyphlm substrate build --tokenizer tok/ --kind given --file table.pt --n-embed 1024 --scale none --out sub/",
    )
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    flags = {
        "strict": "stop where a character is in no font",
        "trainable": "training may change the table",
        "unique": "kinds glyph, given: the last columns hold the bits of the id",
    }
    parser.add_settings(SubstrateSettings, flags, skip=("path", "font"))
    parser.add_argument("--font", nargs="*", default=[], help="font files in order of preference (default: GNU Unifont)")
    parser.add_out("folder of the substrate", required=True)
    options = parser.read(arguments)
    from glyphlm.substrate.build import build_substrate
    from glyphlm.tokenizer.tokenizer import Tokenizer

    build_substrate(Tokenizer.load(options.tokenizer), settings_from(options, SubstrateSettings), options.out)
    print_build(options)


def run_substrate_inspect(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "substrate inspect",
        "Print which tokens share a code, the norms and the rank of the codes, and nearest neighbours.",
        "glyphlm substrate inspect sub/ --nearest a the --out inspected/",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="substrate folder, or run folder")
    parser.add_argument("--nearest", nargs="+", default=[], metavar="TOKEN", help="tokens, or #ID, to list the nearest of")
    parser.add_out("also write inspect.json, map.png and the sheet of glyphs into this folder")
    options = parser.read(arguments)
    from glyphlm.analysis.inspection import inspect_folder

    print(inspect_folder(options.folder, options.nearest, options.out, options.json))


def run_prepare(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "prepare",
        "Tokenize a text into shards, a share of it held out for validation. The same command resumes after a stop.",
        "glyphlm prepare --tokenizer tok/ --out shards/ texts/",
    )
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    parser.add_argument("--validation_share", type=float, default=0.01, help="share of the documents held out")
    parser.add_argument("--specials_in_text", choices=("literal", "control"), default="literal",
                        help="names of special tokens in a text stay text, or become these tokens as in the published data")
    parser.add_argument("--exclude", metavar="CHARACTERS", help="characters that training must not see: a file that holds "
                        "them, spans such as U+0400-04FF, or categories of Unicode such as So")
    parser.add_argument("--excluding", choices=("drop", "cut"), default="drop",
                        help="leave out documents that hold one, or only the sentences")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 means one per core")
    parser.add_engine()
    parser.add_texts()
    parser.add_out("folder of the shards", required=True)
    options = parser.read(arguments)
    from glyphlm.data.exclusion import Exclusion
    from glyphlm.data.shards import prepare
    from glyphlm.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(options.tokenizer, options.specials_in_text)
    given = tokenizer, options.texts, options.out, options.validation_share, reading_of(options), options.jobs
    with suppress(Submitted):
        prepare(*given, engine_of(options), Exclusion.of(options.exclude, options.excluding))
        print_build(options)
