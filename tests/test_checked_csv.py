"""The strict CSV reader: cells come back as written, and damage is named with its line."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.checked_csv import read_rows, row_error
from stages.core.errors import LibraError

COLUMNS = ("name", "cas", "note")
CELLS = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
    .map(str.strip)
    .filter(bool)
)
TABLES = st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("tables") / "table.csv"


def write(path, rows, header=COLUMNS, encoding="utf-8"):
    """Write `rows` with every cell quoted."""
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([header, *rows])


def line_of(rows, index):
    """The line on which row `index` ends, counting as the csv module does."""
    text = "\n".join("".join(row) for row in rows[: index + 1])
    return 1 + len(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))


@given(rows=TABLES)
def test_any_cells_come_back_as_they_were_written(path, rows):
    write(path, rows)
    assert [tuple(row.values()) for row in read_rows(path, COLUMNS)] == rows


@given(rows=TABLES, column=st.sampled_from(COLUMNS), data=st.data())
def test_the_line_is_where_the_row_ends(path, rows, column, data):
    write(path, rows)
    index = data.draw(st.integers(0, len(rows) - 1))
    row = read_rows(path, COLUMNS)[index]
    message = str(row_error(path, row, column, "is wrong"))
    assert message.startswith(f"{path}, line {line_of(rows, index)} (")
    assert message.endswith(f"), column {column}: is wrong")
    assert len(message.splitlines()) == 1


@given(rows=TABLES, data=st.data())
def test_an_empty_cell_is_named_unless_it_may_be_empty(path, rows, data):
    index, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, 2))
    damaged = [list(row) for row in rows]
    damaged[index][column] = ""
    write(path, damaged)
    with pytest.raises(LibraError) as error:
        read_rows(path, COLUMNS)
    place = f"line {line_of(damaged, index)}" + (" (" if column else ",")
    assert place in str(error.value)
    assert str(error.value).endswith(f"column {COLUMNS[column]}: the cell is empty")
    assert read_rows(path, COLUMNS, may_be_empty=COLUMNS)[index][COLUMNS[column]] == ""


@given(rows=TABLES, data=st.data(), blank=st.sampled_from([" ", "\t", "\n", "\u00a0"]))
def test_surrounding_blanks_are_named(path, rows, data, blank):
    index, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, 2))
    damaged = [list(row) for row in rows]
    damaged[index][column] += blank
    write(path, damaged)
    with pytest.raises(LibraError) as error:
        read_rows(path, COLUMNS)
    place = f", line {line_of(damaged, index)} ("
    assert place in str(error.value) and len(str(error.value).splitlines()) == 1
    assert f"column {COLUMNS[column]}: remove the blanks around `" in str(error.value)


@given(rows=TABLES, data=st.data(), extra=st.booleans())
def test_a_row_with_another_number_of_cells_is_named(path, rows, data, extra):
    index = data.draw(st.integers(0, len(rows) - 1))
    damaged = [list(row) for row in rows]
    damaged[index] = [*damaged[index], "x"] if extra else damaged[index][:-1]
    write(path, damaged)
    with pytest.raises(LibraError) as error:
        read_rows(path, COLUMNS)
    assert f", line {line_of(damaged, index)} (" in str(error.value)
    assert f"{4 if extra else 2} cells instead of 3" in str(error.value)


@given(content=st.binary(max_size=200))
def test_any_file_is_read_or_refused_in_one_line(path, content):
    path.write_bytes(b"name,cas,note\n" + content)
    try:
        for row in read_rows(path, COLUMNS):
            assert all(row[column] for column in COLUMNS)
    except LibraError as error:
        assert str(error).startswith(f"{path}, line ") and len(str(error).splitlines()) == 1


def test_more_columns_and_a_byte_order_mark_are_allowed(path):
    write(path, [("a", "b", "c", "d")], header=(*COLUMNS, "more"), encoding="utf-8-sig")
    assert read_rows(path, COLUMNS) == [{"name": "a", "cas": "b", "note": "c", "more": "d"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "table.csv: column name, cas, note is missing; the first line has none"),
        (b"name,note\na,b\n", "table.csv: column cas is missing; the first line has name, note"),
        (b"name,cas,note,cas\na,b,c,d\n", "table.csv: column cas appears twice"),
        (b"name,cas,note\na,b,c\n\xff,b,c\n", "table.csv, line 3: not UTF-8"),
        (b'name,cas,note\na,b,c\n"a"x,b,c\n', "table.csv, line 3: not valid CSV"),
        (b'name,cas,note\na,"b,c\n', "table.csv, line 2: not valid CSV"),
    ],
)
def test_a_file_that_is_no_such_table_is_named(path, content, message):
    path.write_bytes(content)
    with pytest.raises(LibraError) as error:
        read_rows(path, COLUMNS)
    assert message in str(error.value)


def test_a_missing_file_says_how_to_get_it(tmp_path):
    path = tmp_path / "missing.csv"
    with pytest.raises(
        LibraError, match=f"{path} not found; restore it with `git checkout {path}`"
    ):
        read_rows(path, COLUMNS)
    with pytest.raises(LibraError, match=f"{path} not found; copy one"):
        read_rows(path, COLUMNS, hint="copy one")
