"""Text while it grows: nothing that is given is ever changed, and nothing from a stop string on is given."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.test_tokenizers import TEXTS, hf_file, rank_file
from topklm.data.tokenizers import ByteTokenizer, HFTokenizer, SentencePieceTokenizer, TiktokenTokenizer
from topklm.data.train_tokenizer import TrainTokenizerConfig, train_sentencepiece
from topklm.generate.text import StopScanner, TokenText


def llama_json():
    """A tokenizer.json of Llama 2's kind: pieces with marked spaces, bytes for other characters."""
    from tokenizers import Tokenizer, decoders, models

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a", "▁▁", "ab"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a"), ("▁", "▁"), ("a", "b")], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer.to_str().encode()


@pytest.fixture(scope="module")
def tokenizers():
    return {
        "bytes": ByteTokenizer(),
        "sp": SentencePieceTokenizer(train_sentencepiece(TEXTS, TrainTokenizerConfig(vocab_size=310))),
        "tiktoken": TiktokenTokenizer(rank_file()),
        "hf": HFTokenizer(hf_file(), 0, 1),
        "hf of llama": HFTokenizer(llama_json(), 1, 2),
    }


KINDS = ["bytes", "sp", "tiktoken", "hf", "hf of llama"]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_pieces_add_up_to_what_decoding_everything_adds(tokenizers, kind, data):
    tokenizer = tokenizers[kind]
    prompt = tokenizer.encode(data.draw(st.text("a b\né", max_size=12)), bos=True)
    written = tokenizer.encode(data.draw(st.text("ab \n€𝄞é", max_size=60)))
    any_ids = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=80)
    # That decoder makes all of a run of bytes unreadable if one of them is: what was out would be changed.
    ids = data.draw(st.just(written) if kind == "hf of llama" else st.one_of(st.just(written), any_ids))
    text, given_so_far = TokenText(tokenizer, prompt), ""
    added = tokenizer.decode(prompt + ids)[len(tokenizer.decode(prompt)) :]
    for token in ids:
        given_so_far += text.push([token])
        assert added.startswith(given_so_far)  # what is out stays
    assert given_so_far + text.rest() == added


def test_half_characters_are_held_back_and_leading_spaces_are_kept(tokenizers):
    text = TokenText(tokenizers["bytes"], [256])
    assert [text.push([byte]) for byte in "a€b".encode()] == ["a", "", "", "€", "b"]
    text = TokenText(tokenizers["bytes"], [256])
    assert text.push([0xE2]) + text.push([0x82]) + text.rest() == "\ufffd"
    sp = tokenizers["sp"]
    text = TokenText(sp, sp.encode("The law", bos=True))
    assert "".join(text.push([i]) for i in sp.encode("of the land")) == " of the land"


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
)
def test_however_text_is_divided_it_ends_before_the_stop_string_that_is_complete_first(parts, stops):
    scanner, out = StopScanner(stops), []
    for part in parts:
        out.append(scanner.push(part))
    text = "".join(parts)
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    assert scanner.stopped == bool(ends)
    expected = text[: min(ends)[1]] if ends else text
    # While nothing is complete, everything but a possible beginning of a stop string is out.
    if not ends:
        held = len(text) - len("".join(out))
        assert held == max((n for n in range(len(text) + 1) for s in stops if n < len(s) and text.endswith(s[:n])),
                           default=0)  # fmt: skip
    assert "".join(out) + scanner.rest() == expected
