"""Pictures as people have them (arrays, or files such as PNG and JPEG) to the one array of bytes that a network is given.

A picture is brought to `size` by stretching it with PIL's bilinear filter, which averages where it shrinks (as torchvision's Resize does);
its aspect is not kept. It is brought to `channels` by the luma of ITU-R 601, or by repeating its grey. Alpha is dropped: what lies under
transparent pixels shows.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base import DataError

if TYPE_CHECKING:
    from PIL import Image

# N rows, C channels, H height, W width

Shape = tuple[int, int, int]
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # not all that PIL knows: for EPS it would start a program
_ENCODED = (bytes, bytearray, memoryview)


def pixels(
    given: Any, *, size: tuple[int, int] | None = None, channels: int | None = None, shape: Shape | None = None, known: str = "before"
) -> np.ndarray:
    """uint8 (N, C, H, W): a view where `given` is an array of bytes that needs no change. Raises DataError.

    `given` is an array (N, H, W) or (N, H, W, C) of whole numbers from 0 to 255, or has one value a row: an encoded picture's bytes, an
    array, a list, or the DataError for which it could not be read. `shape` (C, H, W) is what the images `known` have, and these must have.
    """
    images = _array_or_list(given)
    if isinstance(images, np.ndarray):
        images = _channels_first(images)
        if size in (None, images.shape[2:]) and channels in (None, images.shape[1]):
            if shape not in (None, images.shape[1:]):
                raise DataError(_differ(images.shape[1:], shape, known), 0)
            return images
    resized: list[np.ndarray] = []
    for row, image in enumerate(images):
        try:
            image_CHW = _resized(image if isinstance(images, np.ndarray) else _read(image), size, channels)
        except DataError as error:
            raise DataError(str(error), row) from None
        if shape not in (None, image_CHW.shape):
            raise DataError(_differ(image_CHW.shape, shape, known), row)
        shape = image_CHW.shape
        resized.append(image_CHW)
    if shape is None:
        raise DataError("there are no images")
    return np.stack(resized) if resized else np.empty((0, *shape), np.uint8)


def _array_or_list(given: Any) -> np.ndarray | list[Any]:
    """One array of all images, or a list of what each row has."""
    if isinstance(given, (list, tuple)) and any(isinstance(value, _ENCODED) for value in given):
        return list(given)
    try:
        images = np.asarray(given)
    except ValueError:  # several sizes
        return list(given)
    if images.dtype.kind == "S":
        raise DataError("encoded pictures are given as a list of bytes, or as an array of objects: others lose the zeros at their ends")
    return list(images) if images.ndim == 1 and images.dtype.kind in "OU" else images


def _channels_first(images: np.ndarray) -> np.ndarray:
    """uint8 (N, C, H, W), a view where `images` are bytes."""
    if images.ndim not in (3, 4):
        alone = "; one image alone is given as image[None]" if images.ndim == 2 else ""
        shape = images.shape or f"a single {type(images.item()).__name__}"
        raise DataError(f"images must be (rows, height, width) or (rows, height, width, channels), not {shape}{alone}")
    if 0 in images.shape[1:]:
        raise DataError(f"images without pixels: {images.shape}")
    if images.dtype != np.uint8:
        images = _bytes_of(images)
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def _bytes_of(images: np.ndarray) -> np.ndarray:
    if images.dtype.kind not in "biuf":
        raise DataError(f"images must be whole numbers from 0 to 255, not {images.dtype}")
    right = (images >= 0) & (images <= 255) & (images == np.floor(images))
    if not right.all():
        place = np.unravel_index(np.argmin(right), images.shape)
        raise DataError(f"images must be whole numbers from 0 to 255, but a pixel is {images[place]:g}", int(place[0]))
    return images.astype(np.uint8)


def _read(value: Any) -> np.ndarray:
    """uint8 (C, H, W) of one row's value."""
    if isinstance(value, DataError):
        raise value
    if value is None or (isinstance(value, float) and np.isnan(value)):
        raise DataError("column image: is missing")
    if isinstance(value, _ENCODED):
        image = np.asarray(_decoded(value))
        return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    if isinstance(value, str):
        raise DataError(f"an image must be an encoded picture's bytes or an array, not the text {value[:60]!r}")
    try:
        image = np.asarray(value)
    except ValueError:
        raise DataError("the rows of an image differ in length") from None
    if image.ndim not in (2, 3):
        raise DataError(f"an image must be (height, width) or (height, width, channels), not {image.shape or type(value).__name__}")
    return _channels_first(image[None])[0]


def _decoded(content: bytes | bytearray | memoryview) -> Image.Image:
    """The first picture in a file, upright as its EXIF says, grey (L) or in colour (RGB). Raises DataError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not len(content):
        raise DataError("a picture of zero bytes")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:  # PIL itself only warns up to twice that
                raise DataError(f"a picture of {image.width}x{image.height} pixels; PIL allows {Image.MAX_IMAGE_PIXELS:,}")
            if image.format == "PNG":  # whose checksums PIL does not compare while it decodes; after `verify` nothing can be read
                with Image.open(io.BytesIO(content), formats=("PNG",)) as unread:
                    unread.verify()
            image.load()
            return _grey_or_rgb(ImageOps.exif_transpose(image), image.format)
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError:
        formats, begins = ", ".join(_FORMATS), bytes(content[:8]).hex(" ")
        raise DataError(f"not a picture, or one damaged at its beginning (it begins with {begins}); {formats} can be read") from None
    except Exception as error:  # for damaged bytes PIL's decoders raise almost anything
        message = str(error).partition("\n")[0]
        raise DataError(f"a truncated or damaged picture ({type(error).__name__}: {message})") from None


def _grey_or_rgb(image: Image.Image, origin: str | None) -> Image.Image:
    """Grey stays grey; palettes (even of greys), CMYK and the like become RGB; of 16 bits the upper 8 remain, as PIL does for colour."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and origin == "PPM"):  # PIL's name for grey of 16 bits
        return Image.fromarray((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError("a picture of 32 bits a pixel does not say what is white; 8 or 16 bits a channel can be read")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # at once to RGB, PIL would warn of transparent ones
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def _resized(image_CHW: np.ndarray, size: tuple[int, int] | None, channels: int | None) -> np.ndarray:
    """A picture of this size and number of channels."""
    from PIL import Image

    if channels not in (None, len(image_CHW)):
        if len(image_CHW) > 4:
            raise DataError(f"an image of {len(image_CHW)} channels can be brought neither to grey nor to colour")
        image_CHW = image_CHW[: 1 if len(image_CHW) < 3 else 3]  # without alpha
        if channels == 1 and len(image_CHW) == 3:
            image_CHW = np.asarray(Image.fromarray(np.ascontiguousarray(image_CHW.transpose(1, 2, 0))).convert("L"))[None]
        elif channels == 3 and len(image_CHW) == 1:
            image_CHW = np.repeat(image_CHW, 3, axis=0)
    if size in (None, image_CHW.shape[1:]):
        return image_CHW
    height, width = size
    bands = [Image.fromarray(np.ascontiguousarray(band)).resize((width, height), Image.Resampling.BILINEAR) for band in image_CHW]
    return np.stack([np.asarray(band) for band in bands])


def _differ(given: tuple[int, ...], shape: Any, known: str) -> str:
    return f"images are {_kind(given)}, but those {known} are {_kind(shape)}; model.size and model.channels bring all to one kind"


def _kind(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{height}x{width} " + {1: "grey", 3: "in colour"}.get(channels, f"of {channels} channels")
