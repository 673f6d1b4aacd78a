"""CSV into tables: what is read, how it is scaled, and every file that cannot be one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omenn.data.tables import Scale, Table, read_table
from omenn.errors import InputError


@pytest.fixture
def write(tmp_path: Path):
    def written(text: str | bytes) -> Path:
        path = tmp_path / "t.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


def refused(path: Path, *words: str, target: str = "y", **options) -> None:
    with pytest.raises(InputError) as caught:
        read_table(path, target, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


class TestReading:
    def test_a_file(self, write) -> None:
        table = read_table(write('a,y,"b, c"\r\n1,no, 2.5\r\n\r\n-3e2,yes,4\r\n0,no,7\r\n'), "y")
        assert table.names == ("a", "b, c")
        assert table.classes == ("no", "yes")
        assert table.target.tolist() == [0, 1, 0]
        assert table.features.tolist() == [[1, 2.5], [-300, 4], [0, 7]]
        assert table.features.dtype == torch.float32
        assert len(table) == 3

    def test_byte_order_mark_and_blanks_around_names(self, write) -> None:
        table = read_table(write(b"\xef\xbb\xbfa , y\n1,0\n2,1\n"), "y")
        assert table.names == ("a",)

    def test_double_precision(self, write) -> None:
        path = write("a,y\n0.1,0\n1,1\n")
        assert read_table(path, "y", dtype=torch.float64).features[0].item() == 0.1

    def test_classes_that_are_numbers_are_sorted_as_numbers(self, write) -> None:
        table = read_table(write("a,y\n1,10\n2,9\n3,9.0\n4,1234567\n5,0.5\n"), "y")
        assert table.classes == ("0.5", "9", "10", "1234567")
        assert table.target.tolist() == [2, 1, 1, 3, 0]

    def test_missing_cells_are_nan_where_they_are_allowed(self, write) -> None:
        path = write("a,b,y\n1,,0\nNA,2,1\n3,4,1\n")
        features = read_table(path, "y", missing="mean").features
        assert features.isnan().tolist() == [[False, True], [True, False], [False, False]]

    @given(values=st.lists(st.tuples(st.floats(-1e6, 1e6), st.booleans()), min_size=1))
    def test_what_was_written_is_read(self, values, tmp_path_factory) -> None:
        path = tmp_path_factory.mktemp("t") / "t.csv"
        rows = [*values, (0.5, True), (0.25, False)]
        path.write_text("x,y\n" + "".join(f"{x!r},{label}\n" for x, label in rows))
        table = read_table(path, "y", dtype=torch.float64)
        assert table.features[:, 0].tolist() == [x for x, _ in rows]
        assert [table.classes[k] == "True" for k in table.target] == [label for _, label in rows]


class TestRefuses:
    @pytest.mark.parametrize("cell", ["", " ", "NA", "nan", "?"])
    def test_missing_cells(self, write, cell: str) -> None:
        path = write(f"age,sex,y\n1,2,0\n3,{cell},1\n")
        refused(path, f"line 3 of {path} has no value in column 'sex'", "Fill it", "missing='mean'")

    def test_cells_that_are_no_numbers(self, write) -> None:
        path = write("age,sex,y\n1,male,0\n3,female,1\n")
        refused(path, f"line 2 of {path} holds 'male' in column 'sex'", "column of 0 and 1")
        refused(write("a,y\n1,0\n1_000,1\n"), "line 3", "'1_000' in column 'a'")

    def test_infinite_cells(self, write) -> None:
        refused(write("a,y\n1,0\n-inf,1\n"), "line 3", "'-inf'", "not finite", "remove the row")
        path = write("a,y\n1,0\n1e60,1\n")
        refused(path, "'1e60'", "not finite (up to 3.4e+38)")
        assert read_table(path, "y", dtype=torch.float64).features[1].item() == 1e60

    def test_a_missing_target(self, write) -> None:
        refused(write("a,y\n1,0\n2,\n"), "line 3", "target column 'y'", "Fill it")
        refused(write("a,y\n1,0\n2,NA\n"), "it holds 'NA'", missing="mean")

    def test_an_unknown_target(self, write) -> None:
        path = write("age,outcome\n1,0\n2,1\n")
        refused(path, "no column 'outcom'", "did you mean 'outcome'?", target="outcom")
        refused(path, "no column 'zzz'", "known are age, outcome.", target="zzz")

    def test_names_twice(self, write) -> None:
        refused(write("a,b,a,y\n1,2,3,0\n"), "two columns 'a'", "its own name")

    def test_ragged_rows(self, write) -> None:
        refused(write("a,y\n1,0\n2,1,5\n"), "line 3", "3 cells, the header 2", "Give every row")
        refused(write("a,y\n1\n"), "line 2", "1 cells")

    def test_no_rows(self, write) -> None:
        refused(write(""), "is empty. The first line names the columns")
        refused(write("a,y\n\n"), "a header and no rows")

    def test_one_class(self, write) -> None:
        refused(write("a,y\n1,5\n2,5\n"), "'y'", "one class alone, '5'", "at least two classes")

    def test_no_features(self, write) -> None:
        refused(write("y\n1\n0\n"), "no column beside the target 'y'")

    def test_other_separators(self, write) -> None:
        refused(write("a;y\n1;0\n"), "one cell with ';' in it", "commas between the cells")

    def test_files_that_are_not_text(self, write, tmp_path: Path) -> None:
        refused(write("a,y\n1,caf\u00e9\n".encode("latin-1")), "not UTF-8 (byte 9 is 0xe9)")
        refused(tmp_path / "none.csv", "cannot be read: it does not exist")
        refused(tmp_path, "it is a folder")
        refused(write(f'a,y\n"{"1" * 200_000}",1\n'), "cannot be read as CSV: field larger than")

    def test_options(self, write) -> None:
        path = write("a,y\n1,0\n2,1\n")
        refused(path, "missing='skip' is not known. Choose one of: refuse, mean.", missing="skip")
        refused(path, "dtype='torch.int64' is not known", dtype=torch.int64)


class TestScale:
    def test_training_statistics_like_numpy(self) -> None:
        features = torch.randn(50, 4, dtype=torch.float64) * 3 + 5
        scale = Scale.of(features[:30])
        expected = (features.numpy() - features[:30].numpy().mean(0)) / np.std(
            features[:30].numpy(), axis=0
        )
        np.testing.assert_allclose(scale.applied(features).numpy(), expected, rtol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1, -3e-20])
    def test_a_constant_column_becomes_zeros(self, value: float, dtype: torch.dtype) -> None:
        features = torch.full((7, 2), value, dtype=dtype)
        features[:, 1] = torch.arange(7)
        x = Scale.of(features).applied(features)
        assert x.isfinite().all()
        assert (x[:, 0].abs() < 1).all()
        torch.testing.assert_close(x[:, 1].square().mean(), torch.ones((), dtype=dtype))
        later = Scale.of(features).applied(torch.tensor([[value + 1, 0.0]], dtype=dtype))
        assert later[0, 0].item() == pytest.approx(1, abs=0.1)  # no division by nearly zero

    def test_a_small_column_is_no_constant_one(self) -> None:
        features = torch.tensor([[1e-8], [3e-8]])
        torch.testing.assert_close(
            Scale.of(features).applied(features), torch.tensor([[-1.0], [1]])
        )

    def test_missing_cells_become_the_training_mean(self) -> None:
        features = torch.tensor([[1.0, torch.nan], [3, torch.nan], [torch.nan, torch.nan]])
        scale = Scale.of(features)
        assert scale.mean.tolist() == [2, 0]
        assert scale.applied(features).tolist() == [[-1, 0], [1, 0], [0, 0]]


def test_a_table_is_immutable() -> None:
    table = Table(torch.zeros(1, 1), torch.zeros(1).long(), ("a",), ("0", "1"))
    with pytest.raises(AttributeError, match=re.escape("cannot assign to field")):
        table.names = ("b",)  # type: ignore[misc]
