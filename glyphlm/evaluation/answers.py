"""Metrics of answers: exact match and F1 as in SQuAD's official script, BLEU and chrF of sacrebleu, the first letter."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # sacrebleu is of the extra eval, and reports read this module without it
    from sacrebleu.metrics.base import Metric


class Exactness(NamedTuple):
    """Exact match (0 or 1) and F1 of one answer."""

    exact: float
    f1: float


def squad_scores(output: str, answers: Sequence[str]) -> Exactness:
    """Scores as in SQuAD's evaluate-v2.0.py: the maximum over the references, ignoring case, articles and punctuation.

    The reference of an unanswerable question is the empty string: an empty answer scores 1, any other 0.
    """
    golds = [gold for gold in answers if normalised(gold)] or [""]
    exact = max(float(normalised(output) == normalised(gold)) for gold in golds)
    return Exactness(exact, max(_f1(normalised(output).split(), normalised(gold).split()) for gold in golds))


def normalised(text: str) -> str:
    """Lower case, without punctuation (ASCII), the articles a, an, the, and superfluous white space."""
    plain = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def _f1(found: list[str], gold: list[str]) -> float:
    if not found or not gold:
        return float(found == gold)
    common = sum((Counter(found) & Counter(gold)).values())
    return 2 * common / (len(found) + len(gold))


def first_letter(text: str) -> str:
    """The letter that the published protocol scores: the first non-space character, upper-cased; or ""."""
    return text.strip().upper()[:1]


def sentence_bleu(output: str, reference: str) -> float:
    """Sentence BLEU (0 to 100) of the published protocol: upper-cased, with sacrebleu's defaults for every language."""
    import sacrebleu

    return sacrebleu.corpus_bleu([output.upper()], [[reference.upper()]]).score


class CorpusMetric(NamedTuple):
    """A corpus-level metric (0 to 100), computed from sufficient statistics that are additive over sentences."""

    name: str
    metric: "Metric"

    def sums(self, outputs_N: Sequence[str], references_N: Sequence[str]) -> NDArray:
        """Sufficient statistics of each sentence [N, S]; sacrebleu resamples the same ones for its own intervals."""
        return np.array(self.metric._extract_corpus_statistics(outputs_N, [references_N]), float)

    def score(self, sums_RS: NDArray) -> NDArray:
        """The score of summed statistics: [R, S] -> [R], or [S] -> a scalar."""
        rows_RS = np.atleast_2d(sums_RS).round().astype(int).tolist()
        scores_R = np.array([self.metric._compute_score_from_stats(row_S).score for row_S in rows_RS])
        return scores_R if np.ndim(sums_RS) == 2 else scores_R[0]

    @property
    def signature(self) -> str:
        """sacrebleu's signature, which states how the score was computed; available after the first `sums`."""
        return self.metric.get_signature().format()


@cache
def translation_metrics(language: str) -> tuple[CorpusMetric, CorpusMetric]:
    """BLEU and chrF for a target language; BLEU tokenizes Chinese into characters."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    bleu = BLEU(tokenize="zh" if language == "zh" else "13a")
    return CorpusMetric("bleu", bleu), CorpusMetric("chrf", CHRF())
