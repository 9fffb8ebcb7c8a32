"""What a release takes: checks of a million triplets next to pandas, push and pull next to bare boto3, a fresh machine's two commands.

    python tests/benchmarks/release.py                # all three, 10 minutes on two idle cores; writes RELEASE.md
    python tests/benchmarks/release.py --only pull    # some: million, copy, pull; prints, writes their rows

Needs the data of a run (`dvc repro` or `dvc pull`). Every contender is a process of its own, and figures are medians of REPEATS runs.

    million  contract, probes, card, Croissant and diff of 1,062,400 triplets: the combination repeated with 16 sets of seeds
    copy     all that `make release` pushes to a remote of one's own (data, policies, tables), and the released folder alone, to and from
             an S3 server (Swift): DVC's push and pull, and boto3 on the same objects, one after the other, as whole processes;
             50 ms away (each packet waits for 25 ms, as on the way to another region), 10 ms away, and on this machine;
             whole processes, and without the interpreter's start and imports
    pull     `git clone` and `dvc pull data/librachemqa` from the remote in Git
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # the tests' helpers
RESULTS = ROOT / "tests/benchmarks/RELEASE.md"
MILLION = ROOT / ".cache/benchmarks/million"
COPIES, REPEATS = 16, 3
ROUND_TRIPS = (0.05, 0.01)  # seconds: to another region, within one
HEAD = ["what", "who", "figure", "target", "met", "date"]


def build(folder: Path) -> None:
    """The three tables of a dataset 16 times as large: other seeds on the same substances, each set's texts marked by a letter."""
    import polars as pl

    from stages.combine import combine
    from stages.core.tables import ROW_GROUP

    folder.mkdir(parents=True, exist_ok=True)
    texts, seeds = (
        pl.read_parquet("data/rephrasings.parquet"),
        pl.read_parquet("data/seeds.parquet"),
    )
    parts, all_seeds = [], []
    for i in range(COPIES):
        mark = f"k{i:02d}-"
        all_seeds.append(seeds.with_columns(seed_id=mark + pl.col("seed_id")))
        marked = texts.with_columns(
            seed_id=mark + pl.col("seed_id"), text=f"Case {chr(97 + i)}: " + pl.col("text")
        )
        parts.append(folder / f".{mark}parquet")
        combine(marked, all_seeds[-1], 25).sort("triplet_id").write_parquet(parts[-1])
    pl.concat(all_seeds).write_parquet(folder / "seeds.parquet")
    shutil.copy("data/substances.parquet", folder / "substances.parquet")
    write = {
        "compression": "zstd",
        "compression_level": 9,
        "row_group_size": ROW_GROUP,
        "maintain_order": True,
    }  # as write_table does
    pl.scan_parquet(parts).sink_parquet(folder / "triplets.parquet", **write)
    for part in parts:
        part.unlink()
    # The version before: every thousandth row gone, another chosen answer in every five-hundredth.
    old = (
        pl.scan_parquet(folder / "triplets.parquet")
        .with_row_index()
        .filter(pl.col("index") % 1000 != 1)
    )
    old = old.with_columns(
        chosen=pl.when(pl.col("index") % 500 == 0).then(pl.lit("Earlier.")).otherwise("chosen")
    ).drop("index")
    (folder / "before").mkdir()
    for split in ("train", "validation", "test"):
        old.filter(pl.col("split") == split).sink_parquet(
            folder / f"before/{split}.parquet", **write
        )


def ours(folder: Path, out: Path) -> dict:
    """Libra: validate's checks and files, and the diff of a release."""
    from stages import validate
    from stages.tools.releasing.changes import COUNTS, changes

    validate.SOURCES = [folder / f"{name}.parquet" for name in ("triplets", "seeds", "substances")]
    validate.RELEASE = out
    validate.main()
    found = changes(folder / "before", out)
    return {count: found.total(count) for count in COUNTS}


def with_pandas(folder: Path, out: Path) -> dict:
    """The same rules, probes, files and diff on pandas frames. The gate and the probes' models are the same code; their tables aren't."""
    import hashlib

    import pandas as pd
    import polars as pl

    from stages.dataset import contract, probes
    from stages.domain.description import load_domain
    from stages.domain.gate import ROLES, mask, violations

    domain = load_domain()
    triplets, seeds, substances = (
        pd.read_parquet(folder / f"{name}.parquet") for name in ("triplets", "seeds", "substances")
    )
    wrong = 0
    for name in contract.COLUMNS:
        wrong += triplets[name].isna().sum() if name != "fact" else 0
        wrong += (triplets[name] == "").sum()
    wrong += (
        triplets["triplet_id"].duplicated().sum()
        + triplets.duplicated([f"{role}_id" for role in ROLES]).sum()
    )
    joined = triplets.merge(
        seeds[["seed_id", *contract.OF_SEED]], on="seed_id", how="left", suffixes=("", "_seed")
    )
    for name in contract.OF_SEED:
        wrong += (joined[name].fillna("") != joined[f"{name}_seed"].fillna("")).sum()
    for role in ROLES:
        wrong += (triplets.groupby(f"{role}_id")[role].nunique() > 1).sum()
        wrong += sum(
            not text.startswith(f"{seed}-")
            for text, seed in zip(triplets[f"{role}_id"], triplets["seed_id"], strict=True)
        )
    named = triplets.merge(
        substances[["substance_id", "name", "smiles", "status"]], on="substance_id", how="left"
    )
    wrong += (named["intent_kind"] != named["intent"].map(domain.kind_of)).sum()
    asked = named[["status", "intent"]].drop_duplicates().itertuples(index=False)
    law = {(status, intent): domain.expected(status, intent) for status, intent in asked}
    wrong += sum(
        law[status, intent] != label
        for status, intent, label in named[["status", "intent", "expected"]].itertuples(index=False)
    )
    named["shown"] = named["name"].where(named["representation"] == "text", named["smiles"])
    wrong += sum(
        shown not in prompt for shown, prompt in zip(named["shown"], named["prompt"], strict=True)
    )
    wrong += (
        named["chosen"].str.strip().str.lower() == named["rejected"].str.strip().str.lower()
    ).sum()
    read: dict = {}
    for role in ROLES:
        for text, shown, label in (
            named[[role, "shown", "expected"]].drop_duplicates().itertuples(index=False)
        ):
            key = (mask(text, shown), role, label)
            if key not in read:
                read[key] = violations(*key)
            wrong += bool(read[key])
    for fact, intent in named[["fact", "intent"]].drop_duplicates().itertuples(index=False):
        wrong += contract._fact_fault(None if pd.isna(fact) else fact, intent, domain) is not None
    balance = triplets.groupby(["split", "expected"])["seed_id"].agg(["size", "nunique"])
    wrong += sum(len(set(balance.xs(split)["size"])) > 1 for split in contract.SPLITS)
    used = pl.from_pandas(triplets[["substance_id", "split"]].drop_duplicates())
    wrong += contract.of_splits(used.lazy(), pl.from_pandas(substances)).height
    assert not wrong
    columns = [
        "seed_id",
        "substance_id",
        "expected",
        "intent",
        "intent_kind",
        "representation",
        "prompt",
        "chosen",
        "split",
    ]
    frame = pl.from_pandas(triplets[columns])
    tables = (pl.from_pandas(seeds), pl.from_pandas(substances))
    measured = probes.measure(frame, *tables)
    assert probes.faults(measured, frame, tables[1], 0.6).is_empty()
    rows = triplets.merge(seeds[["seed_id", "status", "group"]], on="seed_id")
    cells = (
        ["status", "intent_kind", "expected"],
        ["expected", "rejected_kind"],
        ["intent", "split"],
    )
    counted = [rows.groupby(keys).size() for keys in cells]
    counted += [
        rows.groupby("split")[name].nunique() for name in ("seed_id", "substance_id", "group")
    ]
    lengths = [rows[role].str.len().groupby(rows["expected"]).median() for role in ROLES]
    out.mkdir()
    (out / "README.md").write_text(
        json.dumps([table.astype(str).to_list() for table in counted + lengths])
    )
    total = dict.fromkeys(("before", "added", "removed", "changed", "after"), 0)
    for split in contract.SPLITS:
        new = triplets[triplets["split"] == split].sort_values("triplet_id")
        path = out / f"{split}.parquet"
        new.to_parquet(path, compression="zstd", compression_level=9, index=False)
        hashlib.sha256(path.read_bytes()).hexdigest()
        old = pd.read_parquet(folder / f"before/{split}.parquet")
        both = old.merge(new, on="triplet_id", how="outer", suffixes=("_old", ""), indicator=True)
        common = both[both["_merge"] == "both"]
        content = [name for name in contract.COLUMNS if name != "triplet_id"]
        differs = (
            common[content].fillna("").to_numpy()
            != common[[f"{name}_old" for name in content]].fillna("").to_numpy()
        ).any(axis=1)
        counts = (
            len(old),
            (both["_merge"] == "right_only").sum(),
            (both["_merge"] == "left_only").sum(),
            differs.sum(),
            len(new),
        )
        total = {key: total[key] + int(count) for key, count in zip(total, counts, strict=True)}
    return total


CONTENDERS = {"Libra": ours, "pandas": with_pandas}


def measured_process(name: str) -> None:
    """Run a contender in this process and print its result, seconds from the process's start and peak memory."""
    import resource

    with tempfile.TemporaryDirectory() as folder:
        found = CONTENDERS[name](MILLION, Path(folder) / "out")
    with open("/proc/self/stat") as stat:
        started = int(stat.read().rsplit(") ", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"found": found, "seconds": seconds, "MiB": peak, "CPU": time.process_time()}))


def million() -> list[list[str]]:
    if not (MILLION / "before/test.parquet").exists():
        shutil.rmtree(MILLION, ignore_errors=True)
        build(MILLION)
    rows, results = [], {}
    for name in CONTENDERS:
        runs = []
        for _ in range(REPEATS if name == "Libra" else 1):
            done = subprocess.run(
                [sys.executable, __file__, "--run", name], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-3000:]
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(name, runs[-1], file=sys.stderr, flush=True)
        results[name] = runs[0]["found"]
        seconds, peak, cpu = (
            statistics.median(run[key] for run in runs) for key in ("seconds", "MiB", "CPU")
        )
        target = (
            ("60 s, 600 MiB", "yes" if seconds <= 60 and peak <= 600 else "**no**")
            if name == "Libra"
            else ("", "")
        )
        rows.append([f"checks, card, Croissant and diff of {runs[0]['found']['after']:,} triplets", name,
                     f"{seconds:.0f} s ({cpu:.0f} s of CPU), {peak:,.0f} MiB at most", *target])  # fmt: skip
    assert results["Libra"] == results["pandas"], results
    return rows


BUCKETS = """
import sys, boto3
for bucket in ("libra", "bare"):
    client = boto3.client("s3", endpoint_url=sys.argv[1], region_name="eu-test-1")
    client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-test-1"})
"""
BOTO = """
import sys, boto3, json, time
from botocore.config import Config
start = time.perf_counter()
way, endpoint, folder, bucket = sys.argv[1:]
client = boto3.client("s3", endpoint_url=endpoint, region_name="eu-test-1", config=Config(s3={"addressing_style": "path"}))
names = json.load(open(folder + "/names.json"))
for name in names:
    if way == "push":
        client.upload_file(f"{folder}/{name.replace('/', '_')}", bucket, "bare/" + name)
    else:
        client.download_file(bucket, "bare/" + name, f"{folder}/{name.replace('/', '_')}.back")
print(time.perf_counter() - start)
"""
LINK = """
import asyncio, sys
port, to, delay = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

async def carry(reader, writer):
    loop = asyncio.get_running_loop()
    while data := await reader.read(65536):
        loop.call_later(delay, writer.write, data)
    loop.call_later(delay, writer.close)

async def accept(reader, writer):
    await asyncio.sleep(2 * delay)  # the handshake
    there, back = await asyncio.open_connection("127.0.0.1", to)
    await asyncio.gather(carry(reader, back), carry(there, writer))

async def main():
    server = await asyncio.start_server(accept, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
DVC = """
import sys, time
import s3fs  # DVC imports it with the first object; boto3's clock below starts after its imports as well
from dvc.repo import Repo
start = time.perf_counter()
with Repo(".") as repo:
    getattr(repo, sys.argv[1])()
print(time.perf_counter() - start)
"""


def copy() -> list[list[str]]:
    """Medians of processes started anew, in turn; nothing is there before a push, and no cache before a pull."""
    rows = []
    for what, paths in {
        "all that a release pushes": cached_outs(),
        "the dataset alone": ["data/librachemqa"],
    }.items():
        rows += copy_of(what, paths)
    return rows


def cached_outs() -> list[str]:
    """What the stages write and DVC keeps: data, policies, tables, report."""
    import yaml

    outs = [
        out
        for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
        for out in stage.get("outs", [])
    ]
    options = [next(iter(out.items())) if isinstance(out, dict) else (out, {}) for out in outs]
    return [path for path, of in options if of.get("cache", True)]


def copy_of(what: str, paths: list[str]) -> list[list[str]]:
    from test_s3 import KEYS, REGION, free_ports

    from helpers.venvs import venv_python

    swift, boto = venv_python("swift", "swift==2.38.3"), venv_python("boto3", "boto3==1.43.29")
    times: dict[tuple[str, str, str, str], list[float]] = {}
    environment = os.environ | KEYS

    def timed(who: str, way: str, where: str, command: list[str], folder: Path) -> None:
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        times.setdefault((who, way, where, "whole process"), []).append(time.perf_counter() - start)
        times.setdefault((who, way, where, "imports done"), []).append(
            float(done.stdout.split()[-1])
        )

    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        folder = Path(name)

        def serve(*command: str) -> None:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            running.callback(lambda: (server.terminate(), server.wait(20)))
            assert server.stdout.readline() == "ready\n"

        port = free_ports(4)
        serve(swift, str(ROOT / "tests/helpers/swift_server.py"), str(folder / "swift"), str(port))
        places = {}
        for seconds in ROUND_TRIPS:
            far = free_ports(1)
            serve(sys.executable, "-c", LINK, str(far), str(port), str(seconds / 2))
            places[f"{seconds * 1000:.0f} ms away"] = f"http://127.0.0.1:{far}"
        places["on this machine"] = f"http://127.0.0.1:{port}"
        subprocess.run(
            [boto, "-c", BUCKETS, places["on this machine"]], check=True, env=environment
        )
        dvc = str(Path(sys.executable).with_name("dvc"))
        work = folder / "work"
        subprocess.run(["git", "init", "-q", str(work)], check=True)
        subprocess.run([dvc, "init", "-q"], cwd=work, check=True)
        for path in paths:
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / path).is_dir() else shutil.copy)(ROOT / path, work / path)
        subprocess.run([dvc, "add", "-q", *paths], cwd=work, check=True)
        bare = folder / "bare"
        bare.mkdir()
        cache = work / ".dvc/cache/files/md5"
        objects = [path for path in cache.rglob("*") if path.is_file()]
        for path in objects:
            shutil.copy(path, bare / str(path.relative_to(cache)).replace("/", "_"))
        (bare / "names.json").write_text(
            json.dumps([str(path.relative_to(cache)) for path in objects])
        )
        for turn, (where, endpoint) in product(range(REPEATS + 2), places.items()):
            url = f"s3://libra/{turn}/{where[:2]}"
            for key, value in (
                ("url", url),
                ("endpointurl", endpoint),
                ("region", REGION),
                ("verify", "true"),
            ):
                words = (
                    ["add", "-q", "-f", "-d", "s3", value]
                    if key == "url"
                    else ["modify", "-q", "s3", key, value]
                )
                subprocess.run([dvc, "remote", *words], cwd=work, check=True)
            timed("DVC", "push", where, [sys.executable, "-c", DVC, "push"], work)
            timed(
                "boto3",
                "push",
                where,
                [boto, "-c", BOTO, "push", endpoint, str(bare), "bare"],
                bare,
            )
            shutil.rmtree(work / ".dvc/cache")
            for path in paths:
                shutil.rmtree(work / path) if (work / path).is_dir() else (work / path).unlink()
            timed("DVC", "pull", where, [sys.executable, "-c", DVC, "pull"], work)
            timed(
                "boto3",
                "pull",
                where,
                [boto, "-c", BOTO, "pull", endpoint, str(bare), "bare"],
                bare,
            )
        size = (
            sum(
                path.stat().st_size
                for path in bare.iterdir()
                if path.suffix != ".back" and path.name != "names.json"
            )
            / 2**20
        )
    rows = []
    for way, (where, part) in product(
        ("push", "pull"), product(places, ("whole process", "imports done"))
    ):
        mine, bare_time = (
            statistics.median(times[who, way, where, part]) for who in ("DVC", "boto3")
        )
        line = f"{way} of {what}, {len(objects)} objects, {size:.1f} MiB, server {where}, {part}"
        ratio = mine / bare_time
        rows.append(
            [
                line,
                "DVC",
                f"{mine:.2f} s, {ratio:.2f} x boto3",
                "1.3 x boto3",
                "yes" if ratio <= 1.3 else "**no**",
            ]
        )
        rows.append([line, "boto3", f"{bare_time:.2f} s", "", ""])
    return rows


def pull() -> list[list[str]]:
    """A clone of this repository, history and all, in which the dataset is released; then the two commands in an empty folder."""
    from helpers.releasing import call

    seconds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call(folder, "git", "clone", "-q", "--no-local", str(ROOT), "work")
        work = folder / "work"
        shutil.copytree(ROOT / "data/librachemqa", work / "data/librachemqa")
        for name in ("triplets.parquet", "seeds.parquet", "substances.parquet", "domain.json"):
            shutil.copy(ROOT / f"data/{name}", work / f"data/{name}")
        call(work, "dvc", "commit", "-q", "--force", "validate")
        call(work, "dvc", "push", "-q", "data/librachemqa")
        call(work, "git", "add", "-A")
        call(
            work,
            "git",
            "-c",
            "user.name=test",
            "-c",
            "user.email=test@localhost",
            "commit",
            "-q",
            "-m",
            "released",
        )
        for turn in range(REPEATS):
            start = time.perf_counter()
            call(folder, "git", "clone", "-q", "--no-local", str(work), f"fresh{turn}")
            call(folder / f"fresh{turn}", "dvc", "pull", "-q", "data/librachemqa")
            seconds.append(time.perf_counter() - start)
            assert (folder / f"fresh{turn}/data/librachemqa/SHA256SUMS").exists()
    took = statistics.median(seconds)
    what = "fresh machine after installation: clone, then pull of the release from Git"
    return [
        [what, "git, DVC", f"{took:.1f} s", "two commands, 60 s", "yes" if took <= 60 else "**no**"]
    ]


def write_down(rows: list[list[str]]) -> None:
    """Put rows into this machine's section of RELEASE.md, in place of those of the same line and contender."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    here = f"{os.cpu_count()} cores, {memory:.0f} GiB of memory, {platform.system()}, Python {platform.python_version()}"
    sections: dict[str, dict] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            section = sections.setdefault(line[3:], {})
        elif line.startswith("| ") and cells != HEAD and cells[0] != "---":
            section[cells[0], cells[1]] = cells
    for row in rows:
        sections.setdefault(here, {})[row[0], row[1]] = [*row, str(date.today())]
    text = (
        "# Results of release.py\n\n`release.py` beside this file says what a line measures. DVC takes half a second to start and asks a dozen "
        "things one after the other before it copies objects side by side, so it is behind where there is little to copy or the server is next "
        "to it, and ahead where there is a way to go.\n"
    )
    for title, section in sections.items():
        lines = [HEAD, ["---"] * len(HEAD), *section.values()]
        text += f"\n## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    RESULTS.write_text(text, encoding="utf-8")


LINES = {"million": million, "copy": copy, "pull": pull}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=LINES,
        default=list(LINES),
        metavar="NAME",
        help=", ".join(LINES),
    )
    parser.add_argument(
        "--run", choices=CONTENDERS, help=argparse.SUPPRESS
    )  # a contender in this process
    options = parser.parse_args()
    if options.run:
        return measured_process(options.run)
    for name in options.only:
        rows = LINES[name]()
        for row in rows:
            print(" | ".join(row), flush=True)
        write_down(rows)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    main()
