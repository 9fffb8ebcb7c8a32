"""The golden file of prompts: each byte of them decides which paid replies are found again."""

import json

from helpers.asking import reply_keys
from helpers.dag import ROOT
from helpers.rendered_prompts import ENDPOINT, GOLDEN, RANDOM_SEED, rendered, requests


def test_prompts_and_keys_are_those_of_the_golden_file():
    same = rendered() == GOLDEN.read_text(encoding="utf-8")
    assert same, (
        "rendered prompts or the keys of their replies have changed: every paid request of that "
        "kind would be sent again. If that is intended, rewrite the file with "
        "`python -m tests.helpers.rendered_prompts` (`git diff` shows what changes)"
    )


def test_its_keys_are_those_that_the_client_asks_the_store_for():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    by_name = requests()
    keys = reply_keys(ENDPOINT, list(by_name.values()), RANDOM_SEED)
    assert dict(zip(by_name, keys, strict=True)) == {
        name: request["key"] for name, request in golden.items()
    }


def test_every_prompt_file_of_the_teacher_and_the_judges_is_in_it():
    systems = [request.messages[0]["content"] for request in requests().values()]
    files = sorted(ROOT.glob("stages/*/prompts/*.md"))
    assert len(files) == 7
    for file in files:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if "$" not in line]
        assert any(max(lines, key=len) in system for system in systems), file
