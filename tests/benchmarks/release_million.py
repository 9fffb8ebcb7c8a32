"""The line `million` of release.py: Libra next to pandas on 1,062,400 triplets.

Each contender is a process of its own: `python tests/benchmarks/release_million.py NAME` prints
its result, the seconds since the process started, its peak memory and its CPU time as JSON.
"""

import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MILLION = ROOT / ".cache/benchmarks/million"
COPIES, REPEATS = 16, 3
COUNTS = ("before", "added", "removed", "changed", "after")


def build(folder: Path) -> None:
    """The tables of a dataset 16 times as large: each copy has its own seeds, marked by a letter.

    `before/` has a previous version: every thousandth row is missing, and every five-hundredth has
    another chosen answer.
    """
    import polars as pl

    from stages.core.tables import ROW_GROUP
    from stages.domain.triplets import combine

    folder.mkdir(parents=True, exist_ok=True)
    texts = pl.read_parquet("data/rephrasings.parquet")
    seeds = pl.read_parquet("data/seeds.parquet")
    parts, copied_seeds = [], []
    for i in range(COPIES):
        mark = f"k{i:02d}-"
        copied_seeds.append(seeds.with_columns(seed_id=mark + pl.col("seed_id")))
        marked = texts.with_columns(
            seed_id=mark + pl.col("seed_id"), text=f"Case {chr(97 + i)}: " + pl.col("text")
        )
        parts.append(folder / f".{mark}parquet")
        combine(marked, copied_seeds[-1], 25).sort("triplet_id").write_parquet(parts[-1])
    pl.concat(copied_seeds).write_parquet(folder / "seeds.parquet")
    shutil.copy("data/substances.parquet", folder / "substances.parquet")

    options = {  # as write_table has them
        "compression": "zstd",
        "compression_level": 9,
        "row_group_size": ROW_GROUP,
        "maintain_order": True,
    }
    pl.scan_parquet(parts).sink_parquet(folder / "triplets.parquet", **options)
    for part in parts:
        part.unlink()

    rows = pl.scan_parquet(folder / "triplets.parquet").with_row_index()
    earlier = pl.when(pl.col("index") % 500 == 0).then(pl.lit("Earlier.")).otherwise("chosen")
    previous = rows.filter(pl.col("index") % 1000 != 1).with_columns(chosen=earlier).drop("index")
    (folder / "before").mkdir()
    for split in ("train", "validation", "test"):
        path = folder / f"before/{split}.parquet"
        previous.filter(pl.col("split") == split).sink_parquet(path, **options)


def with_libra(folder: Path, out: Path) -> dict:
    """validate's checks and files, and the diff of a release."""
    from stages import validate
    from stages.tools.releasing.changes import changes

    validate.SOURCES = [folder / f"{name}.parquet" for name in ("triplets", "seeds", "substances")]
    validate.RELEASE = out
    validate.main()
    diff = changes(folder / "before", out)
    return {count: diff.total(count) for count in COUNTS}


def with_pandas(folder: Path, out: Path) -> dict:
    """The same rules, probes, files and diff on pandas frames.

    The gate and the probes' models are the same code; the tables they work on aren't.
    """
    import pandas as pd

    from stages.domain.splits import SPLITS

    triplets, seeds, substances = (
        pd.read_parquet(folder / f"{name}.parquet") for name in ("triplets", "seeds", "substances")
    )
    assert not _faults(triplets, seeds, substances)
    _probe(triplets, seeds, substances)
    out.mkdir()
    (out / "README.md").write_text(json.dumps(_card_tables(triplets, seeds)))
    totals = dict.fromkeys(COUNTS, 0)
    for split in SPLITS:
        rows = triplets[triplets["split"] == split].sort_values("triplet_id")
        path = out / f"{split}.parquet"
        rows.to_parquet(path, compression="zstd", compression_level=9, index=False)
        hashlib.sha256(path.read_bytes()).hexdigest()
        counts = _diff(pd.read_parquet(folder / f"before/{split}.parquet"), rows)
        totals = {name: totals[name] + counts[name] for name in COUNTS}
    return totals


def _faults(triplets, seeds, substances) -> int:
    """The number of faults against the contract."""
    import pandas as pd
    import polars as pl

    from stages.dataset.contract import COLUMNS, OF_SEED, fact_fault
    from stages.dataset.split_rules import crossing_faults
    from stages.domain.description import load_domain
    from stages.domain.gate import ROLES, mask, violations
    from stages.domain.splits import SPLITS

    domain = load_domain()
    count = 0
    for name in COLUMNS:
        count += triplets[name].isna().sum() if name != "fact" else 0
        count += (triplets[name] == "").sum()
    count += triplets["triplet_id"].duplicated().sum()
    count += triplets.duplicated([f"{role}_id" for role in ROLES]).sum()

    of_seed = seeds[["seed_id", *OF_SEED]]
    joined = triplets.merge(of_seed, on="seed_id", how="left", suffixes=("", "_seed"))
    for name in OF_SEED:
        count += (joined[name].fillna("") != joined[f"{name}_seed"].fillna("")).sum()
    for role in ROLES:
        count += (triplets.groupby(f"{role}_id")[role].nunique() > 1).sum()
        pairs = zip(triplets[f"{role}_id"], triplets["seed_id"], strict=True)
        count += sum(not text_id.startswith(f"{seed}-") for text_id, seed in pairs)

    mention = substances[["substance_id", "name", "smiles", "status"]]
    named = triplets.merge(mention, on="substance_id", how="left")
    count += (named["intent_kind"] != named["intent"].map(domain.kind_of)).sum()
    labels = named[["status", "intent", "expected"]]
    pairs = labels[["status", "intent"]].drop_duplicates().itertuples(index=False)
    table = {(status, intent): domain.expected(status, intent) for status, intent in pairs}
    rows = labels.itertuples(index=False)
    count += sum(table[status, intent] != label for status, intent, label in rows)

    is_text = named["representation"] == "text"
    named["mention"] = named["name"].where(is_text, named["smiles"])
    pairs = zip(named["mention"], named["prompt"], strict=True)
    count += sum(name not in prompt for name, prompt in pairs)
    chosen, rejected = (named[role].str.strip().str.lower() for role in ("chosen", "rejected"))
    count += (chosen == rejected).sum()

    verdicts: dict = {}
    for role in ROLES:
        rows = named[[role, "mention", "expected"]].drop_duplicates().itertuples(index=False)
        for text, name, label in rows:
            key = (mask(text, name), role, label)
            if key not in verdicts:
                verdicts[key] = violations(*key)
            count += bool(verdicts[key])
    for fact, intent in named[["fact", "intent"]].drop_duplicates().itertuples(index=False):
        count += fact_fault(None if pd.isna(fact) else fact, intent, domain) is not None

    balance = triplets.groupby(["split", "expected"])["seed_id"].agg(["size", "nunique"])
    count += sum(len(set(balance.xs(split)["size"])) > 1 for split in SPLITS)
    used = pl.from_pandas(triplets[["substance_id", "split"]].drop_duplicates())
    return count + crossing_faults(used.lazy(), pl.from_pandas(substances)).height


def _probe(triplets, seeds, substances) -> None:
    import polars as pl

    from stages.dataset.probes import measure, probe_faults

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
    frame, seeds, substances = map(pl.from_pandas, (triplets[columns], seeds, substances))
    measured = measure(frame, seeds, substances)
    assert probe_faults(measured, frame, substances, 0.6).is_empty()


def _card_tables(triplets, seeds) -> list[list[str]]:
    """The counts and medians of the dataset card."""
    rows = triplets.merge(seeds[["seed_id", "status", "group"]], on="seed_id")
    cells = (
        ["status", "intent_kind", "expected"],
        ["expected", "rejected_kind"],
        ["intent", "split"],
    )
    tables = [rows.groupby(keys).size() for keys in cells]
    names = ("seed_id", "substance_id", "group")
    tables += [rows.groupby("split")[name].nunique() for name in names]
    roles = ("prompt", "chosen", "rejected")
    tables += [rows[role].str.len().groupby(rows["expected"]).median() for role in roles]
    return [table.astype(str).to_list() for table in tables]


def _diff(before, after) -> dict[str, int]:
    """COUNTS of one split."""
    from stages.dataset.contract import COLUMNS

    both = before.merge(after, on="triplet_id", how="outer", suffixes=("_old", ""), indicator=True)
    common = both[both["_merge"] == "both"]
    content = [name for name in COLUMNS if name != "triplet_id"]
    new, old = common[content], common[[f"{name}_old" for name in content]]
    differs = (new.fillna("").to_numpy() != old.fillna("").to_numpy()).any(axis=1)
    added, removed = ((both["_merge"] == side).sum() for side in ("right_only", "left_only"))
    counts = (len(before), added, removed, differs.sum(), len(after))
    return {name: int(count) for name, count in zip(COUNTS, counts, strict=True)}


CONTENDERS = {"Libra": with_libra, "pandas": with_pandas}


def million() -> list[list[str]]:
    """Rows of RELEASE.md."""
    if not (MILLION / "before/test.parquet").exists():
        shutil.rmtree(MILLION, ignore_errors=True)
        build(MILLION)
    rows, results = [], {}
    for name in CONTENDERS:
        runs = []
        for _ in range(REPEATS if name == "Libra" else 1):
            command = [sys.executable, __file__, name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(name, runs[-1], file=sys.stderr, flush=True)

        results[name] = runs[0]["counts"]
        seconds, peak, cpu = (
            statistics.median(run[key] for run in runs) for key in ("seconds", "MiB", "CPU")
        )
        target = ["", ""]
        if name == "Libra":
            target = ["60 s, 600 MiB", "yes" if seconds <= 60 and peak <= 600 else "**no**"]
        line = f"checks, card, Croissant and diff of {results[name]['after']:,} triplets"
        figure = f"{seconds:.0f} s ({cpu:.0f} s of CPU), {peak:,.0f} MiB at most"
        rows.append([line, name, figure, *target])
    assert results["Libra"] == results["pandas"], results
    return rows


def run(name: str) -> None:
    """Run one contender in this process and print its figures."""
    with tempfile.TemporaryDirectory() as folder:
        counts = CONTENDERS[name](MILLION, Path(folder) / "out")
    with open("/proc/self/stat") as stat:
        started = int(stat.read().rsplit(") ", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {"seconds": seconds, "MiB": peak, "CPU": time.process_time()}
    print(json.dumps({"counts": counts, **figures}))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    run(sys.argv[1])
