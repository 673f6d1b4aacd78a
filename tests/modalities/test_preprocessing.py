"""Pictures to tensors: every file format and every way a file can be bad; parity with peers."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omenn.errors import InputError, ModelError
from omenn.modalities.image.picture_files import MAX_PIXELS, read_image
from omenn.modalities.image.preprocessing import (
    Preprocessing,
    from_mapping,
    from_timm,
    from_torchvision,
)
from omenn.models.torchvision_remedy import prepare
from refusals import refused


def gradient(width: int = 12, height: int = 8) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 / (width - 1), rows * 255 / (height - 1), rows * 0 + 90], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return Image.fromarray(noise.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


class TestReading:
    @pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "ppm", "webp"])
    def test_lossless_formats_give_the_same_pixels(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"x.{ending}"
        gradient().save(path, **({"lossless": True} if ending == "webp" else {}))
        assert np.array_equal(np.asarray(read_image(path)), np.asarray(gradient()))

    def test_the_ending_of_the_name_does_not_matter(self, tmp_path: Path) -> None:
        path = tmp_path / "picture.txt"
        gradient().save(path, format="PNG")
        assert read_image(path).size == (12, 8)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied(self, tmp_path: Path, orientation: int) -> None:
        upright = photograph(48, 32)
        undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
        stored = upright.transpose(undo[orientation]) if orientation in undo else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "x.jpg"
        stored.save(path, exif=exif, quality=95)
        read = np.asarray(read_image(path)).astype(int)
        assert read.shape == (32, 48, 3)
        assert np.abs(read - np.asarray(upright).astype(int)).mean() < 6

    def test_nothing_of_the_metadata_travels_on(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x010E] = "a private note"
        path = tmp_path / "x.jpg"
        gradient().save(path, exif=exif, comment=b"another note")
        out = io.BytesIO()
        read_image(path).save(out, format="PNG")
        assert b"note" not in out.getvalue()

    def test_transparency_is_composited_on_white(self, tmp_path: Path) -> None:
        layer = Image.new("RGBA", (3, 1))
        layer.putdata([(255, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 128)])
        layer.save(tmp_path / "x.png")
        pixels = np.asarray(read_image(tmp_path / "x.png"))[0].tolist()
        assert pixels == [[255, 0, 0], [255, 255, 255], [127, 127, 127]]

    def test_a_transparent_palette_colour_is_white(self, tmp_path: Path) -> None:
        picture = Image.new("P", (2, 1))
        picture.putpalette([10, 20, 30, 40, 50, 60])
        picture.putdata([0, 1])
        picture.save(tmp_path / "x.gif", transparency=1)
        pixels = np.asarray(read_image(tmp_path / "x.gif"))[0].tolist()
        assert pixels == [[10, 20, 30], [255, 255, 255]]

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
    def test_other_colour_modes_become_rgb(self, tmp_path: Path, mode: str) -> None:
        path = tmp_path / "x.tiff"
        gradient().convert(mode).save(path)
        read = read_image(path)
        assert (read.mode, read.size) == ("RGB", (12, 8))
        assert np.ptp(np.asarray(read)) > 100

    def test_sixteen_bits_are_scaled_not_cut_off(self, tmp_path: Path) -> None:
        values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / "x.png")
        assert np.asarray(read_image(tmp_path / "x.png"))[0, :, 0].tolist() == [0, 100, 255]

    def test_fractions_are_scaled(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)).save(tmp_path / "x.tiff")
        assert np.asarray(read_image(tmp_path / "x.tiff"))[0, :, 0].tolist() == [0, 128, 255]


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds a few compressed zeros."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


class TestBadFiles:
    def refuse(self, path: Path, words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            read_image(path)
        message = str(caught.value)
        assert (caught.value.argument, caught.value.got) == ("path", str(path))
        assert caught.value.remedy
        assert "\n" not in message

    def test_missing(self, tmp_path: Path) -> None:
        self.refuse(tmp_path / "none.png", "does not exist")

    def test_folder(self, tmp_path: Path) -> None:
        self.refuse(tmp_path, "is a folder")

    def test_device_file(self) -> None:
        self.refuse(Path("/dev/zero"), "not a regular file")

    def test_impossible_name(self) -> None:
        with refused("path", "b.png"):
            read_image("a\0b.png")

    def test_name_too_long(self) -> None:
        with refused("path", "a" * 5000):
            read_image("a" * 5000)

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").touch()
        self.refuse(tmp_path / "x.png", "is empty")

    @pytest.mark.parametrize(
        "content", [b"hello, world\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-1.7"]
    )
    def test_not_a_picture(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.png").write_bytes(content)
        self.refuse(tmp_path / "x.png", "not a picture")

    @pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff", "bmp"])
    @pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
    def test_truncated(self, tmp_path: Path, ending: str, share: float) -> None:
        whole = tmp_path / f"whole.{ending}"
        photograph(64, 64).save(whole)
        content = whole.read_bytes()
        (tmp_path / f"x.{ending}").write_bytes(content[: int(len(content) * share)])
        self.refuse(tmp_path / f"x.{ending}", "damaged or incomplete|not a picture")

    @pytest.mark.parametrize("side", [8001, 20_000, 2**31 - 1])
    def test_decompression_bomb(self, tmp_path: Path, side: int) -> None:
        (tmp_path / "x.png").write_bytes(png_header(side, side))
        self.refuse(tmp_path / "x.png", "too large a picture")

    def test_the_limit_counts_pixels(self, tmp_path: Path) -> None:
        gradient(12, 8).save(tmp_path / "x.png")
        assert read_image(tmp_path / "x.png", max_pixels=96).size == (12, 8)
        with refused("path", "x.png"):
            read_image(tmp_path / "x.png", max_pixels=95)
        assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS

    def test_grey_values_without_a_meaning(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)).save(tmp_path / "x.tiff")
        self.refuse(tmp_path / "x.tiff", "grey values")


class TestPreprocessing:
    def test_normalisation_by_hand(self) -> None:
        prepare_one = Preprocessing(size=(1, 1), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
        x = prepare_one(Image.new("RGB", (1, 1), (255, 51, 102)))
        assert x.dtype == torch.float32
        assert x.flatten().tolist() == pytest.approx([1.0, -0.2, 0.4])

    @pytest.mark.parametrize("size", [(31, 57), (57, 31), (24, 24), (8, 300)])
    def test_display_is_the_inverse(self, size: tuple[int, int]) -> None:
        prepare_24 = Preprocessing(size=(24, 24))
        once = prepare_24.display(prepare_24(photograph(*size))[0])
        again = prepare_24.display(prepare_24(Image.fromarray(once))[0])
        assert once.shape == (24, 24, 3)
        assert np.array_equal(once, again)

    def test_display_clips(self) -> None:
        shown = Preprocessing(size=(1, 1)).display(torch.tensor([[[9.0]], [[-9.0]], [[0.0]]]))
        assert shown[0, 0].tolist() == [255, 0, 104]

    def test_one_channel_is_grey(self) -> None:
        grey = Preprocessing(size=(8, 8), mean=(0.1307,), std=(0.3081,))
        x = grey(gradient())
        assert tuple(x.shape) == (1, 1, 8, 8)
        assert grey.display(x[0]).shape == (8, 8, 3)

    def test_a_model_without_pictures_is_refused(self) -> None:
        with refused("picture", "3 channels"):
            Preprocessing(mean=(0.0,) * 5, std=(1.0,) * 5)(gradient())

    def test_an_elongated_picture_is_refused_before_it_fills_the_memory(self) -> None:
        with refused("picture", "40000 x 1 pixels"):
            Preprocessing()(Image.new("RGB", (40_000, 1)))

    def test_a_single_pixel_is_enough(self) -> None:
        assert tuple(Preprocessing()(Image.new("RGB", (1, 1))).shape) == (1, 3, 224, 224)


class TestPeers:
    """The same tensors as the transforms of timm and torchvision, which are the reference."""

    @pytest.mark.parametrize("size", [(500, 375), (333, 499), (224, 224), (100, 80), (1001, 300)])
    @pytest.mark.parametrize(
        ("crop", "interpolation", "input_size"),
        [
            ("center", "bicubic", (3, 224, 224)),
            ("center", "bilinear", (3, 96, 96)),
            ("squash", "bicubic", (3, 112, 112)),
            ("squash", "bilinear", (3, 96, 128)),
            ("border", "bicubic", (3, 112, 112)),
            ("center", "bicubic", (3, 96, 160)),
        ],
    )
    @pytest.mark.parametrize("crop_pct", [0.875, 1.0])
    def test_timm(
        self,
        size: tuple[int, int],
        crop: str,
        interpolation: str,
        input_size: tuple[int, int, int],
        crop_pct: float,
    ) -> None:
        prepare()
        pytest.importorskip("timm")
        from timm.data.transforms_factory import create_transform

        config = {
            "input_size": input_size,
            "crop_mode": crop,
            "interpolation": interpolation,
            "crop_pct": crop_pct,
            "mean": (0.48, 0.45, 0.4),
            "std": (0.2, 0.22, 0.25),
        }
        image = photograph(*size)
        wanted = create_transform(**config, is_training=False)(image)
        got = from_timm(config, "timm")(image)[0]
        assert torch.allclose(got, wanted, atol=1e-6)

    @pytest.mark.parametrize("size", [(500, 375), (333, 499), (100, 80)])
    @pytest.mark.parametrize(
        "name", ["resnet18", "vit_b_16", "efficientnet_v2_s", "regnet_y_128gf"]
    )
    def test_torchvision(self, size: tuple[int, int], name: str) -> None:
        prepare()
        pytest.importorskip("torchvision")
        from torchvision.models import get_model_weights

        transforms = get_model_weights(name).DEFAULT.transforms()
        image = photograph(*size)
        got = from_torchvision(transforms, "torchvision")(image)[0]
        assert torch.allclose(got, transforms(image), atol=1e-6)


class TestSettings:
    def test_numbers_stand_for_squares_and_grey(self) -> None:
        settings = from_mapping({"size": 28, "mean": 0.5, "std": 0.25, "resize": 32}, "net.py")
        assert settings == Preprocessing((28, 28), (0.5,), (0.25,), (32, 32))
        assert settings.source == "net.py"

    @pytest.mark.parametrize(
        ("settings", "argument", "got"),
        [
            ({"sise": 32}, "preprocessing setting", "sise"),
            ({"size": "large"}, "preprocess", "large"),
            ({"size": [1, 2, 3]}, "preprocess", "[1, 2, 3]"),
            ({"size": 0}, "preprocess", "size (0, 0)"),
            ({"mean": [0.5], "std": [0.5, 0.5]}, "preprocess", "mean (0.5,)"),
            ({"std": [0.0, 1.0, 1.0]}, "preprocess", "std (0.0, 1.0, 1.0)"),
            ({"interpolation": "bicubik"}, "interpolation", "bicubik"),
            ({"crop": "middle"}, "crop", "middle"),
        ],
    )
    def test_bad_settings_are_refused(
        self, settings: dict[str, object], argument: str, got: str
    ) -> None:
        with refused(argument, got, ModelError):
            from_mapping(settings, "net.py")
