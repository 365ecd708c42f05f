"""Heads over a large vocabulary: full, tied and code, torch's adaptive softmax, and transformers' GPTNeoX, on real text.

Same body, text, batches, optimizer and learning rate; each contender trains alone, in a process of its own. Printed are
tokens/s, peak memory of training steps, and bits per byte of held-out text after the same seconds of training and after as
many tokens as the first contender had read by then. Seconds are those of the processor, of all threads together, which other
work on the machine hardly changes. The learning rate is constant after a short warm-up, so that every moment of a run is a
fair end of it.

    python benchmarks/heads.py texts/en.jsonl.gz texts/ru.jsonl.gz texts/zh.jsonl.gz
    python benchmarks/heads.py texts --seconds 600 --seeds 1 2 3 --contenders full code "code digits=3 width=1024"
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from glyphlm.corpus.reading import passages
from glyphlm.data.batches import Batches, TokenText, validation_batches
from glyphlm.data.shards import prepare
from glyphlm.modeling.config import HeadConfig
from glyphlm.modeling.heads import CodeHead
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.substrate.build import SubstrateSettings, build_substrate, load_substrate
from glyphlm.substrate.numbering import number_ids
from glyphlm.tokenizer.build import TokenizerSettings, build_tokenizer
from glyphlm.training.bits_per_byte import score_batches
from glyphlm.training.loss import Objective
from glyphlm.training.optim import make_adamw

CONTENDERS = ["full", "tied", "code", "adaptive", "neox"]
WARM, VALIDATION_TOKENS = 20, 1 << 14


@dataclass
class Contender:
    """What is trained, and its nats of the targets [N] of (x_BT, y_BT)."""

    model: nn.Module
    nats: Callable[[Tensor, Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]


def ours(
    options: argparse.Namespace, text: TokenText, head: HeadConfig, bias: bool = False
) -> tuple[GPT, Objective]:
    """A model of ours with this head, and its objective."""
    substrate = load_substrate(options.work / "substrate", options.width, None)
    config = ModelConfig(options.width, options.layers, options.width // 64, options.context, bias, head=head)
    model = GPT(config, substrate)
    model.init_weights(options.seed)
    if isinstance(model.head, CodeHead):
        number_ids(model.head, substrate, torch.from_numpy(text.count_ids()))
    return model, Objective(model, torch.float32)


def adaptive(options: argparse.Namespace, text: TokenText) -> Contender:
    """Our body below torch's adaptive softmax (arXiv 1609.04309), ids by frequency."""
    model, _ = ours(options, text, HeadConfig("code"))
    torch.manual_seed(options.seed)
    ids = text.vocab_size
    model.head = nn.AdaptiveLogSoftmaxWithLoss(options.width, ids, [ids // 32, ids // 4])
    rank_V = torch.from_numpy(text.count_ids()).argsort(descending=True, stable=True).argsort()

    def nats(x_BT: Tensor, y_BT: Tensor) -> Tensor:
        return -model.head(model.hidden(x_BT).flatten(0, 1), rank_V[y_BT.flatten()]).output

    return Contender(model, nats, lambda x_BT, y_BT: nats(x_BT, y_BT).mean())


def neox(options: argparse.Namespace, text: TokenText) -> Contender:
    """The same shape in transformers, input embeddings trained."""
    torch.manual_seed(options.seed)
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(
        vocab_size=text.vocab_size, hidden_size=options.width, num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64, intermediate_size=4 * options.width, hidden_act="gelu",
        max_position_embeddings=options.context, attention_bias=False, use_parallel_residual=False, use_cache=False,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    ))  # fmt: skip

    def nats(x_BT: Tensor, y_BT: Tensor) -> Tensor:
        logits_NV = cast(Any, model)(input_ids=x_BT).logits.flatten(0, 1).float()
        return F.cross_entropy(logits_NV, y_BT.flatten(), reduction="none")

    return Contender(model, nats, lambda x_BT, y_BT: nats(x_BT, y_BT).mean())


def contender(name: str, options: argparse.Namespace, text: TokenText) -> Contender:
    """The contender of this name; of ours followed by settings of the head, as in `code digits=3`."""
    kind, *chosen = name.split()
    if kind in ("adaptive", "neox"):
        return {"adaptive": adaptive, "neox": neox}[kind](options, text)
    pairs = dict(pair.split("=") for pair in chosen)
    bias = pairs.pop("bias", "0") == "1"
    head = HeadConfig(cast(Any, kind), **{key: int(value) if value.isdigit() else value for key, value in pairs.items()})
    model, objective = ours(options, text, head, bias)
    return Contender(model, objective, lambda x_BT, y_BT: objective(x_BT, y_BT, y_BT.numel()))


def compete(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one contender, and measure it."""
    text = TokenText(options.work / "shards", "train")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one = contender(name, options, text)
    optimizer = make_adamw(one.model.parameters(), 0.1, (0.9, 0.95))
    batches = Batches([text], [1.0], options.context, options.rows, options.seed)
    seconds, step, memory, scored = 0.0, 0, 0, {}
    marks = {"at_seconds": lambda: seconds >= options.seconds, "at_tokens": lambda: tokens() >= options.tokens}
    if options.curve:
        marks |= {f"at {t:,} tokens": lambda t=t: tokens() >= t for t in range(options.curve, options.tokens, options.curve)}

    def tokens() -> int:
        return step * options.rows * options.context

    while marks:
        begin = time.process_time()
        x_BT, y_BT = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, (step + 1) / WARM)
        one.loss(x_BT, y_BT).backward()
        nn.utils.clip_grad_norm_(one.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds, step = seconds + time.process_time() - begin, step + 1
        memory = memory or (step == 5) * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        reached = [mark for mark, is_reached in marks.items() if is_reached()]
        score = bits_per_byte(one, options) | {"seconds": round(seconds, 1), "tokens": tokens()} if reached else {}
        for mark in reached:
            del marks[mark]
            scored[mark] = score
    trained = sum(values.numel() for values in one.model.parameters())
    return {"contender": name, "seed": options.seed, "lr": options.lr, "tokens_per_second": round(tokens() / seconds, 1),
            "megabytes": memory // 1024, "trained": trained, **scored}


@torch.no_grad()
def bits_per_byte(one: Contender, options: argparse.Namespace) -> dict[str, float]:
    """Of held-out text."""
    held_out = TokenText(options.work / "shards", "validation")
    batches = validation_batches([held_out], options.context, 4, VALIDATION_TOKENS)
    one.model.eval()
    score = score_batches(one.nats, batches, held_out.bytes_per_id_V, torch.device("cpu"))
    one.model.train()
    return {"bits_per_byte": round(score.bits_per_byte, 4), "nats": round(score.loss, 4)}


def make_inputs(options: argparse.Namespace) -> None:
    """A tokenizer, shards and a substrate in the work folder, of the first characters of each text."""
    texts = []
    for number, name in enumerate(options.texts):
        path, left = options.work / f"text-{number}.jsonl", options.characters
        with path.open("w", encoding="utf-8") as file:
            for passage in passages([name]):
                file.write(json.dumps({"text": passage.text}, ensure_ascii=False) + "\n")
                if (left := left - len(passage.text)) <= 0:
                    break
        texts.append(str(path))
    tokenizer = build_tokenizer(texts, TokenizerSettings(vocab_size=options.vocab), options.work / "tokenizer")
    prepare(tokenizer, texts, options.work / "shards", 0.02)
    settings = SubstrateSettings(kind=options.substrate, n_embed=options.width, unique=options.substrate == "glyph")
    build_substrate(tokenizer, settings, options.work / "substrate")


def run_alone(name: str, options: argparse.Namespace, seed: int, tokens: int) -> dict[str, Any]:
    """What `compete` measures in a process of its own."""
    given = [f"--{key}={getattr(options, key)}" for key in ("seconds", "lr", "width", "layers", "context", "rows", "curve")]
    given += [f"--work={options.work}", f"--seed={seed}", f"--tokens={tokens}", "--contender", name]
    done = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="*", help="files of text, one a language, or folders")
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS)
    parser.add_argument("--seconds", type=float, default=120.0, help="of training, each")
    parser.add_argument("--tokens", type=int, default=0, help="mark of equal tokens; by default what the first one reads")
    parser.add_argument("--curve", type=int, default=0, help="also score every so many tokens")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--vocab", type=int, default=65536)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--characters", type=int, default=4_000_000, help="of each text")
    parser.add_argument("--substrate", default="glyph")
    parser.add_argument("--work", type=Path, help="folder that keeps tokenizer, shards and substrate")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(compete(options.contender, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        options.work.mkdir(parents=True, exist_ok=True)
        if not (options.work / "substrate").exists():
            make_inputs(options)
        tokens: dict[int, int] = {}
        for name in options.contenders:
            for seed in options.seeds:
                found = run_alone(name, options, seed, options.tokens or tokens.get(seed, 1))
                tokens.setdefault(seed, found["at_seconds"]["tokens"])
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
