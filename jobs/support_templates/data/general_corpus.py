"""The general corpus of stage 0: English paragraphs from the docstrings of installed packages.

It stands in for a web corpus where no pretrained weights exist: real text, always present, and
clearly outside the support domain. Sources are parsed with `ast` and never imported. What is found
depends on the environment, so the corpus names the packages and versions it came from and carries
a fingerprint of its content.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from importlib.metadata import distributions
from pathlib import Path

from heliostat.errors import DataError

MIN_CHARACTERS = 80
"""Length of the shortest paragraph."""
MIN_LETTER_SHARE = 0.8
"""A paragraph has more than this share of letters and spaces; tables and code have less."""
MAX_CHARACTERS = 6_000_000
"""Where the corpus ends by default: about 1.7 million tokens of a small vocabulary."""
LARGEST_SOURCE_BYTES = 1_000_000
"""Larger source files are generated tables without docstrings."""
EXCLUDED_PACKAGES = frozenset({"heliostat", "jobs", "models"})
"""Our own packages: their docstrings speak of the very domain that stage 0 must not see."""

_TEST_FOLDER = re.compile(r"^(tests?|testing|_tests?|.*_tests?)$")
_UNDERLINED = re.compile(r"^.*\n\s*[-=~^]{3,}\s*$", re.MULTILINE)
_SPECIAL_TOKEN = re.compile(r"<\|\w+\|>")


@dataclass(frozen=True)
class GeneralCorpus:
    """Paragraphs with their origin."""

    paragraphs: tuple[str, ...]
    """Each one paragraph on one line, no two the same."""
    sources: dict[str, str]
    """Versions of the packages that contributed, by name."""
    fingerprint: str
    """Digest of the paragraphs in order."""

    @property
    def characters(self) -> int:
        """Length of all paragraphs together."""
        return sum(map(len, self.paragraphs))


def general_corpus(
    max_characters: int | None = MAX_CHARACTERS, folders: Sequence[Path] | None = None
) -> GeneralCorpus:
    """Collect the paragraphs of all docstrings below the folders with installed packages.

    Files come in the order of a digest of their path, so that a corpus that stops early is a
    mixture of all packages and not the beginning of the alphabet.

    Args:
        max_characters: stop at this many characters; None takes everything.
        folders: folders of packages; None means those of the running interpreter.
    """
    places = list(folders) if folders is not None else _site_packages()
    versions = _versions(places)
    paragraphs: dict[str, None] = {}
    contributions: Counter[str] = Counter()
    characters = 0
    for top_level, path in _sources(places):
        if max_characters is not None and characters >= max_characters:
            break
        for paragraph in _paragraphs(path):
            if paragraph not in paragraphs:
                paragraphs[paragraph] = None
                characters += len(paragraph)
                contributions[top_level] += 1
    if not paragraphs:
        raise DataError(
            f"no docstring of at least {MIN_CHARACTERS} characters in "
            f"{', '.join(map(str, places)) or 'no folder'}; expected installed Python packages"
        )
    return GeneralCorpus(
        paragraphs=tuple(paragraphs),
        sources=dict(sorted(_named(contributions, versions))),
        fingerprint=sha256("\n".join(paragraphs).encode()).hexdigest(),
    )


def _site_packages() -> list[Path]:
    """The folders of installed packages of the running interpreter, without repetition."""
    return list(dict.fromkeys(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")))


def _sources(folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Top-level name and path of every source file, ordered by a digest of its relative path."""
    found: list[tuple[bytes, str, Path]] = []
    for folder in folders:
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).parts
            if parts[0] in EXCLUDED_PACKAGES or any(map(_TEST_FOLDER.match, parts[:-1])):
                continue
            name = "/".join(parts)
            order = blake2b(name.encode(), digest_size=8).digest()
            found.append((order, name.partition("/")[0].removesuffix(".py"), path))
    return ((top_level, path) for _, top_level, path in sorted(found))


def _paragraphs(path: Path) -> Iterator[str]:
    """The English paragraphs in the docstrings of one source file."""
    source = path.read_bytes()
    if len(source) > LARGEST_SOURCE_BYTES or (b'"""' not in source and b"'''" not in source):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # Templates and fixtures for other Python versions are no source of text.
        return
    for docstring in _docstrings(tree):
        for block in re.split(r"\n\s*\n", _UNDERLINED.sub("", docstring)):
            paragraph = " ".join(block.split())
            if is_english_prose(paragraph):
                yield paragraph


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings of the module, its classes, their methods and functions, in order.

    What is defined within a function or under a condition is left out: the bodies of functions are
    most of a tree and hold next to no docstring.
    """
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring is not None and len(docstring) >= MIN_CHARACTERS:
                yield inspect.cleandoc(docstring)
            if isinstance(node, ast.Module | ast.ClassDef):
                pending += reversed(node.body)


def is_english_prose(paragraph: str) -> bool:
    """Whether a paragraph is long enough, mostly letters, ASCII and free of special tokens."""
    if len(paragraph) < MIN_CHARACTERS or not paragraph.isascii():
        return False
    plain = sum(map(str.isalpha, paragraph)) + paragraph.count(" ")
    return plain > MIN_LETTER_SHARE * len(paragraph) and not _SPECIAL_TOKEN.search(paragraph)


def _versions(folders: Sequence[Path]) -> dict[str, tuple[str, str]]:
    """Name and version of the distribution that installed each top-level name."""
    versions: dict[str, tuple[str, str]] = {}
    for distribution in distributions(path=[str(folder) for folder in folders]):
        entry = (distribution.metadata["Name"], distribution.version)
        record = distribution.read_text("RECORD") or ""
        names = {line.partition(",")[0].partition("/")[0] for line in record.splitlines()}
        for name in names:
            versions.setdefault(name.removesuffix(".py"), entry)
    return versions


def _named(
    contributions: Counter[str], versions: dict[str, tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    for top_level in contributions:
        yield versions.get(top_level, (top_level, "unknown"))
