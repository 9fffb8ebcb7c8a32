"""CHANGELOG.md: what a released version is, what it was made from, and how its rows differ from the version before."""

import re

from stages.tools.releasing.changes import CLASS, COUNTS, Changes
from stages.tools.releasing.objects import DATASET

TITLE = "# Versions of LibraChemQA\n\nWritten by `make release`, newest first.\n"


def entry(
    version: str,
    date: str,
    rows: dict[str, int],
    md5: str,
    before: str | None,
    found: Changes,
    lock: dict,
    revision: str,
) -> str:
    """The text of one version.

    `rows` are those of every split, `md5` that of the folder, `before` the version compared with, `lock` the stages of dvc.lock,
    `revision` the commit that was released.
    """
    parts = ", ".join(f"{split} {count:,}" for split, count in rows.items())
    lines = [
        f"## {version} ({date})",
        "",
        f"{sum(rows.values()):,} triplets ({parts}), MD5 `{md5}`, from commit `{revision}`.",
        "",
    ]
    if before is None:
        lines += ["The first version.", ""]
    else:
        same = found.total("before") - found.total("removed") - found.total("changed")
        columns = ", ".join(f"{name} {count:,}" for name, count in found.columns.items())
        told = ", ".join(f"{found.total(count):,} {count}" for count in COUNTS[1:4])
        lines += [
            f"Rows against {before}: {told}, {same:,} the same."
            + (f" Changed columns: {columns}." if columns else ""),
            "",
        ]
    lines += [_line((*CLASS, *COUNTS)), _line(["---"] * len(CLASS) + ["---:"] * len(COUNTS))]
    lines += [_line(row) for row in found.classes.iter_rows()]
    lines += ["", "Made from, as `dvc.lock` has it:", "", *_lineage(lock), ""]
    return "\n".join(lines)


def with_entry(text: str, version: str, new: str) -> str:
    """CHANGELOG.md `text` with the entry `new` of `version` on top, in place of one it may have."""
    kept = [
        part
        for part in re.split(r"(?m)^(?=## )", text or TITLE)
        if not part.startswith(f"## {version} ")
    ]
    return "\n".join(
        [
            kept[0].rstrip("\n") + "\n",
            new.rstrip("\n") + "\n",
            *(part.rstrip("\n") + "\n" for part in kept[1:]),
        ]
    )


def _lineage(lock: dict) -> list[str]:
    """A line for every stage the dataset comes from: its params, and the MD5 of what it wrote and of the files no stage wrote."""
    maker = {out["path"]: name for name, stage in lock.items() for out in stage["outs"]}
    made, waiting = set(), [maker[DATASET]]
    while waiting:
        made.add(name := waiting.pop())
        waiting += [
            maker[dep["path"]]
            for dep in lock[name]["deps"]
            if maker.get(dep["path"], name) not in made
        ]
    lines = []
    for name in (name for name in lock if name in made):
        deps = [dep for dep in lock[name]["deps"] if dep["path"] not in maker]
        code = [dep for dep in deps if dep["path"].startswith("stages/")]
        told = [
            f"`{key}: {value}`"
            for key, value in sorted(lock[name].get("params", {}).get("params.yaml", {}).items())
        ]
        told += [f"read `{dep['path']}` {dep['md5']}" for dep in deps if dep not in code]
        told += [f"{len(code)} files of code"] + [
            f"wrote `{out['path']}` {out['md5']}" for out in lock[name]["outs"]
        ]
        lines.append(f"- {name}: {'; '.join(told)}")
    return lines


def _line(cells) -> str:
    return (
        "| "
        + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
        + " |"
    )
