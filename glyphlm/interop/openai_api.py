"""A small OpenAI-compatible HTTP server around one loaded run: health, models, completions, chat completions, its page.

A request is validated (`openai_requests`) before anything is computed.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from glyphlm.base.errors import InputError
from glyphlm.interop.generation_queue import Answer, Job, Refusal, Worker
from glyphlm.interop.openai_requests import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    LookRequest,
    Message,
    StreamOptions,
    parse,
)
from glyphlm.interop.settings import Limits
from glyphlm.pages.show import Explorer
from glyphlm.runs.chat import conversation
from glyphlm.runs.opening import Opened
from glyphlm.runs.sampling import Sampling


class Served:
    """An opened model, and the limits of requests to it."""

    def __init__(self, opened: Opened, limits: Limits):
        self.name, self.limits, self.block_size, self._opened = opened.name, limits, opened.block_size, opened
        most = max(4, int(opened.tokenizer.bytes_per_id_V.max()))  # 4: a character without id
        self._most_bytes = (self.block_size - 1) * most

    def job(self, asked: CompletionRequest | ChatRequest) -> Job:
        """The job that answers a request.

        Raises:
            Refusal: the request is for another model, or does not fit the context or the limits.
        """
        if asked.model != self.name:
            raise Refusal(404, f"model {asked.model[:100]!r} is not served here; ask for {self.name!r}", "model")
        if isinstance(asked, ChatRequest):
            ids = self._chat_ids(asked.messages)
            most = asked.max_completion_tokens or asked.max_tokens
        else:
            ids, most = self._ids(asked.prompt, self._opened.prompt_ids, "prompt"), asked.max_tokens
        return Job(ids, self._sampling(asked, len(ids), most), asked.stop or [], bool(asked.stream))

    def _ids(self, text: str, encode: Callable[[str], list[int]], param: str) -> list[int]:
        """Ids of a prompt, which is measured in bytes before it is tokenized."""
        size = len(text.encode())
        if size > self._most_bytes:
            raise Refusal(400, f"the prompt has {size:,} bytes, but {self.block_size} tokens of context hold at most "
                               f"{self._most_bytes:,}; shorten it", param)
        ids = encode(text)
        if len(ids) >= self.block_size:
            raise Refusal(400, f"the prompt has {len(ids)} tokens, which leaves no room in {self.block_size} tokens of "
                               "context; shorten it", param)
        return ids

    def _chat_ids(self, messages: list[Message]) -> list[int]:
        control = self._opened.control
        turns = [{"role": message.role, "content": "".join(part.text for part in message.content)} for message in messages]
        if sum(len(turn["content"].encode()) for turn in turns) > self._most_bytes:
            raise Refusal(400, f"the messages hold more than {self._most_bytes:,} bytes, the most that {self.block_size} "
                               "tokens of context hold; shorten them", "messages")
        try:
            text = conversation(control, turns)
        except InputError as error:
            raise Refusal(400, str(error), "messages") from None
        return self._ids(text, lambda text: control.encode(text) or [control.end_id], "messages")

    def _sampling(self, asked: GenerationRequest, read: int, most: int | None) -> Sampling:
        """Settings of `glyphlm generate`, with those of the request; without a seed in it, a random one."""
        room = self.block_size - read
        if most is not None and most > room:
            raise Refusal(400, f"max_tokens {most} after a prompt of {read} tokens exceeds the context of {self.block_size} "
                               f"tokens; ask for at most {room}", "max_tokens")
        if most is not None and most > self.limits.max_new_tokens:
            raise Refusal(400, f"max_tokens {most} exceeds the limit of this server; ask for at most "
                               f"{self.limits.max_new_tokens}, or start it with a larger --max_new_tokens", "max_tokens")
        most = most or min(room, self.limits.max_new_tokens, Sampling.max_new_tokens)
        seed = secrets.randbelow(1 << 31) if asked.seed is None else asked.seed
        given = {name: value for name in ("temperature", "top_p", "top_k") if (value := getattr(asked, name)) is not None}
        try:
            return Sampling(most, seed=seed, **given)
        except InputError as error:
            raise Refusal(400, str(error)) from None


class Api:
    """The routes; `explorer` is called at the first request for the page of `glyphlm show`."""

    def __init__(self, served: Served, worker: Worker, explorer: Callable[[], Explorer] | None = None):
        self._served, self._worker, self._limits = served, worker, served.limits
        self._explorer = explorer and cache(explorer)
        self._started = int(time.time())

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        if self._explorer:
            routes += [Route("/", self.page), Route("/look", self.look, methods=["POST"])]
        handlers: dict[Any, Any] = {HTTPException: _http_error, Refusal: _refused, ClientDisconnect: _gone}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def health(self, request: Request) -> Response:
        """200 while the server answers."""
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """The one model."""
        model = {"id": self._served.name, "object": "model", "created": self._started, "owned_by": "glyphlm"}
        return JSONResponse({"object": "list", "data": [model]})

    async def page(self, request: Request) -> Response:
        """The page of `glyphlm show`, for text that is typed into it."""
        return HTMLResponse(await self._worked(request, lambda explorer: explorer.live_page))

    async def look(self, request: Request) -> Response:
        """What the page shows of a text."""
        asked = parse(await self._body(request), LookRequest)
        return JSONResponse(await self._worked(request, lambda explorer: explorer.look_at(asked.text)))

    async def _worked(self, request: Request, work: Callable[[Explorer], Any]) -> Any:
        """The result of `work` with the explorer, done by the one thread that uses the model."""
        assert self._explorer is not None
        explorer = self._explorer
        return await self._done(request, Job([], Sampling(), work=lambda: work(explorer())))

    async def completions(self, request: Request) -> Response:
        """Continue a prompt."""
        return await self._answer(request, CompletionRequest)

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        return await self._answer(request, ChatRequest)

    async def _answer(self, request: Request, kind: type[CompletionRequest] | type[ChatRequest]) -> Response:
        asked = parse(await self._body(request), kind)
        job = self._served.job(asked)
        reply = _Reply(job, self._served.name, chat=kind is ChatRequest)
        if job.stream:
            self._submit(job)
            return _Stream(job, reply.events(asked.stream_options))
        return JSONResponse(reply.whole(await self._done(request, job)))

    def _submit(self, job: Job) -> None:
        """Queue a job, which is refused when its time is over."""
        self._worker.submit(job)
        late = Refusal(504, f"no answer within {self._limits.request_seconds:g} s; ask for fewer tokens, or start the "
                            "server with a larger --request_seconds")
        clock = job.loop.call_later(self._limits.request_seconds, job.refuse, late)
        job.done.add_done_callback(lambda _: clock.cancel())

    async def _done(self, request: Request, job: Job) -> Any:
        """The outcome of a job, which ends early where the client goes."""
        self._submit(job)
        gone = asyncio.ensure_future(_until_gone(request, job))
        try:
            return await job.done
        finally:
            gone.cancel()

    async def _body(self, request: Request) -> bytes:
        """The body of a request; a long one is read to its end, not kept, so that the client receives the refusal."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "send JSON, with the header content-type: application/json")
        body, size, most = bytearray(), 0, self._limits.max_body_bytes
        try:
            async with asyncio.timeout(self._limits.client_seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size <= most:
                        body += chunk
        except TimeoutError:
            raise Refusal(408, f"the request was not complete within {self._limits.client_seconds:g} s; resend it") from None
        if size > most:
            raise Refusal(413, f"the request has {size:,} bytes, more than {most:,}; shorten it")
        return bytes(body)


async def _until_gone(request: Request, job: Job) -> None:
    """End the job when its client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.refuse(Refusal(499, "the client has gone"))


class _Stream(StreamingResponse):
    """Server-sent events; the job ends with the response, also where the client closes the connection."""

    def __init__(self, job: Job, events: AsyncIterator[str]):
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._job = job

    async def __call__(self, *asgi: Any) -> None:
        """Send the events."""
        try:
            await super().__call__(*asgi)
        finally:
            self._job.refuse(Refusal(499, "the client has gone"))


class _Reply:
    """A job's answer as the OpenAI API writes it."""

    def __init__(self, job: Job, model: str, chat: bool):
        self._job, self._chat = job, chat
        identity = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self._head = {"id": identity, "created": int(time.time()), "model": model}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The response of a request without stream."""
        content = {"message": {"role": "assistant", "content": answer.text}} if self._chat else {"text": answer.text}
        kind = "chat.completion" if self._chat else "text_completion"
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": answer.finish_reason}
        return {**self._head, "object": kind, "choices": [choice], "usage": self._usage(answer)}

    async def events(self, options: StreamOptions | None) -> AsyncIterator[str]:
        """The events of a stream; a refusal after its beginning is an event, too."""
        if self._chat:
            yield self._chunk({"role": "assistant", "content": ""}, None)
        while (delta := await self._job.deltas.get()) is not None:
            yield self._chunk({"content": delta} if self._chat else delta, None)
        try:
            answer = self._job.done.result()
        except Refusal as refusal:
            yield _event(_error(refusal))
            return
        yield self._chunk({"content": answer.text} if self._chat else answer.text, answer.finish_reason)
        if options is not None and options.include_usage:
            yield _event({**self._head, "object": self._chunk_kind, "choices": [], "usage": self._usage(answer)})
        yield "data: [DONE]\n\n"

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _chunk(self, content: str | dict[str, str], finish_reason: str | None) -> str:
        choice = {"index": 0, "delta" if self._chat else "text": content, "logprobs": None, "finish_reason": finish_reason}
        return _event({**self._head, "object": self._chunk_kind, "choices": [choice]})

    def _usage(self, answer: Answer) -> dict[str, int]:
        read, new = len(self._job.ids), answer.new_tokens
        return {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _error(refusal: Refusal) -> dict[str, Any]:
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    return {"error": {"message": str(refusal), "type": kind, "param": refusal.param, "code": refusal.status}}


async def _refused(request: Request, refusal: Refusal) -> Response:
    # The connection closes: the rest of the request may never come.
    return JSONResponse(_error(refusal), refusal.status, {"connection": "close"})


async def _http_error(request: Request, error: HTTPException) -> Response:
    return await _refused(request, Refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)
