"""How a stage ends: one line for what a user can fix, a traceback for a bug."""

import pytest

from stages.core import cli
from stages.core.errors import Interrupted, LibraError


def end_of(exception):
    """The SystemExit with which a stage that raises `exception` ends."""

    def main():
        raise exception

    with pytest.raises(SystemExit) as end:
        cli.guarded("stage", main)
    return end.value


@pytest.mark.parametrize(
    ("exception", "message"),
    [
        (LibraError("the key is wrong"), "stage: error: the key is wrong"),
        (
            PermissionError(13, "Permission denied", "data/x"),
            "stage: error: Permission denied: data/x; free space or fix the path",
        ),
        (
            OSError(28, "No space left on device"),
            "stage: error: No space left on device: while writing; free space",
        ),
    ],
)
def test_what_a_user_can_fix_is_one_line(exception, message):
    code = end_of(exception).code
    assert code.startswith(message)
    assert "\n" not in code


@pytest.mark.parametrize(
    "exception", [KeyError("bug"), OSError("odd"), TimeoutError(110, "timed out")]
)
def test_a_bug_keeps_its_traceback(exception):
    def main():
        raise exception

    with pytest.raises(type(exception)):
        cli.guarded("stage", main)


@pytest.mark.parametrize(
    "exception", [KeyboardInterrupt(), Interrupted("stopped; 3 requests are left")]
)
def test_a_stop_is_one_line_and_status_130(exception, capsys):
    assert end_of(exception).code == 130
    message = capsys.readouterr().err
    assert message.startswith("stage: stopped")
    assert message.count("\n") == 1
