"""Reply stores as earlier versions of Libra wrote them, from literal SQL."""

import sqlite3
from pathlib import Path

OLD_REPLIES = """
create table replies (
  key text primary key, stage text not null, base_url text not null, model text not null,
  sample_index integer not null, request text not null, reply text not null, fault text,
  prompt_tokens integer not null, completion_tokens integer not null, usd real,
  received integer not null, bought integer not null
) without rowid;
"""
USED_AND_BATCHES = """
create table used (
  run text not null, stage text not null, key text not null, primary key (run, stage, key)
) without rowid;
create table batches (
  mark text primary key, id text, base_url text not null, created integer not null
) without rowid;
create table batch_keys (
  mark text not null, key text not null, primary key (mark, key)
) without rowid;
"""
UNASKED = "create table unasked (key text primary key, reply text not null) without rowid;"
UNFIT_AND_PAID = """
create table unfit (
  run text not null, stage text not null, key text not null, fault text not null,
  primary key (run, stage, key)
) without rowid;
create table paid (
  run text primary key, requests integer not null, tokens integer not null, usd real not null
) without rowid;
"""
# {the commit that introduced it: its tables}; none of them had a schema number.
LAYOUTS = {
    "0093d13": """
create table replies (key text primary key, stage text not null, base_url text not null,
  model text not null, sample_index integer not null, request text not null, reply text not null,
  prompt_tokens integer, completion_tokens integer, received integer not null) without rowid;
""",
    "763379b": OLD_REPLIES + USED_AND_BATCHES,
    "5152a79": OLD_REPLIES + USED_AND_BATCHES + UNASKED,
    "667d597": OLD_REPLIES + USED_AND_BATCHES + UNASKED + UNFIT_AND_PAID,
}


def as_layout(current: Path, old: Path, layout: str) -> None:
    """Write the contents of the store `current` to `old`, in an earlier layout.

    What `old` has no table or column for is left out.
    """
    old.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(old)
    connection.execute("pragma journal_mode = wal")
    connection.executescript(LAYOUTS[layout])
    connection.execute("attach database ? as current", (str(current),))
    tables = [row[0] for row in connection.execute("select name from sqlite_master")]
    for table in tables:
        source = "(select * from current.used where fault is not null)"
        source = source if table == "unfit" else f"current.{table}"
        columns = [row[1] for row in connection.execute(f"pragma table_info({table})")]
        names = ", ".join(columns)
        connection.execute(f"insert into main.{table} select {names} from {source}")
    connection.commit()
    connection.close()
