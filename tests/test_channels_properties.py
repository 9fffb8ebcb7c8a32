"""The channel split on any output: no text is lost, nothing raises."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from stages.judging.channels import split

TAGS = (
    "<think>",
    "</think>",
    "<thinking effort='high'>",
    "</ reasoning>",
    "<think/>",
    "<seed:think>",
    "[THINK]",
    "[/THINK]",
    "◁think▷",
    "◁/think▷",
    "<|channel|>analysis<|message|>",
    "<|channel|>final<|message|>",
    "<|start|>assistant",
    "<|end|>",
)
words = st.text(
    st.characters(exclude_characters="<>[]|`◁▷/", exclude_categories=["Cs"]), max_size=5
)
tags = st.sampled_from(["</think>", "<think>"]) | st.sampled_from(TAGS)
outputs = st.lists(words | tags, max_size=20)


def characters(*texts: str | None) -> Counter[str]:
    """The characters of the texts without blanks."""
    return Counter("".join("".join(text or "" for text in texts).split()))


@settings(deadline=None)
@given(outputs, st.none() | words)
def test_no_text_is_lost_whatever_tags_are_in_it(pieces, field):
    channels = split("".join(pieces), field)
    written = (piece for piece in pieces if piece not in TAGS)
    assert characters(channels.answer, channels.reasoning) == characters(*written, field)


@settings(deadline=None)
@given(outputs)
def test_the_answer_has_no_tags(pieces):
    answer = split("".join(pieces), None).answer
    assert not any(tag in answer for tag in TAGS)


@settings(deadline=None)
@given(st.lists(st.text() | tags).map("".join), st.none() | st.text())
def test_any_text_is_split(output, field):
    channels = split(output, field)
    assert channels.answer == channels.answer.strip()
    assert channels.reasoning is None or channels.reasoning.strip()


@settings(deadline=None)
@given(st.integers(1, 50), words.filter(lambda text: text.strip()))
def test_an_unclosed_tag_hides_the_rest_however_deep(depth, text):
    channels = split("<think>" * depth + text, None)
    assert (channels.answer, channels.reasoning) == ("", text.strip())


@settings(deadline=None)
@given(st.integers(1, 50), words.filter(lambda text: text.strip()))
def test_nested_tags_close_one_by_one(depth, text):
    output = "<think>" * depth + "Hm." + "</think>" * depth + text
    channels = split(output, None)
    assert (channels.answer, channels.reasoning) == (text.strip(), "Hm.")
