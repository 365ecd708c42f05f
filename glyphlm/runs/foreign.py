"""Models that other programs wrote for transformers, opened without running their code."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor

from glyphlm.base.errors import InputError
from glyphlm.base.tensors import TENSOR_ERRORS
from glyphlm.modeling.hf import CACHE, GlyphLMForCausalLM
from glyphlm.runs.adapters import ADAPTER_CONFIG
from glyphlm.tokenizer.tokenizer import Tokenizer

ATTENTIONS = ("sdpa", "eager")
LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len")
LONGEST = 4096  # of contexts: with those of 131,072 that some models have, attention and logits fit nowhere


def context_of(config: Any) -> int:
    """Longest context in tokens, LONGEST at most."""
    sizes = [getattr(config.get_text_config(), key, None) for key in LENGTHS]
    return min(LONGEST, next((size for size in sizes if isinstance(size, int)), LONGEST))


def load_foreign(name: str) -> tuple[Any, Tokenizer, tuple[int, ...]]:
    """Model, tokenizer, and the ids that it puts before every text, of a folder or of NAME[@REVISION] on the Hub.

    Raises:
        InputError: it cannot be loaded, lacks tensors or has others, needs code of its own, or has no usable tokenizer.
    """
    source, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    at: dict[str, Any] = {"trust_remote_code": False, **({"revision": revision} if revision else {})}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **at)
        _check_config(name, config)
        with quiet():
            model, report = cast(Any, transformers.AutoModelForCausalLM).from_pretrained(
                source, config=config, dtype=torch.float32, output_loading_info=True, **at
            )
        found = transformers.AutoTokenizer.from_pretrained(source, **at)
    except InputError:
        raise
    except (*TENSOR_ERRORS, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        raise InputError(f"{name} cannot be loaded ({str(error).splitlines()[0]}); give a run folder, a folder that "
                         "transformers read without remote code, or, online, hf:NAME") from None
    _check_complete(name, report)
    if not getattr(found, "is_fast", False):
        raise InputError(f"{name} has no tokenizer.json; convert its tokenizer to the fast format of transformers first")
    roles = {role: getattr(found, role) for role in ("pad_token", "bos_token", "eos_token", "unk_token")}
    added = tuple(found("")["input_ids"])
    start = added if added == (found.bos_token_id,) else ()
    tokenizer = Tokenizer(found.backend_tokenizer, {role: name for role, name in roles.items() if name})
    rows = cast(torch.nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise InputError(f"{name}: its tokenizer has {tokenizer.vocab_size:,} ids, its model {rows:,}; give a folder whose "
                         "tokenizer belongs to its model")
    return model, tokenizer, start


def _check_config(name: str, config: Any) -> None:
    """A config.json may name attention kernels that transformers fetch from the Hub and run, and adapters another model."""
    for part in (config, config.get_text_config()):
        if part._attn_implementation not in (None, *ATTENTIONS):
            raise InputError(f"{name}: its config.json wants the attention {part._attn_implementation!r:.60}, code that is "
                             f"not run; write {' or '.join(ATTENTIONS)} there, or remove it")
    if (Path(name) / ADAPTER_CONFIG).exists():
        raise InputError(f"{name} holds {ADAPTER_CONFIG}, which names another model to load; merge the adapters with peft")


def _check_complete(name: str, report: Mapping[str, Any]) -> None:
    """transformers fill in random values for tensors that a folder lacks, and drop those that they do not know."""
    for kind in ("missing", "unexpected", "mismatched"):
        keys = sorted(str(key) for key in report.get(f"{kind}_keys") or ())
        if keys:
            more = f" and {len(keys) - 1:,} more" if len(keys) > 1 else ""
            raise InputError(f"{name}: {kind} tensors ({keys[0]}{more}): its weights do not fit its config.json; give the "
                             "folder as its maker saved it")


def cached_reader(model: Any, length: int, fixed: bool | None = None) -> Callable[[Tensor], Tensor]:
    """As `glyphlm.runs.generate.reader`, of a model of transformers.

    Args:
        fixed: Whether the cache has the `length` from the beginning; by default for our models on a GPU, where a step is
            then recorded once and replayed, which is several times as fast.
    """
    is_fixed = model.device.type == "cuda" and isinstance(model, GlyphLMForCausalLM) if fixed is None else fixed
    held: Any = transformers.StaticCache(config=model.config, max_cache_len=length) if is_fixed else None

    def read(ids_BT: Tensor) -> Tensor:
        nonlocal held
        out = model(ids_BT, use_cache=True, **{CACHE: held})
        held = out[CACHE]
        return out.logits[:, -1]

    return read


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's own bars and warnings: folders are checked and errors reported here."""
    verbosity, had_bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if had_bars:  # not inside another `quiet`
            transformers.logging.enable_progress_bar()
