"""The recipes of docs/experiments.md for comparing experiments, run in a small pipeline."""

import re
import shlex
import sqlite3
import time

import pytest
import yaml

from helpers.browser import CHROMIUM, browser
from helpers.dag import ROOT
from helpers.small_pipeline import call, commit, small_pipeline, stages_run

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]
NAMES = ("beta-0.3", "beta-0.05", "beta-1")
PLOTS = 4


def recipes() -> list[str]:
    """The commands of the section on comparing, in order."""
    page = (ROOT / "docs/experiments.md").read_text(encoding="utf-8")
    section = page.split("\n## Compare\n")[1].split("\n## ")[0]
    block = re.search(r"```sh\n(.*?)```", section, re.S)[1]
    return [command for line in block.splitlines() if (command := line.partition("  #")[0].strip())]


@pytest.fixture
def folder(tmp_path_factory):
    """The small pipeline with its results committed, and an MLflow store of its own."""
    folder, _ = small_pipeline(tmp_path_factory)
    (folder / "mlflow.db").unlink()
    commit(folder)
    return folder


@pytest.mark.parametrize(
    "param", ["score.bootstrap", pytest.param("dpo.beta", marks=pytest.mark.slow)]
)
def test_recipes(folder, param):
    """With dpo.beta as written, which trains three times, or with a param of `score` instead."""
    section, key = param.split(".")
    values = {name: float(name.removeprefix("beta-")) for name in NAMES}
    if param != "dpo.beta":
        values = {name: 100 + round(100 * beta) for name, beta in values.items()}

    outputs = {}
    for command in recipes():
        if param != "dpo.beta":
            command = re.sub(
                r"dpo\.beta=([\d.]+)",
                lambda match: f"{param}={values[f'beta-{match[1]}']}",
                command,
            )
            command = command.replace(r"dpo\.beta", re.escape(param))
        words = shlex.split(command)
        outputs[" ".join(words[:4])] = call(folder, *words)
        if "queue start" in command:
            wait_for_queue(folder)
    assert len(outputs) == len(recipes()) - 1, "two are queued by the same words"
    assert stages_run(outputs["dvc exp run -n"])[0] == section

    table = outputs["dvc exp show --drop"]
    assert all(name in table for name in NAMES)
    assert param in table and "dpo.harmonic" in table and "always_" not in table
    assert param in outputs[f"dvc exp diff {NAMES[0]}"]

    applied = yaml.safe_load((folder / "params.yaml").read_text())
    assert applied[section][key] == values["beta-1"]
    assert "up to date" in call(folder, "dvc", "status")
    branch = yaml.safe_load(call(folder, "git", "show", "try-beta-1:params.yaml"))
    assert branch[section][key] == values["beta-1"]

    assert_recorded(folder, {section, "score"})
    page = folder / "dvc_plots/index.html"
    assert all(name in page.read_text() for name in ("beta-0.3", "beta-1"))
    assert "dvc_plots" not in call(folder, "git", "status", "--porcelain")
    assert_drawn(page)


def test_plots_open_with_no_network(folder):
    call(folder, "dvc", "plots", "show")
    assert_drawn(folder / "dvc_plots/index.html")


def assert_recorded(folder, stages: set[str]) -> None:
    """MLflow has a finished run of each of `stages` for every experiment, under DVC's name."""
    with sqlite3.connect(folder / "mlflow.db") as store:
        query = (
            "select name, value from runs join tags using (run_uuid) where key = 'dvc_experiment'"
        )
        experiments = dict(store.execute(query))
        statuses = {status for (status,) in store.execute("select status from runs")}
    assert experiments == {f"{stage}-{name}": name for name in NAMES for stage in stages}
    assert statuses == {"FINISHED"}
    refs = call(folder, "git", "for-each-ref", "refs/exps", "--format=%(refname)")
    assert all(name in refs for name in experiments.values())


def assert_drawn(page) -> None:
    """`page` loads nothing from elsewhere and, if there is a browser, draws all its plots."""
    html = page.read_text(encoding="utf-8")
    assert not re.search(r"""<(script|link|img)[^>]*(src|href)=["']?https?:""", html)
    if CHROMIUM is None:
        return
    drawn = "document.querySelectorAll('.vega-embed :is(canvas, svg.marks)').length"
    with browser() as tab:
        tab.open(page)
        while tab.value(drawn) < PLOTS:
            assert tab.faults == []
            time.sleep(0.1)
        assert tab.requests == [tab.url] and tab.faults == []


def wait_for_queue(folder) -> None:
    """Wait until the experiments in the queue have ended; none of them must fail."""
    while re.search(r"Queued|Running", status := call(folder, "dvc", "queue", "status")):
        time.sleep(3)
    if "Failed" in status:
        logs = [call(folder, "dvc", "queue", "logs", name) for name in NAMES[1:]]
        pytest.fail("".join(logs))
