"""Who holds the lock of a data root: a supervisor, known by its process id, or nobody."""

import fcntl
import json
import os
import threading
import time
from contextlib import contextmanager

import pytest

from serving import control
from serving.client import ContenderDeploymentClient
from serving.control import DataPlaneError
from serving.folders import Folders


@contextmanager
def locked(folders, how):
    descriptor = os.open(folders.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


def test_two_who_ask_at_once_take_each_other_for_no_supervisor(tmp_path):
    folders = Folders(tmp_path)
    folders.lock.write_text("4194000")

    with locked(folders, fcntl.LOCK_SH):
        found = control.running(folders)

    assert found is None


def test_a_supervisor_that_has_not_written_its_process_id_yet_is_waited_for(tmp_path):
    folders = Folders(tmp_path)

    with locked(folders, fcntl.LOCK_EX) as descriptor:

        def write():
            time.sleep(0.05)
            os.write(descriptor, b"4194000")

        writer = threading.Thread(target=write)
        writer.start()
        found = control.running(folders)
        writer.join()

    assert found == 4194000


def test_a_holder_without_a_process_id_is_not_sent_a_signal(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "_NAMED_SECONDS", 0.05)
    sent = []
    monkeypatch.setattr(os, "kill", lambda *given: sent.append(given))

    with locked(Folders(tmp_path), fcntl.LOCK_EX), pytest.raises(DataPlaneError, match="does not say which"):
        control.down(tmp_path)

    assert sent == []


def test_an_endpoint_made_again_is_not_taken_for_the_one_before(tmp_path):
    client, folders = ContenderDeploymentClient(f"contender:{tmp_path}"), Folders(tmp_path)
    config = {"served_entities": [{"name": "champion", "entity_name": "loans", "entity_version": "1"}]}
    first = client._store.create("loans", config, creator="")
    client.delete_endpoint("loans")
    client.create_endpoint("loans", config)
    said = {
        "ready": True,
        "config_update": "NOT_UPDATING",
        "problem": "",
        "generation": 1,
        "generation_in_effect": 1,
        "created_at": first.created_at.isoformat(),
        "created_at_in_effect": first.created_at.isoformat(),
    }
    folders.status.write_text(json.dumps({"gateway": {"url": ""}, "endpoints": {"loans": said}}))

    with locked(folders, fcntl.LOCK_EX) as descriptor:
        os.write(descriptor, str(os.getpid()).encode())
        state = client.get_endpoint("loans")["state"]

    assert state["config_update"] == "IN_PROGRESS"


def test_what_the_data_plane_keeps_is_for_its_own_user_alone(tmp_path):
    folders = Folders(tmp_path / "data")

    assert folders.log("loans").is_dir()
    assert (folders.root / "serving").stat().st_mode & 0o777 == 0o700
