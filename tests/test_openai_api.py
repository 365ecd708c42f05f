"""Requests are answered as the OpenAI API says, or refused with status and reason before anything is generated."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_models import make_run
from starlette.testclient import TestClient

from glyphlm.interop import openai_requests
from glyphlm.interop.generation_queue import Worker
from glyphlm.interop.openai_api import Api, Served
from glyphlm.interop.settings import Limits
from glyphlm.pages.show import Explorer
from glyphlm.runs.folder import load_run
from glyphlm.runs.generate import continue_text
from glyphlm.runs.opening import Opened, open_model
from glyphlm.runs.sampling import Sampling
from glyphlm.tokenizer.tokenizer import Tokenizer

BLOCK = 64
TEMPLATE = """{{ bos_token }}{% for m in messages %}
{%- if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}
{{ m.role }}: {{ m.content }}</s>{% endfor %}"""


@pytest.fixture(scope="module")
def loaded(tokenizer, tmp_path_factory):
    return load_run(make_run(tmp_path_factory.mktemp("runs") / "mine", tokenizer, BLOCK))


@pytest.fixture(scope="module")
def worker(loaded) -> Iterator[Worker]:
    worker = Worker(*loaded, 8)
    yield worker
    worker.close()


def client_of(loaded, worker: Worker, limits: Limits | None = None, template: str | None = TEMPLATE) -> TestClient:
    model, tokenizer = loaded
    opened = Opened("mine", Path(model.config._name_or_path), model, tokenizer, BLOCK)
    opened.control.config["chat_template"] = template
    return TestClient(Api(Served(opened, limits or Limits(max_new_tokens=40)), worker).app(), raise_server_exceptions=False)


@pytest.fixture
def client(loaded, worker) -> TestClient:
    return client_of(loaded, worker)


def complete(client: TestClient, **fields):
    return client.post("/v1/completions", json={"model": "mine", "prompt": "Hello ", "max_tokens": 4, "seed": 1} | fields)


def converse(client: TestClient, *messages: dict, **fields):
    return client.post("/v1/chat/completions", json={"model": "mine", "messages": messages, "max_tokens": 4} | fields)


def events(answer) -> list:
    """The data of each event of a stream."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_health_and_models(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["mine"]


def test_a_completion_is_what_generate_gives(client, loaded):
    answer = complete(client, temperature=0.7, top_k=5).json()
    expected = continue_text(*loaded, "Hello ", Sampling(4, 0.7, top_k=5, seed=1))
    assert "Hello " + answer["choices"][0]["text"] == expected
    assert answer["object"] == "text_completion" and answer["model"] == "mine"
    read = len(loaded[1].encode("Hello "))
    assert answer["usage"] == {"prompt_tokens": read, "completion_tokens": 4, "total_tokens": read + 4}
    assert answer["choices"][0]["finish_reason"] == "length"


def test_without_a_seed_answers_differ(client):
    texts = {complete(client, seed=None, temperature=5, top_k=0).json()["choices"][0]["text"] for _ in range(4)}
    assert len(texts) > 1


def test_a_stream_gives_the_same_text_in_parts(client):
    whole = complete(client, max_tokens=12).json()
    parts = events(complete(client, max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert "".join(part["choices"][0]["text"] for part in parts[:-1]) == whole["choices"][0]["text"]
    assert len(parts) > 3 and parts[-2]["choices"][0]["finish_reason"] == "length"
    assert parts[-1]["usage"] == whole["usage"] and parts[-1]["choices"] == []


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(client):
    text = complete(client, max_tokens=12).json()["choices"][0]["text"]
    stop = text[5:8]
    at = text.index(stop)
    answer = complete(client, max_tokens=12, stop=["\x00no", stop]).json()
    assert answer["choices"][0]["text"] == text[:at] and answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 12
    parts = events(complete(client, max_tokens=12, stop=stop, stream=True))
    assert "".join(part["choices"][0]["text"] for part in parts) == text[:at]


def test_a_conversation_is_read_through_the_chat_template(client, loaded):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "text", "text": "Yo"}]}]
    answer = converse(client, *turns, seed=2, temperature=0).json()
    control = Tokenizer.load(loaded[0].config._name_or_path, "control")
    ids = control.encode("<s>user: Hi</s>assistant: Yo</s>")
    assert ids.count(control.end_id) == 2
    assert answer["usage"]["prompt_tokens"] == len(ids) and answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    parts = events(converse(client, *turns, seed=2, temperature=0, stream=True))
    said = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
    assert said == answer["choices"][0]["message"]["content"] != ""


def test_a_conversation_needs_a_template_that_takes_it(client, loaded, worker):
    answer = converse(client_of(loaded, worker, template=None), {"role": "user", "content": "Hi"})
    assert answer.status_code == 400 and "chat_template.jinja" in answer.json()["error"]["message"]
    answer = converse(client, {"role": "system", "content": "Hi"})
    assert answer.status_code == 400 and "no system turns" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("field", "value", "reason"), [
    ("temperature", -1, "greater than or equal to 0"), ("temperature", "1", "number"), ("temperature", [1], "number"),
    ("top_p", 0, "greater than 0"), ("top_p", 1.5, "less than or equal to 1"), ("top_k", -1, "greater than or equal"),
    ("seed", -1, "greater"), ("seed", 1 << 70, "less"), ("seed", 1.5, "integer"), ("n", 2, "leave it out"),
    ("max_tokens", 0, "greater"), ("max_tokens", 41, "ask for at most 40"), ("max_tokens", 63, "at most 5"),
    ("stop", [""], "at least 1"), ("stop", ["a"] * 5, "at most 4"), ("stop", 1, "array"),
    ("stop", ["x" * 300], "at most 256"),
    ("logprobs", 3, "leave it out"), ("echo", True, "leave it out"), ("logit_bias", {"5": 1}, "leave it out"),
    ("frequency_penalty", 0.5, "leave it out"), ("suffix", "x", "leave it out"), ("best_of", 2, "leave it out"),
    ("prompt", None, "string"), ("prompt", [1, 2], "string"), ("prompt", ["a", "b"], "string"), ("prompt", {}, "string"),
    ("stream", "yes", "boolean"), ("stream_options", {"x": 1}, "not permitted"), ("unheard_of", 1, "not permitted"),
    ("prompt", "ab " * 2000, "bytes, but 64 tokens"), ("prompt", "a b" * 40, "tokens, which leaves no room in 64"),
])
def test_a_bad_value_is_refused_with_a_reason(client, worker, monkeypatch, field, value, reason):
    monkeypatch.setattr(worker, "submit", None)  # nothing is queued
    answer = complete(client, **{field: value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert reason in error["message"] and error["type"] == "invalid_request_error"
    assert field in error["message"] or error["param"].startswith(field)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(client, value):
    body = f'{{"model": "mine", "prompt": "a", "temperature": {value}}}'
    answer = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "finite" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [
    b"", b"[1]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"model": "mine", "prompt": "\\ud800"}',
])
def test_a_body_that_is_not_a_request_is_refused(client, body):
    answer = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_neutral_values_of_what_is_not_supported_are_accepted(client):
    neutral = {name: values[0] for name, values in openai_requests.WITHOUT_EFFECT.items()} | {"user": "me", "logprobs": None}
    assert complete(client, **neutral).status_code == 200


def test_a_long_prompt_is_refused_before_it_is_tokenized(client, monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode", None)
    assert complete(client, prompt="x" * 100_000).status_code == 400
    assert converse(client, {"role": "user", "content": "x" * 100_000}).status_code == 400


def test_other_models_routes_methods_and_types_are_refused(client):
    assert complete(client, model="/etc").status_code == 404
    assert client.post("/load_model", json={"model": "x"}).json()["error"]["code"] == 404
    assert client.get("/v1/completions").json()["error"]["code"] == 405
    assert client.post("/v1/completions", content="{}", headers={"content-type": "text/plain"}).status_code == 415


def test_a_request_that_takes_too_long_gets_status_504(loaded, worker):
    client = client_of(loaded, worker, Limits(request_seconds=0.1))
    sampling = {"max_tokens": 58, "temperature": 100, "top_k": 0}
    answers = [complete(client, **sampling, stream=stream) for stream in (False, True)]
    if answers[0].status_code == 200:
        pytest.skip("this machine writes 58 tokens in 0.1 s")
    assert answers[0].status_code == 504 and "0.1 s" in answers[0].json()["error"]["message"]
    assert '"code": 504' in answers[1].text and "[DONE]" not in answers[1].text


def test_the_page_is_served_and_reads_typed_text(loaded, worker):
    opened = open_model(loaded[0].config._name_or_path)
    client = TestClient(Api(Served(opened, Limits()), worker, lambda: Explorer(opened)).app(), raise_server_exceptions=False)
    page = client.get("/")
    assert page.status_code == 200 and 'id="ask"' in page.text and "connect-src 'self'" in page.text
    found = client.post("/look", json={"text": "Hello"}).json()
    assert [one["text"] for one in found["texts"]] == ["Hello"] and found["texts"][0]["ids"][1:] == loaded[1].encode("Hello")
    assert client.post("/look", json={"text": ""}).status_code == 400
    half = client.post("/look", content=b'{"text": "\\ud800"}', headers={"content-type": "application/json"})
    assert half.status_code == 400
    assert complete(client).status_code == 200  # the same thread goes on
    assert client_of(loaded, worker).get("/").status_code == 404
