"""Answer and reasoning, told apart by the tags and marks of models' outputs."""

import pytest

from stages.judging.channels import Channels, split


@pytest.mark.parametrize(
    ("output", "field", "answer", "reasoning"),
    [
        ("It melts.", None, "It melts.", None),
        (None, None, "", None),
        ("It melts.", "  ", "It melts.", None),
        ("It melts.", "A field.", "It melts.", "A field."),
        ("<think>Hm.</think> It melts.", None, "It melts.", "Hm."),
        ("<think>Hm.</think> It melts.", "A field.", "It melts.", "A field.\nHm."),
        ("<THINKING>Hm.</THINKING>It melts.", None, "It melts.", "Hm."),
        ("<reasoning >Hm.</ reasoning>It melts.", None, "It melts.", "Hm."),
        ("It <think>Hm.</think>melts.", None, "It melts.", "Hm."),
        ("<think>never closed: here is how", None, "", "never closed: here is how"),
        ("Sure. <think>never closed", None, "Sure.", "never closed"),
        ("opened by the template</think>It melts.", None, "It melts.", "opened by the template"),
        ("<think>a<think>b</think>c</think>d", None, "d", "a\nb\nc"),
        ("<think></think>It melts.", None, "It melts.", None),
        ("a < b and <thinker>", None, "a < b and <thinker>", None),
    ],
)
def test_output_is_split(output, field, answer, reasoning):
    assert split(output, field) == Channels(answer, reasoning)


@pytest.mark.parametrize(
    ("output", "answer", "reasoning"),
    [
        ('<think type="x">Hm.</think>It melts.', "It melts.", "Hm."),
        ("<think\nmode='x'>Hm.</think>It melts.", "It melts.", "Hm."),
        ("<Thought>Hm.</Thought>It melts.", "It melts.", "Hm."),
        ("<seed:think>Hm.</seed:think>It melts.", "It melts.", "Hm."),
        ("[THINK]Hm.[/THINK]It melts.", "It melts.", "Hm."),
        ("◁think▷Hm.◁/think▷It melts.", "It melts.", "Hm."),
        ("<think/>It melts.", "It melts.", None),
        ("[think] it over: it melts.", "[think] it over: it melts.", None),
        ("Put `<think>` before it. It melts.", "Put `<think>` before it. It melts.", None),
        (
            "<think>The tag `</think>` ends it.</think>It melts.",
            "It melts.",
            "The tag `</think>` ends it.",
        ),
        ("```\n<think>Hm.</think>\n```\nIt melts.", "``` ```\nIt melts.", "Hm."),
        ("<think-aloud>It melts.", "<think-aloud>It melts.", None),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
            "<|channel|>final<|message|>It melts.<|return|>",
            "It melts.",
            "Hm.",
        ),
        ("<|channel|>analysis<|message|>Hm, never closed", "", "Hm, never closed"),
        ("<|start|>assistant<|channel|>final<|message|>It melts.", "It melts.", None),
    ],
)
def test_marks_of_reasoning(output, answer, reasoning):
    assert split(output, None) == Channels(answer, reasoning)
