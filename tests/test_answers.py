"""Free answers are worth what the official scripts say."""

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from glyphlm.evaluation.answers import first_letter, normalised, sentence_bleu, squad_scores, translation_metrics

words = st.lists(st.sampled_from("the cat sat on a mat it did not".split()), min_size=1, max_size=9).map(" ".join)
OUTPUTS = ["the cat is on the mat .", "a dog", "你好世界", ""]
REFERENCES = ["there is a cat on the mat .", "the dog barks", "你好，世界", "nothing at all"]


def test_normalised_as_the_official_script():
    assert normalised(" The  quick, (brown) fox's An apple.") == "quick brown foxs apple"
    assert normalised("theatre anthem") == "theatre anthem"


@pytest.mark.parametrize(("output", "answers", "exact", "f1"), [
    ("the Cat.", ("cat",), 1, 1),
    ("a big cat", ("big dog",), 0, 0.5),
    ("cat cat", ("cat",), 0, 2 / 3),
    ("Paris", ("London", "in Paris"), 0, 2 / 3),
    ("", (), 1, 1),
    ("Paris", (), 0, 0),
    ("", ("Paris",), 0, 0),
    (".", ("the",), 1, 1),  # nothing is left of either
])  # fmt: skip
def test_squad_scores(output, answers, exact, f1):
    assert squad_scores(output, answers) == pytest.approx((exact, f1))


@pytest.mark.parametrize(("text", "letter"), [(" b) yes", "B"), ("\n\n a", "A"), ("", ""), (" ", ""), ("4", "4")])
def test_first_letter(text, letter):
    assert first_letter(text) == letter


def test_sentence_bleu_is_upper_cased():
    assert sentence_bleu("The cat sat on the MAT", "the cat sat ON the mat") == pytest.approx(100)
    assert sentence_bleu("dog", "the cat sat on the mat") == 0


@pytest.mark.parametrize(("language", "tokens"), [("en", "13a"), ("ru", "13a"), ("zh", "zh")])
def test_sums_add_up_to_the_score_of_the_corpus(language, tokens):
    bleu, chrf = translation_metrics(language)
    expected = sacrebleu.corpus_bleu(OUTPUTS, [REFERENCES], tokenize=tokens).score
    sums_NS = bleu.sums(OUTPUTS, REFERENCES)
    assert bleu.score(sums_NS.sum(0)) == pytest.approx(expected) and expected > 0
    assert f"tok:{tokens}|" in bleu.signature
    found = chrf.score(chrf.sums(OUTPUTS, REFERENCES).sum(0))
    assert found == pytest.approx(sacrebleu.corpus_chrf(OUTPUTS, [REFERENCES]).score) and "nc:6" in chrf.signature


@given(st.lists(st.tuples(words, words), min_size=1, max_size=6))
def test_scores_of_many_sums_at_once(pairs):
    for measure in translation_metrics("en"):
        sums_NS = measure.sums(*map(list, zip(*pairs)))
        assert measure.score(sums_NS).tolist() == [measure.score(sums_S) for sums_S in sums_NS]
