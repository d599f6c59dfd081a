"""The codec of a tokenizer in Hugging Face's format, with its chat template where it has one.

Reads `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` and `chat_template.jinja`
of a folder. Byte-level tokenizers (GPT-NeoX, Llama 3, SmolLM2, Qwen) and those with byte fallback
(Llama 2) are understood, since of both it is known which bytes a token stands for. A template is
somebody else's program: it runs in Jinja's sandbox, without files or network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliostat.errors import BundleError

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"
FILES = (FILE, SETTINGS, GENERATION, TEMPLATE)
"""What is read of a folder; all but the first may be missing."""


class HfCodec:
    """Text to tokens and back, as a Hugging Face tokenizer has it."""

    def __init__(self, folder: Path) -> None:
        """Read a folder; `BundleError` when its tokenizer cannot be used."""
        from tokenizers import Tokenizer

        if not (folder / FILE).is_file():
            raise BundleError(f"{folder} has no {FILE}: a language model needs its tokenizer")
        text = (folder / FILE).read_text(encoding="utf-8")
        self._tokenizer: Tokenizer = Tokenizer.from_str(text)
        self._settings = _json(folder / SETTINGS)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {index: token.content for index, token in added.items() if token.special}
        self._added = {index: token.content for index, token in added.items() if not token.special}
        self._is_byte_level = _is_byte_level(json.loads(text), folder)
        self.stop_tokens = self._stop_tokens(_json(folder / GENERATION))
        self._template_text = _template_text(folder, self._settings)

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def has_chat(self) -> bool:
        """Whether there is a template for conversations."""
        return self._template_text is not None

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt; the names of special tokens in it become special tokens."""
        return list(self._tokenizer.encode(text).ids)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; none for a special one."""
        if token in self._special:
            return b""
        piece = self._added.get(token)
        if piece is not None:
            return piece.encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._is_byte_level:
            return bytes(_BYTES[character] for character in piece)
        if len(piece) == 6 and piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation, up to where the assistant answers.

        Raises:
            ValueError: the template refuses it, or a message holds the name of a special token,
                with which it could pretend to be another speaker.
        """
        from jinja2 import TemplateError

        for place, message in enumerate(messages):
            for name in self._special.values():
                if name in message["content"]:
                    raise ValueError(f"message {place} holds the name of a special token")
        try:
            text = self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                **{name: _content(self._settings.get(name)) for name in ("bos_token", "eos_token")},
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses it: {error.message}") from None
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _template(self) -> Template:
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        assert self._template_text is not None
        return environment.from_string(self._template_text)

    def _stop_tokens(self, generation: Mapping[str, Any]) -> frozenset[int]:
        given = generation.get("eos_token_id")
        found = set(given if isinstance(given, list) else [] if given is None else [given])
        named = _content(self._settings.get("eos_token"))
        found.update(index for index, name in self._special.items() if name == named)
        return frozenset(found)


def _is_byte_level(tokenizer: Mapping[str, Any], folder: Path) -> bool:
    """Whether pieces are written in the byte-level alphabet; False: with byte fallback."""
    decoder = tokenizer.get("decoder") or {}
    kinds = {decoder.get("type")} | {one.get("type") for one in decoder.get("decoders", [])}
    if "ByteLevel" in kinds:
        return True
    if "ByteFallback" in kinds:
        return False
    raise BundleError(
        f"{folder / FILE} is neither a byte-level tokenizer nor one with byte fallback, so what "
        "bytes a token stands for is not known"
    )


def _template_text(folder: Path, settings: Mapping[str, Any]) -> str | None:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    given = settings.get("chat_template")
    return given if isinstance(given, str) else None


def _content(token: object) -> str:
    """The text of a special token, which is written plainly or with its properties."""
    if isinstance(token, Mapping):
        return str(token.get("content", ""))
    return token if isinstance(token, str) else ""


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is no JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _alphabet() -> dict[str, int]:
    """The byte of each character of the byte-level alphabet (GPT-2).

    Printable bytes stand for themselves; the others, in order, for the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    found = {chr(byte): byte for byte in printable}
    return found | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _alphabet()
