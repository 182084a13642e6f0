"""Lines of any script are as wide as asked for, and figures find a font for it where the machine has one."""

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medrefl_utils.views.display_text import display_width, font_families, wrap_text


@given(st.text(st.characters(max_codepoint=0x2FF), max_size=200), st.integers(5, 40), st.integers(1, 3))
def test_narrow_text_is_wrapped_as_textwrap_does(text: str, width: int, lines: int) -> None:
    assert wrap_text(text, width, lines) == textwrap.wrap(text, width, max_lines=lines, placeholder=" …")


@given(st.text(st.sampled_from("咳嗽发热。，患者ab 3"), max_size=120), st.integers(6, 40), st.integers(1, 3))
def test_wide_text_keeps_its_width_and_its_characters(text: str, width: int, most: int) -> None:
    lines = wrap_text(text, width, most)
    assert len(lines) <= most
    if all(len(word) < 3 for word in text.split()) or display_width(text) != len(text):
        whole = "".join("".join(lines).removesuffix(" …").split())
        assert "".join(text.split()).startswith(whole)


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("患者咳嗽发热三天", 8, ["患者咳嗽", "发热三天"]),
        ("患者咳嗽发热三天并有胸痛", 8, ["患者咳嗽", "发热三 …"]),
        ("行急诊PCI治疗", 9, ["行急诊PCI", "治疗"]),
        ("短", 8, ["短"]),
    ],
)
def test_lines_of_wide_characters(text: str, width: int, expected: list[str]) -> None:
    assert wrap_text(text, width, 2) == expected
    assert all(display_width(line) <= width for line in expected)


def test_latin_comes_first() -> None:
    assert font_families()[0] == "DejaVu Sans" and len(set(font_families())) == len(font_families())
