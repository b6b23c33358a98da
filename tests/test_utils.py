"""Files, downloads, images, names, seeds and meters."""

import fcntl
import io
import os
import platform
import random

import numpy as np
import PIL
import pytest
import torch
from PIL import ExifTags, Image

from dassl.utils import (
    AverageMeter,
    MetricMeter,
    Registry,
    atomic_write,
    check_availability,
    check_isfile,
    collect_env_info,
    download_url,
    get_most_similar_str_to_a_from_b,
    listdir_nohidden,
    locked,
    mkdir_if_missing,
    read_image,
    read_json,
    read_photo,
    set_random_seed,
    tolist_if_not,
    write_json,
)

# ---------------------------------------------------------------- files


def test_json_round_trip_and_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json({"x": [1, 2.5, "é"]}, str(path))
    assert read_json(str(path)) == {"x": [1, 2.5, "é"]}
    with pytest.raises(TypeError):
        write_json({"x": object()}, str(path))
    for failure in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(failure), atomic_write(str(path)) as f:
            f.write(b"half")
            f.flush()
            assert read_json(str(path)) == {"x": [1, 2.5, "é"]}
            raise failure
    assert read_json(str(path)) == {"x": [1, 2.5, "é"]}
    assert os.listdir(path.parent) == ["b.json"]


def test_atomic_write_replaces_links_and_has_common_permissions(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_write(str(tmp_path / "link")) as f:
        f.write(b"new")
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_text() == "new"
    assert (tmp_path / "real").read_text() == "old", "nothing is written elsewhere"
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "link").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_locked(tmp_path, monkeypatch):
    with locked(tmp_path, "busy"), pytest.raises(BlockingIOError, match="busy"), locked(tmp_path, "busy"):
        pass
    with locked(tmp_path, "busy"):  # free again
        pass

    def no_locks(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path, "busy"), locked(tmp_path, "busy"):
        pass


def test_small_file_helpers(tmp_path):
    mkdir_if_missing(str(tmp_path / "x" / "y"))
    mkdir_if_missing(str(tmp_path / "x" / "y"))
    mkdir_if_missing("")
    for name in ("b", "a", ".hidden"):
        (tmp_path / "x" / name).touch()
    assert listdir_nohidden(str(tmp_path / "x"), sort=True) == ["a", "b", "y"]
    with pytest.raises(FileExistsError):
        mkdir_if_missing(str(tmp_path / "x" / "a"))
    assert check_isfile(str(tmp_path / "x" / "a"))
    with pytest.warns(UserWarning, match="No file"):
        assert not check_isfile(str(tmp_path / "x"))


def test_download(tmp_path, one_line):
    source, dst = tmp_path / "source.bin", tmp_path / "new" / "dst.bin"
    source.write_bytes(os.urandom(3_000_000))
    download_url(source.as_uri(), str(dst))
    assert dst.read_bytes() == source.read_bytes()
    with pytest.raises(OSError, match="by hand") as error:
        download_url((tmp_path / "missing").as_uri(), str(dst))
    assert "missing" in one_line(error)
    assert dst.read_bytes() == source.read_bytes() and os.listdir(dst.parent) == ["dst.bin"]


def test_download_that_stops_early(tmp_path, monkeypatch):
    class Response(io.BytesIO):
        headers = {"Content-Length": "10"}

    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: Response(b"four"))
    with pytest.raises(OSError, match="4 of 10 bytes"):
        download_url("http://x/y", str(tmp_path / "y"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_read_image(mode, tmp_path):
    pixels = np.random.default_rng().integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    got = read_image(str(path))
    assert got.mode == "RGB" and got.size == (7, 9)
    path.unlink()  # fully decoded: the file is needed no more
    assert np.array_equal(np.asarray(got), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(10))
def test_read_image_upright(orientation, tmp_path):
    pixels = np.random.default_rng().integers(0, 256, (6, 4, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    # Row 0 and column 0 of what is stored are, of the scene: 1 top, left; 2 top, right; 3 bottom, right ... (EXIF 2.3)
    swapped = pixels.transpose(1, 0, 2)
    scene = {2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    scene |= {5: swapped, 6: swapped[:, ::-1], 7: swapped[::-1, ::-1], 8: swapped[::-1]}
    wanted = scene.get(orientation, pixels)
    assert np.array_equal(np.asarray(read_photo(tmp_path / "x.png")), wanted)
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "x.png"))), pixels)


def test_read_image_upright_without_readable_exif(tmp_path, monkeypatch):
    def broken(self):
        raise SyntaxError("not a TIFF file")

    Image.new("RGB", (2, 3)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "getexif", broken)
    assert read_photo(tmp_path / "x.png").size == (2, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_read_image_errors(suffix, tmp_path, one_line):
    path = tmp_path / f"x.{suffix}"
    with pytest.raises(FileNotFoundError, match="DATASET.ROOT") as error:
        read_image(str(path))
    assert str(path) in one_line(error)
    pixels = np.random.default_rng().integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(OSError, match="intact copy") as error:
            read_image(str(path))
        assert str(path) in one_line(error)


# ---------------------------------------------------------------- names, seeds, meters


def test_names(one_line):
    assert get_most_similar_str_to_a_from_b("orthcr", ["CoOp", "OrthCR", "MaPLe"]) == "OrthCR"
    assert get_most_similar_str_to_a_from_b("x", []) is None
    check_availability("a", ["a", "b"])
    with pytest.raises(ValueError) as error:
        check_availability("CoOpp", ["MaPLe", "CoOp"])
    assert one_line(error) == '"CoOpp" is not available, do you mean "CoOp"? Available: MaPLe, CoOp'
    assert tolist_if_not(3) == [3] and tolist_if_not([3]) == [3] and tolist_if_not((1,)) == [(1,)]


def test_registry():
    registry = Registry("THING")

    @registry.register()
    class A:
        pass

    def b():
        pass

    registry.register(b)
    assert registry.get("A") is A and registry.get("b") is b and registry.registered_names() == ["A", "b"]
    with pytest.raises(KeyError, match="already registered in the THING"):
        registry.register(b)
    other = type("A", (), {})
    registry.register(other, force=True)
    assert registry.get("A") is other
    with pytest.raises(KeyError, match="THING"):
        registry.get("c")


def test_seed():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    set_random_seed(7)
    first = draw()
    assert draw() != first
    set_random_seed(7)
    assert draw() == first


def test_meters():
    meter = AverageMeter()
    meter.update(torch.tensor([1.0]), n=3)
    meter.update(5)
    assert (meter.val, meter.avg, meter.sum, meter.count) == (5, 2, 8, 4)
    ema = AverageMeter(ema=True)
    ema.update(1.0)
    ema.update(2.0)
    assert ema.avg == pytest.approx(0.29)

    meters = MetricMeter()
    meters.update(None)
    meters.update({"loss": 0.3456, "acc": torch.tensor([65.2468])})
    meters.update({"loss": 0.1234, "acc": 75})
    assert str(meters) == "loss 0.1234 (0.2345) acc 75.0000 (70.1234)"
    with pytest.raises(TypeError):
        meters.update([1])


def test_collect_env_info():
    info = collect_env_info()
    for version in (torch.__version__, np.__version__, platform.python_version(), PIL.__version__):
        assert version in info
