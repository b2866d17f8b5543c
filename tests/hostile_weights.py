"""Hostile sources of a model, made from sound ones: what lies, is cut, is damaged, or has code in it.

Owns the sound layouts of one tiny model, and `HOSTILE_SOURCES`: by name, what is changed in which of them. All of it is
deterministic. Lies of the JSON files are in `hostile_settings`.
"""

import dataclasses
import functools
import io
import json
import os
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import flax.serialization
import numpy as np
import safetensors.numpy
from hostile_pickles import PAYLOADS, archive, legacy, scripted, text
from hostile_settings import SETTINGS
from small_models import make_model

from plip_jax.convert.hf import write_hf
from plip_jax.convert.names import from_params
from plip_jax.convert.open_clip import write_open_clip
from plip_jax.convert.torch_writer import write_torch_file

# Bytes of a file; None: it is removed; a function makes something else than a plain file at the path.
Content = bytes | None | Callable[[Path], object]
Outcome = Literal["refused", "refused or sound", "sound"]


@dataclasses.dataclass(frozen=True)
class HostileSource:
    """What to change in a sound layout, and what must come of it.

    Attributes:
        layout: a key of `SOURCE_OF`.
        changes: name of a file -> what it becomes.
        outcome: an error of ours, or the sound model's parameters to the last bit.
        source: of the folder's files, what is loaded; by default what `SOURCE_OF` says.
    """

    layout: str
    changes: Callable[[], Mapping[str, Content]]
    outcome: Outcome = "refused"
    source: str | None = None


# Layout -> what of the folder is loaded; "" is the folder.
SOURCE_OF = {"hf": "", "bin": "", "flax": "", "shards": "", "open_clip": "", "pt": "model.pt", "script": "ViT.pt"}
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


@functools.cache
def sound(layout: str) -> dict[str, bytes]:
    """The files of a sound source."""
    model = make_model()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if layout in ("open_clip", "pt", "script"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that open_clip needs the folder's own tokenizer: it is there
                write_open_clip(folder, model, "float32")
        else:
            write_hf(folder, model.config, model.params, model.tokenizer, model.preprocessing)
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        return files if layout in ("hf", "open_clip") else _with_other_weights(layout, files, folder)


def _with_other_weights(layout: str, files: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    model = make_model()
    column = "openai" if layout in ("pt", "script") else "hf"
    files.pop("open_clip_model.safetensors" if column == "openai" else "model.safetensors")
    tensors = {name: np.asarray(value) for name, value in from_params(model.params, model.config, column).items()}
    if layout == "flax":
        tree: dict[str, Any] = {}
        for name, value in from_params(model.params, model.config, "hf_flax").items():
            *parents, last = name.split("/")
            functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, tree)[last] = np.asarray(value)
        return {**files, "flax_model.msgpack": flax.serialization.msgpack_serialize(tree)}
    if layout == "shards":
        half = len(tensors) // 2
        halves = (dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:]))
        parts = {name: safetensors.numpy.save(part) for name, part in zip(PARTS, halves, strict=True)}
        places = {name: file for file, part in zip(PARTS, halves, strict=True) for name in part}
        return {**files, **parts, INDEX: json.dumps({"weight_map": places}).encode()}
    if layout == "script":
        return {**files, "ViT.pt": scripted(tensors)}
    write_torch_file(folder / "model.pt", tensors)
    return {**files, "model.pt" if layout == "pt" else "pytorch_model.bin": (folder / "model.pt").read_bytes()}


def write_source(folder: Path, case: HostileSource) -> Path:
    """Make the files of a case; what is to be loaded."""
    for name, content in {**sound(case.layout), **case.changes()}.items():
        if callable(content):
            content(folder / name)
        elif content is not None:
            (folder / name).write_bytes(content)
    return folder / (SOURCE_OF[case.layout] if case.source is None else case.source)


# ---- code in pickles ------------------------------------------------------------------------------------------------


def _with_code_inside(payload: bytes) -> bytes:
    """The sound state dict with one more entry."""
    with zipfile.ZipFile(io.BytesIO(sound("pt")["model.pt"])) as sound_archive:
        entries = {name.split("/", 1)[1]: sound_archive.read(name) for name in sound_archive.namelist()}
    pickled = entries.pop("data.pkl")
    assert pickled.endswith(b"u.")
    return archive(pickled[:-2] + text("z") + payload + b"u.", entries)


def _raw(payload: bytes) -> bytes:
    return b"\x80\x04" + payload + b"."


_HIDING_PLACES: dict[str, tuple[str, str, Callable[[bytes], bytes]]] = {
    "in a state dict": ("pt", "model.pt", _with_code_inside),
    "in place of a state dict": ("bin", "pytorch_model.bin", lambda payload: archive(_raw(payload))),
    "in a TorchScript module": (
        "script",
        "ViT.pt",
        lambda payload: scripted({"logit_scale": np.ones(1, np.float32)}, payload),
    ),
    "in the format before PyTorch 1.6": ("bin", "pytorch_model.bin", legacy),
    "in a pickle named .pt": ("pt", "model.pt", _raw),
    "in a pickle named .safetensors": ("hf", "model.safetensors", _raw),
    "in a pickle named .msgpack": ("flax", "flax_model.msgpack", _raw),
}


def _code() -> Iterator[tuple[str, HostileSource]]:
    for how, payload in PAYLOADS.items():
        for place, (layout, name, make) in _HIDING_PLACES.items():
            yield f"code by {how} {place}", HostileSource(layout, lambda n=name, m=make, p=payload: {n: m(p)})


# ---- cuts and flipped bytes -----------------------------------------------------------------------------------------

_WEIGHTS = {
    "hf": "model.safetensors",
    "bin": "pytorch_model.bin",
    "flax": "flax_model.msgpack",
    "open_clip": "open_clip_model.safetensors",
    "pt": "model.pt",
    "script": "ViT.pt",
}


def _cut(layout: str, name: str, share: float) -> Mapping[str, Content]:
    content = sound(layout)[name]
    return {name: content[: int(len(content) * share)]}


def _flipped(layout: str, name: str, seed: int) -> Mapping[str, Content]:
    """A byte changed where the file says what it is: a header, a directory, a pickle."""
    content = bytearray(sound(layout)[name])
    rng = np.random.default_rng(seed)
    start, stop = _told(layout, bytes(content))
    content[rng.integers(start, stop)] ^= int(rng.integers(1, 256))
    return {name: bytes(content)}


def _told(layout: str, content: bytes) -> tuple[int, int]:
    if layout in ("bin", "pt", "script"):
        return content.index(b"PK\x01\x02"), len(content)
    if layout == "flax":
        return 0, content.index(b"float32")
    return 0, 8 + int.from_bytes(content[:8], "little")


def _cuts_and_flips() -> Iterator[tuple[str, HostileSource]]:
    for layout, name in _WEIGHTS.items():
        for share in (0.0, 0.0005, 0.01, 0.3, 0.7, 0.99999):
            yield (
                f"{layout} cut at {share:.3%}",
                HostileSource(layout, lambda la=layout, n=name, s=share: _cut(la, n, s)),
            )
        for seed in range(6):
            flipped = HostileSource(layout, lambda la=layout, n=name, s=seed: _flipped(la, n, s), "refused or sound")
            yield f"{layout} flipped byte {seed}", flipped
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
        for share in (0.02, 0.1, 0.9):
            yield f"{name} cut at {share:.0%}", HostileSource("hf", lambda n=name, s=share: _cut("hf", n, s))


# ---- headers and indices that lie -----------------------------------------------------------------------------------


def _lying(change: Callable[[dict[str, Any]], object], *, text: Callable[[str], str] = str) -> HostileSource:
    """model.safetensors with a changed header."""

    def make() -> Mapping[str, Content]:
        content = sound("hf")["model.safetensors"]
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        change(header)
        fresh = text(json.dumps(header)).encode()
        return {"model.safetensors": struct.pack("<Q", len(fresh)) + fresh + content[end:]}

    return HostileSource("hf", make)


def _of(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["logit_scale"].update(changes)


def _length(length: int) -> HostileSource:
    return HostileSource(
        "hf", lambda: {"model.safetensors": struct.pack("<Q", length) + sound("hf")["model.safetensors"][8:]}
    )


_SCALE, _PROJECTION, _CLASS = "logit_scale", "text_projection.weight", "vision_model.embeddings.class_embedding"
_HEADERS = {
    "a header of 2^63 bytes": _length(1 << 63),
    "a header one byte long": _length(1),
    "a header over the whole file": _length(1 << 16),
    "a tensor of 2^62 values": _lying(_of(shape=[1 << 62])),
    "a tensor of 40 dimensions": _lying(_of(shape=[1] * 40)),
    "a shape with a zero": _lying(_of(shape=[0, 1 << 40])),
    "a negative shape": _lying(_of(shape=[-1])),
    "a shape of booleans": _lying(_of(shape=[True])),
    "a shape that is text": _lying(_of(shape="[]")),
    "offsets of another tensor": _lying(lambda header: header.update({_SCALE: header[_CLASS]})),
    "offsets exchanged": _lying(
        lambda header: header[_SCALE].update(data_offsets=header[_SCALE]["data_offsets"][::-1])
    ),
    "three offsets": _lying(_of(data_offsets=[0, 2, 4])),
    "offsets of 2^70": _lying(_of(data_offsets=[1 << 70, (1 << 70) + 4])),
    "offsets of fractions": _lying(_of(data_offsets=[0.0, 4.0])),
    "a type nobody knows": _lying(_of(dtype="F1024")),
    "a type that is a list": _lying(_of(dtype=["F32"])),
    "float64 announced": _lying(_of(dtype="F64")),
    "integers announced": _lying(lambda header: header[_CLASS].update(dtype="I32")),
    "float16 announced": _lying(lambda header: header[_CLASS].update(dtype="F16")),
    "a tensor missing": _lying(lambda header: header.pop(_SCALE)),
    "a tensor renamed": _lying(lambda header: header.update(renamed=header.pop(_SCALE))),
    "a name of a million letters": _lying(lambda header: header.update({"x" * 1_000_000: header.pop(_SCALE)})),
    "a name with dots and slashes": _lying(lambda header: header.update({"../../etc/passwd": header.pop(_SCALE)})),
    "an entry that is null": _lying(lambda header: header.update({_SCALE: None})),
    "an entry that is NaN": _lying(lambda header: header.update({_SCALE: float("nan")})),
    "an endless number": _lying(_of(shape=[10**4000])),
    "an endless number in offsets": _lying(_of(data_offsets=[0, 10**4200])),
    "a shape of Infinity": _lying(_of(shape=[float("inf")])),
    "a name twice": _lying(lambda _: None, text=lambda text: text[:-1] + ', "logit_scale": 3}'),
    "JSON 100,000 deep": _lying(lambda _: None, text=lambda text: text[:-1] + ', "a": ' + "[" * 100_000 + "}"),
    "half of a surrogate": _lying(lambda _: None, text=lambda text: text.replace("logit_scale", "\\ud800")),
    "a matrix turned": _lying(lambda header: header[_PROJECTION]["shape"].reverse()),
    "a vector with one more axis": _lying(lambda header: header[_CLASS].update(shape=[1, *header[_CLASS]["shape"]])),
}


def _index(weight_map: Any) -> HostileSource:
    return HostileSource("shards", lambda: {INDEX: json.dumps(weight_map).encode()})


def _first_part(content: Content) -> HostileSource:
    return HostileSource("shards", lambda: {PARTS[0]: content})


def _without_the_second_part() -> HostileSource:
    def make() -> Mapping[str, Content]:
        names = safetensors.numpy.load(sound("shards")[PARTS[0]])
        return {INDEX: json.dumps({"weight_map": dict.fromkeys(names, PARTS[0])}).encode()}

    return HostileSource("shards", make)


def _link_outside(path: Path) -> None:
    """As the hub's cache links; the file is what it is, wherever it lies."""
    outside = path.parent.with_name(f"{path.parent.name}_outside")
    outside.mkdir()
    (outside / "blob").write_bytes(sound("shards")[PARTS[0]])
    path.symlink_to(outside / "blob")


def _folder_link(path: Path) -> None:
    path.symlink_to("/")


_INDICES = {
    "an index to the parent's files": _index({"weight_map": {"a": "../secret.safetensors"}}),
    "an index to absolute files": _index({"weight_map": {"a": "/etc/passwd"}}),
    "an index to the root by a link": HostileSource(
        "shards", lambda: {"link": _folder_link, INDEX: b'{"weight_map": {"a": "link/etc/passwd"}}'}
    ),
    "an index to dots": _index({"weight_map": {"a": ".."}}),
    "an index to nothing": _index({"weight_map": {"a": ""}}),
    "an index to itself": _index({"weight_map": {"a": INDEX}}),
    "an index with a zero byte": _index({"weight_map": {"a": "a\0b"}}),
    "an index to a name of 10,000 letters": _index({"weight_map": {"a": "x" * 10_000}}),
    "an index to a half surrogate": _index({"weight_map": {"a": "\ud800"}}),
    "an index of lists": _index({"weight_map": {"a": ["b"]}}),
    "an index without a map": _index({"metadata": {}}),
    "an empty map": _index({"weight_map": {}}),
    "an index of one part only": _without_the_second_part(),
    "an index that is deep": HostileSource("shards", lambda: {INDEX: b'{"weight_map":' + b"[" * 100_000}),
    "an index of two maps": HostileSource("shards", lambda: {INDEX: b'{"weight_map": {}, "weight_map": 3}'}),
    "a part missing": _first_part(None),
    "a part that is a folder": _first_part(Path.mkdir),
    "a part that links to itself": _first_part(lambda path: path.symlink_to(path.name)),
    "a part that links to a device": _first_part(lambda path: path.symlink_to("/dev/zero")),
    "a part that is a text": _first_part(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"),
    "a part that links out, as the hub's cache does": HostileSource(
        "shards", lambda: {PARTS[0]: _link_outside}, "sound"
    ),
}


# ---- other files under the right names, and archives that are no weights ---------------------------------------------


def _bomb() -> bytes:
    """17 MB of zeros in 17 kB."""
    return archive(b"\x80\x02}" + bytes(17 << 20) + b".", compression=zipfile.ZIP_DEFLATED)


_DISGUISES: dict[str, bytes] = {
    "a page": b"<!DOCTYPE html><title>404</title>",
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 605157884\n",
    "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a program": b"\x7fELF\x02\x01\x01" + bytes(100),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "zeros": bytes(1000),
    "npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
}
_ARCHIVES: dict[str, Callable[[], bytes]] = {
    "a bomb": _bomb,
    "an entry above its folder": lambda: archive(b"\x80\x02}.", {"../../escaped": b"x"}),
    "an absolute entry": lambda: archive(b"\x80\x02}.", {"/tmp/escaped": b"x"}),
    "no tensors": lambda: archive(b"\x80\x02}."),
    "a pickle of a number": lambda: archive(b"\x80\x02K\x01."),
    "a dict of a million names": lambda: archive(
        b"\x80\x02}(" + b"".join(text(f"{n}") + b"N" for n in range(200_000)) + b"u."
    ),
    "a storage that is elsewhere": lambda: scripted({"logit_scale": np.ones(1, np.float32)}).replace(
        text("0"), text("9"), 1
    ),
    "an encrypted entry": lambda: _encrypted(archive(b"\x80\x02}.")),
}


def _encrypted(content: bytes) -> bytes:
    central = content.rindex(b"PK\x01\x02")
    return content[: central + 8] + b"\x01\x00" + content[central + 10 :]


def _what_is_no_file(make: Callable[[Path], object]) -> dict[str, HostileSource]:
    return {
        "in a folder": HostileSource("hf", lambda: {"model.safetensors": make}),
        "by its path": HostileSource("pt", lambda: {"model.pt": make}),
    }


def _others() -> Iterator[tuple[str, HostileSource]]:
    for what, content in _DISGUISES.items():
        for layout in ("hf", "bin", "flax", "pt"):
            yield (
                f"{what} named {_WEIGHTS[layout]}",
                HostileSource(layout, lambda n=_WEIGHTS[layout], c=content: {n: c}),
            )
    for what, make in _ARCHIVES.items():
        yield f"an archive with {what}", HostileSource("bin", lambda m=make: {"pytorch_model.bin": m()})
    kinds = {
        "a pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "a link to nothing": lambda path: path.symlink_to("nowhere"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    }
    for what, make in kinds.items():
        for how, case in _what_is_no_file(make).items():
            yield f"{what} {how}", case


def _settings() -> Iterator[tuple[str, HostileSource]]:
    for name, lie in SETTINGS.items():
        yield name, HostileSource(lie.layout, lambda li=lie: {li.file: li.change(sound(li.layout)[li.file])})


HOSTILE_SOURCES: dict[str, HostileSource] = {
    **dict(_code()),
    **dict(_cuts_and_flips()),
    **_HEADERS,
    **_INDICES,
    **dict(_others()),
    **dict(_settings()),
}
