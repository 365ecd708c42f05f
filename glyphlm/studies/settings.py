"""Settings of a study: its models, and claims about them."""

from dataclasses import dataclass, field
from typing import Any, Literal

from glyphlm.base.ranges import Range, check_values


@dataclass
class Claim:
    """A statement about two models of a study.

    Args:
        claim: The statement in words.
        arm: The model that the claim favours, by its name in the results: an arm, a fused model, ARM.stage-1.
        against: The other, the reference.
        source: Where it was made. Claims of one source are corrected for their number together.
        measures: How the names of the measures begin: bpb, arc_easy texts accuracy. By default all bits per byte.
        languages: Languages judged: words of the names of the texts, such as ru of ru-held-out.txt. By default all texts.
        kind: at_least: the model is not worse by more than `margin`; better: it is better.
        margin: In the units of the measure; accuracies are shares of 1.
        reference_beats: A model that the reference is expected to be at least as good as; where it is worse by more than
            `margin`, it was not trained well, and nothing is judged.
    """

    claim: str
    arm: str
    against: str
    source: str = ""
    measures: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    kind: Literal["at_least", "better"] = "at_least"
    margin: float = 0.0
    reference_beats: str | None = None

    def __post_init__(self) -> None:
        check_values(self, "claims.", {"margin": Range(-1e9, 1e9)})  # `check_claims` names the claim of one below 0


@dataclass
class Study:
    """The models to make and compare.

    Args:
        recipe: A recipe's file, or the recipe itself. A tokenizer that is counted on text is counted on the text of this
            one, whatever an arm is trained on, so that arms can share it.
        recipe_profile: Profile of that file.
        arms: Name of each arm and what it changes in the recipe. An arm with stages is grown; its stages and its controls
            are compared as ARM.stage-1, ARM.monolithic-tokens.
        seeds: Each arm is trained once with each. A seed draws all that is drawn: weights, the order of the data, random
            codes, shuffled ids.
        tune: Values to try, such as {train.lr: [1e-3, 3e-3]}: with `tune_seeds` each arm is trained with all of them (all
            combinations), and goes on with those of the fewest bits per byte in validation. A value that an arm sets itself
            is not tuned.
        tune_seeds: Seeds of these trainings, none of which is among `seeds`.
        fuse: Name of each fused model, its experts and routers (names of arms) and options of glyphlm fuse; with `recipe`
            (what it changes in the recipe) it is trained further.
        evaluate: Tasks of glyphlm eval for all models: NAME=PATH.
        protocols: How the questions among them are asked, by likelihood, sampled as published, or both ways.
        only: Names of the arms to make; by default all.
        compare: The model that the others are compared with; by default the first.
        title: Heading of the results.
        data: What to train on instead of the data of the recipe, each weighted by its size: texts, and examples as
            NAME=PATH, such as arc_easy=ARC-Easy-Train.jsonl.
        claims: Statements about two of the models; the results say whether each is supported.
        margin_reason: Why the margins of the claims are what they are; printed with the verdicts.
        spread: Expected standard deviation over seeds of a difference of two arms in bits per byte, from earlier results;
            with it the power of the claims is printed before anything runs.
        effect: The difference in bits per byte that claims without a margin should find.
    """

    recipe: str | dict[str, Any]
    arms: dict[str, dict[str, Any] | None]
    recipe_profile: str | None = None
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    tune: dict[str, list[Any]] = field(default_factory=dict)
    tune_seeds: list[int] = field(default_factory=lambda: [0])
    fuse: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluate: list[str] = field(default_factory=list)
    protocols: list[Literal["likelihood", "sampled"]] = field(default_factory=lambda: ["likelihood"])
    only: list[str] = field(default_factory=list)
    compare: str | None = None
    title: str = "GlyphLM study"
    data: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    margin_reason: str = ""
    spread: float | None = None
    effect: float | None = None

    def __post_init__(self) -> None:
        check_values(self, "", dict.fromkeys(("spread", "effect"), Range(0, 1e9, above=True)))
