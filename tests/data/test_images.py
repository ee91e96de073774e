"""Image files: which are decoded, which converted, which rejected; how they are fitted to a size."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from oasisgen.config.pack import PackConfig
from oasisgen.data.description import LabelClass
from oasisgen.data.fit import fit
from oasisgen.data.images import decode, decode_labels, silence_pillow
from oasisgen.data.labels import classes_of
from tests.conftest import png

GREY = np.arange(65536, dtype=np.uint32).reshape(256, 256).astype(np.uint8)
WIDE = np.linspace(0, 4000, 65536).reshape(256, 256).astype(np.uint16)


def palette(colors: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(GREY, "P")
    image.putpalette([value for color in colors for value in color])
    return image


GREYS = [(value, value, value) for value in range(256)]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_8_bit_images_keep_their_pixels(kind: str) -> None:
    pixels, converted = decode(png(GREY, kind))
    assert np.array_equal(pixels, GREY)
    assert converted == ""


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_images_are_divided_by_their_maximum(kind: str) -> None:
    pixels, converted = decode(png(Image.fromarray(WIDE), kind))
    assert np.array_equal(pixels, WIDE.astype(np.int64) * 255 // 4000)
    assert converted.startswith("16-bit")


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (palette(GREYS), "palette"),
        (Image.fromarray(GREY).convert("RGB"), "RGB"),
        (Image.fromarray(GREY).convert("RGBA"), "RGBA"),
        (Image.fromarray(GREY).convert("LA"), "grey with alpha"),
    ],
)
def test_grey_in_other_modes_is_converted_and_said(image: Image.Image, said: str) -> None:
    pixels, converted = decode(png(image))
    assert np.array_equal(pixels, GREY)
    assert converted == f"grey images stored as {said}"


def test_1_bit_and_jpeg_are_read() -> None:
    assert set(np.unique(decode(png(Image.fromarray(GREY > 100))).pixels)) == {0, 255}
    smooth = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    assert np.abs(decode(png(smooth, "JPEG")).pixels.astype(int) - smooth).max() < 8


def animated(kind: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png(Image.fromarray(np.stack([GREY, GREY.T, GREY], -1))), "RGB with unequal channels: not greyscale"),
        (png(palette([(value, 0, 0) for value in range(256)])), "palette with unequal channels"),
        (png(Image.fromarray(np.stack([GREY, GREY], -1), "LA")), "transparent pixels"),
        (png(Image.fromarray(GREY).convert("CMYK"), "JPEG"), "mode CMYK instead of greyscale"),
        (animated("PNG"), "several frames or pages"),
        (animated("TIFF"), "several frames or pages"),
        (png(GREY)[:300], "truncated or damaged"),
        (png(GREY, "JPEG")[:300], "truncated or damaged"),
        (png(np.zeros((8, 2100), np.uint8)), "2100 x 8 pixels: a slice has at most 2048 x 2048"),
        (b"", "not a PNG, JPEG, TIFF or BMP file"),
    ],
)
def test_what_is_not_a_slice_has_a_reason(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decode(data)


def test_a_damaged_file_has_a_reason_and_no_warnings() -> None:
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "TIFF", description="x" * 300)
    damaged = file.getvalue()[:200]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="truncated or damaged"):
            decode(damaged)
        assert seen
        seen.clear()
        silence_pillow()
        with pytest.raises(ValueError, match="truncated or damaged"):
            decode(damaged)
        assert not seen


def test_label_maps_keep_their_values_and_palettes_their_indices() -> None:
    assert np.array_equal(decode_labels(png(GREY)), GREY)
    assert np.array_equal(decode_labels(png(palette([(value, 0, 9) for value in range(256)]))), GREY)
    assert decode_labels(png(Image.fromarray(WIDE))).max() == 4000


def test_values_become_classes_or_are_named() -> None:
    classes = [LabelClass("background", 0), LabelClass("white matter", 255), LabelClass("CSF", 85)]
    assert classes_of(np.array([[85, 0], [255, 85]]), classes).tolist() == [[2, 0], [1, 2]]
    with pytest.raises(ValueError, match="value 7 of its label map has no class: name it with --label-classes"):
        classes_of(np.array([[7]]), classes)
    with pytest.raises(ValueError, match="none of the label maps that were looked at can be used: name the classes"):
        classes_of(np.array([[7]]), ())


def test_images_of_another_size_are_padded_cropped_or_resized() -> None:
    small = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
    padded = fit(small, (64, 96), "pad")
    assert np.array_equal(padded[30:33, 46:50], small)
    assert padded.sum() == small.sum()
    large = np.zeros((100, 300), np.uint8)
    large[50, 150] = 9
    with pytest.raises(ValueError, match="300 x 100 pixels do not fit into 96 x 64: give --fit crop or resize"):
        fit(large, (64, 96), "pad")
    cropped = fit(large, (64, 96), "crop")
    assert (cropped.shape, cropped[32, 48]) == ((64, 96), 9)
    resized = fit(np.full((100, 300), 7, np.uint8), (64, 96), "resize")
    assert (resized[16:48] == 7).all()
    assert resized[:16].sum() == resized[48:].sum() == 0
    labels = np.tile(np.array([0, 3], np.uint8), (100, 50))
    assert set(np.unique(fit(labels, (64, 64), "resize", labels=True))) <= {0, 3}  # no value in between
    assert fit(large, (100, 300), "resize") is large


def test_flags_of_sizes_and_classes_are_checked() -> None:
    assert PackConfig("s", "o", size="64x512").slice_size == (64, 512)
    assert PackConfig("s", "o", label_classes="0=background, 7=left").classes == {0: "background", 7: "left"}
    for flags, said in (
        ({"size": "256"}, "size is 256: must be height x width in pixels, like 256x256"),
        ({"size": "100x256"}, "height is 100: must be a multiple of 32 from 64 to 512"),
        ({"label_classes": "0=a,0=b"}, "label-classes is 0=a,0=b: must be each value once"),
        ({"label_classes": "left"}, "label-classes is left: must be each value once"),
        ({"pattern": "("}, r"pattern is \(: no regular expression"),
        ({"split_seed": 1, "splits": "t.csv"}, "split-seed is 1: must be left out if --splits is given"),
        ({"pattern": "z(?P<level>.)"}, "must be one with named groups"),
    ):
        with pytest.raises(ValueError, match=said):
            PackConfig("s", "o", **flags)


def test_libtiff_prints_nothing_about_damaged_data(capfd: pytest.CaptureFixture[str]) -> None:
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "TIFF", compression="tiff_deflate")
    damaged = bytearray(file.getvalue())
    damaged[40:60] = bytes(20)
    silence_pillow()
    with pytest.raises(ValueError, match="truncated or damaged"):
        decode(bytes(damaged))
    assert capfd.readouterr().err == ""
