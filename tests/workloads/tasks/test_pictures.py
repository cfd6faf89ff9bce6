"""Files and arrays become the pixels that PIL gives, or a sentence with their row."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from workloads.base import DataError
from workloads.tasks.pictures import pixels

GENERATOR = np.random.default_rng(0)
GREY = GENERATOR.integers(0, 256, (6, 5), dtype=np.uint8)
COLOUR = GENERATOR.integers(0, 256, (6, 5, 3), dtype=np.uint8)
ALPHA = GENERATOR.integers(0, 256, (6, 5, 4), dtype=np.uint8)


def file_of(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def shown(x_CHW: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C), as PIL has it."""
    return x_CHW[0] if len(x_CHW) == 1 else x_CHW.transpose(1, 2, 0)


def one(value: Any, **options: Any) -> np.ndarray:
    (image,) = pixels(objects(value), **options)
    assert image.dtype == np.uint8
    return shown(image)


def objects(*values: Any) -> np.ndarray:
    made = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        made[row] = value
    return made


def refusal(value: Any, **options: Any) -> str:
    """The sentence with which a value behind a good picture is refused, its row being named."""
    with pytest.raises(DataError) as error:
        pixels(objects(file_of(GREY), value), **options)
    assert error.value.row == 1
    return str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_grey_files_give_the_pixels_that_were_saved(kind: str) -> None:
    np.testing.assert_array_equal(one(file_of(GREY, kind)), GREY)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True})])
def test_colour_files_give_the_pixels_that_were_saved(kind: str, options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(one(file_of(COLOUR, kind, **options)), COLOUR)


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_a_jpeg_gives_the_pixels_that_pil_gives(image: np.ndarray) -> None:
    content = file_of(image, "JPEG")
    np.testing.assert_array_equal(one(content), np.asarray(Image.open(io.BytesIO(content))))


def test_alpha_is_dropped_and_what_lies_under_it_shows() -> None:
    np.testing.assert_array_equal(one(file_of(ALPHA)), ALPHA[..., :3])
    np.testing.assert_array_equal(one(file_of(Image.fromarray(ALPHA[..., :2], "LA"))), ALPHA[..., 0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{}, {"transparency": 3}, {"transparency": bytes(range(200))}], ids=["opaque", "one", "many"])
def test_a_palette_is_looked_up(options: dict[str, Any]) -> None:
    palette = Image.fromarray(COLOUR).quantize(16)
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(one(file_of(palette, kind, **options)), np.asarray(palette.convert("RGB")))


def test_two_shades_are_black_and_white() -> None:
    np.testing.assert_array_equal(one(file_of(Image.fromarray(GREY > 99))), np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_of_sixteen_bits_the_upper_eight_remain(kind: str) -> None:
    deep = GENERATOR.integers(0, 65536, (6, 5), dtype=np.uint16)
    np.testing.assert_array_equal(one(file_of(deep, kind)), deep >> 8)


def test_cmyk_becomes_colour_as_pil_makes_it() -> None:
    ink = Image.fromarray(ALPHA, "CMYK")
    np.testing.assert_array_equal(one(file_of(ink, "TIFF")), np.asarray(ink.convert("RGB")))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_do_not_say_what_is_white(kind: type) -> None:
    assert refusal(file_of(GREY.astype(kind), "TIFF")).startswith("a picture of 32 bits a pixel does not say what is white")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_as_its_exif_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file_of(COLOUR, exif=exif)
    np.testing.assert_array_equal(one(content), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))))
    assert one(content).shape == ((6, 5, 3) if orientation < 5 else (5, 6, 3))


def test_of_an_animation_the_first_picture_is_taken() -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    content = file_of(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(one(content), GREY)


def test_one_column_may_hold_files_arrays_and_lists() -> None:
    images = pixels(
        objects(file_of(COLOUR), COLOUR, COLOUR.tolist(), COLOUR.astype(float), bytearray(file_of(COLOUR)), memoryview(file_of(COLOUR)))
    )
    assert images.shape == (6, 3, 6, 5)
    assert all((shown(image) == COLOUR).all() for image in images)


def test_an_array_of_bytes_that_needs_no_change_is_not_copied() -> None:
    for images, channels in ((GREY[None], 1), (COLOUR[None], 3)):
        for options in ({}, {"size": (6, 5), "channels": channels, "shape": (channels, 6, 5)}):
            assert np.shares_memory(pixels(images, **options), images)


@settings(max_examples=50)
@given(
    image=st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 4])).flatmap(lambda shape: arrays(np.uint8, shape)),
    size=st.none() | st.tuples(st.integers(1, 12), st.integers(1, 12)),
    channels=st.sampled_from([None, 1, 3]),
)
def test_size_and_channels_are_those_of_pil(image: np.ndarray, size: tuple[int, int] | None, channels: int | None) -> None:
    opaque = image[..., : 1 if image.shape[2] < 3 else 3]
    theirs = Image.fromarray(opaque[..., 0] if opaque.shape[2] == 1 else opaque)
    theirs = theirs.convert({1: "L", 3: "RGB"}[channels]) if channels else theirs
    theirs = theirs.resize(size[::-1], Image.Resampling.BILINEAR) if size else theirs
    found = pixels(image[None], size=size, channels=channels)[0]
    assert found.shape == (channels or image.shape[2], *(size or image.shape[:2]))
    if channels or image.shape[2] in (1, 3):
        np.testing.assert_array_equal(shown(found), np.asarray(theirs))
    if image.shape[2] in (1, 3):
        stored = file_of(opaque[..., 0] if opaque.shape[2] == 1 else opaque)
        np.testing.assert_array_equal(pixels([stored], size=size, channels=channels)[0], found)
    one_by_one = pixels(objects(image), size=size, channels=channels)
    np.testing.assert_array_equal(one_by_one[0], found)


def test_an_array_of_five_channels_is_neither_grey_nor_colour() -> None:
    many = np.zeros((2, 6, 5, 5), np.uint8)
    assert pixels(many).shape == (2, 5, 6, 5)
    assert pixels(many, size=(3, 2)).shape == (2, 5, 3, 2)
    with pytest.raises(DataError, match="an image of 5 channels can be brought neither to grey nor to colour"):
        pixels(many, channels=3)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (b"", "a picture of zero bytes"),
        (
            b"GARBAGE and more",
            "not a picture, or one damaged at its beginning (it begins with 47 41 52 42 41 47 45 20); PNG, JPEG, BMP, GIF, WEBP",
        ),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture, or one damaged"),
        (file_of(COLOUR)[:-40], "a truncated or damaged picture (OSError: "),
        (file_of(np.zeros((64, 64), np.uint8), "JPEG")[:-10], "a truncated or damaged picture (OSError: "),
        (None, "column image: is missing"),
        (float("nan"), "column image: is missing"),
        (DataError("cats/1.png: cannot be opened"), "cats/1.png: cannot be opened"),
        ("cats/1.png", "an image must be an encoded picture's bytes or an array, not the text 'cats/1.png'"),
        ([[1, 2], [3]], "the rows of an image differ in length"),
        (GREY[0], "an image must be (height, width) or (height, width, channels), not (5,)"),
        ({"a": 1}, "an image must be (height, width) or (height, width, channels), not dict"),
        (GREY[:0], "images without pixels: (1, 0, 5)"),
        (GREY + 0.5, "images must be whole numbers from 0 to 255, but a pixel is "),
        (GREY.astype(str), "images must be whole numbers from 0 to 255, not <U"),
        (GREY[1:], "images are 5x5 grey, but those before are 6x5 grey; model.size and model.channels bring all to one kind"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_row(value: Any, sentence: str) -> None:
    assert refusal(value).startswith(sentence)


def test_more_pixels_than_pil_allows_are_refused_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(Image.DecompressionBombWarning):  # from once to twice the limit PIL itself only warns
        assert refusal(file_of(np.zeros((10, 11), np.uint8))) == "a picture of 11x10 pixels; PIL allows 100"
    assert "DecompressionBombError" in refusal(file_of(np.zeros((100, 11), np.uint8)))


def test_bytes_that_numpy_has_cut_are_refused() -> None:
    for cut in (np.array([file_of(GREY)]), file_of(GREY)):
        with pytest.raises(DataError, match="encoded pictures are given as a list of bytes"):
            pixels(cut)


def test_no_rows_have_the_shape_that_is_known() -> None:
    assert pixels(objects(), shape=(3, 6, 5)).shape == (0, 3, 6, 5)
    assert pixels(np.zeros((0, 6, 5), np.uint8), size=(2, 3), channels=3, shape=(3, 2, 3)).shape == (0, 3, 2, 3)
    with pytest.raises(DataError, match=r"^there are no images$"):
        pixels(objects())


PHOTOGRAPH = np.asarray(Image.radial_gradient("L").resize((24, 20)).convert("RGB"))
FILES = {kind: file_of(PHOTOGRAPH, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")}


def pil_or_refused(content: bytes) -> None:
    """The picture that PIL gives, or a DataError with its row."""
    try:
        found = pixels([file_of(PHOTOGRAPH), content], size=(20, 24), channels=3)
    except DataError as error:
        refused = error.row
    else:
        refused = None
    if refused is not None:
        assert refused == 1
        return
    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if theirs.mode in ("L", "RGB", "P"):
        brought = theirs.convert("RGB").resize((24, 20), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(shown(found[1]), np.asarray(brought))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=60)
@given(kind=st.sampled_from(sorted(FILES)), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_bit_flipped_anywhere_gives_a_sentence_or_what_pil_gives(kind: str, place: float, bit: int) -> None:
    content = bytearray(FILES[kind])
    content[int(min(place, 1 - place / 2) * len(content) * place)] ^= 1 << bit  # the headers, at the beginning, more often
    pil_or_refused(bytes(content))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=60)
@given(kind=st.sampled_from(sorted(FILES)), kept=st.floats(0, 1, exclude_max=True), more=st.binary(max_size=8))
def test_a_file_that_ends_anywhere_gives_a_sentence_or_what_pil_gives(kind: str, kept: float, more: bytes) -> None:
    pil_or_refused(FILES[kind][: int(kept * len(FILES[kind]))] + more)


def test_no_bit_of_a_png_can_change_its_pixels_unnoticed() -> None:
    shaded = np.add.outer(np.arange(24), np.arange(20)).astype(np.uint8)  # so regular that other bits unpack as well
    written = io.BytesIO()
    Image.fromarray(shaded).save(written, "PNG")
    noticed = 0
    for bit in range(8 * len(written.getvalue())):
        content = bytearray(written.getvalue())
        content[bit // 8] ^= 1 << bit % 8
        try:
            np.testing.assert_array_equal(pixels([bytes(content)]), shaded[None, None])
        except DataError:
            noticed += 1
    assert noticed > 4 * len(written.getvalue())
