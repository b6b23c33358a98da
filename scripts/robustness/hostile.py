"""Hostile pictures, JSON, checkpoints and special files for the fuzz test, each drawn by a `Random`."""

import json
import os
import pickle
import random
import re
import shutil
import socket
import struct
import tempfile
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dassl.infrastructure.files import add_checksum

# ------------------------------------------------------------------ bytes


def cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def flip_bits(draw: random.Random, data: bytes) -> bytes:
    result = bytearray(data)
    for _ in range(draw.choice([1, 1, 3, 30])):
        if result:
            result[draw.randrange(len(result))] ^= 1 << draw.randrange(8)
    return bytes(result)


def flip_head(draw: random.Random, data: bytes) -> bytes:
    """Flip bits of the first 200 bytes, where the sizes are."""
    return flip_bits(draw, data[:200]) + data[200:]


def insert(draw: random.Random, data: bytes) -> bytes:
    position = draw.randrange(len(data) + 1)
    return (
        data[:position]
        + draw.choice([b"\0", b"\xff" * 8, b"{", draw.randbytes(draw.randrange(1, 200))])
        + data[position:]
    )


def replace_number(draw: random.Random, data: bytes) -> bytes:
    """Put a large or negative number of four or eight bytes somewhere."""
    value = draw.choice([b"\xff\xff\xff\x7f", b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\0\0\0\x80"])
    position = draw.randrange(max(1, min(len(data), draw.choice([64, 512, len(data)]))))
    return data[:position] + value + data[position + len(value) :]


BYTE_CHANGES = (cut, flip_bits, flip_head, insert, replace_number)


def damage(draw: random.Random, data: bytes) -> bytes:
    return draw.choice(BYTE_CHANGES)(draw, data)


# ------------------------------------------------------------------ no files


def put_odd_thing(draw: random.Random, path: Path) -> str:
    """Put something that is no regular file at `path`; return its kind."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    kind = draw.choice("pipe pipe zero null circle nowhere folder socket empty terminal".split())
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("zero", "null"):
        path.symlink_to(f"/dev/{kind}")
    elif kind == "terminal":
        path.symlink_to("/dev/tty")
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "nowhere":
        path.symlink_to(path.parent / "nowhere")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        make_socket(path)
    else:
        path.write_bytes(b"")
    return kind


def make_socket(path: Path) -> None:
    """Make a socket by a short name, as a system allows only about 100 characters."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as opened:
        opened.bind(f"{folder}/s")
        shutil.move(f"{folder}/s", path)


# ------------------------------------------------------------------ pictures

SAVED = (  # (mode, format), as Pillow writes them
    "RGB JPEG|L JPEG|CMYK JPEG|YCbCr JPEG|RGB PNG|RGBA PNG|L PNG|LA PNG|P PNG|1 PNG|I;16 PNG|RGB GIF|P GIF|RGB WEBP|"
    "RGBA WEBP|RGB BMP|1 BMP|P BMP|RGB TIFF|LAB TIFF|F TIFF|I TIFF|CMYK TIFF|RGB PPM|L PPM|RGB JPEG2000|RGBA JPEG2000|"
    "RGB TGA|RGBA TGA|RGB AVIF|RGB DIB|RGB MPO"
)
PROGRAMS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\n",
    b"%!PS\n(x) (w) file\n{} loop\n",
    b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n",
    b"#define x_width 60000\n#define x_height 60000\nstatic char x_bits[] = {\n0x00};\n",
    b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    b"<html>not an image</html>",
    b"PK\3\4" + b"\0" * 60,
    b"\xd7\xcd\xc6\x9a" + b"\0" * 60,
    b"\x1f\x8b\x08" + b"\0" * 60,
    b"SIMPLE  =                    T" + b" " * 200,
    b"BLP2" + b"\xff" * 200,
    b"\x89HDF\r\n\x1a\n" + b"\0" * 90,
)


def picture(draw: random.Random, size: tuple[int, int] | None = None) -> bytes:
    """Return a whole picture of any mode and format."""
    size = size or (draw.randint(1, 90), draw.randint(1, 90))
    while True:
        mode, kind = draw.choice(SAVED.split("|")).split(" ")
        noise = np.frombuffer(draw.randbytes(size[0] * size[1] * 3), np.uint8).reshape(size[1], size[0], 3)
        out = BytesIO()
        try:
            source = Image.fromarray(noise)
            (source.convert("L").convert("I").convert(mode) if mode.startswith("I") else source.convert(mode)).save(
                out, kind
            )
        except (OSError, ValueError, KeyError):  # this Pillow does not write it
            continue
        return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, colour: int = 6, data: bytes = b"", *more: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def rows_of_zeros(size: int) -> bytes:
    """Return `size` zero bytes, packed."""
    packer = zlib.compressobj(1)
    parts = [packer.compress(bytes(min(1 << 20, size - k))) for k in range(0, size, 1 << 20)]
    return b"".join([*parts, packer.flush()])


def png_bomb(draw: random.Random) -> bytes:
    """Return a small PNG of many pixels, just below the limit, above it, or far beyond."""
    width, height = draw.choice([(8190, 8190), (8200, 8200), (13_000, 13_000), (65_535, 65_535), (2**31 - 1, 1)])
    data = width * height < 1e8 and draw.random() < 0.5
    return png(width, height, 6, rows_of_zeros(height * (4 * width + 1)) if data else rows_of_zeros(1000))


def text_bomb(draw: random.Random) -> bytes:
    """Return a PNG whose text, colour profile or unknown chunk grows when it is unpacked."""
    bomb = rows_of_zeros(300 << 20)
    name, data = draw.choice([(b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb)])
    return png(4, 4, 6, rows_of_zeros(4 * 17), chunk(name, data))


def frames(draw: random.Random) -> bytes:
    """Return a GIF, WebP or TIFF of many frames, or an animated PNG that promises more than it has."""
    pages = [Image.new("RGB", (20, 20), (k % 255, 0, 0)) for k in range(300)]
    out = BytesIO()
    kind = draw.choice(["GIF", "WEBP", "TIFF", "PNG"])
    pages[0].save(out, kind, save_all=True, append_images=pages[1:])
    return out.getvalue()


def jpeg_bomb(draw: random.Random) -> bytes:
    """Return a JPEG whose frame header says it is far larger than its data."""
    out = BytesIO()
    Image.new(draw.choice(["RGB", "L", "CMYK"]), (64, 64)).save(out, "JPEG", progressive=draw.random() < 0.5)
    data = bytearray(out.getvalue())
    position = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    side = draw.choice([8000, 13_000, 30_000, 65_000])
    data[position + 5 : position + 9] = struct.pack(">HH", side, draw.choice([side, 1, 13_000]))
    return bytes(data)


def large_head(draw: random.Random) -> bytes:
    """Return a header of another format that promises very many pixels."""
    side = draw.choice([8190, 20_000, 60_000])
    return draw.choice(
        [
            f"P6 {side} {side} 255\n".encode(),
            f"P3 {side} {side} 255\n".encode() + b"1 " * 999,
            f"P5 {side} {side} 65535\n".encode(),
            b"GIF89a" + struct.pack("<HHBBB", min(side, 65_535), min(side, 65_535), 0, 0, 0) + b",\0\0\0\0"
            + struct.pack("<HHB", 8190, 8190, 0) + b"\2\2L\1\0;",
            struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, side, side, 24, 0) + b"\xff\0\0\0" * 99,
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0),
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, side, -side, 1, 8, 1, 0, 0, 0, 0, 0) + bytes(99),
        ]
    )  # fmt: skip


def tiff_circle(draw: random.Random) -> bytes:
    """Return a TIFF whose directory points at itself, or one with tags of absurd sizes."""
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 64)]
    tags += draw.sample(
        [(274, 3, 1, 99), (274, 2, 9, 0), (700, 1, 2**31 - 1, 8), (34665, 4, 1, 8), (320, 3, 768, 8)], 2
    )
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 8) + bytes(64)


def odd_exif(draw: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = draw.choice([0, 9, 99, 6, 8])
    exif[0x9286] = "x" * draw.choice([1, 9000])
    out = BytesIO()
    Image.new("RGB", (30, 20)).save(out, draw.choice(["JPEG", "PNG", "WEBP"]), exif=exif)
    return damage(draw, out.getvalue()) if draw.random() < 0.5 else out.getvalue()


def thin_picture(draw: random.Random) -> bytes:
    return png(draw.choice([1, 50]), 60_000, 0, rows_of_zeros(60_000 * 51))


def hostile_picture(draw: random.Random) -> bytes:
    makers = [picture, png_bomb, text_bomb, frames, jpeg_bomb, large_head, tiff_circle, odd_exif, thin_picture]
    way = draw.random()
    if way < 0.3:
        return damage(draw, picture(draw))
    if way < 0.45:
        return draw.choice(PROGRAMS)
    return draw.choice(makers)(draw)


PICTURE_NAMES = (
    "a.png|b.jpg|c.JPEG|d.gif|e.webp|f.tif|g.bmp|h.ppm|i.jp2|j.tga|k.avif|l.heic|m|=cmd().png|\x1b[31m.png|"
    "n\nx.png|é猫.png|-o.png|p .png|%s{}.jpg|..png|" + "q" * 240 + ".png"
).split("|")


def put_picture(draw: random.Random, folder: Path) -> Path:
    """Put a hostile picture, or something that is no file, into a folder, under a name of any format."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / draw.choice(PICTURE_NAMES)
    if draw.random() < 0.15:
        put_odd_thing(draw, path)
    elif not os.path.lexists(path):
        path.write_bytes(hostile_picture(draw))
    return path


# ------------------------------------------------------------------ JSON

VALUES = (
    "null|true|5|-1|0|0.5|1e999|-1e999|NaN|1e30|1e-40|123456789012345678901234567890|[]|{}|[[]]|[5]|[null]|{\"a\": 1}|"
    '""|"x"|"../../x"|"/etc/passwd"|"\\u0000"|"\\ud800"|"\\u001b[31m"|"{}"|"hf-hub:a/b"|[1, 2, 3]|'
    '["a", "a"]|["a", "b"]|'
    '"{}{}"|"%s"|[0.5]|"false"|[[1, 2], [3, 4]]'
).split("|")  # fmt: skip
MARK = "c0ffee"  # stands for a value while the rest is written


def nodes(tree, path=()):
    """Yield the path of each value in nested dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from nodes(value, (*path, key))


def large_value(draw: random.Random) -> str:
    return draw.choice(["[" * 100_000, '"' + "a" * 100_000 + '"', "[" + "0," * 50_000 + "0]", "9" * 5000])


def change_json(draw: random.Random, data: bytes) -> bytes:
    """Return a JSON file with other values, keys removed or given twice; often with a checksum that holds."""
    try:
        tree = json.loads(data)
    except ValueError:
        return damage(draw, data)
    if isinstance(tree, dict):
        tree.pop("sha256", None)
    values = {}
    for number in range(draw.randint(1, 2)):
        paths = list(nodes(tree))
        if not paths or draw.random() < 0.03:
            return draw.choice([*VALUES, large_value(draw)]).encode()
        shallow = [path for path in paths if len(path) == 1]
        *parents, key = draw.choice(shallow if draw.random() < 0.5 else paths)
        node = tree
        for parent in parents:
            node = node[parent]
        if draw.random() < 0.2:
            del node[key]
            continue
        mark = f"{MARK}{number}"
        values[mark] = large_value(draw) if draw.random() < 0.05 else draw.choice(VALUES)
        node[key] = mark
    text = json.dumps(tree, indent=4)
    for mark, value in values.items():
        text = text.replace(f'"{mark}"', value)
    if draw.random() < 0.1:
        text = text.replace("{", '{"a": 1, "a": 2,', 1)
    if draw.random() < 0.6 and text.startswith("{\n"):
        return add_checksum(text, ".json")
    return text.encode()


# ------------------------------------------------------------------ weights


def pickle_bomb(draw: random.Random) -> bytes:
    """Return a small pickle that needs much memory or time, or names functions that run code."""
    lists = b"\x80\x02]q\x00" + b"".join(b"]q%c" % (k + 1) + b"(" + b"h%c" % k * 10 + b"e" for k in range(9)) + b"."
    tuples = b"\x80\x02)" + b"\x85" * 200_000 + b"."
    none_opcodes = b"\x80\x02](" + b"N" * 3_000_000 + b"e."
    doubling = b"\x80\x02]q\x00(" + b"h\x00" * 2_000_000 + b"e."
    codec = pickle.dumps("é" * 1000, 2)[:-1] + b"0c_codecs\nencode\n(X\3\0\0\0abcX\6\0\0\0latin1tR."
    runs = b"cos\nsystem\n(S'touch pwned'\ntR."
    build_ = b"\x80\x02cx\ny\n)\x81}(" + b"".join(b"X\4\0\0\0%04dK\1" % k for k in range(5000)) + b"ub" + b"."
    dicts = b"\x80\x02}q\x00(" + b"h\x00h\x00" * 2 + b"u."
    sets = pickle.dumps({frozenset({frozenset()}), "a"}, 4)
    long_ = b"\x80\x02\x8b\xff\xff\xff\x7f."
    return draw.choice([lists, tuples, none_opcodes, doubling, codec, runs, build_, dicts, sets, long_])


def make_zip(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def save_tensors(content) -> bytes:
    out = BytesIO()
    torch.save(content, out)
    return out.getvalue()


def odd_tensor(draw: random.Random, tensor: torch.Tensor):
    """Return another tensor, or something else, in place of one."""
    return draw.choice(
        [
            lambda: tensor[:1] if tensor.ndim else tensor,
            lambda: tensor.unsqueeze(0),
            lambda: tensor.to(draw.choice([torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64])),
            lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor + 1,
            lambda: tensor * 1e30 if tensor.is_floating_point() else -tensor,
            lambda: torch.zeros(0),
            lambda: torch.zeros(1).expand(1000, 1000),
            lambda: None,
            lambda: "x",
            lambda: [1, 2],
            lambda: 5,
        ]
    )()


def change_tensors(draw: random.Random, content):
    """Return nested dicts of tensors with one or two of them exchanged, removed or renamed."""
    if not isinstance(content, dict):
        return {"x": content}
    paths = [path for path in nodes(content)]
    for _ in range(draw.randint(1, 2)):
        *parents, key = draw.choice(paths)
        node = content
        for parent in parents:
            node = node[parent] if isinstance(node, (dict, list)) else {}
        if not isinstance(node, (dict, list)) or key not in (node if isinstance(node, dict) else range(len(node))):
            continue
        value, way = node[key], draw.random()
        if way < 0.2:
            del node[key]
        elif way < 0.3 and isinstance(node, dict):
            node[draw.choice(["x", 5, None, "a.b"])] = value
        elif isinstance(value, torch.Tensor):
            node[key] = odd_tensor(draw, value)
        else:
            node[key] = draw.choice([None, 5, -1, "x", [], {}, [1], {"a": 1}, float("nan"), 10**30, True, "é" * 9000])
    return content


def change_checkpoint(draw: random.Random, data: bytes) -> bytes:
    """Return a checkpoint or CLIP file with damage, other tensors, or a pickle made to hurt."""
    way = draw.random()
    if way < 0.25:
        return damage(draw, data)
    if way < 0.45:
        bomb = pickle_bomb(draw)
        return draw.choice([bomb, make_zip({"x/data.pkl": bomb, "x/version": b"3"}), make_zip({"x/data.pkl": bomb}, 8)])
    try:
        content = torch.load(BytesIO(data), weights_only=False)
    except Exception:  # it is none of torch.save
        return damage(draw, data)
    try:
        return save_tensors(change_tensors(draw, content))
    except Exception:  # keys of several types and the like
        return damage(draw, data)


def change_safetensors(draw: random.Random, data: bytes) -> bytes:
    """Return safetensors with damage, or with another header."""
    if draw.random() < 0.4:
        return damage(draw, data)
    length = int.from_bytes(data[:8], "little")
    head, body = data[8 : 8 + length], data[8 + length :]
    way = draw.random()
    if way < 0.5:
        head = re.sub(rb'^\{\n?\s*"sha256".*?,', b"{", change_json(draw, head))
    elif way < 0.7:
        head = head.replace(b"F32", draw.choice([b"F64", b"BF16", b"I8", b"X99"]), draw.choice([1, 999]))
    elif way < 0.85:
        return draw.choice([2**63, 10**9, 0, 2**64 - 1]).to_bytes(8, "little") + head + body
    else:
        head = re.sub(rb'"shape":\[\d*', b'"shape":[' + draw.choice([b"0", b"99999999999", b"-1", b"1"]), head, count=3)
    return len(head).to_bytes(8, "little") + head + body


# ------------------------------------------------------------------ any file


def change_file(draw: random.Random, path: Path) -> str:
    """Damage the file at `path` as its kind allows; return what was done."""
    if draw.random() < 0.12 or not path.is_file():
        return put_odd_thing(draw, path)
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        path.write_bytes(change_json(draw, data) if draw.random() < 0.8 else damage(draw, data))
    elif path.suffix in (".pt", ".pth") or ".pth.tar" in path.name:
        path.write_bytes(change_checkpoint(draw, data))
    elif path.suffix == ".safetensors":
        path.write_bytes(change_safetensors(draw, data))
    else:
        path.write_bytes(damage(draw, data))
    return "changed"
