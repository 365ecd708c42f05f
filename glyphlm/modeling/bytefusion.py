"""Experts of different vocabularies -> one model of the next byte. Torch and transformers; travels inside its run folders.

A token model gives a text the probability of the ids that its tokenizer makes of it. After n bytes of a text, the covers
of these bytes are sequences of ids whose bytes begin with them, the last id alone reaching byte n or beyond, all before
it being what the tokenizer makes of their own bytes. The probability of a byte is that of the covers of n + 1 bytes over
that of the covers of n (the covering tree of arXiv 2506.14123, section 3; exact, without pruning). So the product over
the bytes of a text is the probability that the token model gives it.

A token model also spends probability on sequences that no text has (`t`, `he` where `the` is a token). That part is not
lost and not shared out: it is the probability of the id <unk>, so the distribution over all ids sums to 1.

Shapes: as in model.py; M experts, O ids of the fused model (specials and bytes), S tokens of a vocabulary in byte order.
"""

import hashlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer

from .fusion import FusedShape, FusionConfig
from .hf import CACHE, GlyphLMConfig, GlyphLMForCausalLM
from .mixing import max_confidence, mean_probs, posterior, updated_nats
from .model import Cache

END, UNKNOWN, FIRST_BYTE, OUTCOMES = 2, 3, 4, 260  # ids: <pad>, <s>, </s>, <unk>, then the 256 bytes
POSSIBLE = OUTCOMES - END  # <pad> and <s> are never predicted
FLOOR = 2.0**-40  # shared by all possible ids, so that a byte that an expert cannot spell has a finite cost
RECENT = 48  # last ids whose text is encoded alone to see whether they are canonical, before that of all of them is
NARROW = 4096  # tokens of a span whose next bytes are listed anew; those of wider ones are kept
LONGEST = 1 << 20  # bytes of a text
READERS, MEMORY = 8, 64  # caches of keys and values of an expert, texts whose covers are remembered
PINNED = ("config.json", "tokenizer.json")  # files of an expert that are compared besides its weights


class Pieces:
    """The tokens of a vocabulary in the order of their bytes; those without bytes are left out."""

    def __init__(self, bytes_X: Tensor, lengths_V: Tensor):
        raw, ends = bytes(bytes_X.tolist()), lengths_V.cumsum(0).tolist()
        self.spelled = [raw[start:end] for start, end in zip([0, *ends], ends)]  # of each id
        self.ids = sorted((number for number, text in enumerate(self.spelled) if text), key=self.spelled.__getitem__)
        self.texts = [self.spelled[number] for number in self.ids]
        self._kept: dict[int, Tensor] = {}

    def narrow(self, span: tuple[int, int], prefix: bytes) -> tuple[int, int]:
        """The part of a span of tokens that begin with `prefix`."""
        first = bisect_left(self.texts, prefix, *span)
        above = prefix.rstrip(b"\xff")
        end = bisect_left(self.texts, above[:-1] + bytes([above[-1] + 1]), first, span[1]) if above else span[1]
        return first, end

    def next_byte(self, span: tuple[int, int], depth: int) -> Tensor:
        """The byte after the first `depth` of each token of a span; all of them are longer."""
        first, end = span
        if end - first <= NARROW:
            return torch.tensor([text[depth] for text in self.texts[first:end]], dtype=torch.int64)
        if depth not in self._kept:
            self._kept[depth] = torch.tensor([text[depth] if len(text) > depth else 0 for text in self.texts])
        return self._kept[depth][first:end]


@dataclass(frozen=True, eq=False)
class Node:
    """Canonical ids and the tokens that may follow them.

    Args:
        ids: From the beginning of the text.
        place: Number of bytes that they stand for.
        weight: Their probability over that of all covers of the text.
        p_S: Probability of each token that has bytes, float64.
        p_end: Probability of the end of the text.
        span: The tokens that begin with the bytes of the text after `place`, and go on.
    """

    ids: tuple[int, ...]
    place: int
    weight: float
    p_S: Tensor
    p_end: float
    span: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Cover:
    """The covers of a text by an expert.

    Args:
        text: Bytes, with those that its vocabulary puts before every text.
        nodes: Those of the covers that can go on.
        closed: Probability, over that of all covers, that a token ends where the text does.
    """

    text: bytes
    nodes: tuple[Node, ...]
    closed: float


def incomplete(text: bytes) -> int:
    """Number of bytes at the end of a text that begin a character of UTF-8 and do not end it."""
    for back, byte in enumerate(reversed(text[-3:]), 1):
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if 0xC2 <= byte <= 0xF4 and back < needed else 0
        if byte < 0x80:
            return 0
    return 0


class ByteExpert(nn.Module):
    """A model of tokens, and its tokenizer, read as a model of bytes.

    Args:
        docked: `bytes` and `ids`, numbers of bytes of all tokens and of tokens; `start`, the id before a text; `end`, the
            id after it, if any; `block_size`, the longest context; `lead`, what the vocabulary puts before every text.
    """

    bytes_X: Tensor
    lengths_V: Tensor
    sha256: Tensor

    def __init__(self, docked: dict[str, Any]):
        super().__init__()
        self.docked = docked
        self.register_buffer("bytes_X", torch.zeros(docked["bytes"], dtype=torch.uint8))
        self.register_buffer("lengths_V", torch.zeros(docked["ids"], dtype=torch.int32))
        self.register_buffer("sha256", torch.zeros(32, dtype=torch.uint8))
        self._readers: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._unregistered: list[Any] = []  # the model: its weights stay in a folder of their own

    def open(self, folder: Path) -> None:
        """Load model and tokenizer.

        Raises:
            ValueError: a file is not the one that was fused.
        """
        digest = expert_sha256(folder)
        if digest != bytes(self.sha256.tolist()):
            raise ValueError(f"{folder} holds {digest.hex()[:12]}, fused was {bytes(self.sha256.tolist()).hex()[:12]}; put "
                             "the files back as they were")
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        self.attach(model.eval(), PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).backend_tokenizer)

    def attach(self, model: Any, backend: Any) -> None:
        """Take a model, and the tokenizer of the library tokenizers that belongs to it."""
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # their names in a text are text
        self._unregistered, self._backend = [model.requires_grad_(False)], backend
        self._pieces = Pieces(self.bytes_X, self.lengths_V)
        self._order_S = torch.tensor(self._pieces.ids)

    @property
    def model(self) -> Any:
        """The model of tokens."""
        return self._unregistered[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for model in self._unregistered:
            model._apply(fn)
        self._readers.clear()
        return super()._apply(fn, recurse)

    def begin(self) -> Cover:
        """The cover of an empty text."""
        lead = self.docked["lead"].encode()
        cover = Cover(b"", (self._node((), 0, 1.0),), 1.0)
        for byte in lead:
            cover = self.step(cover, byte)
        return cover

    def step(self, cover: Cover, byte: int) -> Cover:
        """The covers of the text and one byte more."""
        text, total, nodes = cover.text + bytes([byte]), 0.0, []
        ended: list[tuple[tuple[int, ...], float]] = []
        for node in cover.nodes:
            part = text[node.place :]
            first, end = self._pieces.narrow(node.span, part)
            total += node.weight * float(node.p_S[first:end].sum())
            while first < end and len(self._pieces.texts[first]) == len(part):
                ended.append(((*node.ids, self._pieces.ids[first]), node.weight * float(node.p_S[first])))
                first += 1
            if first < end:
                nodes.append(replace(node, span=(first, end)))
        if total <= 0:
            return self._restart(text)
        ended = [(ids, weight / total) for ids, weight in ended if weight / total > 0 and self._is_canonical(ids, text)]
        nodes = [replace(node, weight=node.weight / total) for node in nodes]
        nodes += [self._node(ids, len(text), weight) for ids, weight in ended]
        return Cover(text, tuple(nodes), sum(weight for _, weight in ended))

    def log_probs(self, cover: Cover) -> Tensor:
        """Log-probabilities of what comes next, float64 [POSSIBLE]: the end of the text, no text, and each byte."""
        p_O, size = torch.zeros(POSSIBLE, dtype=torch.float64), len(cover.text)
        for node in cover.nodes:
            bytes_s, p_s = self._pieces.next_byte(node.span, size - node.place), node.p_S[slice(*node.span)]
            p_O[FIRST_BYTE - END :] += node.weight * torch.bincount(bytes_s, weights=p_s, minlength=256)
            if node.place == size and not incomplete(cover.text):
                p_O[0] += node.weight * node.p_end
        p_O[UNKNOWN - END] = (1 - p_O.sum()).clamp(min=0)
        return ((1 - FLOOR) * p_O / p_O.sum() + FLOOR / POSSIBLE).log()

    def _restart(self, text: bytes) -> Cover:
        """The cover of a text that the expert cannot have written (it has no such token): what its tokenizer makes of it."""
        place = len(text) - incomplete(text)
        ids = self._encode(text[len(self.docked["lead"].encode()) : place].decode(errors="replace"))
        node = self._node(ids, place, 1.0)
        first, end = self._pieces.narrow(node.span, text[place:])
        total = float(node.p_S[first:end].sum())
        while place < len(text) and first < end and len(self._pieces.texts[first]) == len(text) - place:
            first += 1
        if place == len(text):
            return Cover(text, (node,), 1.0)
        return Cover(text, (replace(node, span=(first, end), weight=1 / total),) if total > 0 else (), 0.0)

    def _is_canonical(self, ids: tuple[int, ...], text: bytes) -> bool:
        """Whether the tokenizer makes `ids` of the text, of which it made all but the last id."""
        if incomplete(text):
            return True  # it depends on the rest of the character
        try:
            recent = ids[-RECENT:]
            if len(recent) < len(ids):
                # A tokenizer that cuts at places that follow from the left alone makes the same of a part.
                part = b"".join(self._pieces.spelled[number] for number in recent)
                if self._encode(part.decode()) == recent:
                    return True
            return self._encode(text[len(self.docked["lead"].encode()) :].decode()) == ids
        except UnicodeDecodeError:
            return False

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def _node(self, ids: tuple[int, ...], place: int, weight: float) -> Node:
        p_V, end = self._next(ids), self.docked["end"]
        p_end = 0.0 if end is None else float(p_V[end])
        return Node(ids, place, weight, p_V[self._order_S], p_end, (0, len(self._order_S)))

    def _next(self, ids: tuple[int, ...]) -> Tensor:
        """Probabilities of the next id, float64 [V].

        Longer contexts are cut as in scoring, where windows slide by half: the ids see those that they see there.
        """
        block = self.docked["block_size"]
        slid = max(0, -(-(len(ids) + 1 - block) // (block - block // 2)))
        seen = (self.docked["start"], *ids)[slid * (block - block // 2) :]
        logits_V = self._read(seen)
        return logits_V.double().softmax(-1).cpu()

    @torch.no_grad()
    def _read(self, ids: tuple[int, ...]) -> Tensor:
        """logits_V after `ids`, from the cached keys and values of the text that has most of its beginning in common."""
        held = max(self._readers, key=lambda known: _common(known, ids), default=())
        shared = min(_common(held, ids), len(ids) - 1)
        cache = self._readers.pop(held, None) if shared else None
        if cache is not None:
            cache.crop(shared - len(held))
        elif len(self._readers) >= READERS:
            self._readers.popitem(last=False)
        new_1T = torch.tensor([ids[shared if cache is not None else 0 :]], device=self.model.device)
        out = self.model(new_1T, use_cache=True, **({CACHE: cache} if cache is not None else {}))
        kept = out.get(CACHE)
        if type(kept) is DynamicCache and all(type(layer) is DynamicLayer for layer in kept.layers):
            self._readers[ids] = kept  # others, such as sliding windows, cannot be cut at the end
        return out.logits[0, -1]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    if one[: len(other)] == other[: len(one)]:
        return min(len(one), len(other))
    low, high = 0, min(len(one), len(other))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle)
    return low


def expert_sha256(folder: Path) -> bytes:
    """Digest of the files of an expert that decide what it computes."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name in PINNED or path.suffix == ".safetensors":
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.digest()


@dataclass(frozen=True, eq=False)
class Reading:
    """A text as all experts have read it: their covers, and their distributions logp_MO of what comes next; what the
    posterior counts of each so far, nats_M."""

    covers: tuple[Cover, ...]
    logp_MO: Tensor
    nats_M: Tensor


class ByteFusion(nn.Module):
    """Experts of any vocabularies, with the face of GPT over ids that are bytes.

    It gives log-probabilities as logits. Texts are read one after another; what a cache holds are the ids alone, by which
    the covers of a text are found again, or made again.
    """

    def __init__(self, fusion: FusionConfig, docked: Sequence[dict[str, Any]]):
        super().__init__()
        self.fusion, self.recompute, self.kept = fusion, False, None
        self.experts: Any = nn.ModuleList(map(ByteExpert, docked))
        weights = fusion.weights or [1 / len(docked)] * len(docked)
        self.weights_M = nn.Parameter(torch.tensor(weights), requires_grad=False)
        self.config = FusedShape(OUTCOMES, 1, 1, LONGEST)
        self.vocab_size, self.no_text = OUTCOMES, [UNKNOWN]
        self.blocks: list[Any] = []
        self._memory: OrderedDict[bytes, Reading] = OrderedDict()

    @property
    def weights(self) -> list[float]:
        """Weights of the experts, in their order."""
        return self.weights_M.tolist()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights_M.device

    def forward(self, ids_BT: Tensor) -> Tensor:
        """ids_BT -> log-probabilities [B, T, O]."""
        return self.hidden(ids_BT)

    def logits(self, x_BTO: Tensor) -> Tensor:
        """What `hidden` gives, as it is."""
        return x_BTO

    @torch.no_grad()
    def hidden(
        self,
        ids_BT: Tensor,
        *,
        cache: Cache | None = None,
        attended_BS: Tensor | None = None,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Log-probabilities [B, T, O] of what follows each position; arguments as those of `GPT.hidden`."""
        past = int(cache.get_seq_length()) if cache is not None else 0
        all_BS = ids_BT
        if cache is not None:
            held_B1S1, _ = cache.update(ids_BT[:, None, :, None].float(), ids_BT[:, None, :, None].float(), 0)
            all_BS = held_B1S1[:, 0, : past + ids_BT.shape[1], 0].long()
        text_BS = torch.ones_like(all_BS) if attended_BS is None else attended_BS[:, : all_BS.shape[1]]
        rows = [self._row(*row, past, None if documents_BT is None else documents_BT[number].tolist())
                for number, row in enumerate(zip(all_BS.tolist(), text_BS.tolist()))]
        return torch.stack(rows).to(self.device)

    def _row(self, ids: list[int], attended: list[int], past: int, documents: list[int] | None) -> Tensor:
        """Log-probabilities after each id from number `past` on, float32 [T, O]."""
        before = [one for one, counts in zip(ids[:past], attended) if counts]
        text = _last_text(before)
        reading, found = self._recall(text), []
        for place in range(past, len(ids)):
            begins = documents is not None and place > 0 and documents[place] != documents[place - 1]
            if begins:
                text, reading = b"", self._begin()
            if attended[place]:
                text, reading = self._read(text, reading, ids[place])
            found.append(self._mixed(reading))
        self._remember(text, reading)
        return F.pad(torch.stack(found), (END, 0), value=-torch.inf).float()

    def _read(self, text: bytes, reading: Reading, number: int) -> tuple[bytes, Reading]:
        if number == END:
            return b"", self._begin()
        if number < FIRST_BYTE:
            return text, reading
        covers = tuple(expert.step(cover, number - FIRST_BYTE) for expert, cover in zip(self.experts, reading.covers))
        how = self.fusion
        nats_M = updated_nats(
            reading.nats_M, -reading.logp_MO[:, number - END], self._prior(), how.temperature, how.memory, how.reset
        )
        return text + bytes([number - FIRST_BYTE]), self._reading(covers, nats_M)

    def _begin(self) -> Reading:
        covers = tuple(expert.begin() for expert in self.experts)
        return self._reading(covers, torch.zeros(len(covers), dtype=torch.float64))

    def _reading(self, covers: tuple[Cover, ...], nats_M: Tensor) -> Reading:
        return Reading(covers, torch.stack([e.log_probs(cover) for e, cover in zip(self.experts, covers)]), nats_M)

    def _prior(self) -> Tensor:
        return self.weights_M.cpu().double()

    def _mixed(self, reading: Reading) -> Tensor:
        """Log-probabilities of the fused model [POSSIBLE]."""
        return self._mix(reading.logp_MO, reading.nats_M)

    def _mix(self, logp_MO: Tensor, nats_M: Tensor) -> Tensor:
        method, weights_M = self.fusion.method, self._prior()
        if method == "max_confidence":
            return max_confidence(logp_MO[:, None, None])[0, 0]
        if method in ("mean_logits", "weighted_logits"):
            return (weights_M[:, None] * logp_MO).sum(0).log_softmax(-1)
        if method == "posterior":
            weights_M = posterior(nats_M, weights_M, self.fusion.temperature)
        return mean_probs(logp_MO[:, None, None], weights_M[:, None, None])[0, 0]

    @torch.no_grad()
    def document_nats(self, ids_T: Sequence[int]) -> Tensor:
        """Nats of each id after the first one, which stands before the text; float64.

        The last one also counts that a token ends with the text, as the bits per byte of a token model do.
        """
        text, reading, nats = b"", self._begin(), []
        for number in ids_T[1:]:
            nats.append(-float(self._mixed(reading)[int(number) - END]))
            text, reading = self._read(text, reading, int(number))
        closed_M = torch.tensor([cover.closed for cover in reading.covers], dtype=torch.float64).clamp(FLOOR, 1 - FLOOR)
        closing_M2 = torch.stack([closed_M, 1 - closed_M], -1).log()
        nats[-1] -= float(self._mix(closing_M2, reading.nats_M)[0])
        return torch.tensor(nats, dtype=torch.float64)

    def _recall(self, text: bytes) -> Reading:
        """How the experts have read a text; it is read again where that is forgotten."""
        reading, known = self._memory.get(text), text
        while reading is None and known:
            known = known[:-1]
            reading = self._memory.get(known)
        reading = reading or self._begin()
        for byte in text[len(known) :]:
            known, reading = self._read(known, reading, byte + FIRST_BYTE)
        return reading

    def _remember(self, text: bytes, reading: Reading) -> None:
        self._memory[text] = reading
        self._memory.move_to_end(text)
        while len(self._memory) > MEMORY:
            self._memory.popitem(last=False)


def _last_text(ids: Sequence[int]) -> bytes:
    """The bytes after the last end of a text."""
    begin = max((place for place, number in enumerate(ids, 1) if number == END), default=0)
    return bytes(number - FIRST_BYTE for number in ids[begin:] if number >= FIRST_BYTE)


class ByteFusionConfig(GlyphLMConfig):
    """config.json: `docked` holds what `ByteExpert` needs of each expert, `fusion` the fields of FusionConfig.

    The experts themselves are complete folders, experts/1, experts/2 ..
    """

    model_type = "glyphlm_bytes"

    def __init__(self, docked: list[dict[str, Any]] | None = None, fusion: dict[str, Any] | None = None, **others: Any):
        super().__init__(**{key: value for key, value in others.items() if key not in ("model", "substrate")})
        self.docked, self.fusion = docked or [], fusion or {}

    def shapes(self) -> list[Any]:
        """None: each expert has a config.json of its own."""
        return []

    vocab_size = hidden_size = OUTCOMES  # type: ignore[assignment]
    num_hidden_layers = num_attention_heads = 1  # type: ignore[assignment]
    max_position_embeddings = LONGEST  # type: ignore[assignment]


class ByteFusionForCausalLM(GlyphLMForCausalLM):
    """`generate()`, caches, padding and loss around ByteFusion."""

    config_class = ByteFusionConfig
    no_text = [UNKNOWN]

    def __init__(self, config: ByteFusionConfig):
        super(GlyphLMForCausalLM, self).__init__(config)
        self.gpt: Any = ByteFusion(FusionConfig(**config.fusion), config.docked)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *inputs: Any, **options: Any) -> Any:
        """As of any model of transformers, from a local folder, whose experts are loaded with it.

        Raises:
            ValueError: it is no folder, or a file of an expert is not the one that was fused.
        """
        folder = Path(str(pretrained_model_name_or_path), options.get("subfolder") or "")
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; download all of it first (huggingface_hub.snapshot_download)")
        loaded = super().from_pretrained(pretrained_model_name_or_path, *inputs, **options)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        for number, expert in enumerate(model.gpt.experts, 1):
            expert.open(folder / "experts" / str(number))
        return loaded

    def get_input_embeddings(self) -> Any:
        """None: each expert has its own."""
        return None

    def get_output_embeddings(self) -> Any:
        """None: logits are log-probabilities, which no one matrix gives."""
        return None


AutoConfig.register("glyphlm_bytes", ByteFusionConfig, exist_ok=True)
AutoModelForCausalLM.register(ByteFusionConfig, ByteFusionForCausalLM, exist_ok=True)
ByteFusionConfig.register_for_auto_class()
ByteFusionForCausalLM.register_for_auto_class("AutoModelForCausalLM")
