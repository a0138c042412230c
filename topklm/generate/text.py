"""Text of a completion while it grows: only what later tokens cannot change, and nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Sequence

from topklm.data import Tokenizer

_KEPT = 8
"""Tokens before the newest ones that are decoded with them."""
_KEPT_AT_MOST = 64
"""Where those do not suffice: blank lines, a row of characters that are no tokens by themselves."""
_BROKEN = "\ufffd"


class TokenText:
    """The text that ids add to a context, token by token.

    A token's text depends on those before it: SentencePiece drops the space before the first piece, and a character may
    be spread over several tokens. So the last few tokens are decoded together, and what they add is the text.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int]):
        self._tokenizer = tokenizer
        self._ids = list(context)
        self._start, self._given = self._anchor()

    def push(self, ids: Sequence[int]) -> str:
        """Add tokens; the text that is certain by now and was not given before."""
        self._ids += ids
        text = self._tokenizer.decode(self._ids[self._start :])
        # Up to three bytes at the end may be the beginning of a character.
        whole = text.rstrip(_BROKEN)
        certain = text[: max(len(whole), len(text) - 3)]
        if certain != text and not certain.startswith(self._given):
            # Some decoders give up a whole run of bytes while its last character is not complete.
            return ""
        new = certain[len(self._given) :]
        self._given += new
        if certain == text and len(self._ids) - self._start > 3 * _KEPT:
            self._start, self._given = self._anchor()
        return new

    def rest(self) -> str:
        """What was held back."""
        return self._tokenizer.decode(self._ids[self._start :])[len(self._given) :]

    def _anchor(self) -> tuple[int, str]:
        """Where the decoded part begins from now on, and its text, which was given.

        A few tokens back, where it has text (leading spaces are dropped) and does not begin inside a character.
        """
        n = len(self._ids)
        for start in range(max(0, n - _KEPT), max(0, n - _KEPT_AT_MOST), -1):
            text = self._tokenizer.decode(self._ids[start:])
            if text.strip() and not text.startswith(_BROKEN):
                return start, text
        start = max(0, n - _KEPT_AT_MOST)
        return start, self._tokenizer.decode(self._ids[start:])


class StopScanner:
    """Passes text on up to the first stop string; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]):
        self._stops = list(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text; what is certain to come before any stop string and was not given before."""
        if self.stopped:
            return ""
        held = self._held + text
        # The one that is complete first, so that it does not matter how the text was divided.
        found = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)[1]]
        certain = len(held) - self._doubtful(held)
        self._held = held[certain:]
        return held[:certain]

    def rest(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _doubtful(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = max(map(len, self._stops), default=1) - 1
        for n in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stops):
                return n
        return 0
