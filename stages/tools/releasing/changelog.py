"""CHANGELOG.md: what a version holds, what it was made from, and how its rows changed."""

import re
from textwrap import wrap

from stages.tools.releasing.changes import CLASS, COUNTS, Changes
from stages.tools.releasing.objects import DATASET
from stages.tools.releasing.versions import Version

TITLE = "# Versions of LibraChemQA\n\nWritten by `make release`, newest first.\n"


def entry(
    row: Version, splits: dict[str, int], previous: Version | None, diff: Changes, stages: dict
) -> str:
    """The changelog entry of one version.

    `splits` has the rows of each split, `diff` the changes since `previous`, and `stages` the
    entries of dvc.lock.
    """
    parts = ", ".join(f"{split} {count:,}" for split, count in splits.items())
    lines = [
        f"## {row.version} ({row.date})",
        "",
        f"{row.rows:,} triplets ({parts}).",
        f"MD5 `{row.md5}`, commit `{row.commit}`.",
        "",
        _summary(previous, diff),
        "",
        _line((*CLASS, *COUNTS)),
        _line(["---"] * len(CLASS) + ["---:"] * len(COUNTS)),
        *(_line(cells) for cells in diff.classes.iter_rows()),
        "",
        "Made from, according to `dvc.lock`:",
        "",
        *_lineage(stages),
        "",
    ]
    return "\n".join(lines)


def _summary(previous: Version | None, diff: Changes) -> str:
    if previous is None:
        return "The first version."
    same = diff.total("before") - diff.total("removed") - diff.total("changed")
    counts = ", ".join(f"{diff.total(count):,} {count}" for count in COUNTS[1:4])
    columns = ", ".join(f"{name} {count:,}" for name, count in diff.columns.items())
    changed = f" Changed columns: {columns}." if columns else ""
    return f"Rows compared with {previous.version}: {counts}, {same:,} unchanged.{changed}"


def with_entry(text: str, version: str, new: str) -> str:
    """CHANGELOG.md `text` with the entry `new` on top, replacing an entry of the same version."""
    title, *entries = re.split(r"(?m)^(?=## )", text or TITLE)
    others = [part for part in entries if not part.startswith(f"## {version} ")]
    return "\n".join(part.rstrip("\n") + "\n" for part in (title, new, *others))


def _lineage(stages: dict) -> list[str]:
    """The stages behind the dataset, each with its params, code, other inputs and outputs."""
    writer = {out["path"]: name for name, stage in stages.items() for out in stage["outs"]}
    upstream, waiting = set(), [writer[DATASET]]
    while waiting:
        upstream.add(name := waiting.pop())
        paths = [dep["path"] for dep in stages[name]["deps"]]
        waiting += [writer[path] for path in paths if writer.get(path, name) not in upstream]

    lines = []
    for name in (name for name in stages if name in upstream):
        stage = stages[name]
        deps = [dep for dep in stage["deps"] if dep["path"] not in writer]
        code = [dep for dep in deps if dep["path"].startswith("stages/")]
        params = _flat(stage.get("params", {}).get("params.yaml", {}))
        parts = [
            *(f"`{key}={value}`" for key, value in sorted(params.items())),
            *(f"code `{dep['path']}` {dep['md5']}" for dep in code),
            *(f"read `{dep['path']}` {dep['md5']}" for dep in deps if dep not in code),
            *(f"wrote `{out['path']}` {out['md5']}" for out in stage["outs"]),
        ]
        lines += wrap(
            f"- {name}: {'; '.join(parts)}",
            width=100,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def _flat(params: dict, prefix: str = "") -> dict:
    """{"seed.train.seeds": 1264} of {"seed": {"train": {"seeds": 1264}}}."""
    flat = {}
    for key, value in params.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _line(cells) -> str:
    texts = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
    return f"| {' | '.join(texts)} |"
