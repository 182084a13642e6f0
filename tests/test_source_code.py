"""A hash of code: what a reader sees does not count, what a program does counts."""

import pytest

from medrefl_utils.core import code_hash

CODE = '''"""A module."""

LIMIT = 0.7
"""A limit."""


def f(x: int) -> str:
    """Return words."""
    return f"{x} words, 'quoted'" if x > LIMIT else "a # b"  # a comment
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("A module.", "Another text."),
        ("A limit.", "Another text."),
        ("Return words.", "Say more."),
        ("  # a comment", ""),
        ("\n\nLIMIT", "\n# here\nLIMIT"),
        ("return f", "return \\\n        f"),
        ('"a # b"', "'a # b'"),
    ],
)
def test_what_only_a_reader_sees_does_not_count(old, new):
    assert CODE.count(old) == 1
    assert code_hash(CODE.replace(old, new)) == code_hash(CODE)


@pytest.mark.parametrize(
    ("old", "new"), [("0.7", "0.8"), ("x >", "x >="), ("a # b", "a # c"), (" words,", "\\n words,"), ("f(x:", "g(x:")]
)
def test_what_a_program_does_counts(old, new):
    assert old in CODE
    assert code_hash(CODE.replace(old, new)) != code_hash(CODE)


def test_files_modules_and_texts_are_the_same_and_their_order_counts(tmp_path):
    from medrefl_utils.core import errors

    file = tmp_path / "a.py"
    file.write_text(CODE)
    assert code_hash(file) == code_hash(CODE) != code_hash(CODE, CODE)
    assert code_hash(file, errors) != code_hash(errors, file)
