"""Tests never report usage, never look on a hub, and record into no store but their own."""

import os

import pytest
from hypothesis import settings

from stages.training.determinism import same_instructions

for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_ROOT"):
    os.environ.pop(name, None)  # set by a surrounding `dvc exp run`
os.environ |= {
    "DVC_NO_ANALYTICS": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
same_instructions()  # as the stages do, before torch is imported

# Busy cores make single examples slow; in CI the same examples are tried each time.
settings.register_profile("libra", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("libra")

# Longest first, so that no worker ends with a long file while the other is idle.
LONGEST = (
    "test_pipeline",
    "test_processes",
    "test_servers",
    "test_experiments",
    "test_training",
    "test_checkpoints",
    "test_same_bytes",
)


@pytest.fixture(autouse=True)
def own_reply_store(tmp_path, monkeypatch):
    """Replies of servers that tests start go into a store of the test's own."""
    path = tmp_path / ".cache" / "replies.sqlite"
    monkeypatch.setattr("stages.chat.client.store_path", lambda: path)


@pytest.fixture(autouse=True)
def no_record_of_replies(monkeypatch):
    """What servers of tests were asked isn't logged to MLflow (test_settings.py tests that)."""
    monkeypatch.setattr("stages.chat.client.log_run", lambda stage, tallies: None)


def pytest_collection_modifyitems(items):
    """Files in the order of LONGEST, then as they come."""

    def rank(item) -> int:
        stem = item.path.stem
        return LONGEST.index(stem) if stem in LONGEST else len(LONGEST)

    items.sort(key=rank)
