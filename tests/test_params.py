"""params.yaml: every slip is named by its key in one line, before any work is done."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from helpers.dag import PARAMS, ROOT
from stages.core.errors import LibraError
from stages.core.params import Section, read_params
from stages.tools.check import SECTIONS, check


@pytest.fixture()
def project(tmp_path, monkeypatch):
    """A folder with the project's dvc.yaml and params.yaml.

    `project(change)` writes params.yaml again with `change` applied, and returns the folder.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())

    def write(change=lambda params: None):
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        change(params)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        return tmp_path

    return write


def run(folder, *module):
    """`python -m stages.MODULE` in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", *module],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def put(path, value):
    """A change of params: `put("dpo.beta", 0)` sets a key, None removes it."""

    def change(params):
        *above, key = path.split(".")
        for name in above:
            params = params[name]
        if value is None:
            del params[key]
        else:
            params[key] = value

    return change


def rename(section, old, new):
    """A change of params: a key of `section` gets another name."""

    def change(params):
        for name in section.split("."):
            params = params[name]
        params[new] = params.pop(old)

    return change


LORA = {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear"}
ADAPTED = PARAMS["model"] | {"base": "org/model", "lora": LORA}
FAULTS = [
    (
        rename("dpo", "beta", "betta"),
        "`dpo.beta` is missing; `dpo.betta` is not a param, did you mean `beta`?",
    ),
    (
        rename("seed", "drug_like_share", "drugs"),
        "`seed.drugs` is not a param; known: domain, drug_like_share, test, train, validation",
    ),
    (put("seed.train.sedes", 8), "`seed.train.sedes` is not a param"),
    (put("dpo.beta", "strong"), "`dpo.beta`: Input should be a valid number (got 'strong')"),
    (put("rephrase.prompts", 2.5), "`rephrase.prompts`: Input should be a valid integer (got 2.5)"),
    (
        put("rephrase.prompts", True),
        "`rephrase.prompts`: Input should be a valid integer (got True)",
    ),
    (put("sft.epochs", 0), "`sft.epochs`: Input should be greater than or equal to 1 (got 0)"),
    (
        put("validate.probe_limit", 1.5),
        "`validate.probe_limit`: Input should be less than or equal to 1 (got 1.5)",
    ),
    (put("dpo.loss", "ipoo"), "`dpo.loss`: Input should be 'sigmoid', "),
    (put("judge.panel.words.model", None), "`judge.panel.words.model` is missing"),
    (put("judge.panel.words", None), "`judge`: panel needs at least two members, it has 1"),
    (
        put("judge.panel.words.model", "libra-offline-judge"),
        "panel.rules and panel.words are the same model, `libra-offline-judge` at",
    ),
    (rename("judge.panel", "words", "paper"), "no member of panel can be called paper"),
    (
        put("respond.candidates", {"mine": {"base_url": "http://h/v1"}}),
        "`respond.candidates.mine.model` is missing; ",
    ),
    (
        put("respond.candidates", {"mine": {"model": "m"}}),
        "`respond.candidates.mine.max_tokens` is missing",
    ),
    (
        put("respond.candidates", {"mine": {"model": "m", "max_tokens": 9, "dtyp": "float32"}}),
        "`respond.candidates.mine.dtyp` is not a",
    ),
    (put("respond.candidates", {"mine": 5}), "`respond.candidates.mine`: Input should be"),
    (
        put("respond.candidates", {"dpo": {"model": "m", "max_tokens": 9}}),
        "called dpo; that name is taken",
    ),
    (
        put("respond.candidates", {"a/b": {"model": "m", "max_tokens": 9}}),
        "called a/b; use letters, digits",
    ),
    (put("respond.candidates", []), "`respond.candidates`: Input should be a valid dictionary"),
    (
        put("seed.train.refuse_share", 0.9),
        "`seed.train.refuse_share`: Input should be less than or equal to 0.8",
    ),
    (put("seed.test.refuse_share", 0.4), "`seed.test.refuse_share` is not a param"),
    (
        put("seed.train.representations", "names"),
        "`seed.train.representations`: Input should be 'both', 'text' or 'smiles'",
    ),
    (
        put("rephrase.test.prompts", 0),
        "`rephrase.test.prompts`: Input should be greater than or equal to 1",
    ),
    (put("sft", None), "params.yaml has no section `sft`"),
    (put("combine", 5), "`combine`: Input should be"),
    (put("combin", {}), "params.yaml: `combin` is not a section, did you mean `combine`?"),
    (
        put("train.processes", 3),
        "sft.batch_size makes 16 rows a step, which train.processes = 3 can't share evenly",
    ),
    (
        put("model", ADAPTED),
        "dpo.soup is 2, but the mean of adapters (model.lora)",
    ),
    (put("dpo.soup", 0), "`dpo.soup`: Input should be greater than or equal to 1"),
    (put("dpo.answers", 6), "dpo.answers is 6, but a prompt gets 5 triplets"),
    (
        put("random_seed", -1),
        "params.yaml: random_seed must be a whole number of at least 0, not -1",
    ),
    (
        put("random_seed", None),
        "params.yaml: random_seed must be a whole number of at least 0, not None",
    ),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[message[:40] for _, message in FAULTS])
def test_a_slip_in_params_is_named(project, change, message):
    with pytest.raises(LibraError) as error:
        check(project(change) / "params.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_small_numbers_are_read_as_dvc_writes_them(project):
    path = project(put("dpo.learning_rate", 5e-6)) / "params.yaml"
    for text in ("5e-06", "5e-6", "5E-6", "0.000005"):
        path.write_text(re.sub("learning_rate: 5.*", f"learning_rate: {text}", path.read_text()))
        assert read_params("dpo").section("dpo", SECTIONS["dpo"]).learning_rate == 5e-6
    check(path)


def test_all_wrong_keys_of_a_section_are_named_at_once(project):
    def change(params):
        params["sft"] |= {"epochs": 0, "learning_rate": -1.0}

    with pytest.raises(LibraError, match=r"`sft.epochs`.*; `sft.learning_rate`"):
        check(project(change) / "params.yaml")


def test_the_project_s_own_params_are_valid(project):
    check(project() / "params.yaml")
    assert set(SECTIONS) | {"random_seed"} == set(PARAMS)


def test_the_check_ends_with_one_line_and_status_1(project):
    done = run(project(rename("dpo", "beta", "betta")), "stages.tools", "check")
    assert done.returncode == 1
    keys = "`dpo.beta` is missing; `dpo.betta` is not a param, did you mean `beta`?"
    assert done.stderr == f"params: error: params.yaml: {keys}\n"
    done = run(project(), "stages.tools", "check")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        (
            "combine",
            rename("combine", "triplets_per_seed", "triplets"),
            "not a param, did you mean `triplets_per_seed`?",
        ),
        ("combine", put("combine", None), "params.yaml has no `combine`"),
        (
            "score",
            put("score.bootstrap", 5),
            "`score.bootstrap`: Input should be greater than or equal to 100 (got 5)",
        ),
        (
            "combine",
            lambda params: None,
            "data/rephrasings.parquet not found; run `dvc repro` first",
        ),
    ],
)
def test_a_stage_ends_with_one_line_and_status_1(project, stage, change, message):
    done = run(project(change), f"stages.{stage}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{stage}: error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (project() / "data").exists()


def test_a_stage_sees_only_what_dvc_yaml_declares_for_it(project):
    project()
    params = read_params("score")
    assert params.random_seed == PARAMS["random_seed"]
    with pytest.raises(
        LibraError, match="stage `score` reads params `dpo` that dvc.yaml doesn't declare for it"
    ):
        params.section("dpo", Section)
    with pytest.raises(
        LibraError, match="stage `combine` reads params `random_seed` that dvc.yaml doesn't declare"
    ):
        _ = read_params("combine").random_seed
    with pytest.raises(
        LibraError, match="dvc.yaml has no stage `scores`; run this from the project's top folder"
    ):
        read_params("scores")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "params.yaml not found; run this from the project's top folder"),
        ("dpo: {beta: 0.1", "params.yaml isn't valid YAML: .*line 1, column 16"),
        ("", "params.yaml must be a mapping of sections"),
        ("- dpo", "params.yaml must be a mapping of sections"),
    ],
)
def test_params_that_cannot_be_read(project, text, message):
    path = project() / "params.yaml"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(LibraError, match=message):
        read_params("score")
