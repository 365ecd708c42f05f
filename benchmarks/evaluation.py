"""Evaluation beside the published shape of work, and beside lm-eval's Hugging Face path, on one model in one run.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --width 1024 --layers 16 --heads 32 --vocab 65536 --items 4 --rounds 1

The published shape: one question at a time, logits of all positions, no cache, every question anew for each of n runs and
each new token (that MMLU is asked twice there, by subject and as a whole, is not counted). Ours reads a prompt once, with
the logits of its last position. lm-eval scores the same options, letters and texts, of the same questions.
Random weights; questions of 150 to 450 tokens, as MMLU has in the published vocabularies. Rounds are interleaved, medians
are taken: of CPU time on CPU, of the clock on the wall with a GPU.
"""

import argparse
import importlib.util
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoTokenizer

from glyphlm.base.devices import resolve_device
from glyphlm.corpus.phrasebook import write_phrasebook
from glyphlm.corpus.tasks import LETTERS, Item
from glyphlm.evaluation.decoding import truncated
from glyphlm.evaluation.likelihood import score_options
from glyphlm.evaluation.model import DTYPES, EvalModel, load_eval_model
from glyphlm.evaluation.sampled import answer_tokens, sample_answers
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.runs.folder import export_model
from glyphlm.runs.generate import Sampling
from glyphlm.tokenizer.build import TokenizerSettings, build_tokenizer

WORDS = "what which of the following is best described by a river city number colour animal between under north".split()
SAMPLING = Sampling()


def make_eval_model(options: argparse.Namespace, folder: Path) -> EvalModel:
    """A model of random weights in a run folder, opened as evaluation opens it."""
    texts = write_phrasebook(folder / "text")
    tokenizer = build_tokenizer([str(texts["text"])], TokenizerSettings(vocab_size=2048), folder / "tokenizer")
    config = ModelConfig(options.width, options.layers, options.heads, 1024)
    model = GPT(config, Substrate(SubstrateConfig(options.vocab, 16, "token_bits"), options.width))
    model.init_weights(1)
    export_model(model, tokenizer, folder / "run")
    return load_eval_model(str(folder / "run"), options.device, options.precision)


def make_items(task: str, count: int, model: EvalModel) -> list[Item]:
    """Questions with four options of one to eight words."""
    chosen, items = random.Random(1), []
    for _ in range(count):
        choices = tuple(" ".join(chosen.choices(WORDS, k=chosen.randint(1, 8))) for _ in LETTERS)
        question, wanted = "", chosen.randint(150, 450)
        while len(model.tokenizer.encode(question)) < wanted:
            question += f" {chosen.choice(WORDS)}"
        options = " ".join(f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices))
        items.append(Item(task, f"Question:{question}\nOptions: {options}\nAnswer:", ("A",), LETTERS, choices))
    return items


@torch.no_grad()
def published(model: EvalModel, items: list[Item], runs: int) -> None:
    """The published shape of work."""
    for _ in range(runs):
        for item in items:
            ids = model.tokenizer.encode(item.prompt)
            for _ in range(answer_tokens(item)):
                logits_TV = model.model(torch.tensor([ids], device=model.device)).logits[0]
                ids.append(int(truncated(logits_TV[-1:], SAMPLING).draw(torch.rand(1, 1, device=model.device))))


def ours(model: EvalModel, items: list[Item], runs: int) -> None:
    """glyphlm eval --protocol sampled."""
    sample_answers(model, items, SAMPLING, runs, 1, lambda _: None)


def lm_eval_path(model: EvalModel) -> Callable[[list[Item]], None] | None:
    """lm-eval's scores of all options; None where it is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        return None
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    batch = 1 if model.device.type == "cpu" else 32
    scorer = HFLM(pretrained=model.model, tokenizer=AutoTokenizer.from_pretrained(model.name), batch_size=batch)

    def score(items: list[Item]) -> None:
        pairs = [(item.prompt, text) for item in items for text in (*item.labels, *item.choices)]
        requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
        scorer.loglikelihood(requests, disable_tqdm=True)

    return score


def seconds(work: Callable[[], None], device: str) -> float:
    """CPU time; with a GPU the clock on the wall."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    begin = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - begin


def compare(title: str, contenders: dict[str, Callable[[], None]], options: argparse.Namespace) -> None:
    """Print medians, and how many times as fast the second is as the first."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    contenders[next(reversed(contenders))]()  # what the first pass of a process loads is counted for none
    for _ in range(options.rounds):
        for name, work in contenders.items():
            found[name].append(seconds(work, options.device))
    (theirs, slow), (mine, fast) = ((name, statistics.median(times)) for name, times in found.items())
    print(f"  {title}: {theirs} {slow:.2f} s, {mine} {fast:.2f} s, {slow / fast:.1f}x", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"width": 512, "layers": 8, "heads": 8, "vocab": 65536, "items": 8, "runs": 10, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--device", type=resolve_device, default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = make_eval_model(options, Path(folder))
        _ = model.begin_with(LETTERS)  # made once for a model
        print(f"V {options.vocab:,}  d {options.width}  {options.layers} layers  {options.items} questions  "
              f"{options.precision}  {options.device}")
        for task, runs in (("mmlu", 1), ("mmlu", options.runs), ("arc_easy", options.runs)):
            given = (model, make_items(task, options.items, model), runs)
            pair = {"published shape": lambda given=given: published(*given), "ours": lambda given=given: ours(*given)}
            compare(f"sampled, {task}, n = {runs}", pair, options)
        items, score = make_items("mmlu", options.items, model), lm_eval_path(model)
        if score is None:
            print("  likelihood: lm-eval is not installed (pip install lm-eval)")
            return
        pair = {"lm-eval": lambda: score(items), "ours": lambda: score_options(model, items, "", lambda _: None)}
        compare("likelihood, letters and texts", pair, options)


if __name__ == "__main__":
    main()
