"""The README's recipes for comparing experiments, run as they stand there, in a copy of the small pipeline."""

import re
import shlex
import shutil
import sqlite3
import time

import pytest
import yaml
from test_pipeline import call, commit, ran, small

from helpers.browser import CHROMIUM, browser
from helpers.dag import ROOT

pytestmark = pytest.mark.pipeline
NAMES = ("beta-0.3", "beta-0.05", "beta-1")


def recipes() -> list[str]:
    """The commands of the README's section on comparing, in order."""
    part = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .split("\n## Compare\n")[1]
        .split("\n## ")[0]
    )
    block = re.search(r"```sh\n(.*?)```", part, re.S)[1]
    return [command for line in block.splitlines() if (command := line.partition("  #")[0].strip())]


@pytest.fixture
def folder(tmp_path_factory):
    """A copy of the small pipeline after its first run, with the results committed and an MLflow store of its own."""
    made, _ = small(tmp_path_factory.getbasetemp())
    copy = tmp_path_factory.mktemp("experiments") / "libra"
    shutil.copytree(made, copy, symlinks=True)
    (copy / "mlflow.db").unlink()
    commit(copy)
    return copy


@pytest.mark.parametrize(
    "param", ["score.bootstrap", pytest.param("dpo.beta", marks=pytest.mark.slow)]
)
def test_recipes(folder, param):
    """With dpo.beta as written, which trains three times; and, quicker, with a param of `score` in its place."""
    said = {}
    for command in recipes():
        if param != "dpo.beta":
            command = re.sub(
                r"dpo\.beta=([\d.]+)",
                lambda found: f"{param}={100 + round(100 * float(found[1]))}",
                command,
            )
            command = command.replace(r"dpo\.beta", re.escape(param))
        said[" ".join(shlex.split(command)[:4])] = call(folder, *shlex.split(command))
        if "queue start" in command:
            wait_for_queue(folder)
    assert len(said) == len(recipes()) - 1, "two put into the queue"
    assert ran(said["dvc exp run -n"])[0] == param.split(".")[0]
    table = said["dvc exp show --drop"]
    assert (
        all(name in table for name in NAMES)
        and param in table
        and "dpo.harmonic" in table
        and "always_" not in table
    )
    assert param in said[f"dvc exp diff {NAMES[0]}"]

    values = {
        name: 100 + round(100 * float(name[5:])) if param != "dpo.beta" else float(name[5:])
        for name in NAMES
    }
    section, key = param.split(".")
    assert yaml.safe_load((folder / "params.yaml").read_text())[section][key] == values["beta-1"], (
        "applied"
    )
    assert "up to date" in call(folder, "dvc", "status")
    branch = yaml.safe_load(call(folder, "git", "show", "try-beta-1:params.yaml"))
    assert branch[section][key] == values["beta-1"]

    with sqlite3.connect(folder / "mlflow.db") as store:  # either name leads to the other
        found = dict(
            store.execute(
                "select name, value from runs join tags using (run_uuid) where key = 'dvc_experiment'"
            )
        )
        ended = {status for (status,) in store.execute("select status from runs")}
    assert {
        f"{stage}-{name}": name for name in NAMES for stage in {section, "score"}
    } == found and ended == {"FINISHED"}
    refs = call(folder, "git", "for-each-ref", "refs/exps", "--format=%(refname)")
    assert all(name in refs for name in found.values())

    page = folder / "dvc_plots/index.html"
    assert all(name in page.read_text() for name in NAMES[::2])
    assert "dvc_plots" not in call(folder, "git", "status", "--porcelain")
    assert_drawn(page, 4)


def test_plots_open_with_no_network(folder):
    call(folder, "dvc", "plots", "show")
    assert_drawn(folder / "dvc_plots/index.html", 4)


def assert_drawn(page, plots: int) -> None:
    """`page` loads nothing from elsewhere and, where there is a browser to see it, draws all its plots without a complaint."""
    assert not re.search(
        r"""<(script|link|img)[^>]*(src|href)=["']?https?:""", page.read_text(encoding="utf-8")
    )
    if CHROMIUM is None:
        return
    with browser() as tab:
        tab.open(page)
        until = time.monotonic() + 20
        while (
            tab.value("document.querySelectorAll('.vega-embed :is(canvas, svg.marks)').length")
            < plots
        ):
            assert time.monotonic() < until, tab.faults
        assert tab.requests == [tab.url] and tab.faults == []


def wait_for_queue(folder) -> None:
    """Until the experiments in the queue have ended, all of them well."""
    until = time.monotonic() + 300
    while re.search(r"Queued|Running", status := call(folder, "dvc", "queue", "status")):
        assert time.monotonic() < until, status
        time.sleep(3)
    assert "Failed" not in status, "".join(
        call(folder, "dvc", "queue", "logs", name) for name in NAMES[1:]
    )
