"""peft's LoRA takes a run as any model of transformers: adapters alone train, and merged they make a run again."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import make_run
from transformers import AutoModelForCausalLM

from glyphlm.modeling.hf import GlyphLMForCausalLM
from glyphlm.runs.folder import load_run

# peft 0.21 asks transformers 5.23 by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TARGETS = {"by name": ["qkv", "out", "up", "down"], "all": "all-linear"}
STEPS = 8


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), tokenizer)


@pytest.fixture(scope="module", params=TARGETS)
def tuned(run, request) -> PeftModel:
    """The run with adapters that were trained for some steps, and the losses on the way."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=TARGETS[request.param], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(run), config)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    model.losses = []
    for _ in range(STEPS):
        loss = model(input_ids=some_ids(), labels=some_ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.losses.append(loss.item())
    return model.eval()


def some_ids():
    return torch.randint(300, 1000, (4, 16), generator=torch.Generator().manual_seed(5))


def logits_of(model):
    with torch.no_grad():
        return model(some_ids()).logits


def test_the_loss_falls_and_adapters_of_every_matrix_of_the_blocks_alone_have_changed(tuned, run):
    assert tuned.losses[-1] < tuned.losses[0] - 0.1
    trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 4 * 2 and all(".lora_" in name for name in trained)  # two matrices, four places, two blocks
    found = {name.replace(".base_layer", ""): values for name, values in tuned.get_base_model().state_dict().items()}
    for name, values in load_run(run)[0].state_dict().items():
        assert torch.equal(found[name], values)


def test_adapters_are_saved_and_put_on_the_run_again(tuned, run, tmp_path):
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run), tmp_path).eval()
    assert torch.equal(logits_of(again), logits_of(tuned))
    assert not torch.allclose(logits_of(again), logits_of(load_run(run)[0]), atol=0.1)


def test_merged_adapters_make_a_run_that_opens_as_any_other(tuned, run, tokenizer, tmp_path):
    tuned.save_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run), tmp_path / "adapter")
    merged = model.merge_and_unload()
    assert isinstance(merged, GlyphLMForCausalLM)
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save(tmp_path / "merged")
    torch.testing.assert_close(logits_of(load_run(tmp_path / "merged")[0]), logits_of(tuned), atol=1e-4, rtol=1e-4)
