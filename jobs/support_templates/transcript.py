"""The text of a support case, as the language model reads it: stage 1 of the training.

A message is written `<ROLE>: text`, and messages are joined by a newline. Role tags and redaction
placeholders are ordinary text: they go through the same byte-level BPE as every other word, and
no token is added to the vocabulary (Wyatte et al., "Scaling Laws for Discriminative Classification
in Large Language Models", arXiv 2405.15765, avoid domain-specific tokenisation on purpose). The
end-of-text token after each case is the packer's business, not this module's. Nothing here
redacts: texts arrive redacted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from jobs.support_templates.data.rows import Message, Role

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Turns texts into token lists, one for each text."""

ROLE_TAGS: Mapping[Role, str] = {
    "customer": "<CUSTOMER>",
    "system": "<SYSTEM>",
    "advocate": "<ADVOCATE>",
}
MESSAGE_SEPARATOR = "\n"


def tagged(message: Message) -> str:
    """One message as `<ROLE>: text`."""
    return f"{ROLE_TAGS[message.role]}: {message.text}"


def transcript(messages: Iterable[Message]) -> str:
    """A whole case in the layout of stage 1."""
    return MESSAGE_SEPARATOR.join(tagged(message) for message in messages)


def ordinary_encoder(tokenizer: Tokenizer) -> Encode:
    """An encoder under which nothing that a customer types becomes a special token.

    A tokenizer recognises its special tokens inside text, so a message that contains the letters
    `<|endoftext|>` would end its document, and one that contains the pad token would move the
    position at which the classifier pools. The encoder works on a copy in which those letters are
    ordinary text, and adds no special tokens of its own.
    """
    own = type(tokenizer).from_str(tokenizer.to_str())
    own.encode_special_tokens = True
    own.no_padding()
    own.no_truncation()

    def encode(texts: Sequence[str]) -> list[list[int]]:
        encodings = own.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    return encode
