"""The client of an endpoint: what is asked once, what is tried again, and where the key never is."""

import json
import logging
import traceback

import pytest

from tests.unit.interp.labels.endpoint import Endpoint, serving
from topklm.errors import ConfigError, EndpointError
from topklm.interp.labels.llm_client import ChatClient, read_key

KEY = "sk-very-secret-0123456789"
PROMPT = "Some of <<it>> and <<it>>."


def client_of(endpoint, cache, slept=None, **more):
    slept = [] if slept is None else slept
    return ChatClient(endpoint.url, "stub", KEY, cache, sleep=slept.append, **({"retries": 3} | more))


def nowhere(path, *texts):
    """The key is in no file below a directory, and in no text."""
    assert all(KEY not in text for text in texts)
    assert all(KEY.encode() not in file.read_bytes() for file in path.rglob("*") if file.is_file())


def test_an_equal_request_is_sent_once_even_by_another_client(tmp_path):
    with serving(Endpoint()) as endpoint:
        client = client_of(endpoint, tmp_path)
        assert client.known(PROMPT, 9) is None
        first = client.ask(PROMPT, 9)
        assert (first.text, first.prompt_tokens, first.completion_tokens, first.cached) == (
            '"the word it"',
            10,
            2,
            False,
        )
        again = client_of(endpoint, tmp_path).ask(PROMPT, 9)
        assert (again.text, again.cached) == (first.text, True)
        assert client.known(PROMPT, 9) == again
        assert len(endpoint.requests) == 1
        client.ask(PROMPT, 10)
        ChatClient(endpoint.url, "other", KEY, tmp_path).ask(PROMPT, 9)
        client_of(endpoint, tmp_path, temperature=0.5).ask(PROMPT, 9)
        assert len(endpoint.requests) == 4
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert endpoint.requests[0] == {
        "model": "stub", "temperature": 0.0, "max_tokens": 9, "messages": [{"role": "user", "content": PROMPT}]
    }  # fmt: skip
    nowhere(tmp_path, repr(client), str(vars(client).keys()))


def test_a_damaged_answer_on_disk_is_asked_for_again(tmp_path):
    with serving(Endpoint()) as endpoint:
        client = client_of(endpoint, tmp_path)
        client.ask(PROMPT, 9)
        (file,) = tmp_path.iterdir()
        file.write_text('{"request": ')
        assert client.known(PROMPT, 9) is None
        assert len(endpoint.requests) == 1
        assert not client.ask(PROMPT, 9).cached
        assert client.ask(PROMPT, 9).cached


@pytest.mark.parametrize(
    "failure",
    [
        (429, {}, "slow down"),
        (500, {}, "oh"),
        (503, {}, ""),
        (200, {}, "<html>not what you asked</html>"),
        (200, {}, '{"choices": []}'),
        (200, {}, '{"choices": [{"message": {"content": [1]}}]}'),
        (200, {}, "[1]"),
        "hang up",
    ],
)
def test_what_may_pass_is_tried_again_with_growing_waits(tmp_path, failure):
    slept = []
    with serving(Endpoint([failure, failure])) as endpoint:
        assert client_of(endpoint, tmp_path, slept).ask(PROMPT, 9).text == '"the word it"'
    assert slept == [1.0, 2.0]
    assert len(list(tmp_path.iterdir())) == 1  # failures are not kept


def test_the_endpoint_says_how_long_to_wait(tmp_path):
    slept = []
    failures = [(429, {"Retry-After": "7"}, ""), (429, {"Retry-After": "9999"}, ""), (429, {"Retry-After": "Fri"}, "")]
    with serving(Endpoint(failures)) as endpoint:
        client_of(endpoint, tmp_path, slept).ask(PROMPT, 9)
    assert slept == [7.0, 60.0, 4.0]


def test_after_all_attempts_it_says_so_and_what_is_cached_stays(tmp_path, caplog):
    with serving(Endpoint()) as endpoint:
        client_of(endpoint, tmp_path).ask("before <<x>>", 9)
        endpoint.failures = [(500, {}, f"your key {KEY} is fine")] * 4
        with (
            caplog.at_level(logging.INFO),
            pytest.raises(EndpointError, match=r"in 4 attempts: status 500: your key \*\*\*"),
        ):
            client_of(endpoint, tmp_path).ask(PROMPT, 9)
        assert client_of(endpoint, tmp_path).ask("before <<x>>", 9).cached
    assert "trying again in 1 s" in caplog.text
    nowhere(tmp_path, caplog.text)


def test_nobody_listens(tmp_path):
    with serving(Endpoint()) as endpoint:
        pass
    with pytest.raises(EndpointError, match="refused"):
        client_of(endpoint, tmp_path, retries=1).ask(PROMPT, 9)


def test_a_slow_endpoint_is_given_up(tmp_path):
    class Slow(Endpoint):
        def answer(self, request):
            import time

            time.sleep(0.5)
            return "late"

    with serving(Slow()) as endpoint, pytest.raises(EndpointError, match="timed out"):
        client_of(endpoint, tmp_path, retries=0, timeout=0.1).ask(PROMPT, 9)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "it refuses the key"),
        (403, "it refuses the key"),
        (404, "is it the right address"),
        (400, "is it the right"),
    ],
)
def test_a_refusal_ends_it_at_once_and_shows_no_key(tmp_path, caplog, status, message):
    with serving(Endpoint([(status, {}, f"Incorrect API key provided: {KEY}.")])) as endpoint:
        client = client_of(endpoint, tmp_path)
        with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError, match=message) as caught:
            client.ask(PROMPT, 9)
        assert len(endpoint.requests) == 1
    told = "".join(traceback.format_exception(caught.value))
    assert "Incorrect API key provided: ***" in told
    nowhere(tmp_path, told, caplog.text)


def test_a_redirection_is_not_followed_with_the_key(tmp_path):
    with serving(Endpoint()) as elsewhere:
        failure = (307, {"Location": f"{elsewhere.url}/chat/completions"}, "")
        with (
            serving(Endpoint([failure])) as endpoint,
            pytest.raises(ConfigError, match="redirects, which is not followed"),
        ):
            client_of(endpoint, tmp_path).ask(PROMPT, 9)
        assert elsewhere.requests == []


@pytest.mark.parametrize("key", [KEY, 'sk-with"quotes\\and-more'])
def test_a_key_that_an_answer_repeats_is_neither_kept_nor_handed_on(tmp_path, key):
    class Echo(Endpoint):
        def answer(self, request):
            return f"the word {self.headers[-1]['Authorization']}"

    with serving(Echo()) as endpoint:
        client = ChatClient(endpoint.url, "stub", key, tmp_path)
        first, again = client.ask(PROMPT, 9), client.ask(PROMPT, 9)
    assert first.text == again.text == "the word Bearer ***"  # the first goes into labels and results
    assert not [file for file in tmp_path.iterdir() if key in file.read_text() or json.dumps(key) in file.read_text()]


def test_an_answer_without_text_is_one_and_is_not_paid_again(tmp_path):
    """A language model that thinks until its tokens are used up has no text, however often it is asked."""
    with serving(Endpoint([(200, {}, '{"choices": [{"message": {"content": null}}], "usage": [1]}')])) as endpoint:
        assert client_of(endpoint, tmp_path).ask(PROMPT, 9).text == ""
        assert client_of(endpoint, tmp_path).ask(PROMPT, 9).cached
        assert len(endpoint.requests) == 1


def test_a_key_for_this_machine_does_not_go_to_a_proxy(tmp_path, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(Endpoint()) as proxy, serving(Endpoint()) as endpoint:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        client_of(endpoint, tmp_path).ask(PROMPT, 9)
        assert len(endpoint.requests) == 1
        assert proxy.requests == []


@pytest.mark.parametrize(
    "url",
    ["ftp://x/v1", "nothing", "", "http://", "http://u:p@localhost/v1", "https://x/v1?key=1", "http://[/v1"],
)
def test_odd_addresses_are_refused(tmp_path, url):
    with pytest.raises(ConfigError, match="base_url"):
        ChatClient(url, "m", None, tmp_path)


def test_a_key_goes_unencrypted_to_this_machine_only(tmp_path):
    for url in ("http://localhost:1/v1", "http://127.0.0.1:1/v1", "http://[::1]:1/v1", "https://example.org/v1"):
        ChatClient(url, "m", KEY, tmp_path)
    ChatClient("http://example.org/v1", "m", None, tmp_path)
    with pytest.raises(ConfigError, match="unencrypted") as caught:
        ChatClient("http://example.org/v1", "m", KEY, tmp_path)
    assert KEY not in str(caught.value)


def test_the_key_is_read_from_the_environment(monkeypatch):
    monkeypatch.delenv("A_KEY", raising=False)
    assert read_key("A_KEY") is None
    assert read_key(None) is None
    monkeypatch.setenv("A_KEY", f" {KEY}\n")
    assert read_key("A_KEY") == KEY
    for odd in ("two words!", "line\nbreak", "short", "w\u00f6rd-w\u00f6rd"):
        monkeypatch.setenv("A_KEY", odd)
        with pytest.raises(ConfigError, match="A_KEY holds no key") as caught:
            read_key("A_KEY")
        assert odd not in str(caught.value)
