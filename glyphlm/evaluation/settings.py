"""Settings of an evaluation."""

from dataclasses import dataclass
from typing import Any, Literal

from glyphlm.base.ranges import Range, check_values
from glyphlm.corpus.tasks import BETWEEN, TASKS
from glyphlm.runs.sampling import Sampling

BPB = "bpb"  # the task whose items are documents of a text
TASK_NAMES = (BPB, *(name for name in TASKS if name != "instructions"))
RANGES = {
    "limit": Range(1, 2**40, whole=True),
    "seed": Range(0, 2**63 - 1, whole=True),
    "new_tokens": Range(1, 2**20, whole=True),
    "runs_per_item": Range(1, 2**20, whole=True),
}


@dataclass(frozen=True)
class EvalSettings:
    """Settings of an evaluation.

    Args:
        protocol: likelihood: options by their log-probability, free answers by the likeliest text of a line. sampled: the
            protocol of the published lines, to reproduce them; its ± is decoding noise alone, a model that does not answer
            with a letter falls below chance (see letter_mass), answers' lengths leak, BLEU is of single sentences.
        limit: Questions of a task, drawn by the seed; by default all. (The sampled protocol takes 256 of SQuAD and 128
            pairs of a translation.)
        seed: Seed of samples and of drawn questions.
        precision: bf16 is faster where the machine has it; auto measures.
        between: Text between "Answer:" and an option (likelihood): empty, as in training here; a space is usual
            for models trained elsewhere.
        new_tokens: Maximum number of tokens of a free answer (likelihood).
        runs_per_item: Number n of samples per question in the sampled protocol.
        temperature: Of the sampled protocol, from the model cards, as top_k and top_p: the published code does not state it.
        top_k: Choose among the k likeliest tokens; 0 for all.
        top_p: Choose among the likeliest tokens that together have this probability.
    """

    protocol: Literal["likelihood", "sampled"] = "likelihood"
    limit: int | None = None
    seed: int = 1
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    between: str = BETWEEN
    new_tokens: int = 128
    runs_per_item: int = 10
    temperature: float = Sampling.temperature
    top_k: int = Sampling.top_k
    top_p: float = Sampling.top_p

    def __post_init__(self) -> None:
        check_values(self, "--", RANGES)
        self.sampling()

    def sampling(self) -> Sampling:
        """The validated sampling settings of the sampled protocol."""
        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def of(self, task: str) -> dict[str, Any]:
        """The settings that affect the results of a task."""
        drawing = ("runs_per_item", "temperature", "top_k", "top_p")
        asking = ("protocol", "limit", "seed", *(drawing if self.protocol == "sampled" else ("between", "new_tokens")))
        return {name: getattr(self, name) for name in ("precision", *(asking if task != BPB else ()))}
