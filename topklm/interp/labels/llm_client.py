"""A small client of the chat endpoint that OpenAI's API and most servers of language models have, with a cache on disk.

The key comes from an environment variable. It goes into one header of requests to `base_url` and nowhere else: not into
the cache, the log, an error, nor along a redirection, which is not followed.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from topklm.errors import ConfigError, EndpointError, Problem

log = logging.getLogger("topklm.interp")

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses after which the same request may go well later."""
LONGEST_WAIT = 60.0
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_SHOWN = 300


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one request."""

    text: str
    prompt_tokens: int
    """As the endpoint counted them; 0 if it did not."""
    completion_tokens: int
    cached: bool
    """Whether it was on disk already."""


class ChatClient:
    """Asks one model at one endpoint; every answer is kept in `cache`, and an equal request is not sent again."""

    def __init__(
        self, base_url: str, model: str, key: str | None, cache: Path, *, temperature: float = 0.0,
        timeout: float = 60.0, retries: int = 6, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        """`base_url`: what comes before /chat/completions. Raises `ConfigError` if the key must not be sent there."""
        if problems := list(endpoint_problems(base_url, key)):
            raise ConfigError(problems)
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._model, self._temperature = model, temperature
        self._key, self._cache = key, cache
        self._timeout, self._retries, self._sleep = timeout, retries, sleep
        # Not through a proxy of the environment to this machine itself: it would see the key unencrypted.
        direct = [urllib.request.ProxyHandler({})] if urlsplit(base_url).hostname in THIS_MACHINE else []
        self._opener = urllib.request.build_opener(_NoRedirect, *direct)

    def known(self, prompt: str, max_tokens: int) -> Answer | None:
        """The answer to this request if it is in the cache and whole; sends nothing."""
        file = self._file(self._request(prompt, max_tokens))
        if not file.is_file():
            return None
        try:
            return _read_answer(json.loads(file.read_text(encoding="utf-8"))["response"], cached=True)
        except (ValueError, KeyError, IndexError, TypeError):
            log.warning("%s is damaged; asking again", file)
            return None

    def ask(self, prompt: str, max_tokens: int) -> Answer:
        """The model's answer to one message. Raises `EndpointError` where it does not answer, `ConfigError` where it
        refuses the key, the model or the request."""
        if (answer := self.known(prompt, max_tokens)) is not None:
            return answer
        request = self._request(prompt, max_tokens)
        response = self._send(request)
        self._keep(self._file(request), {"request": request, "response": response})
        return _read_answer(response, cached=False)

    def _request(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        return {
            "model": self._model, "temperature": self._temperature, "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": prompt}],
        }  # fmt: skip

    def _file(self, request: dict[str, Any]) -> Path:
        text = json.dumps([self._url, request], sort_keys=True, ensure_ascii=False)
        return self._cache / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def _keep(self, file: Path, content: dict[str, Any]) -> None:
        text = json.dumps(content, ensure_ascii=False, indent=1)
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._cache, suffix=".tmp", delete=False, encoding="utf-8") as part:
            part.write(text)
        os.replace(part.name, file)

    def _send(self, request: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(request).encode()
        for attempt in range(self._retries + 1):
            wait, why = self._try(body)
            if isinstance(why, dict):
                return why
            if attempt < self._retries:
                wait = min(LONGEST_WAIT, 2.0**attempt if wait is None else wait)
                log.info("%s: %s; trying again in %.0f s", self._url, why, wait)
                self._sleep(wait)
        raise EndpointError(
            f"{self._url} did not answer in {self._retries + 1} attempts: {why}. Answers so far are kept: start the "
            "same command again later"
        )

    def _try(self, body: bytes) -> tuple[float | None, dict[str, Any] | str]:
        """(seconds that the endpoint asks to wait, its response or why there is none)."""
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        asked = urllib.request.Request(self._url, body, headers, method="POST")
        try:
            with self._opener.open(asked, timeout=self._timeout) as response:
                content = self._blanked(json.loads(response.read()))
            _read_answer(content, cached=False)
            return None, content
        except urllib.error.HTTPError as error:
            told = self._told(error)
            if error.code not in RETRIED:
                raise ConfigError([_refusal(error.code, told, self._url, bool(self._key))]) from None
            return _seconds(error.headers.get("Retry-After")), told
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            return None, self._without_key(f"{type(error).__name__}: {error}")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return None, self._without_key(f"its answer is not one of a chat endpoint ({error})")

    def _told(self, error: urllib.error.HTTPError) -> str:
        try:
            said = error.read(4096).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            said = ""
        said = " ".join(self._without_key(said).split())
        return f"status {error.code}" + (f": {said[:_SHOWN]}" if said else "")

    def _blanked(self, content: Any) -> Any:
        """JSON without the key, before any of it goes anywhere."""
        return json.loads(json.dumps(content).replace(json.dumps(self._key)[1:-1], "***")) if self._key else content

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def read_key(variable: str | None) -> str | None:
    """The key in an environment variable; None without one. Raises `ConfigError` for one that no header can carry,
    without showing it."""
    key = os.environ.get(variable or "", "").strip()
    if not key:
        return None
    if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
        told = f"the environment variable {variable} holds no key: 8 or more printable characters without spaces"
        raise ConfigError([Problem("key_env", told)])
    return key


def endpoint_problems(base_url: str, key: str | None) -> list[Problem]:
    """What is wrong with an endpoint's address."""
    try:
        parts = urlsplit(base_url)
        host = parts.hostname
    except ValueError:
        return [Problem("base_url", "is no address; give one such as http://localhost:8000/v1")]
    if parts.scheme not in ("http", "https") or not host:
        return [Problem("base_url", "is no address; give one such as http://localhost:8000/v1")]
    if parts.username or parts.password or parts.query or parts.fragment:
        told = "has a name, a key or a query in it; give the bare address, and the key in the environment (key_env)"
        return [Problem("base_url", told)]
    if key and parts.scheme == "http" and host not in THIS_MACHINE:
        told = f"would send the key to {host} unencrypted; give an https address, or no key (key_env=null)"
        return [Problem("base_url", told)]
    return []


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection would carry the key to another place."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _read_answer(response: dict[str, Any], cached: bool) -> Answer:
    text = response["choices"][0]["message"]["content"]
    if text is None:  # refused, or all tokens were spent on thinking: asked again it would cost the same again
        text = ""
    if not isinstance(text, str):
        raise TypeError("its message has no text")
    usage = response.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        text=text, prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0), cached=cached,
    )  # fmt: skip


def _refusal(code: int, told: str, url: str, has_key: bool) -> Problem:
    if code in (401, 403):
        advice = "it refuses the key" if has_key else "it wants a key; export it in the variable that key_env names"
        return Problem("key_env", f"{url}: {told}; {advice}")
    if 300 <= code < 400:
        return Problem("base_url", f"{url}: {told}; it redirects, which is not followed: give the address itself")
    return Problem("base_url", f"{url}: {told}; is it the right address, and model a name that it knows?")


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:  # a date
        return None
