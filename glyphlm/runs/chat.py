"""Messages of a conversation -> the ids that a model reads, by its chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from glyphlm.base.errors import InputError
from glyphlm.runs.opening import Opened
from glyphlm.tokenizer.tokenizer import Tokenizer

# Of runs that were trained on examples (sft): questions and answers as `corpus.tasks.question_prompt` writes them.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}Question: {{ message['content'] }}\nAnswer:"
    "{% else %}{{ message['content'] }}\n{% endif %}{% endfor %}"
)


def conversation(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> str:
    """The messages as one text, up to where the answer begins.

    Args:
        messages: {"role": user, assistant or system, "content": text} each.

    Raises:
        InputError: there is no chat template, or it refuses the messages.
    """
    template = tokenizer.config.get("chat_template")
    if not isinstance(template, str):
        raise InputError("the model has no chat template: put one into chat_template.jinja of the run folder, or generate "
                         "from a text instead")
    from transformers.utils.chat_template_utils import render_jinja_template  # takes a second to import

    names: dict[str, Any] = {role: name for role, name in tokenizer.config.items() if role.endswith("_token")}
    try:
        turns = [dict(message) for message in messages]
        [text], _ = render_jinja_template([turns], chat_template=template, add_generation_prompt=True, **names)
    except Exception as error:  # templates may raise errors of any kind
        raise InputError(f"the chat template refuses these messages ({error})") from None
    return text


def chat_ids(opened: Opened, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """What the model reads before it answers; names of special tokens, which templates write, are those tokens.

    Raises:
        InputError: as `conversation`, or the conversation fills the context.
    """
    ids = opened.control.encode(conversation(opened.control, messages)) or [opened.control.end_id]
    if len(ids) >= opened.block_size:
        raise InputError(f"the conversation has {len(ids)} tokens, and the context {opened.block_size}; begin a new one")
    return ids
