"""Files of ``torch.save``, read without running code: what they name is refused or allowed by name.

``torch.load(weights_only=True)`` alone leaves open: archives that unpack to many times their size,
tensors that claim more than their file holds, and messages that do not say all that a file wants.
"""

import pickle
import pickletools
import re
import zipfile
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_PICKLE = 256 << 20  # bytes; a state dict of 10,000 tensors needs 2 MB
MAX_SHARED = 16  # views may name the bytes of a file so many times over
MAX_PARTS = 100_000  # of a tuple and the tuples in it; a rebuilt tensor's arguments are ten
ENCODE = "_codecs.encode"
_allowed: ContextVar[tuple[tuple[Any, str], ...]] = ContextVar("allowed", default=())


class CheckpointError(ValueError):
    """A file that is not what its name says, or that cannot be read safely."""


@contextmanager
def allow_globals(*names: str) -> Iterator[None]:
    """Trust files, within this block, to call these functions and classes while they are read.

    Args:
        names: dotted, as a refusal lists them, such as ``argparse.Namespace``. Whoever made the
            file decides on the arguments: allow ``os.system`` and it runs what they wrote.

    Raises:
        ValueError: there is no such thing to import.
    """
    token = _allowed.set((*_allowed.get(), *((_imported(name), name) for name in names)))
    try:
        yield
    finally:
        _allowed.reset(token)


def add_allow_globals(parser: ArgumentParser) -> None:
    """Give a command line the option that refusals name: arguments of :func:`allow_globals`."""
    parser.add_argument(
        "--allow-globals",
        nargs="+",
        default=[],
        metavar="MODULE.NAME",
        help="trust files to call these while they are read, as a refusal lists them",
    )


def _imported(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"allow_globals: nothing to import by the name {name!r}; expected "
            "'module.name', as the refusal lists it"
        ) from error


def safe_load(
    path: str | Path, harmless: Sequence[Any] = (), map_location: Any = "cpu", mmap: bool = False
) -> Any:
    """Read a file of ``torch.save``: tensors, numbers, strings and containers.

    Args:
        path: the file.
        harmless: what else it may name, as in ``torch.serialization.safe_globals``.
        map_location: device for the tensors.
        mmap: leave the tensors on the disk until they are used.

    Returns:
        Its content.

    Raises:
        CheckpointError: it names other functions or classes (all are listed), is damaged, or claims
            to hold more than its own size.
    """
    path = Path(path)
    _refuse_archive(path)
    _refuse_pickle(path)
    try:
        with torch.serialization.safe_globals([*harmless, *_allowed.get()]):
            content = torch.load(path, map_location, weights_only=True, mmap=mmap or None)
            named: list[str] = []
    except Exception as error:  # whatever a damaged pickle makes the reader do
        with torch.serialization.safe_globals([*harmless, *_allowed.get()]):
            named = _unsafe_globals(path, error)
        if not named:
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise CheckpointError(
                f"{path} is damaged, or no file of torch.save ({type(error).__name__}: {reason})"
            ) from error
        raise CheckpointError(
            f"{path} is refused: reading it would run {', '.join(named)}. Only where you trust "
            "whoever made the file: --allow-globals " + " ".join(named) + " (in Python: with "
            "tokensparse.checkpoint.allow_globals(...)), or save its state dict alone"
        ) from error
    _refuse_tensors(path, content)
    return content


def _is_archive(path: Path) -> bool:
    """As torch finds it out: by the first bytes, whatever follows them."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _refuse_archive(path: Path) -> None:
    """torch.save stores without compression, so an archive is never larger than its file."""
    if not _is_archive(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    size, there = sum(entry.file_size for entry in entries), path.stat().st_size
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    pickles = [e for e in entries if e.filename.endswith(".pkl")]
    if len(pickles) != 1 or not re.fullmatch(r"[^/]*/data\.pkl", pickles[0].filename):
        names = ", ".join(e.filename for e in pickles) or "none"
        raise CheckpointError(
            f"{path} is refused: its pickles are {names}; torch.save writes one, data.pkl"
        )
    if packed or size > there or pickles[0].file_size > MAX_PICKLE:
        what = f"{packed[0]!r} is compressed" if packed else "its pickle is absurdly large"
        raise CheckpointError(
            f"{path} is refused: it unpacks to {size:,} bytes from {there:,} ({what}); torch.save "
            "writes no such file"
        )


def _refuse_tensors(path: Path, content: Any) -> None:
    """Refuse tensors that are not plain, or larger than what lies in the file."""
    total, seen, waiting = 0, set(), [content]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            plain = item.layout is torch.strided and not item.is_meta and not item.is_quantized
            size = item.numel() * item.element_size()
            if not plain or size > item.untyped_storage().nbytes():
                raise CheckpointError(
                    f"{path} is refused: a tensor of shape {tuple(item.shape)} is "
                    + ("larger than its bytes in the file" if plain else "no plain dense tensor")
                )
            total += size
        elif isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set)):
            waiting += list(item)
    there = path.stat().st_size
    if total > MAX_SHARED * there:
        raise CheckpointError(
            f"{path} is refused: its {there:,} bytes claim {total:,} bytes of tensors"
        )


def _unsafe_globals(path: Path, error: Exception) -> list[str]:
    """What a refused file wants to call, sorted; empty where it is damaged instead."""
    try:
        found = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # old formats and protocols; the pickle itself is asked
        found = {
            name for name in _named_in(path) if not name.startswith(("torch.", "collections."))
        }
    if isinstance(error, pickle.UnpicklingError):
        found |= set(re.findall(r"GLOBAL ([\w.]+)", str(error)))
    return sorted(name for name in found if "." in name)


def _named_in(path: Path) -> set[str]:
    """Globals in the first pickles of a file or of its archive, by reading their opcodes."""
    strings: list[str] = ["", ""]
    return {_named_by(opcode, value, strings) for opcode, value in _opcodes(path)} - {""}


def _named_by(opcode: pickletools.OpcodeInfo, value: Any, strings: list[str]) -> str:
    """The global that an opcode names, or nothing; ``strings`` remembers those before it."""
    if "GLOBAL" in opcode.name or opcode.name == "INST":
        return str(value).replace(" ", ".") if value else ".".join(strings[-2:])
    if isinstance(value, str):
        strings.append(value)
    return ""


def _opcodes(path: Path) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """What the pickle of an archive, or the first pickles of a file, would do; nothing is done."""
    if _is_archive(path):
        try:
            with zipfile.ZipFile(path) as archive:
                pickles = [e for e in archive.namelist() if e.endswith(".pkl")]
                blob = archive.read(pickles[0]) if pickles else b""
        except (zipfile.BadZipFile, OSError, EOFError):
            return
    else:
        with path.open("rb") as stream:
            blob = stream.read(MAX_PICKLE)
    pickles_in_a_row = BytesIO(blob)
    for _ in range(5):  # the old format is five pickles in a row
        try:
            for opcode, value, _place in pickletools.genops(pickles_in_a_row):
                yield opcode, value
        except Exception:  # cut short, or what follows is no pickle
            return


class Seen(NamedTuple):
    """What is known of a value that a pickle would make.

    Attributes:
        size: its parts and theirs; one that is shared counts as often as it is met.
        text: of a literal string.
        called: name of a function.
        refused: it is a call that is refused.
        parts: of a short tuple.
    """

    size: int = 1
    text: str | None = None
    called: str = ""
    refused: bool = False
    parts: "tuple[Seen, ...]" = ()


def _refuse_pickle(path: Path) -> None:
    """Refuse what ``weights_only`` lets pass: bytes out of nothing, and tuples without end.

    A tuple of tuples that share their parts takes for ever to hash or to print.
    """
    strings: list[str] = ["", ""]
    stack: list[Seen | None] = []  # None: a mark
    memo: dict[Any, Seen] = {}
    for opcode, value in _opcodes(path):
        name = opcode.name
        called = _named_by(opcode, value, strings)
        if called.endswith(".bytearray"):
            raise CheckpointError(
                f"{path} is refused: it asks for bytes that it does not hold (bytearray); "
                "torch.save of a state dict writes no such file"
            )
        if name == "MARK":
            stack.append(None)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else value] = (stack or [None])[-1] or Seen()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(value, Seen()))
        else:
            made = _made(opcode, value, called, _pop(stack, opcode.stack_before))
            if made.size > MAX_PARTS:
                raise CheckpointError(
                    f"{path} is refused: tuples of tuples with {made.size:,} parts or more; "
                    "torch.save of a state dict writes no such file"
                )
            if made.refused:
                raise CheckpointError(
                    f"{path} is refused: it asks for bytes that it does not hold ({ENCODE}); "
                    "torch.save of a state dict writes no such file"
                )
            stack += [made] * sum(kind.name != "mark" for kind in opcode.stack_after)


def _made(opcode: pickletools.OpcodeInfo, value: Any, called: str, parts: list[Seen]) -> Seen:
    """What an opcode leaves on the stack."""
    name = opcode.name
    if "TUPLE" in name:
        short = tuple(parts[::-1]) if len(parts) <= 4 else ()
        return Seen(1 + sum(part.size for part in parts), parts=short)
    if name == "REDUCE" and len(parts) == 2:
        arguments, function = parts
        if function.called == ENCODE:  # how protocol 2 writes bytes: a literal and its encoding
            given = [part.text for part in arguments.parts]
            plain = len(given) == 2 and given[0] is not None and given[1] in ("latin1", "latin-1")
            return Seen(refused=not plain)
        return Seen(arguments.size)
    if called:
        return Seen(called=called)
    return Seen(text=value) if isinstance(value, str) else Seen()


def _pop(stack: list[Seen | None], before: list[Any]) -> list[Seen]:
    """Take off what an opcode takes off, the last one first."""
    names = [kind.name for kind in before]
    taken: list[Seen] = []
    if "mark" in names:
        while stack and (top := stack.pop()) is not None:
            taken.append(top)
        names = names[: names.index("mark")]
    taken += [stack.pop() or Seen() for _ in names if stack]
    return taken
