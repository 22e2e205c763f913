"""The store answers with exactly what was kept, or not at all."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.runtime.store import Store, StoredObject, decode, default_folder, encode

MUCH = 1 << 30
ITEM = StoredObject(b"\x7fELF" + bytes(range(256)), "tw_symbol", ("expf", "memset"))


@given(
    key=st.text(),
    data=st.binary(),
    symbol=st.text(min_size=1),
    requires=st.lists(st.text()).map(tuple),
)
def test_what_is_encoded_is_decoded(
    key: str, data: bytes, symbol: str, requires: tuple[str, ...]
) -> None:
    item = StoredObject(data, symbol, requires)
    assert decode(encode(key, item), key) == item


@given(st.data())
def test_any_damage_is_noticed(data: st.DataObject) -> None:
    content = encode("key", ITEM)
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        damaged = content[:place]
    else:
        flipped = content[place] ^ data.draw(st.integers(1, 255))
        damaged = content[:place] + bytes([flipped]) + content[place + 1 :]
    with pytest.raises(ValueError):
        decode(damaged, "key")


def test_an_entry_of_another_key_is_no_answer() -> None:
    with pytest.raises(ValueError):
        decode(encode("one", ITEM), "two")


def test_put_then_get(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "folder", MUCH)
    assert store.get("key") is None
    assert store.put("key", ITEM)
    assert store.get("key") == ITEM
    assert store.get("other") is None


def test_damaged_file_is_a_miss_and_removed(tmp_path: Path) -> None:
    store = Store(tmp_path, MUCH)
    store.put("key", ITEM)
    path = store.path("key")
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1])
    assert store.get("key") is None
    assert not path.exists()
    assert store.put("key", ITEM)
    assert store.get("key") == ITEM


def test_store_without_a_folder_holds_nothing() -> None:
    store = Store(None, MUCH)
    assert not store.put("key", ITEM)
    assert store.get("key") is None


def test_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    store = Store(blocked / "cache", MUCH)
    assert not store.put("key", ITEM)
    assert store.get("key") is None


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs file permissions")
def test_read_only_folder_still_answers(tmp_path: Path) -> None:
    store = Store(tmp_path, MUCH)
    store.put("key", ITEM)
    for folder in (*tmp_path.iterdir(), tmp_path):
        folder.chmod(0o500)
    try:
        assert store.get("key") == ITEM
        assert not store.put("other key", ITEM)
    finally:
        tmp_path.chmod(0o700)


def test_sweep_deletes_the_least_recently_used(tmp_path: Path) -> None:
    size = len(encode("00", ITEM))
    store = Store(tmp_path, 10 * size)
    for number in range(10):
        key = f"{number:02}"
        store.put(key, ITEM)
        path = store.path(key)
        assert path is not None
        os.utime(path, (number, number))
    assert store.get("00") == ITEM  # the oldest file, used just now
    store.put("10", ITEM)
    left = [number for number in range(11) if store.get(f"{number:02}") is not None]
    assert left == [0, 3, 4, 5, 6, 7, 8, 9, 10]


def test_sweep_removes_abandoned_temporary_files_only(tmp_path: Path) -> None:
    old, new = tmp_path / ".tmpold", tmp_path / ".tmpnew"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 10_000,) * 2)
    Store(tmp_path, MUCH).put("key", ITEM)
    assert not old.exists()
    assert new.exists()


def test_two_stores_share_a_folder(tmp_path: Path) -> None:
    stores = [Store(tmp_path, MUCH), Store(tmp_path, MUCH)]
    for step in range(50):
        key = str(random.Random(step).randrange(10))
        writer, reader = stores[step % 2], stores[(step + 1) % 2]
        item = StoredObject(key.encode() * 100, f"s{key}")
        writer.put(key, item)
        assert reader.get(key) == item


def test_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/tilewright")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_folder() == Path("/home/someone/.cache/tilewright")
