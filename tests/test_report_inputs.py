"""Errors of stage report: a missing or invalid file, figure, column or param is named."""

import contextlib
import json
import os
import re
import shutil
import subprocess

import polars as pl
import pytest

from helpers.dag import ROOT
from helpers.report_project import change_metrics, write_inputs
from stages import report as stage
from stages.core.errors import LibraError
from stages.reporting import inputs


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with all that the stage reads, as the working folder."""
    monkeypatch.chdir(tmp_path)
    return write_inputs(tmp_path)


@pytest.mark.parametrize("path", inputs.FILES)
def test_missing_files_are_named(project, path):
    (project / path).unlink()
    with pytest.raises(LibraError, match=re.escape(path)):
        stage.main()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("candidates", "dpo"), "no candidates.dpo"),
        (("candidates", "my-endpoint"), "disagree on candidate my-endpoint"),
        (("candidates", "sft", "harmonic_lo"), "no candidates.sft.harmonic_lo"),
        (("judge", "paper_agreement", "sft"), "no judge.paper_agreement.sft"),
        (("judge", "human"), "no judge.human"),
        (("comparisons", 0, "p_holm"), "a comparison lacks p_holm"),
        (("test",), "no test"),
        (("generation",), "no generation"),
        (("generation", "craft", "usd"), "no generation.craft.usd"),
    ],
)
def test_missing_figures_are_named(project, keys, message):
    def delete(metrics):
        for key in keys[:-1]:
            metrics = metrics[key]
        del metrics[keys[-1]]

    change_metrics(delete)
    with pytest.raises(LibraError, match=re.escape(message)):
        stage.main()


@pytest.mark.parametrize("text", ["[]", '"text"', "{", "{}"])
def test_metrics_that_are_no_object_of_sections_are_named(project, text):
    (project / inputs.METRICS).write_text(text)
    with pytest.raises(LibraError, match=r"metrics\.json (has no|isn't JSON).*dvc repro score"):
        stage.main()


def test_invalid_tables_are_named(project):
    verdicts = pl.read_parquet(inputs.VERDICTS)
    (project / inputs.SFT).write_text("step,eval_loss\n1,2\n")
    with pytest.raises(LibraError, match=r"models/sft/training.csv lacks column loss"):
        stage.main()
    (project / inputs.SFT).write_text("step,loss\n1,much\n")
    with pytest.raises(LibraError, match=r"models/sft/training.csv isn't a valid table"):
        stage.main()
    (project / inputs.SFT).write_text("step,loss\n1,2\n")
    verdicts.filter(pl.col("candidate") != "sft").write_parquet(inputs.VERDICTS)
    with pytest.raises(LibraError, match=r"verdicts.parquet disagree on candidate sft"):
        stage.main()
    verdicts.with_columns(prompt_id=pl.lit("nowhere-p0")).write_parquet(inputs.VERDICTS)
    with pytest.raises(LibraError, match=r"nowhere-p0, which data/eval/responses.parquet lacks"):
        stage.main()


def test_a_page_too_large_is_refused(project, monkeypatch):
    monkeypatch.setattr(stage, "LIMIT", 10_000)
    with pytest.raises(LibraError, match=r"lower report\.examples"):
        stage.main()
    assert not (project / "data/eval/report.html").exists()


@pytest.mark.parametrize("count", [0, 10_001])
def test_params_are_checked(project, count):
    (project / "params.yaml").write_text(json.dumps({"report": {"examples": count}}))
    with pytest.raises(LibraError, match=r"report\.examples"):
        stage.main()


def test_help_needs_no_project(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", "--help"])
    with contextlib.suppress(SystemExit):
        stage.cli.run("report", stage.main, stage.__doc__)
    assert "report.html" in capsys.readouterr().out


def test_make_report_without_results_is_one_line(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / "requirements.lock").touch()
    (tmp_path / ".venv/installed").touch()
    # Without the variables of a surrounding `make test`.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "report"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode and done.stdout == ""
    message = "error: there are no results yet; run `make repro` first"
    assert done.stderr.splitlines()[0] == message
