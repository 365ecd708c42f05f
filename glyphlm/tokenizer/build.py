"""Text, n-gram statistics or a foreign tokenizer -> the tokenizer folder of a named layout."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import tokenizers

from glyphlm.base.errors import InputError
from glyphlm.base.names import TOKENIZER
from glyphlm.base.outputs import Build, one_writer, sha256_file
from glyphlm.base.progress import say
from glyphlm.corpus.reading import STRICT, Reading, passages
from glyphlm.corpus.sources import describe
from glyphlm.tokenizer.layouts import (
    LAYOUTS,
    choose_published_ngrams,
    compact_backend,
    published_backend,
    read_shared_strings,
    read_special_names,
)
from glyphlm.tokenizer.ngram_stats import read_ngrams
from glyphlm.tokenizer.ngrams import count_text
from glyphlm.tokenizer.settings import COMPACT_SIZE, MIN_VOCAB, TokenizerSettings
from glyphlm.tokenizer.tokenizer import Tokenizer

PUBLISHED_ONLY = ("ngrams", "shared_strings", "top_ngrams", "special_names", "lossless")
TAKEN = {  # the settings that apply to each layout, and the inputs that it needs
    "compact": (("vocab_size",), "text"),
    **{name: (PUBLISHED_ONLY, "ngrams") for name in LAYOUTS},
    "bvv241-nemo": (("base",), "base"),
}


def build_tokenizer(texts: Sequence[str], settings: TokenizerSettings, out: Path, reading: Reading = STRICT) -> Tokenizer:
    """Lay out the vocabulary and write the tokenizer folder `out`; a finished one is only loaded.

    Raises:
        InputError: the settings do not belong to the layout, its inputs are missing or do not fit, or `out` holds
            something else.
    """
    check_settings(texts, settings)
    used, _ = TAKEN[settings.layout]
    settings = replace(settings, vocab_size=settings.vocab_size or COMPACT_SIZE) if used == ("vocab_size",) else settings
    kept = {key: value for key, value in asdict(settings).items() if key in ("layout", *used)}
    files = {str(path): sha256_file(path) for path in _input_files(settings)}
    build = Build("tokenizer", {**kept, **reading.settings()}, describe(texts) if texts else files)
    with one_writer(out):
        if not build.is_done(out):
            tokenizer = _make(texts, settings, reading)
            with build.folder(out) as partial:
                tokenizer.save(partial)
                if settings.layout in LAYOUTS:
                    _save_published_files(partial)
                build.result = {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}
            say(f"{out}: {tokenizer.vocab_size:,} tokens, see {out}/vocab.txt")
        return Tokenizer.load(out)


def check_settings(texts: Sequence[str], settings: TokenizerSettings) -> None:
    """Refuse settings that do not apply to the layout, and a layout whose inputs are missing.

    Raises:
        InputError: the value, what belongs to the layout, and the cure are named.
    """
    (used, source), layout, empty = TAKEN[settings.layout], settings.layout, TokenizerSettings()
    for name, value in asdict(settings).items():
        if name not in ("path", "layout", *used) and value != getattr(empty, name):
            raise InputError(f"layout {layout} takes no {name} ({value!r}); it takes {', '.join(used)}")
    if source == "text" and not texts:
        raise InputError(f"layout {layout} is counted on text: name files, folders or hf:NAME data sets")
    if source != "text" and texts:
        raise InputError(f"layout {layout} is not counted on text ({texts[0]!r}); leave the texts out")
    if source == "ngrams" and not settings.ngrams:
        raise InputError(f"layout {layout} is made from n-gram statistics: name a file with --ngrams, published or counted "
                         "by glyphlm tokenizer ngrams")
    if source == "base" and not settings.base:
        raise InputError(f"layout {layout} keeps the ids of another tokenizer: name its folder with --from")
    size = settings.vocab_size
    if size is not None and size < MIN_VOCAB:
        raise InputError(f"vocab_size {size} is below {MIN_VOCAB}, which 256 bytes and letters need")


def _input_files(settings: TokenizerSettings) -> list[Path]:
    """The files that settings name.

    Raises:
        InputError: one does not exist.
    """
    paths = [Path(path) for path in (settings.ngrams, settings.shared_strings, settings.special_names) if path]
    if settings.base:
        paths.append(Path(settings.base) / TOKENIZER)
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} does not exist; name a file that does"
                             + (", such as a folder made by: hf download NAME --local-dir DIR" if settings.base else ""))
    return paths


def _make(texts: Sequence[str], settings: TokenizerSettings, reading: Reading) -> Tokenizer:
    if settings.layout == "compact":
        counts = count_text(passages(texts, reading, "counting words"))
        say(f"learning n-grams from {len(counts.words):,} distinct words")
        return Tokenizer(compact_backend(counts, settings.vocab_size or COMPACT_SIZE))
    if settings.layout == "bvv241-nemo":
        return _checked(str(settings.base))
    return Tokenizer(_published(settings))


def with_characters(tokenizer: Tokenizer, characters: str) -> Tokenizer:
    """The tokenizer with an id, after all others, for each character that has none; the ids of other text stay.

    Raises:
        InputError: each has an id already, or the vocabulary is not one whose tokens are spelled as text.
    """
    parts = json.loads(tokenizer.to_json())
    vocab = parts["model"].get("vocab")
    if not isinstance(vocab, dict) or not parts["model"].get("byte_fallback"):
        raise InputError("only vocabularies of ours can be extended, whose tokens are spelled as text; build another one")
    new = [character for character in dict.fromkeys(characters) if character not in vocab]
    if not new:
        raise InputError(f"all of the {len(characters)} characters have ids already; give others")
    parts["model"]["vocab"] = vocab | {character: tokenizer.vocab_size + place for place, character in enumerate(new)}
    backend = tokenizers.Tokenizer.from_str(json.dumps(parts, ensure_ascii=False))
    return Tokenizer(backend, tokenizer.config, tokenizer.specials_in_text)


def _checked(folder: str) -> Tokenizer:
    """A foreign tokenizer, which must have an end-of-text token and tokens whose bytes are known.

    Raises:
        InputError: it does not, or is damaged.
    """
    foreign = Tokenizer.load(folder)
    try:
        say(f"{folder}: {foreign.vocab_size:,} ids, {int(foreign.bytes_per_id_V.max())} bytes the longest, "
            f"end of text {foreign.tokens[foreign.end_id]!r}")
    except InputError as error:
        raise InputError(f"{folder} cannot be used: {error}") from None
    return foreign


def _published(settings: TokenizerSettings) -> tokenizers.Tokenizer:
    layout = LAYOUTS[settings.layout]
    shared = read_shared_strings(settings.shared_strings) if settings.shared_strings else []
    ngrams = choose_published_ngrams(read_ngrams(Path(str(settings.ngrams))), shared, layout, settings.top_ngrams)
    names = read_special_names(settings.special_names) if settings.special_names else None
    return published_backend(ngrams, layout, names, settings.lossless)


def _save_published_files(folder: Path) -> None:
    """Write vocab.json and merges.txt, which the published repositories hold besides tokenizer.json."""
    model = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("".join(f"{left} {right}\n" for left, right in model["merges"]), encoding="utf-8")
