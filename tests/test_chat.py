"""Conversations are written by the run's chat template; that of runs trained on examples is how examples are written."""

import pytest
from small_models import make_run

from glyphlm.base.errors import InputError
from glyphlm.corpus.tasks import BETWEEN, question_prompt
from glyphlm.runs.chat import TEMPLATE, chat_ids, conversation
from glyphlm.runs.opening import open_model
from glyphlm.tokenizer.tokenizer import Tokenizer

TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}, {"role": "user", "content": "Why?"}]


def with_template(run, tokenizer, template):
    Tokenizer(tokenizer._backend, tokenizer.config | {"chat_template": template}).save(run)
    return open_model(run)


def test_our_template_writes_conversations_as_examples_are_written(tokenizer):
    spoken = Tokenizer(tokenizer._backend, tokenizer.config | {"chat_template": TEMPLATE})
    assert conversation(spoken, TURNS) == f"{question_prompt('Who?')}{BETWEEN}I.\n{question_prompt('Why?')}"


def test_names_of_special_tokens_in_a_template_are_those_tokens(tokenizer, tmp_path):
    run = make_run(tmp_path / "run", tokenizer)
    opened = with_template(run, tokenizer, "{{ messages[0]['content'] }}{{ eos_token }}")
    assert chat_ids(opened, TURNS) == [*tokenizer.encode("Who?"), tokenizer.end_id]


def test_what_cannot_be_answered_is_refused(tokenizer, tmp_path):
    run = make_run(tmp_path / "run", tokenizer, block_size=16)
    with pytest.raises(InputError, match="chat_template.jinja"):
        chat_ids(open_model(run), TURNS)
    opened = with_template(run, tokenizer, "{{ messages[0]['content'] }}")
    with pytest.raises(InputError, match="16"):
        chat_ids(opened, [{"role": "user", "content": "word " * 40}])
    with pytest.raises(InputError, match="refuses"):
        chat_ids(with_template(run, tokenizer, "{{ raise_exception('no') }}"), TURNS)
