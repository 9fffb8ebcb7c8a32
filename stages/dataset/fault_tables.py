"""Tables of faults that a check of the dataset reports, and the error that lists them.

    row                    column  reason
    s-12-make-p0-c1-r2     prompt  empty
    split test             split   empty

A row is the id of a triplet, or the name of whatever else is at fault.
"""

import polars as pl

from stages.core.errors import LibraError

SCHEMA = {"row": pl.String, "column": pl.String, "reason": pl.String}
MAX_LINES = 20


def fault_table(faults: list[tuple[str, str, str]]) -> pl.DataFrame:
    """Faults (row, column, reason) as a table."""
    return pl.DataFrame(faults, schema=SCHEMA, orient="row")


def faulty_rows(
    triplets: pl.DataFrame, is_faulty: pl.Expr, column: str, reason: str
) -> pl.DataFrame:
    """One fault for each triplet where `is_faulty` holds."""
    return (
        triplets.filter(is_faulty)
        .select(row="triplet_id", column=pl.lit(column), reason=pl.lit(reason))
        .sort("row")
    )


def raise_faults(faults: pl.DataFrame, source: str, fix: str) -> None:
    """Raise LibraError with at most MAX_LINES of `faults`, the first rows of each rule.

    Returns if there are none. `source` is the file at fault, `fix` says what to do about it.
    """
    if faults.is_empty():
        return
    rules = faults.group_by("column", "reason", maintain_order=True).agg("row", count=pl.len())
    rows_per_rule = max(1, MAX_LINES // rules.height)
    lines = [("row", "column", "reason")]
    for column, reason, rows, count in rules.head(MAX_LINES).iter_rows():
        lines += [(row, column, reason) for row in rows[:rows_per_rule]]
        if count > rows_per_rule:
            more = f"{reason} (and {count - rows_per_rule:,} more rows)"
            lines[-1] = (*lines[-1][:2], more)

    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    table = "\n".join(
        f"  {row:<{widths[0]}}  {column:<{widths[1]}}  {reason}" for row, column, reason in lines
    )
    if rules.height > MAX_LINES:
        table += f"\n  ... and {rules.height - MAX_LINES} more rules"
    raise LibraError(
        f"{source} breaks {rules.height} rule(s) in {faults.height:,} place(s).\n{table}\n{fix}"
    )
