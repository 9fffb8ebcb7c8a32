"""What a user gets to read: one line that names the key, file or column, exit status 1, and no traceback."""

import os
import re
import subprocess
import sys

import polars as pl
import pytest
import yaml

from helpers.dag import ROOT
from stages.core import cli, tables
from stages.core.errors import Interrupted, LibraError
from stages.core.params import Section, read_params
from stages.tools.check import SECTIONS, check

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


@pytest.fixture()
def project(tmp_path, monkeypatch):
    """A folder with the project's dvc.yaml and params.yaml; `project(change)` edits the params in place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())

    def write(change=lambda params: None):
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        change(params)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        return tmp_path

    return write


def run(folder, module):
    command = [sys.executable, "-m", f"stages.{module}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def put(path, value):
    """A change of params: `put("dpo.beta", 0)`; None takes the key away."""

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
    def change(params):
        for name in section.split("."):
            params = params[name]
        params[new] = params.pop(old)

    return change


MODEL, LORA = PARAMS["model"], {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear"}
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
        put("model", MODEL | {"base": "org/model", "lora": LORA}),
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
    assert message in str(error.value) and "\n" not in str(error.value)


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


def test_the_project_s_own_params_are_right(project):
    check(project() / "params.yaml")
    assert set(SECTIONS) | {"random_seed"} == set(PARAMS)


def test_the_check_ends_with_one_line_and_status_1(project):
    folder = project(rename("dpo", "beta", "betta"))
    done = run(folder, "common.check")
    assert done.returncode == 1
    assert (
        done.stderr
        == "params: error: params.yaml: `dpo.beta` is missing; `dpo.betta` is not a param, did you mean `beta`?\n"
    )
    done = run(project(), "common.check")
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
            "data/rephrasings.parquet is not here; run `dvc repro` first",
        ),
    ],
)
def test_a_stage_ends_with_one_line_and_status_1(project, stage, change, message):
    done = run(project(change), stage)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{stage}: error: ") and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (project() / "data").exists()


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
        (None, "params.yaml is not here; run this from the project's top folder"),
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


def test_a_table_s_fault_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LibraError, match="^data/t.parquet is not here; run `dvc repro` first$"):
        tables.read_table("data/t.parquet", ("a",))
    with pytest.raises(
        LibraError,
        match=r"^data/librachemqa/t.parquet is not here; run `dvc repro` \(or `dvc pull`\) first$",
    ):
        tables.scan_table("data/librachemqa/t.parquet", ("a",))
    tables.write_table(pl.DataFrame({"a": [2, 1], "b": ["x", "y"]}), "data/t.parquet", "a")
    assert tables.read_table("data/t.parquet", ("a",))["b"].to_list() == ["y", "x"]
    with pytest.raises(LibraError, match="^data/t.parquet lacks column c, d; it has a, b$"):
        tables.read_table("data/t.parquet", ("c", "a", "d"))
    tables.write_table(pl.DataFrame({"a": []}), "data/t.parquet", "a")
    with pytest.raises(LibraError, match="^data/t.parquet has no rows"):
        tables.read_table("data/t.parquet", ("a",))
    (tmp_path / "data/t.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(
        LibraError,
        match=r"^data/t.parquet isn't a readable Parquet file \(.*\); delete it and run `dvc repro`$",
    ):
        tables.read_table("data/t.parquet", ("a",))


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder/table.parquet"
    tables.write_json({"b": 1, "a": "°"}, path)
    assert path.read_bytes() == b'{\n  "a": "\xc2\xb0",\n  "b": 1\n}\n'

    def half(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        tables.write_atomically(path, half)
    with pytest.raises(ValueError, match="not JSON compliant"):
        tables.write_json({"a": float("nan")}, path)
    assert path.read_bytes().startswith(b"{\n") and [
        file.name for file in path.parent.iterdir()
    ] == ["table.parquet"]


def test_the_same_rows_are_the_same_bytes(tmp_path):
    rows = pl.DataFrame({"id": ["b", "a", "c"], "n": [1, 2, 3]})
    for name, table in (("one", rows), ("two", rows.reverse())):
        tables.write_table(table, tmp_path / name, "id")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (LibraError("the key is wrong"), "stage: error: the key is wrong"),
        (
            PermissionError(13, "Permission denied", "data/x"),
            "stage: error: Permission denied: data/x; ",
        ),
        (
            OSError(28, "No space left on device"),
            "stage: error: No space left on device: while writing; free space",
        ),
    ],
)
def test_a_user_s_trouble_is_one_line(raised, message):
    def main():
        raise raised

    with pytest.raises(SystemExit) as end:
        cli.guarded("stage", main)
    assert str(end.value.code).startswith(message) and "\n" not in end.value.code


@pytest.mark.parametrize(
    "raised", [KeyError("bug"), OSError("odd"), TimeoutError(110, "timed out")]
)
def test_a_bug_keeps_its_traceback(raised):
    def main():
        raise raised

    with pytest.raises(type(raised)):
        cli.guarded("stage", main)


@pytest.mark.parametrize(
    "raised", [KeyboardInterrupt(), Interrupted("stopped; 3 requests are left")]
)
def test_a_stop_is_one_line_and_status_130(raised, capsys):
    def main():
        raise raised

    with pytest.raises(SystemExit) as end:
        cli.guarded("stage", main)
    said = capsys.readouterr().err
    assert end.value.code == 130 and said.startswith("stage: stopped") and said.count("\n") == 1
