"""t-SNE of tokens' states, layer by layer: tokens that a model treats alike lie close together, whatever the axes mean.

Shapes: as in analysis/probes.py.
"""

from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from glyphlm.analysis.probe_texts import Texts
from glyphlm.base.errors import InputError

PERPLEXITY = 30.0  # effective number of neighbours of a token; scikit-learn's default
COLOURED = "script"


def coloured_tokens(texts: Texts) -> dict[str, str]:
    """Token -> its script, of the tokens that `find_texts` chose.

    Raises:
        InputError: the vocabulary has tokens of one script, or of none.
    """
    classes = texts.classes.get(COLOURED)
    if not classes:
        raise InputError("--tsne colours tokens by script, and the tokens are of fewer than two scripts; leave it out, or "
                         "name a text in several with --text")
    return {token: name for name, tokens in classes.items() for token in tokens}


def layer_maps(states_LND: NDArray, seed: int) -> dict[str, NDArray]:
    """Layer -> float32 [N, 2]: t-SNE (Van der Maaten and Hinton 2008) of the codes, the middle block and the final norm."""
    # An import statement would cost pyright 20 s, as it infers the types of an untyped library.
    tsne: Any = import_module("sklearn.manifold").TSNE
    last = len(states_LND) - 1
    chosen = {"codes": 0, f"block {last // 2}": last // 2, "final norm": last}
    perplexity = min(PERPLEXITY, (states_LND.shape[1] - 1) / 3)
    return {name: tsne(perplexity=perplexity, init="pca", random_state=seed).fit_transform(states_LND[layer])
            for name, layer in chosen.items()}
