"""Pickles with code, and archives of torch's layouts around them, made without torch and without running anything.

Owns the opcodes. Where one of `PAYLOADS` is unpickled it makes a file named `CANARY` in the working directory.
"""

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

CANARY = "canary"
_TOUCH = f"touch {CANARY}"


def text(value: str) -> bytes:
    """The opcode BINUNICODE."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


_MAPPED = b"cbuiltins\nmap\ncos\nsystem\n](" + text(_TOUCH) + b"e\x86"

# Each leaves one value on the stack, so it can stand anywhere in a pickle.
PAYLOADS: dict[str, bytes] = {
    "os.system": b"cos\nsystem\n" + text(_TOUCH) + b"\x85R",
    "posix.system": b"cposix\nsystem\n" + text(_TOUCH) + b"\x85R",
    "builtins.eval": b"cbuiltins\neval\n" + text(f"open('{CANARY}', 'w').close()") + b"\x85R",
    "builtins.exec": b"cbuiltins\nexec\n" + text(f"open('{CANARY}', 'w').close()") + b"\x85R",
    "os.symlink": b"cos\nsymlink\n" + text("nowhere") + text(CANARY) + b"\x86R",
    "subprocess.call": b"csubprocess\ncall\n](" + text("touch") + text(CANARY) + b"e\x85R",
    "STACK_GLOBAL": text("os") + text("system") + b"\x93" + text(_TOUCH) + b"\x85R",
    "INST": b"(" + text(_TOUCH) + b"ios\nsystem\n",
    "OBJ": b"(cos\nsystem\n" + text(_TOUCH) + b"o",
    "NEWOBJ": b"cbuiltins\ntuple\n" + _MAPPED + b"\x81\x85\x81",
    "NEWOBJ_EX": b"cbuiltins\ntuple\n" + _MAPPED + b"}\x92\x85}\x92",
    "BUILD": b"ctypes\nSimpleNamespace\n)\x81}" + text("__setstate__") + b"cos\nsystem\nsb" + text(_TOUCH) + b"b",
    "getattr of an import": (
        b"cbuiltins\ngetattr\ncbuiltins\n__import__\n"
        + text("os")
        + b"\x85R"
        + text("system")
        + b"\x86R"
        + text(_TOUCH)
        + b"\x85R"
    ),
    "the text opcodes of protocol 0": b"cos\nsystem\n(S'" + _TOUCH.encode() + b"'\ntR",
}


def archive(
    data_pkl: bytes, entries: Mapping[str, bytes] | None = None, *, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """The zip archive of ``torch.save`` around a pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, content in {"data.pkl": data_pkl, **(entries or {})}.items():
            file.writestr(zipfile.ZipInfo(f"archive/{name}"), content, compression)
    return stream.getvalue()


def legacy(payload: bytes) -> bytes:
    """The file of PyTorch before 1.6: pickles of a magic number, a version, the machine, the state dict."""
    # torch/serialization.py: MAGIC_NUMBER, PROTOCOL_VERSION 1001.
    magic = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
    return magic + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + b"\x80\x02" + payload + b"."


def scripted(tensors: Mapping[str, np.ndarray], payload: bytes = b"N") -> bytes:
    """The archive of ``torch.jit.save``: a tree of modules, with `payload` as an attribute of its root."""
    tree: dict[str, Any] = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = _tensor(number, tensor)
    stored = {f"data/{number}": tensor.tobytes() for number, tensor in enumerate(tensors.values())}
    root = _module({**tree, "extra": payload})
    return archive(b"\x80\x02" + root + b".", {"code/__torch__.py": b"import os\n", "version": b"3\n", **stored})


def _module(tree: Mapping[str, Any]) -> bytes:
    items = (text(name) + (value if isinstance(value, bytes) else _module(value)) for name, value in tree.items())
    return b"c__torch__\nModule\n)\x81}(" + b"".join(items) + b"ub"


def _tensor(number: int, tensor: np.ndarray) -> bytes:
    def sizes(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    where = text("storage") + b"ctorch\nFloatStorage\n" + text(str(number)) + text("cpu")
    storage = b"(" + where + b"J" + struct.pack("<i", tensor.size) + b"tQ"
    strides = sizes(tuple(stride // tensor.itemsize for stride in tensor.strides))
    no_hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + sizes(tensor.shape) + strides + no_hooks + b"tR"
