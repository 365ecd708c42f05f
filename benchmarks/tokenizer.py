"""Bulk encoding, ours and the peers in one run: CPU time on one thread, medians of interleaved rounds, equal ids asserted.

  python benchmarks/tokenizer.py --tokenizer tok/ en=english.jsonl.gz ru=russian.jsonl zh=chinese.parquet
  python benchmarks/tokenizer.py --memory --tokenizer tok/ en=english.jsonl.gz
"""

import os

os.environ["RAYON_NUM_THREADS"] = "1"  # read by tokenizers when it is imported: one thread for everyone

import argparse
import hashlib
import importlib.util
import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, models, pre_tokenizers, trainers

from glyphlm.analysis.tokenizers import MB, Timed, limited, split_inputs
from glyphlm.base.errors import InputError
from glyphlm.base.records import to_lines
from glyphlm.corpus.phrasebook import phrases
from glyphlm.corpus.reading import Passage, passages
from glyphlm.tokenizer.build import TokenizerSettings, build_tokenizer
from glyphlm.tokenizer.spelling import spell_byte_level
from glyphlm.tokenizer.tokenizer import Tokenizer

PEERS = ("encode", "encode_batch_fast")
BATCH = 256  # documents of one call of encode_batch_fast: its results are held together, 30 times the text
TIKTOKEN_SIZE, TRAINED_ON = 1 << 16, 10  # ids of the byte-level vocabulary, learned from every tenth document
WORD = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"  # much as GPT-2 cuts
DOCUMENT_END = b"\xff" * 4  # no id

Documents = Sequence[str]
Encode = Callable[[Documents], Iterator[tuple[Sequence[int], bool]]]  # ids, and whether they end a document


def main() -> None:
    """Read the command line and print one table a tokenizer, or the peak memory of prepare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="*", metavar="LANG=TEXT", help="as prepare takes them (default: the phrase book)")
    parser.add_argument("--tokenizer", action="append", default=[], metavar="DIR", help="(default: compact on the text)")
    parser.add_argument("--mb", type=float, help="megabytes: of each language (default 20), of the line (1000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="peak memory of prepare on a file of one long line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts = options.texts or write_phrases(Path(folder))
        folders = options.tokenizer or [build_compact(Path(folder) / "compact", texts)]
        folders, texts = split_inputs([*folders, *texts])
        if options.memory:
            print_memory(folders, [text for found in texts.values() for text in found], options.mb or 1000)
        else:
            documents = {lang: read_documents(found, options.mb or 20) for lang, found in texts.items()}
            print_speeds(folders, documents, options.rounds)


def write_phrases(folder: Path) -> list[str]:
    """The embedded phrase book as LANG=FILE."""
    rows = defaultdict(list)
    for phrase in phrases():
        rows[phrase.language].append({"text": phrase.text})
    for lang in rows:
        (folder / f"{lang}.jsonl").write_text(to_lines(rows[lang]), encoding="utf-8")
    return [f"{lang}={folder}/{lang}.jsonl" for lang in sorted(rows)]


def build_compact(folder: Path, texts: Sequence[str]) -> str:
    """A tokenizer of 4,096 ids on the same text."""
    build_tokenizer([text.partition("=")[2] for text in texts], TokenizerSettings(vocab_size=4096), folder)
    return str(folder)


def read_documents(texts: Sequence[str], megabytes: float) -> list[str]:
    """Documents; of long ones, parts of a quarter million characters, which the peers can hold."""
    return [passage.text for passage in limited(passages(texts), megabytes)]


# Speed


def print_speeds(folders: Sequence[str], documents: Mapping[str, Documents], rounds: int) -> None:
    """A table for each tokenizer: MB of text a second by language and over all, and how many times faster ours is."""
    reference = {}
    if importlib.util.find_spec("tiktoken"):
        reference["tiktoken"] = byte_level_bpe([text for found in documents.values() for text in found[::TRAINED_ON]])
    else:
        print("tiktoken is not installed: its column is left out (pip install tiktoken)")
    megabytes = {lang: sum(len(text.encode()) for text in found) / MB for lang, found in documents.items()}
    for folder in folders:
        backend = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        seconds = measure(backend, reference, documents, rounds)
        print(f"\n{folder}: MB a second of CPU time, one thread, medians of {rounds}")
        print(speed_table(seconds, megabytes))


def measure(
    backend: tokenizers.Tokenizer, reference: Mapping[str, Encode], documents: Mapping[str, Documents], rounds: int
) -> dict[str, dict[str, float]]:
    """Encoder -> language -> median seconds. The rounds go through all encoders in turn, so that noise meets all alike."""
    seconds = defaultdict(lambda: defaultdict(list))
    for _, (lang, found) in itertools.product(range(rounds), documents.items()):
        encoders = {"ours": our_encoder(backend), **peer_encoders(backend), **reference}
        digests = {}
        for name, encode in encoders.items():
            spent, digests[name] = run(encode(found))
            seconds[name][lang].append(spent)
        assert {digests[peer] for peer in PEERS} == {digests["ours"]}, f"other ids in {lang}"
    return {name: {lang: statistics.median(spent) for lang, spent in found.items()} for name, found in seconds.items()}


def our_encoder(backend: tokenizers.Tokenizer) -> Encode:
    """New for each run: the pieces it comes to know in one are not known in the next. Its making is not measured."""
    tokenizer = Tokenizer(backend)  # takes names of special tokens in a text for text, here and for the peers
    list(tokenizer.encode_passages([Passage("\n", True)]))
    return lambda documents: tokenizer.encode_passages(Passage(text, True) for text in documents)


def peer_encoders(backend: tokenizers.Tokenizer) -> dict[str, Encode]:
    """What `tokenizers` itself offers: a document at a time, and its fastest way for many."""

    def encode(documents: Documents) -> Iterator[tuple[list[int], bool]]:
        for text in documents:
            yield backend.encode(text, add_special_tokens=False).ids, True

    def encode_batch_fast(documents: Documents) -> Iterator[tuple[list[int], bool]]:
        for start in range(0, len(documents), BATCH):
            for encoding in backend.encode_batch_fast(documents[start : start + BATCH], add_special_tokens=False):
                yield encoding.ids, True

    return dict(zip(PEERS, (encode, encode_batch_fast)))


def byte_level_bpe(documents: Documents) -> Encode:
    """A vocabulary of another kind, as a point of reference: byte-level BPE inside words, trained here, run by tiktoken."""
    import tiktoken

    trained = tokenizers.Tokenizer(models.BPE())
    words, letters = pre_tokenizers.Split(Regex(WORD), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=TIKTOKEN_SIZE, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(documents, trainer)
    ranks = {spell_byte_level(token): number for token, number in trained.get_vocab().items()}
    encoding = tiktoken.Encoding("reference", pat_str=WORD, mergeable_ranks=ranks, special_tokens={})
    return lambda documents: ((encoding.encode_ordinary(text), True) for text in documents)


def run(pieces: Iterable[tuple[Sequence[int], bool]]) -> tuple[float, bytes]:
    """CPU seconds that the ids took, and a digest of them."""
    timed, digest = Timed(pieces, time.process_time), hashlib.blake2b()
    for ids, last in timed:
        digest.update(np.asarray(ids, np.uint32).tobytes() + DOCUMENT_END * last)
    return timed.seconds, digest.digest()


def speed_table(seconds: Mapping[str, Mapping[str, float]], megabytes: Mapping[str, float]) -> str:
    """Speeds and ratios as aligned text, over all languages in the last line."""
    lines = [["text", "MB", *seconds, *(f"ours/{peer}" for peer in PEERS)]]
    for lang, langs in [*((lang, [lang]) for lang in megabytes), ("all", list(megabytes))]:
        size = sum(megabytes[lang] for lang in langs)
        spent = {name: sum(found[lang] for lang in langs) for name, found in seconds.items()}
        ratios = [f"{spent[peer] / spent['ours']:.2f}x" for peer in PEERS]
        lines.append([lang, f"{size:.1f}", *(f"{size / spent[name]:.2f}" for name in seconds), *ratios])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


# Memory


def print_memory(folders: Sequence[str], texts: Sequence[str], megabytes: float) -> None:
    """The largest memory that `glyphlm prepare` took, over all tokenizers.

    No text is held here: on Linux a child's peak begins with what its parent holds.
    """
    with tempfile.TemporaryDirectory() as folder:
        line = Path(folder) / "line.txt"
        write_line(line, texts, megabytes)
        for tokenizer in folders:
            out = Path(folder) / f"shards{len(list(Path(folder).iterdir()))}"
            command = [sys.executable, "-m", "glyphlm", "prepare", "--tokenizer", tokenizer, "--out", str(out), str(line)]
            subprocess.run(command, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    print(f"glyphlm prepare on one line of {megabytes:g} MB: {peak:.0f} MiB at most")


def write_line(path: Path, texts: Sequence[str], megabytes: float) -> None:
    """The texts over and over, without a newline."""
    endless = itertools.chain.from_iterable(passages(texts) for _ in itertools.count())
    with path.open("w", encoding="utf-8") as file:
        file.writelines(passage.text.replace("\n", " ") for passage in limited(endless, megabytes))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
