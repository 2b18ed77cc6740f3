"""Images are read as a person sees them, or the error says what is wrong."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

import memocr_jax
from memocr_jax.core.errors import UserError

read_image = memocr_jax.read_image


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def half_transparent(mode):
    """3 x 2 px: left column black and opaque, the others black and transparent."""
    alpha = np.zeros((2, 3), np.uint8)
    alpha[:, 0] = 255
    if mode == "LA":
        return Image.fromarray(np.stack([alpha * 0, alpha], -1), "LA")
    return Image.fromarray(np.concatenate([np.zeros((2, 3, 3), np.uint8), alpha[..., None]], -1), "RGBA")


def palette(kind):
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    image.putpixel((0, 1), 0)
    return file_of(image, kind, transparency=1)


@pytest.mark.parametrize(
    "data",
    [
        file_of(half_transparent("RGBA")),
        file_of(half_transparent("LA")),
        file_of(half_transparent("RGBA"), "WEBP", lossless=True, exact=True),
        file_of(half_transparent("RGBA"), "TIFF"),
        palette("PNG"),
        palette("GIF"),
        file_of(Image.fromarray(np.array([[0, 200, 200]] * 2, np.uint8)), transparency=200),
        file_of(
            Image.merge("RGB", [Image.fromarray(np.array([[0, 9, 9]] * 2, np.uint8))] * 3),
            transparency=(9, 9, 9),
        ),
    ],
    ids=[
        "RGBA",
        "LA",
        "WebP",
        "TIFF",
        "palette",
        "GIF",
        "grey with a transparent level",
        "RGB with one colour",
    ],
)
def test_transparent_is_white(data):
    pixels = read_image(data)
    assert pixels.shape == (2, 3, 3) and pixels.dtype == np.uint8
    assert (pixels[:, 0] == 0).all() and (pixels[:, 1:] == 255).all()


def test_half_transparent_black_is_grey():
    pixels = read_image(file_of(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert abs(int(pixels[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0] = 255
    # How a camera stores what its tag then turns back (EXIF 2.32, tag 274).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    data = file_of(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(read_image(data), upright)


def test_more_than_8_bits_are_scaled():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    expected = [0, 1, 128, 255]
    for kind in ("PNG", "TIFF"):
        pixels = read_image(file_of(Image.fromarray(values), kind))
        assert pixels[0, :, 0].tolist() == expected and (pixels[..., :1] == pixels).all()
    big_endian = b"P5 4 1 65535\n" + values.astype(">u2").tobytes()
    assert read_image(big_endian)[0, :, 0].tolist() == expected
    fractions = Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
    assert read_image(file_of(fractions, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]


def test_other_kinds():
    assert read_image(file_of(Image.new("CMYK", (1, 1), (0, 0, 0, 0)), "TIFF"))[0, 0].tolist() == [255] * 3
    assert read_image(file_of(Image.new("1", (1, 1), 1)))[0, 0].tolist() == [255] * 3
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    gif = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(gif)[0, 0].tolist() == [255, 0, 0]


PNG = file_of(Image.new("RGB", (5, 3), "red"))
BASE64 = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{BASE64}",
        f"data:image/png;charset=utf-8;base64,{BASE64}",
        "data:image/png;base64," + BASE64.rstrip("="),
        "data:image/png;base64," + "\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)),
        "data:image/png;base64,\r\n " + BASE64 + "\r\n",
        "data:image/png;base64," + base64.urlsafe_b64encode(PNG).decode(),
        "data:image/png;base64," + BASE64.replace("+", "%2B").replace("=", "%3D"),
        f"DATA:IMAGE/PNG;BASE64,{BASE64}",
        f"data:image/jpeg;base64,{BASE64}",
    ],
)
def test_data_urls_as_they_are_found(url):
    assert read_image(url).shape == (3, 5, 3) and read_image(url)[0, 0].tolist() == [255, 0, 0]


def test_files_and_pixels(tmp_path):
    path = tmp_path / "with space.png"
    path.write_bytes(PNG)
    for source in (
        path,
        str(path),
        f"file://{path}",
        f"file://{str(path).replace(' ', '%20')}",
        PNG,
        bytearray(PNG),
    ):
        assert read_image(source).shape == (3, 5, 3)
    pixels = read_image(path)
    assert read_image(pixels) is pixels


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"%PDF-1.7 text", "13 bytes that begin with b'%PDF-1.7' are of no known format"),
        (b"", "no image: 0 bytes"),
        (PNG[:40], "40 bytes .* or broken"),
        (file_of(Image.effect_noise((40, 40), 99))[:900], "no image that can be decoded"),
        ("nowhere.png", "'nowhere.png' cannot be read"),
        ("data:image/png;base64,@@", "'@' at place 0 of the data does not belong in base64"),
        ("data:image/png;base64,aGVsbG8=", "5 bytes that begin with b'hello'"),
        ("data:image/png;base64,abcde", "5 characters are no whole base64 text"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png,abc", "not in base64"),
        ("data:text/plain;base64,aGVsbG8=", "type 'text/plain'"),
        (np.zeros((2, 2), np.uint8), r"uint8\[2, 2\]; pixels are uint8\[height, width, 3\]"),
    ],
)
def test_errors_say_what_is_wrong(source, message):
    with pytest.raises(UserError, match=message):
        read_image(source)


def test_a_limit_of_pixels():
    with pytest.raises(UserError, match="5 x 3 px; at most 14"):
        read_image(PNG, max_pixels=14)
    assert read_image(PNG, max_pixels=15).shape == (3, 5, 3)
