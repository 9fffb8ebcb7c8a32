"""CHANGELOG.md: what a released version is, what it was made from, and how its rows differ from the version before."""

import re

from stages.release.changes import CLASS, COUNTS, Changes

TITLE = "# Versions of LibraChemQA\n\nWritten by `make release`, newest first.\n"
MADE_BY = ("seed", "craft", "rephrase", "combine", "validate")


def entry(version: str, date: str, rows: dict[str, int], md5: str, before: str | None, found: Changes, lock: dict, revision: str) -> str:
    """The text of one version.

    `rows` are those of every split, `md5` that of the folder, `before` the version compared with, `lock` the stages of dvc.lock,
    `revision` the commit that was released.
    """
    parts = ", ".join(f"{split} {count:,}" for split, count in rows.items())
    lines = [f"## {version} ({date})", "", f"{sum(rows.values()):,} triplets ({parts}), MD5 `{md5}`, from commit `{revision}`.", ""]
    if before is None:
        lines += ["The first version.", ""]
    else:
        same = found.total("before") - found.total("removed") - found.total("changed")
        columns = ", ".join(f"{name} {count:,}" for name, count in found.columns.items())
        told = ", ".join(f"{found.total(count):,} {count}" for count in COUNTS[1:4])
        lines += [f"Rows against {before}: {told}, {same:,} the same." + (f" Changed columns: {columns}." if columns else ""), ""]
    lines += [_line((*CLASS, *COUNTS)), _line(["---"] * len(CLASS) + ["---:"] * len(COUNTS))]
    lines += [_line(row) for row in found.classes.iter_rows()]
    lines += ["", "Made from, as `dvc.lock` has it:", "", *_lineage(lock), ""]
    return "\n".join(lines)


def with_entry(text: str, version: str, new: str) -> str:
    """CHANGELOG.md `text` with the entry `new` of `version` on top, in place of one it may have."""
    kept = [part for part in re.split(r"(?m)^(?=## )", text or TITLE) if not part.startswith(f"## {version} ")]
    return "\n".join([kept[0].rstrip("\n") + "\n", new.rstrip("\n") + "\n", *(part.rstrip("\n") + "\n" for part in kept[1:])])


def _lineage(lock: dict) -> list[str]:
    """A line for every stage that made the data: its params, and the MD5 of the files it read that no stage wrote."""
    lines, made = [], {out["path"] for stage in lock.values() for out in stage.get("outs", [])}
    for name in MADE_BY:
        stage = lock[name]
        read = [f"`{dep['path']}` {dep['md5']}" for dep in stage["deps"] if dep["path"] not in made and not dep["path"].startswith("stages/")]
        code = len([dep for dep in stage["deps"] if dep["path"].startswith("stages/")])
        params = [f"`{key}: {value}`" for key, value in sorted(stage.get("params", {}).get("params.yaml", {}).items())]
        wrote = [f"`{out['path']}` {out['md5']}" for out in stage["outs"]]
        lines.append(f"- {name}: {', '.join(params)}; {'; '.join([*read, f'{code} files of code'])}; wrote {', '.join(wrote)}")
    return lines


def _line(cells) -> str:
    return "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells) + " |"
