"""On a GPU: what holds on the CPU holds there, up to rounding, and what only a GPU has is right."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel

from glyphlm.base.devices import _measured_on_gpu, gpu_of_name, peak_rate, resolve_device, resolve_precision
from glyphlm.base.tensors import load_tensors
from glyphlm.cli.main import main
from glyphlm.data.batches import Batches, TokenText
from glyphlm.modeling.model import GPT, ModelConfig
from glyphlm.modeling.substrate import Substrate, SubstrateConfig
from glyphlm.runs.folder import load_run
from glyphlm.training import loss
from glyphlm.training.checkpoint import TrainState, list_states
from glyphlm.training.loop import METRICS, train
from glyphlm.training.loss import has_liger, head_loss
from glyphlm.training.settings import TrainSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU of CUDA")
DEVICE, BLOCK = "cuda", 32


def model(vocab_size: int, d_model: int = 64) -> GPT:
    """A model of two layers over frozen bits of the id, the same each time."""
    substrate = Substrate(SubstrateConfig(vocab_size, 16, "token_bits", shuffle_seed=1), d_model)
    made = GPT(ModelConfig(d_model, 2, 2, BLOCK), substrate)
    made.init_weights(1)
    for parameter in made.parameters():
        parameter.data.mul_(3)  # initial values give small gradients
    return made


def trained(shards: Path, out: Path, steps: int = 8, d_model: int = 64, stop: int = 0, **changes) -> TrainState | None:
    """Train on the GPU; with `stop` leave in that step, as a kill does."""

    class Out(Exception):
        pass

    def leave(state: TrainState) -> None:
        if state.step == stop:
            raise Out

    text = TokenText(shards, "train")
    settings = TrainSettings(**{
        "steps": steps, "batch_tokens": 8 * BLOCK, "micro_batch_tokens": 4 * BLOCK, "lr": 3e-3, "precision": "fp32",
        "device": DEVICE, "log_every": 1, "save_every": 3, "compile": False, "schedule": "constant", **changes,
    })  # fmt: skip
    batches = Batches([text], [1.0], BLOCK, 8, 1)
    torch.manual_seed(0)
    try:
        return train(model(text.vocab_size, d_model).to(DEVICE), batches, settings, out, on_step=leave)
    except Out:
        return None


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / METRICS).read_text(encoding="utf-8").splitlines()]


def test_forward_and_backward_give_the_numbers_of_the_cpu():
    ids_BT = torch.randint(300, (3, BLOCK + 1), generator=torch.Generator().manual_seed(1))
    found = []
    for device in ("cpu", DEVICE):
        made, x_BT, y_BT = model(300).to(device), ids_BT[:, :-1].to(device), ids_BT[:, 1:].to(device)
        value = F.cross_entropy(made.logits(made.hidden(x_BT)).flatten(0, 1), y_BT.flatten())
        value.backward()
        found.append({"loss": value.detach(), **{name: p.grad for name, p in made.named_parameters()}})
    for name, expected in found[0].items():
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(found[1][name].cpu(), expected, rtol=1e-3, atol=1e-5)


def test_auto_means_the_gpu_and_its_precision():
    assert resolve_device("auto") == DEVICE
    assert resolve_precision("auto", DEVICE) == ("bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_follows_that_of_the_cpu(shards, tmp_path, precision):
    trained(shards, tmp_path / "gpu", precision=precision)
    text = TokenText(shards, "train")
    settings = TrainSettings(steps=8, batch_tokens=8 * BLOCK, micro_batch_tokens=4 * BLOCK, lr=3e-3, precision="fp32",
                             device="cpu", log_every=1, schedule="constant", compile=False)  # fmt: skip
    train(model(text.vocab_size), Batches([text], [1.0], BLOCK, 8, 1), settings, tmp_path / "cpu")
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3 if precision == "fp32" else 0.02)
    assert losses(tmp_path / "gpu")[-1] < losses(tmp_path / "gpu")[0]
    newest = load_tensors(list_states(tmp_path / "gpu")[-1] / "model.safetensors")
    assert {tensor.dtype for tensor in newest.values() if tensor.is_floating_point()} == {torch.float32}


def test_a_stopped_training_ends_with_the_same_bits(shards, tmp_path):
    with sdpa_kernel(SDPBackend.MATH):  # the backward pass of the fused kernels adds in an order of its own
        trained(shards, tmp_path / "straight")
        assert trained(shards, tmp_path / "stopped", stop=7) is None
        assert list_states(tmp_path / "stopped")[-1].name == "step-00000006"
        trained(shards, tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    ours, theirs = (list_states(tmp_path / name)[-1] for name in ("stopped", "straight"))
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, other = load_tensors(ours / file), load_tensors(theirs / file)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_utilisation_is_a_share(shards, tmp_path):
    trained(shards, tmp_path, d_model=256, precision="bf16")
    rows = [json.loads(line) for line in (tmp_path / METRICS).read_text(encoding="utf-8").splitlines()]
    assert all(0 < row["mfu"] <= 1 for row in rows)


def test_the_rate_of_products_is_near_that_of_the_data_sheet():
    measured = _measured_on_gpu("bf16", DEVICE)
    sheet = gpu_of_name(torch.cuda.get_device_name())
    assert peak_rate("bf16", DEVICE) == (sheet.rate("bf16") if sheet else measured)
    assert 0.3 * sheet.rate("bf16") < measured < 1.1 * sheet.rate("bf16") if sheet else measured > 1e12


@pytest.mark.parametrize("liger", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_the_loss_over_the_head_is_plain_cross_entropy(monkeypatch, liger, bias, dtype, near):
    if liger and not has_liger(torch.device(DEVICE)):
        pytest.skip("liger-kernel is not installed: pip install glyphlm[cuda]")
    monkeypatch.setattr(loss, "has_liger", lambda device: liger)
    torch.manual_seed(1)
    shapes = (77, 64), (501, 64), (501,)
    x_ND, weight_VD, bias_V = (torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes)
    y_N, inputs = torch.randint(501, (77,), device=DEVICE), [x_ND, weight_VD, *([bias_V] if bias else [])]
    value = head_loss(x_ND, weight_VD, bias_V if bias else None, y_N, dtype, 77)
    plain = F.cross_entropy(F.linear(x_ND, weight_VD, bias_V if bias else None), y_N)
    assert value.item() == pytest.approx(plain.item(), rel=near)
    for one, other in zip(torch.autograd.grad(value, inputs), torch.autograd.grad(plain, inputs), strict=True):
        assert (one - other).norm() < near * other.norm()


@pytest.fixture(scope="module")
def run(shards, tokenizer_folder, tmp_path_factory) -> Path:
    """A run that the command line trained on `device: auto`."""
    folder = tmp_path_factory.mktemp("cuda")
    recipe = {
        "tokenizer": {"path": str(tokenizer_folder)}, "substrate": {"kind": "token_bits", "n_embed": 16},
        "model": {"d_model": 64, "n_layer": 2, "n_head": 2, "block_size": BLOCK}, "data": [{"shards": str(shards)}],
        "train": {"steps": 60, "batch_tokens": 1024, "micro_batch_tokens": 1024, "lr": 1e-2, "validate_every": 30},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_the_command_line_trains_on_the_gpu(run):
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["device"] == DEVICE and 0 < summary["mfu"] <= 1
    assert summary["bits_per_byte"]["validation"] < summary["unigram_bits_per_byte"]["validation"]


@pytest.mark.parametrize("rows", [1, 3])
def test_generation_with_the_cache_gives_the_text_without_it(run, rows):
    found, _ = load_run(run)
    found = found.to(DEVICE).eval()
    ids_BT = torch.randint(300, (rows, 5), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    how = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids_BT)}
    cached, plain = (found.generate(ids_BT, use_cache=use_cache, **how) for use_cache in (True, False))
    assert torch.equal(cached, plain) and len(set(cached[0, 5:].tolist())) > 1


def test_scores_of_the_gpu_are_those_of_the_cpu(run, tmp_path):
    (tmp_path / "held.txt").write_text("Hello world. The currency of France is the euro.\n" * 3, encoding="utf-8")
    found = []
    for device in ("cpu", DEVICE):
        out = tmp_path / f"{device}.jsonl"
        options = ["--tasks", f"bpb={tmp_path / 'held.txt'}", "--precision", "fp32", "--device", device, "--out", str(out)]
        assert main(["eval", str(run), *options]) == 0
        found.append(json.loads(out.read_text(encoding="utf-8").splitlines()[0])["value"])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
