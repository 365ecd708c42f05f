"""Documents or supervised examples -> token shards on disk, in parallel and resumable, part by part.

A shard folder holds parts, each made from one large file or several small ones: flat files of ids (uint16 up to 65,536
ids, else uint32) for the splits `train` and `validation`, documents one after another, each ended by `</s>`;
`.documents` files with where each begins (uint64). build.json counts all parts and has the sha256 of every file.
token_bytes.npy has the bytes of text that each id stands for.
"""

import hashlib
import io
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from glyphlm.base.errors import InputError
from glyphlm.base.jobs import Engine, refuse_open_tasks, share_out, usable_cores
from glyphlm.base.names import HUB
from glyphlm.base.outputs import Build, found_build, one_writer, read_build, sha256_file
from glyphlm.base.progress import meter, say
from glyphlm.corpus.reading import STRICT, Reading, check_sources, passages
from glyphlm.corpus.sources import describe, find_sources, is_data_set, size_of
from glyphlm.corpus.tasks import BETWEEN, TASKS, describe_task, read_task, task_files
from glyphlm.data.exclusion import Exclusion
from glyphlm.tokenizer.tokenizer import Piece, Tokenizer

SHARD_TOKENS = 1 << 26  # 128 MiB of uint16: large for the file system, small to copy or check
PART_BYTES = 1 << 26  # small files share a part until they have this size together
TOKEN_BYTES = "token_bytes.npy"
SPLITS = ("train", "validation")


def prepare(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    out: Path,
    validation_share: float = 0.01,
    reading: Reading = STRICT,
    jobs: int = 1,
    engine: Engine | None = None,
    exclusion: Exclusion | None = None,
) -> Path:
    """Tokenize `texts` into the shard folder `out`; finished work is skipped.

    Documents (of long ones, pieces of about 16,000 characters) go to validation by a hash of their ids, so that equal
    documents stay on one side and the choice does not depend on their order. `jobs` processes (0: one per core) make the
    parts, or the tasks of `engine`; their number changes nothing. After a stop, the same command makes the parts that are
    missing. Text that `exclusion` leaves out is counted in build.json.

    Raises:
        InputError: the text is bad, the share is not in [0, 1], `out` holds something else or is being written.
    """
    if jobs < 0:
        raise InputError(f"jobs {jobs} is less than 0; give the number of processes, or 0 for one a core")
    _check_share(validation_share)
    with one_writer(out):
        found_build(out)
        sources = find_sources(texts)
        check_sources(sources, reading)
        inputs = describe(sources)
        plan = Preparation(tokenizer, validation_share, reading, inputs, group_sources(inputs), exclusion)
        build = plan.record(plan.inputs)
        if build.is_done(out):
            return out
        refuse_open_tasks(out)
        with build.folder(out, resume=True) as partial:
            plan.write_parts(partial, jobs, engine)
            build.result = _complete(partial, tokenizer, plan.collect(partial))
    _say_counts(out, build.result, validation_share)
    return out


def prepare_examples(tokenizer: Tokenizer, specs: Sequence[str], out: Path, validation_share: float = 0.01) -> Path:
    """Tokenize supervised examples (NAME=PATH, see corpus.tasks) into the shard folder `out`, as `prepare` does texts.

    Each is a document of its own. `.answers` files (uint8, one a token) mark the tokens of the answer, its `</s>`
    included, so that a recipe can learn from answers alone.

    Raises:
        InputError: a file is missing or damaged (the line is named), or `out` holds something else.
    """
    _check_share(validation_share)
    settings = {"validation_share": validation_share, "specials_in_text": tokenizer.specials_in_text}
    with one_writer(out):
        build = Build("shards", settings, {"tokenizer": tokenizer.fingerprint, **describe_examples(specs)})
        if build.is_done(out):
            return out
        with build.folder(out) as partial, ExitStack() as files:
            writers = {split: files.enter_context(_ShardWriter(partial, split, tokenizer, answers=True)) for split in SPLITS}
            for example in examples(specs, "tokenizing examples"):
                prompt, answer = (np.array(ids, np.uint32) for ids in tokenizer.encode_pair(*example))
                held_out = _held_out(np.concatenate([prompt, answer]), validation_share)
                writers["validation" if held_out else "train"].write_example(prompt, answer)
            splits = {split: writer.close() for split, writer in writers.items()}
            build.result = _complete(partial, tokenizer, {"splits": splits})
    _say_counts(out, build.result, validation_share)
    return out


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise InputError(f"validation share {share} is not between 0 and 1; give such as 0.01")


@dataclass(frozen=True)
class Preparation:
    """Specification of a shard folder. Each part can be made independently, by any process on any machine.

    Args:
        inputs: every source and its sha256, in order.
        parts: the same sources by part.
    """

    tokenizer: Tokenizer
    validation_share: float
    reading: Reading
    inputs: dict[str, str]
    parts: list[list[str]]
    exclusion: Exclusion | None = None

    def record(self, sources: Iterable[str]) -> Build:
        """Settings and input digests of the shards of `sources`."""
        settings = {"validation_share": self.validation_share, "specials_in_text": self.tokenizer.specials_in_text}
        made_from = {"tokenizer": self.tokenizer.fingerprint, **{source: self.inputs[source] for source in sources}}
        excluded = self.exclusion.settings() if self.exclusion else {}
        return Build("shards", {**settings, **self.reading.settings(), **excluded}, made_from)

    def write_parts(self, folder: Path, jobs: int, engine: Engine | None = None) -> None:
        """Make every part that is missing in `folder`: in `jobs` processes, or on `engine`."""
        missing = [number for number, sources in enumerate(self.parts) if not self._is_there(folder, number)]
        if len(missing) < len(self.parts):
            say(f"resuming: {len(self.parts) - len(missing)} of {len(self.parts)} parts are finished")
        if engine and missing:
            engine(self.write_part, [(folder, number) for number in missing])
            return
        jobs = min(len(missing), jobs or usable_cores())
        if jobs <= 1:
            for number in missing:
                place = f" {number + 1}/{len(self.parts)}" if len(self.parts) > 1 else ""
                self.write_part(folder, number, f"tokenizing{place}")
            return
        share_out(self.write_part, [(folder, number) for number in missing], jobs, "tokenizing", [1] * len(missing))

    def write_part(self, folder: Path, number: int, title: str | None = None) -> None:
        """Make one part, if it is not there; `title` is that of a progress bar."""
        sources = self.parts[number]
        build = self.record(sources)
        if build.is_done(folder / part_name(number)):
            return  # a cluster may start a task twice
        with build.folder(folder / part_name(number)) as partial, ExitStack() as files:
            writers = {split: files.enter_context(_ShardWriter(partial, split, self.tokenizer)) for split in SPLITS}
            skipped, excluded = Counter[str](), Counter[str]()
            found = passages(sources, self.reading, title, skipped)
            pieces = self.tokenizer.encode_passages(self.exclusion.apply(found, excluded) if self.exclusion else found)
            _write_pieces(pieces, writers, self.validation_share)
            build.result = {split: writer.close() for split, writer in writers.items()}
            if self.reading.skip_empty:
                build.result["skipped"] = skipped.total()
            if self.exclusion:
                build.result["excluded"] = dict(excluded)

    def _is_there(self, folder: Path, number: int) -> bool:
        """Whether an earlier run finished this part; anything else in its place is removed."""
        part = folder / part_name(number)
        try:
            return self.record(self.parts[number]).is_done(part)
        except InputError:
            shutil.rmtree(part)
            return False

    def collect(self, folder: Path) -> dict[str, Any]:
        """The counts and files of all parts, by split; parts that an earlier run left and that do not belong are removed."""
        names = [part_name(number) for number in range(len(self.parts))]
        for found in folder.iterdir():
            if found.name not in names:
                shutil.rmtree(found) if found.is_dir() else found.unlink()
        parts = {name: read_build(folder / name).result for name in names}
        splits = {split: _joined({name: result[split] for name, result in parts.items()}) for split in SPLITS}
        skipped = {"skipped": sum(part["skipped"] for part in parts.values())} if self.reading.skip_empty else {}
        excluded = sum((Counter(part["excluded"]) for part in parts.values()), Counter()) if self.exclusion else None
        return {"splits": splits, **skipped, **({} if excluded is None else {"excluded": dict(excluded)})}


def group_sources(sources: Iterable[str]) -> list[list[str]]:
    """Parts of consecutive sources; one is closed when its files have PART_BYTES together."""
    parts, size = [[]], 0
    for source in sources:
        if size >= PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(source)
        size += PART_BYTES if is_data_set(source) else size_of(source)
    return parts


def part_name(number: int) -> str:
    """Name of a part's folder."""
    return f"part-{number:05}"


def _joined(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One split of all parts: the sums of the counts, the files in order."""
    splits = list(parts.values())
    counts = {key: sum(split[key] for split in splits) for key in ("tokens", "bytes", "documents", "unknown")}
    shards = [shard | {"file": f"{name}/{shard['file']}"} for name, split in parts.items() for shard in split["shards"]]
    return {**counts, "dtype": splits[0]["dtype"], "shards": shards}


def _complete(folder: Path, tokenizer: Tokenizer, counts: dict[str, Any]) -> dict[str, Any]:
    """Write the files common to all shards; returns the result of the build."""
    save_array(folder / TOKEN_BYTES, tokenizer.bytes_per_id_V)
    return {"vocab_size": tokenizer.vocab_size, "end_id": tokenizer.end_id, **counts}


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as np.save does, whose own error on a full disk does not mention the disk."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(buffer.getvalue())


def _say_counts(out: Path, result: dict[str, Any], validation_share: float) -> None:
    """Print the counts, and a hint where nothing was held out."""
    splits = result["splits"]
    for split, found in splits.items():
        if found["tokens"]:
            say(f"{out}: {split} {found['documents']:,} documents, {found['tokens']:,} tokens, {found['bytes']:,} bytes")
    if result.get("skipped"):
        say(f"{result['skipped']:,} rows without text are left out")
    if excluded := result.get("excluded"):
        say(f"{excluded['documents']:,} documents hold excluded characters ({excluded['occurrences']:,} times); "
            f"{excluded['characters']:,} characters of them are left out")
    lost = sum(found["unknown"] for found in splits.values())
    if lost:
        say(f"{lost:,} characters have no id and are lost; a tokenizer built with --lossless keeps them")
    if validation_share and not splits["validation"]["tokens"]:
        say("nothing was held out for validation: give more text or a larger --validation-share")


def _write_pieces(pieces: Iterator[Piece], writers: dict[str, "_ShardWriter"], share: float) -> None:
    """Write each piece to its split; where a document changes split, its first part ends as a document."""
    opened: _ShardWriter | None = None
    for ids, last in pieces:
        writer = writers["validation" if _held_out(ids, share) else "train"]
        if opened is not None and opened is not writer:
            opened.end_document()
        writer.write(ids)
        opened = None if last else writer
        if last:
            writer.end_document()


def _held_out(ids: np.ndarray, share: float) -> bool:
    digest = hashlib.blake2b(ids.astype("<u4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


class _ShardWriter:
    """Appends documents of one split to numbered files; with `answers`, also writes flags of their tokens."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer, answers: bool = False):
        self._folder, self._split = folder, split
        self._end = np.array([tokenizer.end_id], dtype=np.uint32)
        self._bytes_per_id_V, self._unknown = tokenizer.bytes_per_id_V, tokenizer.unknown_id
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._suffixes = (".bin", ".answers") if answers else (".bin",)
        self._files: list[BinaryIO] = []
        self._shards: list[dict[str, Any]] = []
        self._starts, self._tokens = [0], 0
        self._total = {"tokens": 0, "bytes": 0, "documents": 0, "unknown": 0}

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        for file in self._files:
            file.close()

    def write(self, ids: np.ndarray, is_answer: bool = False) -> None:
        """Append ids to the open document."""
        self._files = self._files or [open(self._path(suffix), "wb") for suffix in self._suffixes]
        columns = (ids.astype(self._dtype), np.full(len(ids), is_answer, np.uint8))
        for file, column in zip(self._files, columns):
            file.write(column.tobytes())
        self._tokens += len(ids)
        self._total["tokens"] += len(ids)
        self._total["bytes"] += int(self._bytes_per_id_V[ids].sum())
        self._total["unknown"] += int(np.count_nonzero(ids == self._unknown)) if self._unknown is not None else 0

    def write_example(self, prompt: np.ndarray, answer: np.ndarray) -> None:
        """Append a document of a prompt and its answer."""
        self.write(prompt)
        self.write(answer, is_answer=True)
        self.end_document(is_answer=True)

    def end_document(self, is_answer: bool = False) -> None:
        """Write `</s>`; a full shard ends here, so no document is split between two files."""
        self.write(self._end, is_answer)
        self._total["documents"] += 1
        self._starts.append(self._tokens)
        if self._tokens >= SHARD_TOKENS:
            self._finish_shard()

    def close(self) -> dict[str, Any]:
        """Finish the last file; counts of the split and its shards."""
        if self._files:
            self._finish_shard()
        return {**self._total, "dtype": self._dtype.str, "shards": self._shards}

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._split}-{len(self._shards):05}{suffix}"

    def _finish_shard(self) -> None:
        for file in self._files:
            file.close()
        self._path(".documents").write_bytes(np.array(self._starts[:-1], dtype="<u8").tobytes())
        path = self._path(".bin")
        self._shards.append({"file": path.name, "tokens": self._tokens, "sha256": sha256_file(path)})
        self._files, self._starts, self._tokens = [], [0], 0


# Supervised examples


class Example(NamedTuple):
    """One supervised example: the document `prompt + answer`."""

    prompt: str
    answer: str


def examples(specs: Sequence[str], title: str = "reading examples") -> Iterator[Example]:
    """One example of each item that has an answer, with a progress bar, in the order of the specs and of their files.

    Questions that their passage does not answer (SQuAD v2) are left out: no prompt says that "unanswerable" is a possible
    answer, and the published benchmark leaves them out as well.

    Raises:
        InputError: as `split_specs` and `tasks.read_task`, or no item of a spec has an answer.
    """
    pairs, count = split_specs(specs), 0
    sizes = [sum(file.stat().st_size for file in _files(*pair)) for pair in pairs]
    with meter(title, sum(sizes) or None) as bar:
        for pair, size in zip(pairs, sizes):
            before = count
            for item in read_task(*pair):
                if item.answers:
                    count += 1
                    yield Example(item.prompt, BETWEEN + item.answers[0])
                    bar.advance(0, f"{count:,} examples")
            if count == before:
                raise InputError(f"{'='.join(pair)} holds no question with an answer; remove it or give another file")
            bar.advance(size, f"{count:,} examples")


def _files(name: str, path: str) -> list[Path]:
    return [] if path.startswith(HUB) else task_files(name, path)


def describe_examples(specs: Sequence[str]) -> dict[str, str]:
    """Identity of the input: `tasks.describe_task` of each spec.

    Raises:
        InputError: as `split_specs` and `tasks.task_files`.
    """
    return {key: value for pair in split_specs(specs) for key, value in describe_task(*pair).items()}


def split_specs(specs: Sequence[str]) -> list[tuple[str, str]]:
    """(NAME, PATH) of each NAME=PATH.

    Raises:
        InputError: the list is empty, an entry is not NAME=PATH, or one is given twice.
    """
    if not specs:
        raise InputError("no examples were given: name them as NAME=PATH, such as arc_easy=ARC-Easy-Train.jsonl")
    for spec in specs:
        if not all(spec.partition("=")):
            raise InputError(f"{spec!r} is not NAME=PATH, such as arc_easy=ARC-Easy-Train.jsonl; names: {', '.join(TASKS)}")
        if specs.count(spec) > 1:
            raise InputError(f"{spec} is given twice; name it once; a recipe can weigh its source")
    return [(name, path) for name, _, path in (spec.partition("=") for spec in specs)]
