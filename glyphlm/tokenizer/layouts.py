"""Vocabularies: which strings get an id, in which order, and the merges that reach them.

The layout `compact` holds the code points that occur, then n-grams counted on the given text, at any size; what is rare
goes through byte tokens, so that no text is ever lost. Merges are the published builders' (arXiv 2507.04886, bvv241
notebooks): every split of an n-gram into two pieces of the vocabulary.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from glyphlm.base.errors import InputError
from glyphlm.tokenizer.ngrams import WORD, TextCounts, by_frequency

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
MIN_VOCAB = 512
MAX_WORDS_LEARNED = 30_000_000  # words from which n-grams are learned: more time, the same vocabulary


def compact_backend(counts: TextCounts, vocab_size: int) -> tokenizers.Tokenizer:
    """The layout `compact` in order of ids: specials, 256 bytes, code points by frequency, n-grams by usefulness."""
    room = vocab_size - len(SPECIALS) - len(BYTES)
    characters = choose_characters(counts.characters, room // 2)
    ngrams = choose_ngrams(counts.words, characters, room - len(characters))
    if len(characters) + len(ngrams) < room:  # the text has few n-grams: characters take the room that they leave
        characters = choose_characters(counts.characters, room - len(ngrams))
        ngrams = choose_ngrams(counts.words, characters, room - len(characters))
    missing = room - len(characters) - len(ngrams)
    if missing:
        supported = vocab_size - missing
        cure = f"give more text or --vocab-size {supported}" if supported >= MIN_VOCAB else "give more text"
        raise InputError(f"vocab_size {vocab_size} is larger than the text supports: {len(characters)} characters and "
                         f"{len(ngrams)} n-grams make {supported}; {cure}")
    return bpe_backend([*SPECIALS, *BYTES, *characters, *ngrams], ngrams, SPECIALS)


def choose_characters(characters: Counter[str], room: int) -> list[str]:
    """The most frequent code points, until 99.95% of the text is covered or `room` of them are taken."""
    wanted, covered, chosen = 0.9995 * characters.total(), 0, []
    for character, count in by_frequency(characters)[:room]:
        if covered >= wanted:
            break
        chosen.append(character)
        covered += count
    return chosen


def choose_ngrams(words: Counter[str], characters: Sequence[str], room: int) -> list[str]:
    """The `room` n-grams that save the most tokens, the most useful first.

    They are taken one by one, each counted on the text as the earlier ones leave it (byte-pair training over letters).
    Ranking plain counts instead spends the room on overlaps ("atio", "tion") and makes English 16% longer.
    """
    letters = [character for character in characters if WORD.fullmatch(character)]
    trainer = trainers.BpeTrainer(
        vocab_size=len(letters) + room, initial_alphabet=letters, limit_alphabet=len(letters), show_progress=False
    )
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(repeated(words), trainer)
    ids = learner.get_vocab()
    return [token for token in sorted(ids, key=ids.__getitem__) if len(token) > 1]


def repeated(words: Counter[str]) -> Iterator[str]:
    """Each word as often as it occurs, separated by spaces; all counts are divided where there are too many."""
    divisor = -(-words.total() // MAX_WORDS_LEARNED)
    for word, count in sorted(words.items()):
        if count >= divisor:
            yield " ".join([word] * (count // divisor))


def bpe_backend(vocabulary: Sequence[str], ngrams: Sequence[str], specials: Sequence[str]) -> tokenizers.Tokenizer:
    """A BPE tokenizer without pre-tokenizer whose merges are all splits of each n-gram into two tokens, in id order."""
    ids = {token: number for number, token in enumerate(vocabulary)}
    if len(ids) != len(vocabulary):
        raise AssertionError("a token stands twice in the vocabulary")
    splits = ((token[:cut], token[cut:]) for token in ngrams for cut in range(1, len(token)))
    merges = [(left, right) for left, right in splits if left in ids and right in ids]
    model = models.BPE(vocab=ids, merges=merges, unk_token="<unk>", byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(list(specials))
    return backend
