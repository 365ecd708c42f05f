"""Verdicts on claims: from the interval of paired differences alone, and only where there is something to compare."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glyphlm.base.errors import InputError
from glyphlm.evaluation.stats import over_seeds, pooled_over_seeds, student_p
from glyphlm.studies.claims import Claim, check_claims, claims_digest, detectable, judge, lower_is_better

BPB, EASY = "bpb bits per byte, notes.txt", "arc_easy texts accuracy, easy.jsonl"


def rows(measure, beside=None, **arms):
    """Rows of results.jsonl: one value a seed, from seed 1 on."""
    return [{"arm": arm, "seed": seed, "measure": measure, "value": value, **(beside or {})}
            for arm, values in arms.items() for seed, value in enumerate(values, 1)]


def verdicts(found, **asked):
    """(verdict, reason) of the claim that `new` is at least as good as `old`."""
    return [(row["verdict"], row["reason"]) for row in judge([Claim("", "new", "old", **asked)], found)]


NEAR, WIDE = (2.01, 2.012, 2.011), (2.0, 2.3, 1.8)  # bits per byte; the other has 2.0 with each seed
OLD = (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("new", "asked", "verdict"),
    [
        (NEAR, {"margin": 0.02}, "equivalent"),
        ((1.9, 1.91, 1.92), {"margin": 0.02}, "supported"),
        (OLD, {"margin": 0.02}, "equivalent"),
        (NEAR, {"margin": 0.005}, "not supported"),
        (NEAR, {"margin": 0.011}, "not decidable"),
        (NEAR, {}, "not supported"),
        (NEAR, {"kind": "better"}, "not supported"),
        (WIDE, {"margin": 0.02}, "not decidable"),
        (WIDE, {"kind": "better"}, "not decidable"),
        ((1.9, 1.91, 1.92), {"kind": "better"}, "supported"),
        ((1.9, 1.91, 1.92), {}, "supported"),
        (OLD, {}, "supported"),
        (OLD, {"kind": "better"}, "not supported"),
    ],
)
def test_the_interval_decides(new, asked, verdict):
    ((found, reason),) = verdicts(rows(BPB, new=new, old=OLD), **asked)
    assert found == verdict
    differences = [a - b for a, b in zip(new, OLD)]
    assert reason == (f"3 seeds would find {detectable(differences):.4f}" if verdict == "not decidable" else "")


def test_more_is_better_where_it_is():
    found = rows(EASY, new=(0.5, 0.51, 0.52), old=(0.4, 0.4, 0.4))
    assert verdicts(found, kind="better", measures=["arc_easy"]) == [("supported", "")]
    assert verdicts([row | {"measure": BPB} for row in found], kind="better") == [("not supported", "")]


def test_which_way_is_better():
    fewer = (BPB, "bits per byte, validation", "tokens", "values trained", "petaFLOP", "seconds")
    more = (EASY, "squad greedy f1, dev.json", "en-ru greedy bleu, a.en,bits per byte", "arc_easy letter mass, easy.jsonl")
    assert all(map(lower_is_better, fewer)) and not any(map(lower_is_better, more))


values = st.lists(st.floats(0, 4), min_size=2, max_size=5)


@settings(deadline=None)  # a busy machine takes longer
@given(values, values, st.floats(0, 1))
def test_a_verdict_never_claims_more_than_its_interval(new, old, margin):
    """What is supported cannot be not supported the other way round with no margin, and the row holds its own reason."""
    (row,) = judge([Claim("", "new", "old", margin=margin)], rows(BPB, new=new, old=old))
    low, high, _ = over_seeds([a - b for a, b in zip(new, old)])
    assert (row["low"], row["high"]) == (low, high)
    assert (row["verdict"] in ("supported", "equivalent")) == (high <= margin)
    assert (row["verdict"] == "equivalent") == (0 < margin and -margin <= low and high <= margin)
    assert (row["verdict"] == "not supported") == (low > margin)
    (better,) = judge([Claim("", "old", "new", kind="better")], rows(BPB, new=new, old=old))
    if better["verdict"] == "supported":
        ((plain, _),) = verdicts(rows(BPB, new=new, old=old))
        assert plain == "not supported"


def test_models_that_guess_are_not_compared():
    levels = {"chance": 0.25, "majority": 0.3}
    guessing, constant, able = (0.25, 0.26, 0.24), (0.3, 0.3, 0.3), (0.5, 0.51, 0.52)
    asked = {"measures": ["arc_easy"]}
    assert verdicts(rows(EASY, levels, new=guessing, old=guessing), **asked) == [("not decidable", "both at chance")]
    assert verdicts(rows(EASY, levels, new=constant, old=guessing), **asked) == [("not decidable", "both at majority")]
    assert verdicts(rows(EASY, levels, new=able, old=guessing), **asked) == [("supported", "")]
    assert verdicts(rows(EASY, levels, new=guessing, old=able), **asked) == [("not supported", "")]


def test_a_task_whose_prompts_are_cut_is_not_judged():
    able, better = (0.5, 0.51, 0.52), (0.6, 0.61, 0.62)
    lost = "not decidable", "6% of the prompts lost their beginning to the context"
    for cut, verdict in ((5, ("supported", "")), (6, lost)):
        found = rows(EASY, {"cut": cut, "items": 100}, new=better, old=able)
        assert verdicts(found, measures=["arc_easy"]) == [verdict]


def test_a_reference_that_does_not_do_its_work_is_none():
    found = rows(BPB, {"unigram": 3.0}, new=(2.0, 2.1, 2.0), old=(3.0, 3.1, 3.2))
    assert verdicts(found) == [("reference failed", "old is not better than a unigram model")]
    found = rows(BPB, new=(2.0, 2.1, 2.0), old=(2.5, 2.6, 2.7), small=(2.3, 2.3, 2.3))
    assert verdicts(found, reference_beats="small") == [("reference failed", "old is 0.3000 behind small")]
    assert verdicts(found, reference_beats="new")[0][0] == "reference failed"
    assert verdicts(found, reference_beats="not made") == verdicts(found) == [("supported", "")]


def test_claims_of_one_source_are_corrected_together():
    """One difference that is found alone and not among ten; another that is found among them, too."""
    weak, strong, none = (1.95, 1.94, 1.91), (1.9, 1.9001, 1.9002), (2.0, 2.1, 1.9)
    found = rows(BPB, weak=weak, strong=strong, none=none, old=OLD)
    alone = {"weak": judge([Claim("", "weak", "old", kind="better")], found)[0]}
    assert alone["weak"]["verdict"] == "supported" and alone["weak"]["p"] == alone["weak"]["p_holm"]
    many = [Claim("", arm, "old", "one paper", kind="better") for arm in ("weak", "strong", *["none"] * 8)]
    first, second, *_ = judge([*many, Claim("", "weak", "old", "another", kind="better")], found)
    assert first["verdict"] == "not decidable" and first["p"] < 0.05 <= first["p_holm"]
    assert first["reason"] == "supported alone, not among the 10 tests of this source"
    assert second["verdict"] == "supported" and second["p_holm"] == pytest.approx(10 * second["p"])
    assert judge([*many, Claim("", "weak", "old", "another", kind="better")], found)[-1]["verdict"] == "supported"


def test_the_pooled_interval_of_two_arms_is_the_paired_one():
    (row,) = judge([Claim("", "new", "old")], rows(BPB, new=WIDE, old=(2.0, 2.1, 1.9)))
    assert (row["pooled_low"], row["pooled_high"]) == pytest.approx((row["low"], row["high"]))
    assert row["p"] == pytest.approx(student_p([a - b for a, b in zip((2.0, 2.1, 1.9), WIDE)]))


def test_the_pooled_interval_has_the_variance_of_all_arms():
    values = [[2.0, 2.1, 2.3], [2.5, 2.5, 2.9], [1.0, 1.2, 1.1]]
    (row,) = judge([Claim("", "b", "a")], rows(BPB, a=values[0], b=values[1], c=values[2], short=[2.0, 2.1]))
    assert (row["pooled_low"], row["pooled_high"]) == pytest.approx(pooled_over_seeds(values, 1, 0)[:2])


def test_a_claim_can_name_its_languages():
    names = ("bits per byte, validation", "bpb bits per byte, texts/en-held-out.txt", "bpb bits per byte, ru-held-out.txt",
             "bpb bits per byte, embedded:ru,validation")
    found = [row for name in names for row in rows(name, new=OLD, old=OLD)]
    asked = [row["measure"] for row in judge([Claim("", "new", "old", languages=["ru"])], found)]
    assert asked == [*names[2:]]
    (missing,) = judge([Claim("", "new", "old", measures=["bpb"], languages=["zh"])], found)
    assert (missing["measure"], missing["reason"]) == ("bpb, zh", "it was not measured")


def test_the_digest_is_of_claims_and_seeds():
    claims = [Claim("x", "new", "old")]
    digest = claims_digest(claims, [1, 2])
    assert digest == claims_digest([Claim("x", "new", "old")], [1, 2]) and len(digest) == 16
    assert digest != claims_digest(claims, [1, 3]) != claims_digest([Claim("x", "new", "old", margin=0.1)], [1, 3])


def test_what_cannot_be_compared_is_reported_with_the_reason():
    assert verdicts(rows(BPB, new=[2.0], old=OLD)) == [("not decidable", "1 seed")]
    assert verdicts(rows(BPB, new=OLD)) == [("not decidable", "arm old was not made")]
    assert verdicts([]) == [("not decidable", "arm new was not made, arm old was not made")]
    assert verdicts(rows(EASY, new=OLD, old=OLD)) == [("not decidable", "it was not measured")]
    assert verdicts([*rows(BPB, new=OLD), *rows(EASY, old=OLD)]) == [("not decidable", "no seed in common")]


def test_one_seed_has_a_difference_and_no_interval():
    (row,) = judge([Claim("", "new", "old")], rows(BPB, new=[2.5], old=[2.0]))
    assert (row["difference"], row["low"], row["high"], row["would_find"]) == (0.5, None, None, None)


def test_only_seeds_of_both_are_paired():
    (row,) = judge([Claim("", "new", "old")], rows(BPB, new=(2.0, 2.0), old=(1.0, 1.5, 9.0)))
    assert (row["seeds"], row["difference"]) == (2, 0.75)
    assert verdicts(rows(BPB, new=(2.0, math.nan), old=(2.0, 2.0))) == [("not decidable", "1 seed")]


def test_measures_are_chosen_by_their_prefix():
    mass = "arc_easy letter mass, easy.jsonl"
    names = ("bits per byte, validation", BPB, EASY, mass)
    found = [row for name in names for row in rows(name, new=OLD, old=OLD)]
    found += rows("arc_easy texts accuracy physics, easy.jsonl", {"subject": "physics"}, new=OLD, old=OLD)

    def asked(*measures):
        return [row["measure"] for row in judge([Claim("", "new", "old", measures=list(measures))], found)]

    assert asked() == ["bits per byte, validation", BPB]
    assert asked("bpb", "arc_easy") == [BPB, EASY] and asked("arc_easy letter mass") == [mass]


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (Claim("x", "new", "odd"), "claim 'x' names odd; the models are new, old"),
        (Claim("x", "new", "old", reference_beats="odd"), "claim 'x' names odd; the models are new, old"),
        (Claim("x", "new", "new"), "claim 'x' names new twice; name two models"),
        (Claim("x", "new", "old", margin=-1.0), "margin -1.0 and kind at_least; a margin is 0 or more"),
        (Claim("x", "new", "old", kind="better", margin=0.1), "and only at_least has one"),
    ],
)
def test_a_claim_without_meaning_is_refused(claim, message):
    with pytest.raises(InputError, match=message):
        check_claims([claim], ["new", "old"])


@pytest.mark.parametrize(("seeds", "exact"), [(3, 5.65), (5, 3.76), (10, 3.16)])
def test_the_detectable_difference_is_near_the_exact_one(seeds, exact):
    """Exact: noncentrality that gives the two-sided t-test a power of 0.8, in standard errors."""
    differences = [1.0, *[-1 / (seeds - 1)] * (seeds - 1)]
    error = over_seeds(differences)
    standard = (sum(d * d for d in differences) / (seeds - 1) / seeds) ** 0.5
    assert error.high > standard
    assert exact <= detectable(differences) / standard < 1.1 * exact
    assert detectable([0.3]) == math.inf
