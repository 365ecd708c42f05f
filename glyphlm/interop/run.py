"""A trained run as one object: generate, chat, evaluate, save, push; and the functions that return one.

`load_run` opens a folder or hf:NAME, `train_recipe` trains a recipe, `train` trains objects that a program has made.
"""

import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from glyphlm.base.errors import InputError
from glyphlm.base.names import MADE_INPUTS, METRICS, SETTINGS, STATES, SUMMARY
from glyphlm.base.outputs import one_writer, replaced_folder, write_atomic
from glyphlm.base.progress import say
from glyphlm.base.records import read_json, read_json_lines
from glyphlm.experiments.recipe import GrowthRecipe, Recipe, load_recipe, settings_text
from glyphlm.runs.chat import chat_ids
from glyphlm.runs.generate import prompt_and_text, stream
from glyphlm.runs.opening import Opened, open_model
from glyphlm.runs.sampling import Sampling
from glyphlm.runs.where import folder_of
from glyphlm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:  # imported where they are used: they load transformers, which generating from a run need not wait for
    from glyphlm.corpus.reading import Reading
    from glyphlm.data.batches import Batch, BatchSource
    from glyphlm.evaluation.evaluate import Evaluation
    from glyphlm.evaluation.settings import EvalSettings
    from glyphlm.modeling.fusion import Fusion
    from glyphlm.modeling.model import GPT
    from glyphlm.runs.card import CardSettings
    from glyphlm.training.checkpoint import TrainState
    from glyphlm.training.settings import TrainSettings



class Run:
    """A trained run.

    Nothing is loaded before it is needed. `model, tokenizer = run` gives the model as transformers know it.

    Args:
        run: A run folder, hf:NAME[@REVISION], or another folder that transformers read without remote code.
        device: Where it computes: cpu, cuda, or auto.
        opened: The model itself, where no folder of it has been written.
        state: Where its training ended, of `train`.
    """

    def __init__(
        self,
        run: str | Path,
        device: str = "cpu",
        *,
        opened: Opened | None = None,
        state: "TrainState | None" = None,
    ):
        if device == "auto":
            from glyphlm.base.devices import resolve_device

            device = resolve_device(device)
        self.folder, self.device, self.state = folder_of(run), device, state
        self._given = str(run)
        if opened is not None:
            self.__dict__["opened"] = opened

    def __repr__(self) -> str:
        return f"glyphlm.Run({self._given!r})"

    def __iter__(self) -> Iterator[Any]:
        from glyphlm.runs.folder import load_run

        yield from load_run(self.folder)

    @cached_property
    def opened(self) -> Opened:
        """Model and tokenizer, loaded when they are first needed."""
        return open_model(self._given, self.device)

    @property
    def name(self) -> str:
        """The name of its folder, or of its repository."""
        return self.opened.name

    @property
    def model(self) -> Any:
        """GPT or Fusion; on a GPU, and of another architecture, a model of transformers."""
        return self.opened.model

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self.opened.tokenizer

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json: sizes, bits per byte, costs, versions; empty for models of other programs."""
        return read_json(self.folder / SUMMARY) if (self.folder / SUMMARY).is_file() else {}

    @overload
    def generate(self, prompt: str, sampling: Sampling | None = None, **options: Any) -> str: ...

    @overload
    def generate(
        self, prompt: list[str] | tuple[str, ...], sampling: Sampling | None = None, **options: Any
    ) -> list[str]: ...

    def generate(
        self, prompt: str | list[str] | tuple[str, ...], sampling: Sampling | None = None, **options: Any
    ) -> str | list[str]:
        """The prompt, or each of several, with its continuation.

        Args:
            options: Fields of Sampling, such as max_new_tokens=50, temperature=0; the others are those of `sampling`.

        Raises:
            InputError: an option is out of range, or the model gives NaN.
        """
        chosen = (sampling or Sampling()).changed(**options)
        if isinstance(prompt, str):
            return prompt_and_text(self.opened, prompt, chosen)
        return [prompt_and_text(self.opened, one, chosen) for one in prompt]

    def stream(self, prompt: str, sampling: Sampling | None = None, **options: Any) -> Iterator[str]:
        """Pieces of the continuation of `prompt`, as they are written."""
        return stream(self.opened, self.opened.prompt_ids(prompt), (sampling or Sampling()).changed(**options))

    def chat(self, messages: Sequence[Mapping[str, str]], sampling: Sampling | None = None, **options: Any) -> str:
        """The answer to a conversation, messages of {"role": "user", "content": ..}, in the run's chat template.

        Raises:
            InputError: the run has no chat template.
        """
        ids = chat_ids(self.opened, messages)
        return "".join(stream(self.opened, ids, (sampling or Sampling()).changed(**options)))

    def evaluate(
        self,
        tasks: Sequence[str],
        settings: "EvalSettings | None" = None,
        reading: "Reading | None" = None,
        log_items: Path | None = None,
    ) -> "Evaluation":
        """Result rows, as `glyphlm.evaluate` returns and stores them; tasks are NAME=PATH, such as bpb=held_out.txt."""
        from glyphlm.corpus.reading import STRICT
        from glyphlm.evaluation.evaluate import evaluate

        reading = reading or STRICT
        return evaluate([self._given], tasks, None, self.device, reading, settings, log_items)

    def save(self, out: str | Path) -> "Run":
        """Write the run folder `out`, without checkpoints, and return the run in it.

        Raises:
            InputError: `out` holds something else.
        """
        out = Path(out)
        if out.exists() and any(out.iterdir()):
            raise InputError(f"{out} is not empty; name another folder")
        skipped = shutil.ignore_patterns(STATES, MADE_INPUTS, ".*", "*.lock")
        with one_writer(out), replaced_folder(out) as partial:
            shutil.copytree(self.folder, partial, ignore=skipped, dirs_exist_ok=True)
        return Run(out, self.device)

    def export(self, out: str | Path, to: str = "gpt_neox", **options: Any) -> Path:
        """Write the run for other tools: gpt_neox (transformers, vLLM) or gguf (llama.cpp), with the options of that format.

        Raises:
            InputError: the run cannot be expressed there, or `out` holds something else.
        """
        if to == "gguf":
            from glyphlm.interop.gguf import export_gguf as write  # needs the extra gguf
        elif to == "gpt_neox":
            from glyphlm.interop.export_neox import export_gpt_neox as write
        else:
            raise InputError(f"to {to!r} must be one of gpt_neox, gguf")
        return write(self.folder, Path(out), **options)

    def push(self, repo: str, private: bool = False, card: "CardSettings | None" = None) -> str:
        """Upload the run to the Hub as OWNER/NAME, its card rewritten with its current results; returns the URL."""
        from glyphlm.base.hub import push
        from glyphlm.runs.card import write_card
        from glyphlm.runs.folder import read_summary

        if summary := read_summary(self.folder):
            write_card(self.folder, summary, card)
        return push(self.folder, repo, private)


def load_run(run: str | Path, device: str = "cpu") -> Run:
    """The run of a folder or of hf:NAME[@REVISION].

    Raises:
        InputError: it is not there, or is not a finished run.
    """
    found = Run(run, device)
    found.opened  # noqa: B018  what cannot be read is refused here
    return found


def train_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    profile: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Train the model of a recipe into the run folder `out`; the same call resumes a stopped training, skips a finished one.

    Args:
        recipe: A YAML file, its content as nested dictionaries, or a Recipe. With stages the model is grown, and the run
            is that of the last stage.
        profile: One of the profiles of the recipe.
        overrides: Values by their dotted names, such as {"train.steps": 100}.

    Raises:
        InputError: the recipe contradicts itself or its inputs, or `out` holds another run.
    """
    from glyphlm.experiments.grow_recipe import run_growth
    from glyphlm.experiments.train_recipe import run_recipe

    out = Path(out)
    if isinstance(recipe, Recipe):
        given = "..."
        read: Recipe = load_recipe(asdict(recipe), profile, [overrides or {}], type(recipe))
    else:
        given = "{..}" if isinstance(recipe, Mapping) else repr(str(recipe))
        read = load_recipe(recipe, profile, [overrides or {}], GrowthRecipe)
    more = "".join(f", {name}={value!r}" for name, value in (("profile", profile), ("overrides", overrides)) if value)
    command = f"glyphlm.train_recipe({given}, {str(out)!r}{more})"
    if isinstance(read, GrowthRecipe) and read.stages:
        stages = run_growth(read, out, command)
        return Run(stages[len(read.stages) - 1])
    plain = Recipe(**{one.name: getattr(read, one.name) for one in fields(Recipe)})
    run_recipe(plain, out, command)
    return Run(out)


def train(
    model: "GPT | Fusion",
    batches: "BatchSource",
    settings: "TrainSettings",
    out: str | Path,
    validation: "Callable[[], Iterator[Batch]] | None" = None,
    on_step: "Callable[[TrainState], None] | None" = None,
    tokenizer: Tokenizer | None = None,
) -> Run:
    """Train `model` on `batches` into the folder `out`, which is then a run like any other; a stopped run is resumed.

    Args:
        validation: Gives a fresh pass over held-out batches each time it is called.
        on_step: Called after every step.
        tokenizer: That of the batches. Without it no run folder is written, and only `run.state` can be used.

    Raises:
        InputError: settings contradict each other, a checkpoint is damaged, or the loss is not finite (NaN or infinite).
    """
    from glyphlm.training.loop import train as train_model
    from glyphlm.training.parallel import world

    out = Path(out)
    state = train_model(model, batches, settings, out, validation, on_step)
    if tokenizer is None:
        return Run(out, state=state)
    if world().is_main:
        _complete(model.eval(), tokenizer, settings, state, out)
    world().wait()
    opened = Opened(out.resolve().name, out, model, tokenizer.as_trained(), model.config.block_size)
    return Run(out, str(model.device.type), opened=opened if model.device.type == "cpu" else None, state=state)


def _complete(
    model: "GPT | Fusion", tokenizer: Tokenizer, settings: "TrainSettings", state: "TrainState", out: Path
) -> None:
    """Make a folder of metrics and checkpoints a run folder: weights, summary, card."""
    from glyphlm.runs.card import write_card
    from glyphlm.runs.folder import describe_model, export_model, write_summary

    reached = {row["split"]: row["bits_per_byte"] for row in read_json_lines(out / METRICS) if "bits_per_byte" in row}
    bits = {split: reached.get(split) for split in ("train", "validation")}
    summary = {
        "name": out.resolve().name, "command": "glyphlm.train(..)", **describe_model(model, tokenizer),
        "tokens": state.tokens, "steps": state.step, "seconds": round(state.seconds, 1), "seed": settings.seed,
        "bits_per_byte": bits, "unigram_bits_per_byte": dict.fromkeys(bits),
        "versions": {"python": platform.python_version(), "glyphlm": version("glyphlm"), "torch": version("torch")},
    }
    export_model(model, tokenizer, out)
    write_atomic(out / SETTINGS, settings_text(settings))
    write_card(out, summary)
    write_summary(out, summary)
    say(f"{out}: {state.step} steps")
