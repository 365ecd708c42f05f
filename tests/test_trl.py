"""trl's SFTTrainer takes a run with its own defaults: the loss is that of the answers, and what it saves is a run again."""

import pytest
import torch
from datasets import Dataset
from small_models import make_run
from torch.nn.functional import cross_entropy

from glyphlm.corpus.phrasebook import phrases
from glyphlm.runs.folder import load_run

pytestmark = [  # of trl 1.16 and peft 0.21 under transformers 5.23
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
EXAMPLES = [{"prompt": f"{phrase.text} ", "completion": phrase.text[::-1]} for phrase in phrases()[:8]]


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), tokenizer)


def tune(run, out, packing=False, **options):
    """The trainer after three steps, each of which sees all examples; activations are computed again, as is its default."""
    trl = pytest.importorskip("trl", reason="trl is absent")
    settings = trl.SFTConfig(
        str(out), max_steps=3, per_device_train_batch_size=len(EXAMPLES), learning_rate=1e-2, logging_steps=1,
        max_length=4096, packing=packing, use_cpu=True, bf16=False, report_to=[],
    )
    trainer = trl.SFTTrainer(str(run), settings, train_dataset=Dataset.from_list(EXAMPLES), **options)
    trainer.train()
    return trainer


def losses_of(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def loss_of_answers(run):
    """Mean over the tokens of all answers and of what ends them."""
    model, tokenizer = load_run(run)
    nats = []
    for example in EXAMPLES:
        prompt, answer = tokenizer.encode(example["prompt"]), tokenizer.encode(example["completion"])
        ids_T = torch.tensor([*prompt, *answer, tokenizer.end_id])
        with torch.no_grad():
            logits_TV = model(ids_T[None]).logits[0, len(prompt) - 1 : -1]
        nats += cross_entropy(logits_TV, ids_T[len(prompt) :], reduction="none").tolist()
    return sum(nats) / len(nats)


def test_a_run_is_tuned_by_the_loss_of_the_answers_and_saved_as_a_run(run, tmp_path):
    trainer = tune(run, tmp_path / "state")
    losses = losses_of(trainer)
    assert losses[0] == pytest.approx(loss_of_answers(run), rel=1e-5)
    assert losses[-1] < losses[0] - 0.1 and trainer.model.gpt.recompute
    trainer.save_model(str(tmp_path / "tuned"))
    assert loss_of_answers(tmp_path / "tuned") < losses[0] - 0.1
    table_VE = load_run(run)[0].gpt.substrate.table_VE
    assert torch.equal(load_run(tmp_path / "tuned")[0].gpt.substrate.table_VE, table_VE)
    assert {"hf.py", "model.py"} <= {path.name for path in (tmp_path / "tuned").iterdir()}  # which config.json names


def test_adapters_are_tuned_through_frozen_matrices(run, tmp_path):
    from peft import LoraConfig

    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = tune(run, tmp_path / "state", peft_config=config)
    losses = losses_of(trainer)
    assert losses[0] == pytest.approx(loss_of_answers(run), rel=1e-5)
    assert losses[-1] < losses[0] - 0.1


def test_packed_examples_do_not_see_each_other(run, tmp_path):
    assert losses_of(tune(run, tmp_path / "state", packing=True))[0] == pytest.approx(loss_of_answers(run), rel=1e-5)
