"""The text of a support case, as the language model reads it: stage 1 of the training.

A message is written `<ROLE>: text`, and messages are joined by a newline. Role tags and redaction
placeholders are ordinary text: they go through the same byte-level BPE as every other word, and
no token is added to the vocabulary (Wyatte et al., "Scaling Laws for Discriminative Classification
in Large Language Models", arXiv 2405.15765, avoid domain-specific tokenisation on purpose). The
end-of-text token after each case is the packer's business, not this module's. Nothing here
redacts: texts arrive redacted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jobs.support_templates.data.rows import Message, Role

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
