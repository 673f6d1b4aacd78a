"""Files from outside are checked before they are read; folders are locked; text is printable."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import omenn
from omenn.bench.plan import Plan
from omenn.data.folders import read_boxes, read_picture, size_of
from omenn.data.imagenet import read_classes
from omenn.data.tables import COLUMNS, read_table
from omenn.errors import InputError, OmennError, OutputError, WeightsError
from omenn.files.atomic import replacing, write_checkpoint
from omenn.files.locks import NAME, locked
from omenn.files.printable import file_name, printable
from omenn.files.reading import opened, read_json, read_text
from omenn.modalities.image.picture_files import read_image
from omenn.models import checkpoints, user_files

READERS: dict[str, Callable[[Path], object]] = {
    "picture": read_image,
    "picture of a set": read_picture,
    "size of a picture": size_of,
    "annotation": lambda path: read_boxes(path, (4, 4), 1),
    "classes": read_classes,
    "table": lambda path: read_table(path, "y"),
    "plan": Plan.from_file,
    "weights": lambda path: checkpoints.load_weights(nn.Linear(1, 1), path),
    "checkpoint": lambda path: checkpoints.read_checkpoint(path, "cpu"),
    "explanation": omenn.Explanation.load,
    "model": lambda path: user_files.build(f"{path}:build"),
}


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room


def _missing(path: Path) -> None:
    pass


@pytest.mark.parametrize("make", [_fifo, _device, _loop, _folder, _huge, _missing])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses(reader: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    make(path)
    with pytest.raises(OmennError) as error:
        READERS[reader](path)
    assert str(path) in str(error.value)


class TestOpened:
    def test_what_is_read_is_what_was_checked(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"\xef\xbb\xbfabc")
        assert read_text(path) == "abc"
        with opened(path) as file:
            assert file.read() == b"\xef\xbb\xbfabc"
        for most, error in ((6, None), (5, InputError)):
            if error is None:
                assert len(read_text(path, most=most)) == 3
            else:
                with pytest.raises(error):
                    read_text(path, most=most)

    @pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"{", b"\x00"])
    def test_what_is_no_json(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(WeightsError):
            read_json(tmp_path / "a", kind=WeightsError)

    @pytest.mark.parametrize("name", ["a\0b", "a" * 300])
    def test_names_that_no_file_has(self, name: str) -> None:
        with pytest.raises(InputError):
            read_text(Path(name))
        with pytest.raises(OutputError):
            omenn.explain(nn.Linear(2, 1).eval(), torch.ones(1, 2)).save(f"{name}.json")


class TestWeights:
    def test_an_archive_that_unpacks_without_bound(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        net = nn.Linear(2, 1)
        plain, bomb = tmp_path / "plain.pt", tmp_path / "bomb.pt"
        torch.save({**net.state_dict(), "bias": torch.zeros(1)}, plain)
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", 8) as target:
            for entry in source.namelist():
                target.writestr(entry, source.read(entry))
            target.writestr("plain/data/9", bytes(5 << 20))
        assert bomb.stat().st_size < 1 << 20
        monkeypatch.setattr(checkpoints, "_most", lambda model: 1 << 20)
        checkpoints.load_weights(net, plain)
        with pytest.raises(WeightsError):
            checkpoints.load_weights(net, bomb)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize(
        "odd",
        [
            lambda t: t.to_sparse(),
            lambda t: t.to("meta"),
            lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        ],
    )
    def test_tensors_without_plain_numbers(
        self, tmp_path: Path, odd: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        net = nn.Linear(2, 1)
        before = net.weight.detach().clone()
        torch.save({"weight": odd(torch.ones(1, 2)), "bias": torch.ones(1)}, tmp_path / "w.pt")
        with pytest.raises(WeightsError):
            checkpoints.load_weights(net, tmp_path / "w.pt")
        assert torch.equal(net.weight, before)


class TestTables:
    def test_a_million_columns_are_refused_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "t.csv"
        header = ",".join(f"c{k}" for k in range(10 * COLUMNS))
        path.write_text(f"{header},y\n" + "0," * (10 * COLUMNS) + "1\n")
        with pytest.raises(InputError):
            read_table(path, "y")

    @pytest.mark.parametrize("content", [b"a,y\n1\x00,2\n", "a,y\n1,0\n".encode("utf-16"), b""])
    def test_bytes_that_are_no_table(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(InputError):
            read_table(tmp_path / "t.csv", "y")


@pytest.mark.parametrize("read", [read_image, read_picture])
def test_pictures_that_unpack_without_bound(
    read: Callable[[Path], Image.Image], tmp_path: Path
) -> None:
    path = tmp_path / "bomb.png"
    Image.fromarray(np.zeros((9000, 9000), dtype=np.uint8)).save(path)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError):
        read(path)


class TestLocks:
    def test_one_at_a_time_and_nothing_is_left(self, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "b"
        with locked(folder):
            with pytest.raises(OutputError), locked(folder):
                pass
            assert [path.name for path in folder.iterdir()] == [NAME]
        assert list(tmp_path.iterdir()) == []
        with locked(folder):
            (folder / "kept").write_text("x")
        assert [path.name for path in folder.iterdir()] == ["kept"]

    def test_a_lock_ends_with_its_process(self, tmp_path: Path) -> None:
        code = (
            "import os, sys, pathlib\nfrom omenn.files.locks import locked\n"
            "with locked(pathlib.Path(sys.argv[1])):\n    os._exit(0)\n"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
        assert (tmp_path / NAME).exists()
        with locked(tmp_path):
            pass

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("x")
        for folder in (tmp_path / "a", tmp_path / "a" / "b"):
            with pytest.raises(OutputError), locked(folder):
                pass
        assert (tmp_path / "a").read_text() == "x"


class TestWriting:
    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError):
            write_checkpoint({"a": torch.ones(3)}, tmp_path / "c.pt")
        assert list(tmp_path.iterdir()) == []

    def test_names_that_cannot_be(self, tmp_path: Path) -> None:
        for name in ("a" * 300, "a\0b"):
            with pytest.raises(OutputError), replacing(tmp_path / name) as beside:
                beside.write_text("x")
        assert list(tmp_path.iterdir()) == []


class TestPrintable:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("Grüße, 世界 ✓\n\tC_w ⊙ X", "Grüße, 世界 ✓\n\tC_w ⊙ X"),
            ("\x1b[2J\x07\r", r"\x1b[2J\x07\x0d"),
            ("\x9b2J\x7f", r"\x9b2J\x7f"),
            (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
            ("a\u202eb\u2028", r"a\u202eb\u2028"),
        ],
    )
    def test_what_is_shown(self, text: str, shown: str) -> None:
        assert printable(text) == shown
        assert printable(shown) == shown
        shown.encode()

    def test_names_of_files(self) -> None:
        assert file_name("a\x1b[2J\udce9.b") == "a-[2J-.b"
