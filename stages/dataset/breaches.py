"""Tables of faults: what a check of the dataset found, and the error that lists it."""

import polars as pl

from stages.core.errors import LibraError

SCHEMA = {
    "row": pl.String,
    "column": pl.String,
    "reason": pl.String,
}  # the id of what is at fault, where, and why
MOST_LINES = 20


def fault_table(found: list[tuple[str, str, str]]) -> pl.DataFrame:
    """Faults (row, column, reason) as a table."""
    return pl.DataFrame(found, schema=SCHEMA, orient="row")


def faulty_rows(triplets: pl.DataFrame, wrong: pl.Expr, column: str, reason: str) -> pl.DataFrame:
    """One fault for each triplet where `wrong` holds."""
    return (
        triplets.filter(wrong)
        .select(row="triplet_id", column=pl.lit(column), reason=pl.lit(reason))
        .sort("row")
    )


def stop_on(faults: pl.DataFrame, source: str, mend: str) -> None:
    """Raises LibraError with a table of at most MOST_LINES of the `faults`, each rule with its first rows; none: returns.

    `source` is the file at fault; `mend` says what to do about it.
    """
    if faults.is_empty():
        return
    rules = faults.group_by("column", "reason", maintain_order=True).agg(
        pl.col("row"), count=pl.len()
    )
    each = max(1, MOST_LINES // rules.height)
    lines = [("row", "column", "reason")]
    for column, reason, rows, count in rules.head(MOST_LINES).iter_rows():
        lines += [(row, column, reason) for row in rows[:each]]
        if count > each:
            lines[-1] = (*lines[-1][:2], f"{reason} (and {count - each:,} more rows)")
    wide = [max(len(line[i]) for line in lines) for i in (0, 1)]
    table = "\n".join(
        f"  {row:<{wide[0]}}  {column:<{wide[1]}}  {reason}" for row, column, reason in lines
    )
    more = (
        f"\n  ... and {rules.height - MOST_LINES} more rules" if rules.height > MOST_LINES else ""
    )
    raise LibraError(
        f"{source} breaks {rules.height} rule(s) in {faults.height:,} place(s).\n{table}{more}\n{mend}"
    )
