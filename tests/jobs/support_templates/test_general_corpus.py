"""The general corpus: what counts as prose, where it is found, and that it is always the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.errors import DataError
from jobs.support_templates.data.general_corpus import general_corpus, is_english_prose

PROSE = "This function reads one line after another and returns what is left when the file ends"


def install(folder: Path, path: str, *docstrings: str) -> None:
    """Write a module whose functions have these docstrings, and which must not be imported."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    functions = [f'def f{n}():\n    """{text}"""\n' for n, text in enumerate(docstrings)]
    file.write_text('raise RuntimeError("imported")\n' + "\n".join(functions))


def test_paragraphs_come_from_docstrings_without_importing(tmp_path: Path) -> None:
    first, second = f"{PROSE}.", f"{PROSE}, as a list of strings."
    install(tmp_path, "one/a.py", f"{first}\n\n    {second}\n\n    Short.")
    (tmp_path / "one" / "b.py").write_text(
        f'"""{PROSE} of the module."""\nclass A:\n    """{PROSE} of a class."""\n'
        f'    def b(self):\n        """\n        {PROSE}\n        of a method.\n        """\n'
        f"x = '{PROSE} of a string that documents nothing'\n"
    )
    assert set(general_corpus(folders=[tmp_path]).paragraphs) == {
        first,
        second,
        f"{PROSE} of the module.",
        f"{PROSE} of a class.",
        f"{PROSE} of a method.",
    }


def test_a_paragraph_occurs_once(tmp_path: Path) -> None:
    install(tmp_path, "one/a.py", PROSE, PROSE)
    install(tmp_path, "two.py", PROSE)
    assert general_corpus(folders=[tmp_path]).paragraphs == (PROSE,)


@pytest.mark.parametrize(
    ("paragraph", "is_prose"),
    [
        (PROSE, True),
        (PROSE[:79], False),
        (PROSE.ljust(100, "x") + "0" * 24, True),
        (PROSE.ljust(100, "x") + "0" * 25, False),
        (PROSE + " <|endoftext|>", False),
        (PROSE + " café", False),
    ],
)
def test_prose_is_long_and_made_of_letters(paragraph: str, is_prose: bool) -> None:
    assert is_english_prose(paragraph) is is_prose


def test_headings_of_sections_are_left_out(tmp_path: Path) -> None:
    install(tmp_path, "one.py", f"Returns\n    -------\n    {PROSE}")
    assert general_corpus(folders=[tmp_path]).paragraphs == (PROSE,)


@pytest.mark.parametrize(
    "path", ["one/tests/a.py", "one/test/a.py", "jobs/a.py", "models/a.py", "heliostat/a.py"]
)
def test_tests_and_our_own_packages_are_left_out(tmp_path: Path, path: str) -> None:
    install(tmp_path, path, f"{PROSE} of what must not be read.")
    install(tmp_path, "one/a.py", PROSE)
    assert general_corpus(folders=[tmp_path]).paragraphs == (PROSE,)


def test_sources_that_do_not_parse_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(f'"""{PROSE} that is lost."""\nprint "hello"\n')
    (tmp_path / "binary.py").write_bytes(b'"""\x00\xff"""')
    install(tmp_path, "one.py", PROSE)
    assert general_corpus(folders=[tmp_path]).paragraphs == (PROSE,)


def test_packages_are_named_with_their_versions(tmp_path: Path) -> None:
    install(tmp_path, "one/a.py", PROSE)
    install(tmp_path, "loose.py", f"{PROSE}.")
    info = tmp_path / "The_One-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: The-One\nVersion: 1.2\n")
    (info / "RECORD").write_text("one/a.py,,\nThe_One-1.2.dist-info/METADATA,,\n")
    assert general_corpus(folders=[tmp_path]).sources == {"The-One": "1.2", "loose": "unknown"}


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    install(tmp_path, "one/a.py", PROSE)
    before = general_corpus(folders=[tmp_path])
    assert general_corpus(folders=[tmp_path]) == before
    install(tmp_path, "one/a.py", f"{PROSE}!")
    assert general_corpus(folders=[tmp_path]).fingerprint != before.fingerprint


def test_a_corpus_that_stops_early_is_a_mixture_and_the_beginning_of_the_whole(
    tmp_path: Path,
) -> None:
    for number in range(200):
        install(tmp_path, f"package{number // 20:02d}/m{number}.py", f"{PROSE} in file {number}.")
    whole = general_corpus(None, [tmp_path])
    part = general_corpus(whole.characters // 4, [tmp_path])
    assert part.paragraphs == whole.paragraphs[: len(part.paragraphs)]
    assert 0 <= part.characters - whole.characters // 4 < 200
    assert len(whole.paragraphs) == 200
    assert len(part.sources) >= 8


def test_the_installed_packages_give_text_at_once() -> None:
    corpus = general_corpus(200_000)
    assert corpus.characters >= 200_000
    assert len(corpus.sources) > 5
    assert all(version != "unknown" for version in corpus.sources.values())
    assert all(map(is_english_prose, corpus.paragraphs))
    assert "heliostat" not in corpus.sources


def test_a_place_without_prose_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no docstring of at least 80 characters"):
        general_corpus(folders=[tmp_path])
