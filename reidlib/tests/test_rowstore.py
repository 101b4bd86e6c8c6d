import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from reidlib import rowstore
from reidlib.errors import DataError, ReidError
from reidlib.rowstore import RowStore


def rows_of(numbers, version=0):
    numbers = np.array([10 * number + version for number in numbers], np.float32)
    return np.broadcast_to(numbers[:, None, None], (len(numbers), 2, 3))


def filled(path, keys, version=0, stamp="", **options):
    """A store filled with rows of the keys' numbers, and the positions it asked for."""
    store, asked = RowStore(path, stamp=stamp), []

    def make(positions):
        asked.extend(positions)
        return positions, rows_of([int(keys[i]) for i in positions], version)

    failed = store.fill(keys, [version] * len(keys), make, **options)
    assert not len(failed)
    return store, asked


def test_rows_are_found_by_key_and_made_once(tmp_path):
    keys = [str(n) for n in range(9)]
    store, asked = filled(tmp_path / "a", keys, batch_size=4)
    assert asked == list(range(9)) and len(store) == 9 and store.shape == (2, 3)
    assert (store[store.find(["7", "2"])] == rows_of([7, 2])).all()
    assert store.find(["2", "x"]).tolist() == [2, -1] and store.find(["2"], [1]).tolist() == [-1]
    again, asked = filled(tmp_path / "a", ["3", "11", "0", "3"])
    assert asked == [1] and (again[again.find(["11", "3"])] == rows_of([11, 3])).all()  # what is new, and no more
    assert len(store) == 9 and (store.array[:9] == rows_of(range(9))).all()
    store.reload()
    assert len(store) == 10 == len(pickle.loads(pickle.dumps(store)))


def test_rows_of_another_stamp_are_made_anew_in_their_place(tmp_path):
    keys = ["0", "1", "2"]
    filled(tmp_path / "a", keys)
    store, asked = filled(tmp_path / "a", ["1"], version=5)
    assert asked == [0] and len(store) == 3
    assert (store.array == np.concatenate([rows_of([0]), rows_of([1], 5), rows_of([2])])).all()


def test_a_store_of_another_stamp_shape_or_type_begins_afresh(tmp_path):
    old, _ = filled(tmp_path / "a", ["0", "1"], stamp="one model")
    mapped = old.array
    assert len(RowStore(tmp_path / "a", stamp="another")) == 0
    new, asked = filled(tmp_path / "a", ["1"], stamp="another")
    assert asked == [0] and len(new) == 1 and len(RowStore(tmp_path / "a", stamp="one model")) == 0
    assert (mapped == rows_of([0, 1])).all()  # who reads the old one keeps it
    assert len(RowStore(tmp_path / "a", (3,), stamp="another")) == len(RowStore(tmp_path / "a", None, "u1", "another"))
    assert len(RowStore(tmp_path / "a", (2, 3), np.float32, "another")) == 1
    with pytest.raises(DataError, match="shape"), new.writing():
        new.put(["4"], [0], np.zeros((1, 7)))


def test_what_cannot_be_made_is_told_and_asked_for_again(tmp_path):
    store = RowStore(tmp_path / "a")
    keys = [str(n) for n in range(6)]
    for _ in range(2):
        failed = store.fill(keys, keys, lambda at: ([i for i in at if i % 3], rows_of([i for i in at if i % 3])))
        assert failed.tolist() == [0, 3] and store.find(keys, keys).tolist() == [-1, 0, 1, -1, 2, 3]
    assert RowStore(tmp_path / "b").fill(keys, keys, lambda at: ([], np.empty((0, 2, 3)))).tolist() == list(range(6))


def test_many_small_writes_are_found_before_and_after_sorting(tmp_path, monkeypatch):
    monkeypatch.setattr(rowstore, "SORT_AFTER", 16)
    keys = [str(n) for n in np.random.default_rng(0).permutation(100)]
    store, _ = filled(tmp_path / "a", keys, batch_size=3)
    for part in (keys, keys[5:9]):
        assert (store[store.find(part)] == rows_of([int(key) for key in part])).all()
    assert RowStore(tmp_path / "a").find(keys).tolist() == list(range(100))


@pytest.mark.parametrize("cut", [1, 24, 30, 200])
def test_a_truncated_file_lacks_the_rows_that_were_in_it(tmp_path, cut):
    keys = [str(n) for n in range(9)]
    store, _ = filled(tmp_path / "a", keys)
    whole = store.file.read_bytes(), store.ledger.read_bytes()
    with store.file.open("r+b") as file:
        file.truncate(len(whole[0]) - cut)
    kept = (len(whole[0]) - cut) // 24
    store, asked = filled(tmp_path / "a", keys)
    assert asked == list(range(kept, 9)) and (store.file.read_bytes(), store.ledger.read_bytes()) == whole
    with store.ledger.open("r+b") as file:
        file.truncate(len(whole[1]) - min(cut, 100))
    store, asked = filled(tmp_path / "a", keys)
    assert asked and (store.file.read_bytes(), store.ledger.read_bytes()) == whole


@pytest.mark.parametrize("damage", [b"", b"\0" * 50, b"[" * 50_000 + b"\n", b'{"shape": 3}\n', b"[1]\n"])
def test_a_damaged_ledger_makes_all_anew(tmp_path, damage):
    store, _ = filled(tmp_path / "a", ["0", "1"])
    store.ledger.write_bytes(damage)
    store, asked = filled(tmp_path / "a", ["0", "1"])
    assert asked == [0, 1] and (store.array == rows_of([0, 1])).all()


def test_one_owner_at_a_time(tmp_path):
    store, other = RowStore(tmp_path / "a"), RowStore(tmp_path / "a")
    with store.writing(), pytest.raises(ReidError, match="Another run is writing"), other.writing():
        pass
    with other.writing():
        other.put(["1"], [0], rows_of([1]))
    with pytest.raises(ReidError, match="writing"):
        other.put(["1"], [0], rows_of([1]))


def test_a_disk_without_room_is_one_sentence(tmp_path, monkeypatch):
    store, _ = filled(tmp_path / "a", ["0"])
    monkeypatch.setattr(rowstore.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 30}))
    with pytest.raises(DataError, match="REIDLIB_OUTPUTS"):
        filled(tmp_path / "a", ["0", "1"])
    monkeypatch.undo()
    sync, calls = rowstore._sync, []

    def full(file):
        calls.append(file)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(rowstore, "_sync", full)
    with pytest.raises(DataError, match="No space left"):
        filled(tmp_path / "a", ["0", "1", "2", "3"], batch_size=1)
    monkeypatch.undo()
    store, asked = filled(tmp_path / "a", ["0", "1", "2", "3"])
    assert asked == [2, 3] and (store.array == rows_of(range(4))).all()


SLOW = """
import sys, time
import numpy as np
from reidlib.rowstore import RowStore
store = RowStore(sys.argv[1], (2, 3), np.float32)
def make(at):
    time.sleep(0.02)
    return at, np.stack([np.full((2, 3), 10 * i, np.float32) for i in at])
print("ready", flush=True)
store.fill([str(i) for i in range(40)], [0] * 40, make, batch_size=2)
"""


@pytest.mark.parametrize("after", [0.05, 0.15, 0.25])
def test_a_killed_writer_loses_what_was_in_its_hands(tmp_path, after):
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path / "a")], stdout=subprocess.PIPE)
    with process.stdout:
        process.stdout.readline()
        time.sleep(after)
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(RowStore(tmp_path / "a"))
    store, asked = filled(tmp_path / "a", [str(n) for n in range(40)])  # the lock went with the process
    assert asked == list(range(kept, 40)) and kept < 40
    assert (store.array == rows_of(range(40))).all()
