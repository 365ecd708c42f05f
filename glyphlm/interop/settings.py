"""How a checkpoint is imported, and how a run is served: typed settings."""

import math
from dataclasses import dataclass
from typing import Literal

from glyphlm.base.errors import InputError
from glyphlm.base.ranges import Range, check_values


@dataclass
class ImportSettings:
    """Properties that the shapes of a checkpoint do not show; the defaults are the likely values for the published models.

    Those of a GPT-NeoX folder, as `glyphlm export` writes, are read from its config.json; a run of glyphlm needs none.

    Args:
        rotation: Rotary positions turn channel i with i + K/2 (half), or 2 i with 2 i + 1 (interleaved).
        activation: Exact GELU, or its tanh approximation.
        norm_eps: Epsilon of the LayerNorms.
        rope_base: Base of the rotary frequencies.
        fused: Order of the rows where q, k and v are one matrix: all of q, then k, then v (stacked), or head by head; auto:
            head by head of gpt_neox, else stacked.
        lift: How codes narrower than d_model are widened; auto: tile for binary codes (paper 3), else repeat_interleave.
        rule: The code of an id where no table is stored: bits of the id (token_bits), or their affine map that the files
            hold (affine_bits); auto takes the map, or refuses.
        bit_order: The first of these bits is the lowest, or the highest.
        affine_side: The map is matrix times bits (columns), or bits times matrix (rows).
        signed: These codes are -1 and 1 instead of 0 and 1.
        codes: A file with the table [vocab_size, n_embed], where the checkpoint's own code made it.
        trainable: Whether further training changes the table, as in the published unfrozen twins.
        tokenizer: Folder of the tokenizer, where the checkpoint has none.
        weights: The file of weights, where it is not clear which.
        revision: Of a Hub repository: branch, tag or commit.
    """

    rotation: Literal["half", "interleaved"] = "half"
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    fused: Literal["auto", "stacked", "per_head"] = "auto"
    lift: Literal["auto", "repeat_interleave", "tile"] = "auto"
    rule: Literal["auto", "token_bits", "affine_bits"] = "auto"
    bit_order: Literal["low", "high"] = "low"
    affine_side: Literal["columns", "rows"] = "columns"
    signed: bool = False
    codes: str | None = None
    trainable: bool = False
    tokenizer: str | None = None
    weights: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        check_values(self, "--", {"norm_eps": Range(0, 1, below=True), "rope_base": Range(1, 1e12, above=True)})


@dataclass
class Limits:
    """Limits per request and per client.

    Args:
        max_body_bytes: Longest request body.
        max_new_tokens: Most new tokens a request may ask for, within the context of the model.
        request_seconds: Time from the end of a request to the end of its answer.
        client_seconds: Time a client has to send its headers, to send its body, and to take the end of the answer.
        max_waiting: Requests that wait while another is answered; more get status 429.
        max_connections: Open connections; requests on more get status 503.
    """

    max_body_bytes: int = 1 << 20
    max_new_tokens: int = 4096
    request_seconds: float = 60.0
    client_seconds: float = 10.0
    max_waiting: int = 128
    max_connections: int = 256

    def __post_init__(self) -> None:
        for name in Limits.__dataclass_fields__:
            value, least = getattr(self, name), 1 if name.startswith("max") else 0.1
            if not least <= value < math.inf:
                raise InputError(f"{name} {value} is out of range; give a number of at least {least}")


@dataclass
class ServeSettings(Limits):
    """Where requests are answered, and by which server.

    Args:
        host: Address to listen at; 0.0.0.0 also lets other machines in, and there is no password.
        port: Port to listen at; 0 takes a free one, which is printed.
        server: `glyphlm` serves every run, one request after another, within the limits. `vllm` answers many at once; it has
            limits of its own, needs a run without bias in its head that is no fusion, and was not tried by us.
        twin: A run with the same tokenizer, shown beside the run on the page at /.
        device: Where `glyphlm` computes: auto (a GPU if there is one), cpu or cuda.
    """

    host: str = "localhost"
    port: int = 8000
    server: Literal["glyphlm", "vllm"] = "glyphlm"
    twin: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= 65535:
            raise InputError(f"port {self.port} is out of range; give --port from 0 to 65535")
        changed = [name for name, limit in vars(Limits()).items() if getattr(self, name) != limit]
        if self.server == "vllm" and self.twin:
            raise InputError(f"twin {self.twin} applies only to --server glyphlm; leave it out")
        if self.server == "vllm" and changed:
            raise InputError(f"{', '.join(changed)}: limits apply only to --server glyphlm; vllm has options of its own")
