"""Reads a photograph from disk as an upright 8-bit RGB picture, or says in one line why not."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from omenn.data.folders import MAX_PIXELS
from omenn.errors import InputError, of_file, reason
from omenn.files.reading import GB, opened

# Not every format of Pillow: some start other programs (EPS runs Ghostscript), or hold no
# photograph. A file is recognised by its content, never by its name.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one picture as upright RGB with 8 bits per channel.

    The EXIF orientation is applied; transparency is composited on white; grey, palette, CMYK and
    16-bit pictures are converted; an animation gives its first frame.

    Raises:
        InputError: no such file, a folder, not a picture, truncated, more than ``max_pixels``.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "grey.png")
    >>> Image.new("L", (3, 2), 77).save(path)
    >>> image = read_image(path)
    >>> assert image.mode == "RGB" and image.size == (3, 2) and image.getpixel((0, 0)) == (77,) * 3
    """
    path = Path(path)
    try:
        with warnings.catch_warnings(), opened(path, "picture", most=GB) as file:
            # Pillow warns about bombs and odd metadata; the limit below is an error instead
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_available()) as picture:
                _check_size(path, picture.size, max_pixels)
                picture.load()
                return _as_rgb(ImageOps.exif_transpose(picture))
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _refused(path, f"is too large a picture: {error}", _smaller(max_pixels)) from error
    except UnidentifiedImageError as error:
        remedy = f"Readable are {', '.join(FORMATS[:-1])} and {FORMATS[-1]}."
        raise _refused(path, "is not a picture that can be read.", remedy) from error
    except MemoryError as error:
        raise _refused(path, "does not fit in memory.", "Scale it down first.") from error
    except Exception as error:  # decoders of broken files raise almost anything
        text = f"is damaged or incomplete: {reason(error)}."
        raise _refused(path, text, "Use an intact copy of it.") from error


def _refused(path: Path, text: str, remedy: str) -> InputError:
    return of_file(InputError, path, f"'{path}' {text}", remedy)


def _smaller(max_pixels: int) -> str:
    return f"Scale it down to at most {max_pixels / 1e6:.0f} million pixels."


def _available() -> list[str]:
    Image.init()  # some exist only if Pillow was built with their library
    return [name for name in FORMATS if name in Image.OPEN]


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        text = f"is too large a picture: {width} x {height} pixels."
        raise _refused(path, text, _smaller(max_pixels))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    image = image.convert("RGB")
    image.info.clear()  # metadata of the file (comments, places, names) must not leak
    return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey with 16 bits, 32 bits or fractions; the full range of the format becomes 0…255."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
        raise ValueError(f"grey values from {low:g} to {high:g}, expected 0 to 65535")
    fractions = image.mode == "F" and high <= 1
    full = 1.0 if fractions else 255.0 if image.mode == "F" and high <= 255 else 65535.0
    return Image.fromarray(np.rint(values * (255.0 / full)).astype(np.uint8))
