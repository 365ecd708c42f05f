"""Layer-wise probes of token representations: nearest neighbours, classification, retrieval of translations.

The control of a run is an untrained model of the same shape: what it reaches comes from the codes and from random
projections, and only the gain over it was learned. Layers: the lifted codes, after each block, after the final norm.
Intervals are over items. Shapes: L layers, N texts, D d_model, C classes, K neighbours.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glyphlm.analysis.inspection import Codes, find_nearest
from glyphlm.analysis.probe_texts import Texts, find_names, find_texts
from glyphlm.analysis.settings import ProbeSettings
from glyphlm.analysis.tokenizers import named
from glyphlm.analysis.tsne import coloured_tokens, layer_maps
from glyphlm.base.errors import InputError
from glyphlm.base.outputs import Build
from glyphlm.base.progress import meter, working
from glyphlm.base.records import read_json_lines, to_json, to_lines
from glyphlm.base.tables import aligned
from glyphlm.corpus.sources import describe, find_sources
from glyphlm.evaluation.stats import bootstrap
from glyphlm.modeling.model import GPT
from glyphlm.modeling.substrate import scale_rows
from glyphlm.runs.folder import load_run, weights_sha256
from glyphlm.tokenizer.tokenizer import Tokenizer

ROWS, PLOT, NEIGHBOURS, TSNE = "probes.jsonl", "probes.svg", "neighbours.txt", "tsne.png"
MEASURES = {"knn": "accuracy of 5 nearest", "linear": "accuracy of linear probe", "mrr": "mean reciprocal rank"}
NEAREST = "nearest"  # task of rows that list neighbours and have no score
CONTROL_SEED = 7919  # not a seed that trainings use
BATCH, SHOWN = 256, 5
VOTERS, FOLDS = 5, 5
RIDGE = 0.01  # relative to the mean squared norm of the states, so that the scale of a layer does not matter
TINY = 1e-12  # avoids 0 / 0 if states are zero or equal
Row = dict[str, Any]


def probe(
    runs: Sequence[str | Path], out: Path, settings: ProbeSettings | None = None, device: str = "cpu"
) -> list[Row]:
    """Probe each run and its control; rows are also written to the folder `out`, with a plot and the neighbours as text.

    With `settings.tsne` there is also a map of the tokens.

    A row has run, layer, task, measure, value, its 95% interval over items (low, high), chance, the control's value, the
    gain over it with its paired interval (gain_low, gain_high), and items; rows of task nearest have a word and neighbours.

    Raises:
        InputError: a run or the file of pairs is bad, a word is empty or too long, or `out` holds something else.
    """
    settings, labels = settings or ProbeSettings(), named([str(run) for run in runs])
    names = find_names(settings)
    read = {"pairs": hashlib.sha256(to_json(names).encode()).hexdigest(),
            "text": settings.text and describe(find_sources([settings.text]))}
    build = Build("probes", asdict(settings) | read, {label: weights_sha256(run) for label, run in labels.items()})
    if not build.is_done(out):
        from glyphlm.analysis.layer_plots import draw_layers, draw_tsne  # needs the extra report: refused before the work

        if settings.tsne:
            import sklearn  # noqa: F401  # of the extra tsne: refused before the work

        rows, maps = [], {}
        for label, run in labels.items():
            with working(f"opening {run}"):
                model, tokenizer = load_run(run)
            if not isinstance(model.gpt, GPT):
                raise InputError(f"{run} is a fused model, whose layers are its experts'; probe the runs it was made from")
            texts = find_texts(tokenizer, names, settings)
            found = probe_model(model.gpt.to(device), tokenizer, texts, settings.seed, label)
            rows += [{"run": label, **row} for row in found]
            if settings.tsne:
                maps[label] = _maps(label, model.gpt, tokenizer, coloured_tokens(texts), settings.seed)
        with build.folder(out) as folder:
            _write(folder, rows, draw_layers)
            if maps:
                (folder / TSNE).write_bytes(draw_tsne(maps))
    return read_json_lines(out / ROWS)


def probe_model(gpt: GPT, tokenizer: Tokenizer, texts: Texts, seed: int = 1, run: str | None = None) -> Iterator[Row]:
    """The rows of one model beside its control; `run` is its name in the progress bar.

    Raises:
        InputError: a text is empty or longer than the context.
    """
    every = texts.all()
    ids = [_encode(tokenizer, text, gpt.config.block_size - 1) for text in every]
    places = {text: number for number, text in enumerate(every)}
    with meter(run and f"probing {run}", gpt.config.n_layer + 4) as progress:
        trained_LND = layer_states(gpt, ids, tokenizer.end_id)
        progress.advance()
        control_LND = layer_states(untrained(gpt), ids, tokenizer.end_id)
        progress.advance()
        for layer, states in enumerate(zip(trained_LND, control_LND)):
            for own, control in zip(*(_score_layer(x_ND.numpy(), places, texts, seed) for x_ND in states)):
                yield {"layer": layer, **_row(*own, control_NS=control[2])}
            codes = Codes(Path(), gpt.substrate.config, states[0], every, [])
            for word in texts.words:
                near = [{"text": each["token"], "cosine": each["cosine"]} for each in find_nearest(codes, places[word])]
                yield {"layer": layer, "task": NEAREST, "word": word, "neighbours": near}
            progress.advance()


def _maps(
    label: str, gpt: GPT, tokenizer: Tokenizer, scripts: Mapping[str, str], seed: int
) -> tuple[list[str], dict[str, NDArray]]:
    """The script of each token, and the tokens in the plane by layer."""
    ids = [_encode(tokenizer, token, gpt.config.block_size - 1) for token in scripts]
    with working(f"t-SNE of {label}"):
        return [*scripts.values()], layer_maps(layer_states(gpt, ids, tokenizer.end_id).numpy(), seed)


def _encode(tokenizer: Tokenizer, text: str, most: int) -> list[int]:
    ids = tokenizer.encode(text)
    if not 0 < len(ids) <= most:
        raise InputError(f"{text!r} has {len(ids)} tokens; give texts of 1 to {most} tokens, the context after </s>")
    return ids


@torch.no_grad()
def layer_states(gpt: GPT, ids: Sequence[Sequence[int]], end_id: int) -> Tensor:
    """float32 [L, N, D]: the state of each text (after `</s>`) at each layer, averaged over its ids."""
    states_LND = torch.empty(gpt.config.n_layer + 2, len(ids), gpt.config.d_model)
    for length in sorted({len(each) for each in ids}):
        alike = [number for number, each in enumerate(ids) if len(each) == length]
        for start in range(0, len(alike), BATCH):
            members = alike[start : start + BATCH]
            ids_BT = torch.tensor([[end_id, *ids[number]] for number in members], device=gpt.device)
            outputs = layer_outputs(gpt, ids_BT)
            states_LND[:, members] = torch.stack([x_BTD[:, 1:].float().mean(1).cpu() for x_BTD in outputs])
    return states_LND


def layer_outputs(gpt: GPT, ids_BT: Tensor) -> list[Tensor]:
    """x_BTD of the lifted codes, after each block, and after the final norm."""
    kept: list[Any] = []
    hooks = [module.register_forward_hook(lambda _, given, x_BTD: kept.append(x_BTD))
             for module in (gpt.substrate, *gpt.blocks, gpt.norm)]
    try:
        gpt.hidden(ids_BT)
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def untrained(gpt: GPT) -> GPT:
    """The control: a model of the same shape at initialization, with the same codes if they are frozen, else random ones."""
    control = GPT(gpt.config, copy.deepcopy(gpt.substrate)).to(gpt.device).eval()
    control.init_weights(CONTROL_SEED)
    if gpt.substrate.config.trainable:
        table_VE = torch.randn(gpt.substrate.table_VE.shape, generator=torch.Generator().manual_seed(CONTROL_SEED))
        control.substrate.table_VE.data.copy_(scale_rows(table_VE, gpt.substrate.config.scale))
    return control


def _score_layer(
    x_ND: NDArray, places: Mapping[str, int], texts: Texts, seed: int
) -> Iterator[tuple[str, str, NDArray, float]]:
    """(task, measure, `class_sums`, chance) for the states of one layer; places: text -> row of `x_ND`."""
    for name, right_of in (("knn", knn_right), ("linear", partial(linear_right, seed=seed))):
        for task, classes in texts.classes.items():
            rows = [places[text] for group in classes.values() for text in group]
            label_N = np.repeat(np.arange(len(classes)), [len(group) for group in classes.values()])
            yield task, name, class_sums(right_of(x_ND[rows], label_N), label_N), 1 / len(classes)
    for languages, pairs in texts.translations.items():
        score_N = reciprocal_ranks(*(x_ND[[places[text] for text in side]] for side in zip(*pairs)))
        chance = float(np.mean(1 / np.arange(1, len(pairs) + 1)))
        yield f"translation {languages}", "mrr", class_sums(score_N, np.zeros(len(pairs), int)), chance


def _row(task: str, measure: str, sums_NS: NDArray, chance: float, control_NS: NDArray) -> Row:
    value, control = class_mean(sums_NS.sum(0)), class_mean(control_NS.sum(0))
    low, high, name = bootstrap(sums_NS, class_mean)
    gain_low, gain_high, _ = bootstrap(np.concatenate([sums_NS, control_NS], axis=1), gain)
    return {"task": task, "measure": measure, "value": value, "low": low, "high": high, "chance": chance, "control": control,
            "gain": value - control, "gain_low": gain_low, "gain_high": gain_high, "interval": name, "items": len(sums_NS)}


def _write(folder: Path, rows: Sequence[Row], draw: Callable[[Any], str]) -> None:
    (folder / ROWS).write_text(to_lines(rows), encoding="utf-8")
    (folder / NEIGHBOURS).write_text(neighbours_text(rows), encoding="utf-8")
    panels = {(task, MEASURES[measure]): found for (task, measure), found in _scored(rows, "task", "measure").items()}
    if panels:
        (folder / PLOT).write_text(draw(panels), encoding="utf-8")


def _scored(rows: Sequence[Row], *keys: str) -> dict[tuple[str, ...], list[Row]]:
    """The rows with a score, grouped by the values of `keys`."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["task"] != NEAREST:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def neighbours_text(rows: Sequence[Row]) -> str:
    """The nearest texts of each word, by layer and run."""
    found = sorted((row for row in rows if row["task"] == NEAREST), key=lambda row: row["layer"])
    width, lines = max(len(row["run"]) for row in rows), []
    for word in dict.fromkeys(row["word"] for row in found):
        lines.append(repr(word))
        for row in (row for row in found if row["word"] == word):
            near = "  ".join(f"{each['cosine']:.3f} {each['text']!r}" for each in row["neighbours"][:SHOWN])
            lines.append(f"  layer {row['layer']:>2}  {row['run']:<{width}}  {near}")
    return "\n".join([*lines, ""])


def table(rows: Sequence[Row]) -> str:
    """Scores of each run at the codes and at the final norm, and the gain over the untrained model there."""
    lines = [("task", "measure", "run", "chance", "codes", "final norm", "untrained", "gained by training")]
    for (task, measure, run), layers in _scored(rows, "task", "measure", "run").items():
        last = layers[-1]
        lines.append((task, MEASURES[measure], run, f"{last['chance']:.3f}", f"{layers[0]['value']:.3f}",
                      f"{last['value']:.3f} ({last['low']:.3f} to {last['high']:.3f})", f"{last['control']:.3f}",
                      f"{last['gain']:+.3f} ({last['gain_low']:+.3f} to {last['gain_high']:+.3f})"))
    return aligned(lines)


# Scores of the states of one layer


def knn_right(x_ND: NDArray, label_N: NDArray) -> NDArray:
    """Leave-one-out k-nearest-neighbours by cosine: whether each text is classified correctly, bool [N]."""
    cosine_NN = _unit(x_ND) @ _unit(x_ND).T
    np.fill_diagonal(cosine_NN, -np.inf)
    near_NK = np.argsort(-cosine_NN, axis=1, kind="stable")[:, :VOTERS]
    weight_NK = 1 + 1e-3 * np.take_along_axis(cosine_NN, near_NK, 1)  # the nearer decide a tie
    vote_NC = (np.eye(label_N.max() + 1)[label_N[near_NK]] * weight_NK[..., None]).sum(1)
    return vote_NC.argmax(1) == label_N


def linear_right(x_ND: NDArray, label_N: NDArray, seed: int = 1) -> NDArray:
    """Cross-validated ridge regression onto the classes: whether each text is classified correctly, bool [N].

    Solved in the dual form: large models have more channels than there are texts.
    """
    fold_N = np.random.default_rng(seed).permutation(len(label_N)) % FOLDS
    class_NC, right_N = np.eye(label_N.max() + 1)[label_N], np.zeros(len(label_N), bool)
    for fold in range(FOLDS):
        fit, test = fold_N != fold, fold_N == fold
        centre_D, mean_C = x_ND[fit].mean(0, dtype=float), class_NC[fit].mean(0)
        fit_ND, test_ND = x_ND[fit] - centre_D, x_ND[test] - centre_D
        products_NN = fit_ND @ fit_ND.T
        products_NN += (RIDGE * np.trace(products_NN) / len(fit_ND) + TINY) * np.eye(len(fit_ND))
        score_NC = test_ND @ (fit_ND.T @ np.linalg.solve(products_NN, class_NC[fit] - mean_C)) + mean_C
        right_N[test] = score_NC.argmax(1) == label_N[test]
    return right_N


def reciprocal_ranks(ours_ND: NDArray, theirs_ND: NDArray) -> NDArray:
    """Reciprocal rank of each text's translation by cosine, averaged over both directions, [N]; ties count half.

    The mean state of each language is subtracted, since it encodes only which language it is.
    """
    cosine_NN = _unit(ours_ND - ours_ND.mean(0)) @ _unit(theirs_ND - theirs_ND.mean(0)).T
    own_N1 = np.diag(cosine_NN)[:, None]
    ranks = [0.5 + (each_NN > own_N1).sum(1) + (each_NN == own_N1).sum(1) / 2 for each_NN in (cosine_NN, cosine_NN.T)]
    return np.mean([1 / rank_N for rank_N in ranks], axis=0)


def class_sums(score_N: NDArray, label_N: NDArray) -> NDArray:
    """The summands of `class_mean` [N, 2 C]: the score and the count of each item, in the columns of its class."""
    one_NC = np.eye(label_N.max() + 1)[label_N]
    return np.concatenate([score_N[:, None] * one_NC, one_NC], axis=1)


def class_mean(sums: NDArray) -> NDArray:
    """The macro average: the mean over classes of their mean scores."""
    score, count = np.split(sums, 2, axis=-1)
    return (score / np.maximum(count, 1)).mean(-1)


def gain(sums: NDArray) -> NDArray:
    """`class_mean` of the first half of the columns minus that of the second: two models on the same items."""
    own, other = np.split(sums, 2, axis=-1)
    return class_mean(own) - class_mean(other)


def _unit(x_ND: NDArray) -> NDArray:
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), TINY)
