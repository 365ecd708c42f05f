"""What requests to the OpenAI-compatible server may hold. Unsupported fields are refused with a reason, never ignored."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from glyphlm.interop.generation_queue import Refusal

ONE_OR_MORE = BeforeValidator(lambda given: [given] if isinstance(given, str) else given)
StopText = Annotated[str, Field(min_length=1, max_length=256)]


class _Strict(BaseModel):
    """Refuses unknown fields, numbers in quotes, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class StreamOptions(_Strict):
    """`include_usage` adds a last chunk with the numbers of tokens."""

    include_usage: bool = False


# Unsupported fields of the API with their neutral values; any other value is refused.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (False,), "suffix": ("",), "frequency_penalty": (0,),
    "presence_penalty": (0,), "logit_bias": ({},), "tools": ([],), "response_format": ({"type": "text"},),
}


class GenerationRequest(_Strict):
    """Fields of both kinds of request."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: Annotated[list[StopText], ONE_OR_MORE, Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_effect(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name, neutral in WITHOUT_EFFECT.items():
            if given.get(name) is not None and given[name] not in neutral:
                raise ValueError(f"{name} is not supported with this value; leave it out, or give {neutral[0]!r}")
        return {name: value for name, value in given.items() if name not in WITHOUT_EFFECT}


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[str, BeforeValidator(lambda given: given[0] if isinstance(given, list) and len(given) == 1 else given)]


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[TextPart], BeforeValidator(lambda given: [{"type": "text", "text": given}] if isinstance(given, str) else given)
    ]
    name: str | None = None


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class LookRequest(_Strict):
    """POST /look: a text for the page at /."""

    text: str = Field(min_length=1, max_length=4000)


Body = TypeVar("Body", bound=_Strict)


def parse(body: bytes, kind: type[Body]) -> Body:
    """A request of this kind.

    Raises:
        Refusal: it is not JSON, or a field is unknown, missing or out of range; the field is named.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        given = "" if not place else f", not {first['input']!r}"[:80]
        raise Refusal(400, f"{place or 'the request'}: {reason}{given}", place or None) from None
