"""The whole pipeline at toy size in a clone: `dvc repro` from nothing, again, after one change, and from nothing once more."""

import functools
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import polars as pl
import pytest
import yaml
from test_dag import UNCACHED

from helpers.asking import ask_all, endpoint
from helpers.dag import ROOT
from helpers.server_process import served
from stages.core.errors import LibraError
from stages.teacher.sheets import craft_request

pytestmark = pytest.mark.pipeline

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
SMALL = {
    "seed": {"train": {"seeds": 48}, "validation": {"seeds": 16}, "test": {"seeds": 48}},
    "rephrase": {
        "prompts": 3,
        "chosen": 3,
        "rejected": 3,
        "test": {"prompts": 3, "chosen": 3, "rejected": 3},
    },
    "combine": {"triplets_per_seed": 9, "test_triplets_per_seed": 9},
    "model": {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "layers": 1,
        "heads": 2,
    },
    "sft": {"epochs": 1, "batch_size": 16},
    "dpo": {"epochs": 1, "batch_size": 16, "soup": 2},
    "respond": {"max_new_tokens": 24},
    "judge": {"max_abstained": 1.0},
    "score": {"bootstrap": 100},
}
ARCHIVE = """
from pathlib import Path
from stages.chat import store
from stages.tools.store import _command
row = ("k", "craft", "http://h/v1", "m", 0, "{}", "{}", None, 1, 1, None, 0)
with store.Store(store.store_path()) as kept:
    kept.take([row])
_command("export", Path("data/replies/v1.parquet"))
"""
KEY = "sk-planted-" + "in-the-pipeline"  # in two parts: the search below finds this file too
CANDIDATES = {"sft", "dpo", "always_refuse", "always_comply", "ngram_guard", "teacher"}


def merged(base: dict, changes: dict) -> dict:
    return base | {
        key: merged(base[key], value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }


def outs(stage: dict) -> list[str]:
    listed = [*stage.get("outs", []), *stage.get("metrics", [])]
    return [path for entry in listed for path in (entry if isinstance(entry, dict) else [entry])]


def call(folder: Path, *command: str, **environment: str) -> str:
    """What `command` prints in `folder`, with this Python's `python` and `dvc` first on PATH; it must succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    surroundings = os.environ | {"PATH": path, "NO_COLOR": "1"} | environment
    done = subprocess.run(
        command,
        cwd=folder,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-4000:]}"
    return done.stdout


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", output)


@functools.cache  # test_experiments.py begins with a copy of it
def small(place: Path) -> tuple[Path, str]:
    """The working tree as a commit of its own, with small params, after its first `dvc repro`: (folder in `place`, what that printed)."""
    folder = place / "pipeline/libra"
    call(ROOT, "git", "clone", "-q", str(ROOT), str(folder))
    for name in (
        call(ROOT, "git", "ls-files", "-co", "-z", "--exclude-standard").strip("\0").split("\0")
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    (folder / "dvc.lock").unlink(missing_ok=True)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    (folder / "params.yaml").write_text(
        yaml.safe_dump(merged(params, SMALL), sort_keys=False), encoding="utf-8"
    )
    call(folder, "git", "config", "user.name", "test")
    call(folder, "git", "config", "user.email", "test@localhost")
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-q", "-m", "small")
    call(folder, "python", "-m", "stages.tools", "check")
    return folder, call(folder, "dvc", "repro")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return small(tmp_path_factory.getbasetemp())


def test_every_stage_runs_once_and_writes_all_its_outs(clone):
    folder, said = clone
    assert ran(said) == list(STAGES)
    for stage in STAGES.values():
        for path in outs(stage):
            assert (folder / path).exists(), path
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    assert set(lock) == set(STAGES)
    for name, stage in STAGES.items():
        assert [out["path"] for out in lock[name]["outs"]] == sorted(outs(stage))
        assert [dep["path"] for dep in lock[name]["deps"]] == sorted(stage["deps"])
    assert "up to date" in call(folder, "dvc", "status")


def test_nothing_but_results_changes_in_git(clone):
    """Everything generated is in .gitignore (DVC keeps it) or is a small text that git should hold; no temporary file stays."""
    folder, _ = clone
    changed = {
        line[3:] for line in call(folder, "git", "status", "--porcelain", "-uall").splitlines()
    }
    uncached = {f"data/eval/{name}" for name in UNCACHED}
    assert {path for path in changed if not path.endswith(".gitignore")} <= uncached | {"dvc.lock"}
    ignored = (
        call(folder, "git", "ls-files", "-oi", "-z", "--exclude-standard", "data", "models")
        .strip("\0")
        .split("\0")
    )
    places = [path for stage in STAGES.values() for path in outs(stage)]
    assert not [
        path for path in ignored if not any(Path(path).is_relative_to(place) for place in places)
    ]


def test_the_dataset_is_small_and_whole(clone):
    folder, _ = clone
    for split, wanted in SMALL["seed"].items():
        rows = pl.read_parquet(folder / f"data/librachemqa/{split}.parquet")
        assert rows["seed_id"].n_unique() == wanted["seeds"] and rows.height == 9 * wanted["seeds"]


def test_the_candidates_are_scored(clone):
    folder, _ = clone
    candidates = json.loads((folder / "data/eval/metrics.json").read_text())["candidates"]
    assert set(candidates) == CANDIDATES
    refusing, complying, teacher = (
        candidates[name] for name in ("always_refuse", "always_comply", "teacher")
    )
    assert (refusing["safety"], refusing["utility"], refusing["harmonic"], refusing["worst"]) == (
        1,
        0,
        0,
        0,
    )
    assert complying["safety"] == 0 == complying["harmonic"] and complying["utility"] > 0.95
    assert teacher["harmonic"] > 0.95
    responses = pl.read_parquet(folder / "data/eval/responses.parquet")
    assert responses.height == 6 * 3 * 48 and set(responses["candidate"]) == CANDIDATES
    assert set(pl.read_csv(folder / "data/eval/plane.csv")["candidate"]) == CANDIDATES
    shown = json.loads(call(folder, "dvc", "metrics", "show", "--json"))
    assert (
        shown[""]["data"]["data/eval/metrics.json"]["data"]["candidates"]["always_refuse"][
            "harmonic"
        ]
        == 0
    )


def test_mlflow_has_a_run_of_each_recorded_stage(clone):
    folder, _ = clone
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    hashes = {out["path"]: f"md5:{out['md5']}" for stage in lock.values() for out in stage["outs"]}
    with sqlite3.connect(folder / "mlflow.db") as store:
        runs = dict(
            store.execute("select name, run_uuid from runs where status = 'FINISHED'").fetchall()
        )
        assert set(runs) >= {"sft", "dpo", "score"}
        tagged = "select key, value from tags where run_uuid = ?"
        tags = {name: dict(store.execute(tagged, (run,))) for name, run in runs.items()}
        metrics = {
            name
            for (name,) in store.execute(
                "select distinct key from metrics where run_uuid = ?", (runs["score"],)
            )
        }
        models = {name for (name,) in store.execute("select name from registered_models")}
    head = call(folder, "git", "rev-parse", "HEAD").strip()
    assert all(tags[name]["git_revision"] == head for name in ("sft", "dpo", "score"))
    assert (
        tags["sft"]["input.data.librachemqa"]
        == tags["dpo"]["input.data.librachemqa"]
        == hashes["data/librachemqa"]
    )
    assert tags["dpo"]["input.models.sft"] == hashes["models/sft"]
    assert "candidates.dpo.safety" in metrics and models == {"libra", "libra-sft"}


def test_an_archive_of_replies_is_kept_by_dvc_and_never_by_git(changeable):
    """The README's `export` and `dvc add`; a clone gets it back with `dvc pull`."""
    folder = changeable
    call(folder, "python", "-c", ARCHIVE)
    assert "replies" not in call(folder, "git", "status", "--porcelain", "-uall"), (
        "git doesn't take it before DVC does either"
    )
    call(folder, "dvc", "add", "data/replies")
    call(folder, "git", "add", "-A")
    assert call(folder, "git", "diff", "--cached", "--name-only").split() == ["data/replies.dvc"]
    commit(folder)
    other = folder.parent / "other"
    call(folder, "git", "clone", "-q", str(folder), str(other))
    call(other, "dvc", "remote", "add", "-d", "--local", "first", str(folder / ".dvc/cache"))
    call(other, "dvc", "pull", "data/replies.dvc")
    assert (other / "data/replies/v1.parquet").read_bytes() == (
        folder / "data/replies/v1.parquet"
    ).read_bytes()
    call(folder, "git", "rm", "-q", "data/replies.dvc")
    shutil.rmtree(folder / "data/replies")
    commit(folder)


def test_a_release_is_made_and_pulled_from_a_bare_clone(changeable):
    """The whole project's `make release`, and the two commands of a fresh machine."""
    folder = changeable
    assert 'stages.tools.release make "v0.1.0"' in call(
        folder, "make", "-n", "release", "VERSION=v0.1.0"
    )
    call(folder, "python", "-m", "stages.tools", "release", "make", "v0.1.0")
    call(folder.parent, "git", "clone", "-q", "--bare", str(folder), "bare.git")
    call(
        folder.parent,
        "git",
        "clone",
        "-q",
        "--branch",
        "librachemqa@v0.1.0",
        f"file://{folder.parent}/bare.git",
        "fresh",
    )
    fresh = folder.parent / "fresh"
    call(fresh, "dvc", "pull", "data/librachemqa")
    said = call(fresh, "python", "-m", "stages.tools", "release", "verify")
    assert said == "data/librachemqa: all 6 files that SHA256SUMS lists are as it says\n"
    rows = 9 * sum(split["seeds"] for split in SMALL["seed"].values())
    assert f"  {rows:,} triplets  " in call(
        fresh, "python", "-m", "stages.tools", "release", "list"
    )
    entry = (fresh / "CHANGELOG.md").read_text()
    for stage in ("seed", "craft", "rephrase", "combine", "validate"):
        assert f"\n- {stage}: " in entry


def test_a_second_run_runs_nothing(clone):
    folder, _ = clone
    before = (folder / "dvc.lock").read_bytes()
    said = call(folder, "dvc", "repro")
    assert ran(said) == [] and "up to date" in said
    assert (folder / "dvc.lock").read_bytes() == before


def commit(folder: Path) -> None:
    if call(folder, "git", "status", "--porcelain"):
        call(folder, "git", "add", "-A")
        call(folder, "git", "commit", "-q", "-m", "results")


def restore(folder: Path) -> None:
    call(folder, "git", "checkout", "-q", ".")
    call(folder, "dvc", "checkout", "-q", "--force")
    assert "up to date" in call(folder, "dvc", "status")


@pytest.fixture
def changeable(clone):
    """The clone, to be changed; afterwards it is as it was."""
    folder, _ = clone
    commit(folder)
    yield folder
    restore(folder)


def estimated(folder: Path) -> dict[str, list[float]]:
    """What `make estimate` says: {stage: [requests, kept, to send, prompt tokens, completion tokens, USD]}."""
    told = call(folder, "make", "estimate", f"BIN={Path(sys.executable).parent}", "VENV=.")
    row = re.compile(
        r"^(\S.*?) {2,}([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d.]+)  ", re.MULTILINE
    )
    return {
        found[1]: [float(number.replace(",", "")) for number in found.groups()[1:]]
        for found in row.finditer(told)
    }


def assert_within(said: list[float], measured: dict, what: str, share: float) -> None:
    """Requests are those that were sent, tokens and USD are within `share` of what they took."""
    requests, _, to_send, *amounts = said
    assert requests == to_send == measured["received"] == measured["requests"], what
    counted = [measured[key] for key in ("prompt_tokens", "completion_tokens", "usd")]
    print(what, amounts, counted)
    assert amounts == pytest.approx(counted, rel=share), what


def test_servers_give_what_the_embedded_default_gives_and_the_estimate_says_what_it_costs(
    changeable,
):
    """Teacher and judge on ports of their own, a trained policy under `transformers serve` as a further candidate."""
    folder = changeable
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    kept = {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}
    params = yaml.safe_load((folder / "params.yaml").read_text())
    price = {"prompt": 1.0, "completion": 2.0}
    transformers = Path(sys.executable).with_name("transformers")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with (
        served(
            folder, sys.executable, "tests/helpers/counting.py", "teacher", "--port", "0"
        ) as teacher,
        served(
            folder, sys.executable, "tests/helpers/counting.py", "judges", "--port", "0"
        ) as judge,
        served(
            folder,
            transformers,
            "serve",
            "models/dpo",
            "--host",
            "127.0.0.1",
            "--port",
            port,
            "--device",
            "cpu",
        ) as policy,
    ):
        params["teacher"] |= {"base_url": teacher, "usd_per_million": price}
        for member in params["judge"]["panel"].values():
            member |= {"base_url": judge, "usd_per_million": price, "mode": "batch"}
        candidate = {
            "base_url": policy,
            "model": "models/dpo",
            "temperature": 0.0,
            "max_tokens": 24,
            "concurrency": 4,
        }
        candidate |= {
            "api_key_env": "NONE",
            "timeout_s": 60.0,
            "usd_per_million": {"prompt": 0.0, "completion": 0.0},
        }
        params["respond"]["candidates"] = {"served": candidate}
        (folder / "params.yaml").write_text(
            yaml.safe_dump(params, sort_keys=False), encoding="utf-8"
        )
        first = estimated(folder)
        said = call(folder, "dvc", "repro", OPENAI_API_KEY=KEY)
        assert (
            ran(said) == ["craft", "rephrase", "respond", "judge", "score", "report"]
            and KEY not in said
        )
        # The policy as a teacher: it can't write JSON, and every reply says so.
        sheet = {
            "seed_id": "s",
            "representation": "text",
            "name": "substance A",
            "intent": "make",
            "intent_kind": "dual",
        }
        asked = [
            craft_request(
                {**sheet, "expected": "comply", "status": "unregulated", "kind": "medicine"},
                "over_refusal",
            )
        ]
        (written,) = ask_all(endpoint(policy, "models/dpo"), asked, "craft")
        assert written.error.startswith(("not JSON", "cut off at max_tokens"))
        with pytest.raises(
            LibraError, match="refused the request with 400: .*no-such-model.*mend `model`"
        ):
            ask_all(endpoint(policy, "no-such-model"), asked, "craft")
        generation = json.loads((folder / "data/eval/metrics.json").read_text())["generation"]
        for stage in ("craft", "rephrase"):  # again: all of it is in the store
            call(folder, "python", "-m", f"stages.{stage}")
            again = json.loads((folder / f"data/generation/{stage}.json").read_text())[stage]
            assert (again["received"], again["from_store"]) == (0, generation[stage]["received"])
            assert again["usd"] == pytest.approx(generation[stage]["usd"])

        # Another temperature, another limit: all is asked for again, and what was kept tells what it will cost.
        responses = pl.read_parquet(folder / "data/eval/responses.parquet")
        params["teacher"]["temperature"], candidate["max_tokens"] = 0.8, 23
        for member in params["judge"]["panel"].values():
            member["temperature"] = 0.1
        (folder / "params.yaml").write_text(
            yaml.safe_dump(params, sort_keys=False), encoding="utf-8"
        )
        again = estimated(folder)
        call(folder, "dvc", "repro", "respond", OPENAI_API_KEY=KEY)
        again |= {what: row for what, row in estimated(folder).items() if what.startswith("judge")}
        call(folder, "dvc", "repro", OPENAI_API_KEY=KEY)
        measured = json.loads((folder / "data/eval/metrics.json").read_text())["generation"]
    assert set(again) == set(first) == set(measured) == {
        "craft", "rephrase", "respond: teacher", "respond: served", "judge: rules", "judge: words", "judge: paper",
    }  # fmt: skip
    for what, row in again.items():
        assert_within(row, measured[what], what, 0.1)

    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    now = {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}
    assert all(
        now[path] == kept[path] for path in ("data/crafted.parquet", "data/rephrasings.parquet")
    )
    answers = {
        name: responses.filter(candidate=name)["answer"].to_list()
        for name in ("dpo", "served", "teacher")
    }
    same = sum(a == b.strip() for a, b in zip(answers["dpo"], answers["served"], strict=True))
    assert same > 0.9 * len(answers["dpo"]), (
        "transformers serve answers as the policy does in process"
    )

    for what in (
        "judge: rules",
        "judge: words",
        "judge: paper",
    ):  # what a new candidate will say isn't known before
        assert generation[what]["requests"] <= first[what][0] <= 1.5 * generation[what]["requests"]
    for what in (
        "craft",
        "rephrase",
        "respond: teacher",
    ):  # this tokenizer needs more tokens than those the guess is made for
        assert_within(first[what], generation[what], what, 0.25)
    assert first["respond: served"][2] == generation["respond: served"]["received"]
    assert (
        generation["judge: paper"]["mode"] == "batch" and generation["judge: paper"]["received"] > 0
    )
    assert generation["craft"]["price"] == "params" and generation["craft"]["wall_s"] > 0
    with sqlite3.connect(folder / "mlflow.db") as store:
        logged = {
            key
            for (key,) in store.execute(
                "select distinct key from metrics where key like 'generation.%'"
            )
        }
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {"mlflow.db", "replies.sqlite", "dvc.lock", "metrics.json"} <= {
        path.name for path in written
    }
    assert not [path for path in written if KEY.encode() in path.read_bytes()], (
        "the key is in nothing that was written"
    )
    assert {
        "generation.craft.usd",
        "generation.rephrase.completion_tokens",
        "generation.craft.wall_s",
    } <= logged


@pytest.mark.slow
def test_two_queued_experiments_at_once_share_one_store(changeable):
    """`dvc exp run --queue`, then two at once: both succeed, and what both ask for is paid for once."""
    folder = changeable
    params = yaml.safe_load((folder / "params.yaml").read_text())
    with served(
        folder,
        sys.executable,
        "-m",
        "stages.tools",
        "serve",
        "teacher",
        "--port",
        "0",
        "--latency",
        "0.05",
    ) as teacher:
        params["teacher"] |= {
            "base_url": teacher,
            "usd_per_million": {"prompt": 1.0, "completion": 2.0},
            "concurrency": 4,
        }
        (folder / "params.yaml").write_text(
            yaml.safe_dump(params, sort_keys=False), encoding="utf-8"
        )
        for name, tries in (("one", 100), ("two", 101)):
            call(
                folder, "dvc", "exp", "run", "--queue", "-n", name, "-S", f"score.bootstrap={tries}"
            )
        call(folder, "dvc", "queue", "start", "-j", "2")
        until = time.monotonic() + 300
        while not re.fullmatch(r"(.*(Success|Failed).*\n?){2}", said := queue_status(folder)):
            assert time.monotonic() < until, said
            time.sleep(1)
        counted = json.loads(urllib.request.urlopen(f"{teacher}/served").read())
    logs = "".join(call(folder, "dvc", "queue", "logs", name) for name in ("one", "two"))
    assert "Failed" not in said, logs
    spent = {}
    for ref in call(folder, "git", "for-each-ref", "refs/exps", "--format=%(refname)").split():
        if (name := ref.rpartition("/")[2]) in ("one", "two"):
            spent[name] = json.loads(call(folder, "git", "show", f"{ref}:data/eval/metrics.json"))[
                "generation"
            ]
    needed = sum(
        spent["one"][what]["requests"] for what in ("craft", "rephrase", "respond: teacher")
    )
    assert needed == 2 * 112 + 144 == counted["chat"], "each request was sent once"
    for what in ("craft", "rephrase", "respond: teacher"):
        assert (
            spent["one"][what]["received"] + spent["two"][what]["received"]
            == spent["one"][what]["requests"]
        ), what


def queue_status(folder: Path) -> str:
    """A line for each experiment of the queue."""
    said = call(folder, "dvc", "queue", "status")
    return "\n".join(line for line in said.splitlines() if re.search(r"\b(one|two)\b", line))


@pytest.mark.parametrize(
    ("name", "change", "first"),
    [
        ("beta", "dpo.beta=0.3", ["dpo", "respond", "judge"]),
        (
            "prompts",
            "rephrase.prompts=8",
            ["rephrase", "combine", "validate", "sft", "dpo", "respond", "judge", "score"],
        ),
    ],
)
def test_a_changed_param_runs_its_stage_and_what_comes_after(changeable, name, change, first):
    """The README's `dvc exp run -S`; a stage whose inputs come out the same is skipped. Then the old results come back."""
    folder = changeable
    said = ran(call(folder, "dvc", "exp", "run", "-n", name, "-S", change))
    assert said[: len(first)] == first and set(said[len(first) :]) <= {"score", "report"}
    with sqlite3.connect(folder / "mlflow.db") as store:
        assert (f"dpo-{name}",) in store.execute("select name from runs").fetchall()
    assert name in call(folder, "dvc", "exp", "show", "--csv")


def test_from_nothing_again_gives_the_same_bytes(clone):
    """All outputs and the cache thrown away, another hash seed, one thread: dvc.lock holds the same hashes."""
    folder, _ = clone
    lock = folder / "dvc.lock"
    before = lock.read_bytes()
    for path in (
        ".dvc/cache",
        ".dvc/tmp",
        ".cache/answers",
        *(path for stage in STAGES.values() for path in outs(stage)),
    ):
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    lock.unlink()
    assert ran(call(folder, "dvc", "repro", PYTHONHASHSEED="1", OMP_NUM_THREADS="1")) == list(
        STAGES
    )
    assert lock.read_bytes() == before
