"""Files that attack their reader, and the doors that they are carried to.

As a program: ``python hostile_files.py FOLDER`` opens every file by every door with little memory
and prints a line of JSON for each: file, door, seconds, message.
"""

import builtins
import io
import json
import os
import pickle
import resource
import runpy
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
CONFIG = f"""
_base_ = {str(ROOT / "configs/sparseswin_cls.py")!r}
_arch = dict(embed_dim=16, depth=1, num_heads=1)
model = dict(backbone=dict(
    _delete_=True, type="tokensparse.VisionTransformer", arch=_arch, img_size=32, patch_size=16))
train_dataloader = dict(dataset=dict(img_size=32))
val_dataloader = dict(dataset=dict(img_size=32))
test_dataloader = val_dataloader
"""
SPARE = 2 << 30  # bytes that reading may map beside what is mapped after the imports


class Call:
    """Pickles to a call."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


class Chain:
    """``getattr(getattr(builtins, 'exec')...)``: the function is not named, but looked up."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple:
        return Call(getattr, builtins, "exec"), (self.code,)


def calls(folder: Path, canary: str) -> dict[str, str]:
    """Files that call something; what the refusal must name, by file name."""
    weight = {"head.weight": torch.ones(2, 2)}
    code = f"open({canary!r}, 'w').close()"
    touch = f"touch {canary}"
    inner = pickle.dumps(Call(os.system, touch), 2)
    made = {
        "system.pth": (Call(os.system, touch), "posix.system"),
        "exec.pth": (Call(exec, code), "exec"),
        "getattr.pth": (Call(os.popen, touch), "os.popen"),
        "nested.pth": (Call(pickle.loads, inner), "pickle.loads"),
        "metadata.pth": ({"config": Call(os.system, touch), "epoch": 3}, "posix.system"),
    }
    for name, (content, _) in made.items():
        torch.save({"state_dict": weight, "meta": content}, folder / name)
    tensor = torch.ones(3)
    tensor.note = Call(os.system, touch)  # type: ignore[attr-defined]  # rides in its state
    torch.save({"state_dict": {"head.weight": tensor}}, folder / "tensor.pth")
    torch.save(Call(os.system, touch), folder / "old.pth", _use_new_zipfile_serialization=False)
    protocol = dict(pickle_protocol=4)
    torch.save({"a": weight, "b": Call(os.system, touch)}, folder / "protocol4.pth", **protocol)
    (folder / "bare.pkl").write_bytes(pickle.dumps(Call(os.system, touch)))
    named = {name: word for name, (_, word) in made.items()}
    more = dict.fromkeys(("tensor.pth", "old.pth", "protocol4.pth", "bare.pkl"), "posix.system")
    return named | more


def absurd(folder: Path) -> list[str]:
    """Files that run nothing, and are damaged, endless or empty claims."""
    good = folder / "good.pth"
    torch.save({"head.weight": torch.randn(64, 64), "head.bias": torch.ones(64)}, good)
    whole = good.read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "flipped.pth").write_bytes(whole[:60] + bytes(200) + whole[260:])
    (folder / "empty.pth").write_bytes(b"")
    with (
        zipfile.ZipFile(good) as source,
        zipfile.ZipFile(folder / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in source.namelist():
            big = name.endswith("data/0")
            bomb.writestr(name, bytes(1 << 28) if big else source.read(name))
    with (
        zipfile.ZipFile(good) as source,
        zipfile.ZipFile(folder / "hashed.pth", "w", zipfile.ZIP_STORED) as hashed,
    ):
        for name in source.namelist():
            pickled = name.endswith("data.pkl")
            hashed.writestr(name, tuples_as_key(60) if pickled else source.read(name))
    torch.save({"w": torch.ones(1).half().expand(1 << 40)}, folder / "expanded.pth")
    torch.save({"w": torch.empty(1 << 40, device="meta")}, folder / "meta.pth")
    for name, content in endless().items():
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
    index = torch.zeros(1, 1, dtype=torch.long)
    sparse = torch.sparse_coo_tensor(index, torch.ones(1), (1 << 40,), check_invariants=False)
    torch.save({"w": sparse}, folder / "sparse.pth")
    shared = torch.ones(1 << 18).half()
    torch.save({str(i): shared[:] for i in range(1 << 12)}, folder / "shared.pth")
    torch.save({"w": Call(bytearray, 1 << 40)}, folder / "bytes.pth")
    torch.save({"w": Call(bytearray, 1 << 20)}, folder / "fewer_bytes.pth")
    with (
        zipfile.ZipFile(good) as source,
        zipfile.ZipFile(folder / "two_pickles.pth", "w", zipfile.ZIP_STORED) as two,
    ):
        two.writestr("archive/0.pkl", pickle.dumps({}, 2))
        for name in source.namelist():
            pickled = name.endswith("data.pkl")
            two.writestr(name, tuples_as_key(60) if pickled else source.read(name))
    magic = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    tail = io.BytesIO()
    with zipfile.ZipFile(tail, "w") as appended:
        appended.writestr("archive/data.pkl", pickle.dumps({}, 2))
    (folder / "appended.pth").write_bytes(magic + tuples_as_key(60) + tail.getvalue())
    header = b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'
    safe = {
        "length": struct.pack("<Q", 1 << 60) + b"{}",
        "shape": struct.pack("<Q", len(header)) + header + bytes(4),
        "text": struct.pack("<Q", 9) + b'{"w":1e99' + bytes(4),
        "deep": struct.pack("<Q", 1 << 20) + b"{" + b"[" * ((1 << 20) - 1),
        "short": b"\1\2",
    }
    for name, content in safe.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    made = sorted(path.name for path in folder.iterdir() if path.name != "good.pth")
    return [name for name in made if name not in calls_names()]


def text(value: str) -> bytes:
    """Pickled, protocol 2."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def shared(number: int, width: int, opening: bytes, closing: bytes) -> bytes:
    """Containers within containers, each holding the one before ``width`` times over."""
    place = [struct.pack("<I", n) for n in range(number)]
    code = opening + b"K\x00" * width + closing + b"r" + place[0]
    for n in range(1, number):
        code += opening + (b"j" + place[n - 1]) * width + closing + b"r" + place[n]
    return code


def endless() -> dict[str, bytes]:
    """Pickles of some hundred bytes that ask for any amount of time or memory, by file name."""
    encoded = b"c_codecs\nencode\n" + text("a" * 1000) + text("utf-8") + b"\x86R"
    for _ in range(24):  # twice as long each time
        encoded = b"c_codecs\nencode\n" + encoded + text("hex") + b"\x86R"
    kind = b"cnumpy\ndtype\n" + text("V2000000000") + b"\x85R"
    many = pickle.dumps(800_000_000, 2)[2:-1]
    values = {
        "encoded.pth": encoded,
        "scalar.pth": b"cnumpy._core.multiarray\nscalar\n" + kind + b"\x85R",
        "array.pth": b"cnumpy\nndarray\n" + many + b"\x85" + text("O") + b"\x86R",
    }
    made = {name: b"\x80\x02}" + text("x") + code + b"s." for name, code in values.items()}
    made["wide_key.pth"] = b"\x80\x02" + shared(8, 100, b"(", b"t") + b"}j\7\0\0\0K\x01s."
    return made


def nested_lists() -> bytes:
    """A checkpoint whose iteration is 10 ** 29 zeros; printing them takes for ever."""
    last = b"j" + struct.pack("<I", 29)
    counts = text("meta") + b"}(" + text("iter") + last + text("epoch") + last + b"u"
    parts = text("state_dict") + b"}" + text("optimizer") + b"}" + counts
    return b"\x80\x02" + shared(30, 10, b"](", b"e") + b"}(" + parts + b"u."


def tuples_as_key(depth: int) -> bytes:
    """Pickle of a dict whose key holds itself twice, depth times over: 2**depth hashes."""
    code = b"\x80\x02}K\x01\x85q\x000"
    for i in range(depth):
        code += b"h%ch%c\x86q%c0" % (i, i, i + 1)
    return code + b"h%cK\x01s." % depth


def calls_names() -> tuple[str, ...]:
    """Names that :func:`calls` writes."""
    made = ("system", "exec", "getattr", "nested", "metadata", "tensor", "old", "protocol4")
    return (*(f"{name}.pth" for name in made), "bare.pkl")


def doors() -> Iterator[tuple[str, Callable[[str], Any]]]:
    """Every way by which a file comes in."""
    from tokensparse import load_released
    from tokensparse.backbones import VisionTransformer
    from tokensparse.engine.runner import read_checkpoint

    sizes = dict(arch=dict(embed_dim=16, depth=1, num_heads=1), img_size=32, patch_size=16)

    def head_started(path: str) -> None:
        """A part that mmengine's own initialiser fills."""
        from tokensparse.classification import LinearHead
        from tokensparse.engine.checkpoint_reading import read_safely_everywhere

        read_safely_everywhere()  # as every run of tools/train.py and tools/test.py does
        init = dict(type="Pretrained", checkpoint=path)
        LinearHead(num_classes=64, in_channels=64, init_cfg=init).init_weights()

    def started(kind: dict[str, Any]) -> Callable[[str], None]:
        key = "checkpoint" if kind["type"] == "Pretrained" else "weights"
        return lambda path: VisionTransformer(**sizes, init_cfg={**kind, key: path}).init_weights()

    def converted(path: str) -> None:
        sys.argv = ["convert_checkpoint.py", "timm-vit", path, f"{path}.out.pth"]
        runpy.run_path(str(ROOT / "tools/convert_checkpoint.py"), run_name="__main__")

    def trained(*arguments: str) -> Callable[[str], None]:
        def enter(path: str) -> None:
            tool, *rest = (word.format(path=path) for word in arguments)
            config = Path(path).parent.with_name("config.py")
            config.write_text(CONFIG)
            sys.argv = [tool, str(config), *rest, "--work-dir", str(config.with_suffix(""))]
            runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")

        return enter

    yield "train load_from", trained("train.py", "--cfg-options", "load_from={path}")
    yield "train --resume", trained("train.py", "--resume", "{path}")
    yield "test", trained("test.py", "{path}")
    yield "load_released", lambda path: load_released("timm-vit", path)
    yield "Pretrained", started(dict(type="Pretrained"))
    yield "ReleasedInit", started(dict(type="tokensparse.ReleasedInit", kind="timm-vit"))
    yield "init_cfg of a head", head_started
    yield "convert_checkpoint", converted
    yield "read_checkpoint", read_checkpoint


def mapped() -> int:
    """Bytes of address space in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main(folder: Path) -> None:
    """Open everything by every door."""
    import tokensparse  # noqa: F401

    ways = list(doors())
    limit = mapped() + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in sorted(folder.iterdir()):
        for door, enter in ways:
            if door.startswith(("train", "test")) and path.name not in ("metadata.pth", "bomb.pth"):
                continue
            start, message = time.process_time(), "no refusal"
            try:
                enter(str(path))
            except (ValueError, SystemExit) as error:
                message = str(error)
            except BaseException as error:
                message = f"crash: {type(error).__name__}: {error}"
            took = time.process_time() - start
            print(json.dumps(dict(file=path.name, door=door, seconds=took, message=message)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
