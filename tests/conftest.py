"""Tests never report usage, never look on a hub, and record into no store but their own."""

import os

import pytest

from stages.training.models import same_instructions

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


@pytest.fixture(autouse=True)
def own_reply_store(tmp_path, monkeypatch):
    """Replies of servers that tests start go into a store of the test's own."""
    monkeypatch.setattr(
        "stages.chat.client.store_path", lambda: tmp_path / ".cache" / "replies.sqlite"
    )
