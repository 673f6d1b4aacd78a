"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from omenn.errors import OutputError
from omenn.files.atomic import check_writable, write_files
from refusals import refused


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_are_written_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    write_files({tmp_path / "a": b"new", tmp_path / "x" / "y" / "b": b"too"})
    assert everything(tmp_path) == {"a": b"new", "x/y/b": b"too"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    write = Path.write_bytes
    calls = []

    def failing(self: Path, content: bytes) -> int:
        calls.append(self)
        if len(calls) == 2:
            write(self, content[:1])
            raise error
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", failing)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_files({tmp_path / "a": b"new", tmp_path / "new" / "b": b"too"})
    assert everything(tmp_path) == {"a": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failure_while_moving_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(source: object, target: object) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OutputError, match=r"cannot be written: Permission denied\. Choose"):
        write_files({tmp_path / "new" / "a": b"x"})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the error names no file itself."""

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"'.*second' cannot be written: No space left"):
        write_files({tmp_path / "second": b"x"})


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with refused("path", str(tmp_path), OutputError):
        check_writable(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with refused("path", "c.png", OutputError):
        write_files({tmp_path / "a" / "b" / "c.png": b"x"})


@pytest.mark.parametrize("name", ["a\0b", "a" * 300])
def test_impossible_names(tmp_path: Path, name: str) -> None:
    with refused("path", name, OutputError):
        write_files({tmp_path / name: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with refused("path", "a.png", OutputError):
        check_writable(tmp_path / "new" / "a.png")
