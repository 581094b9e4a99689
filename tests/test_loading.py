"""Files that are none, and files that say what is not so: refused by name, by every loader, in bounded memory."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

import sparring as sp
from sparring import data
from sparring._loading import readable
from sparring.cli._weights import load_network
from sparring.networks import build, load_weights
from sparring.report import page
from sparring.runs import RunError
from sparring.training import FoolingSet

SHAPE = (1, 4, 4)


def network() -> nn.Module:
    return build("softmax", SHAPE, 3)


LOADERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "read_idx": ("a-idx3", lambda path: data.read_idx(path, 3)),
    "halves": ("train_a.txt", lambda path: data.Halves.load(path.parent, 10)),
    "fooling set": ("set.safetensors", FoolingSet.load),
    "ensemble": ("mix.safetensors", lambda path: sp.StackedEnsemble.load(path, network())),
    "weights": ("net.safetensors", lambda path: load_weights(network(), path)),
    "weights of a command": ("own.safetensors", lambda path: load_network(path, "softmax", SHAPE, 3)),
}


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def nothing(path: Path) -> None:
    """No file at all."""


def an_empty_file(path: Path) -> None:
    path.write_bytes(b"")


def a_pickle(path: Path) -> None:
    class Armed:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(path.with_name("armed")),)

    path.write_bytes(pickle.dumps(Armed()))


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 50)


MADE = [a_folder, a_pipe, a_device, a_loop, nothing, an_empty_file, a_pickle, noise]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "made",
    [a_folder, a_pipe, a_device, a_loop, nothing, an_empty_file, a_pickle, noise],
    ids=lambda made: made.__name__,
)
def test_what_is_no_such_file_is_refused_by_name(loader: str, made: Callable[[Path], None], tmp_path: Path) -> None:
    name, load = LOADERS[loader]
    for part in ("train_a", "valid_a", "train_b", "valid_b"):
        (tmp_path / f"{part}.txt").write_text("")
    path = tmp_path / name
    path.unlink(missing_ok=True)
    made(path)
    if (loader, made) == ("halves", an_empty_file):
        assert len(load(path).train_a) == 0  # no index is no mistake
        return
    with pytest.raises((ValueError, OSError), match=name):
        load(path)
    assert not (tmp_path / "armed").exists()


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "\ud800"], ids=["zero byte", "long", "surrogate"])
def test_names_that_no_file_has(name: str) -> None:
    with pytest.raises((ValueError, OSError)):
        readable(name)
    with pytest.raises((ValueError, OSError)):
        FoolingSet.load(f"{name}.safetensors")


def tensors_and_about(kind: str) -> tuple[dict[str, Tensor], dict[str, str], Callable[[Path], Any]]:
    if kind == "fooling set":
        lit = torch.tensor([[[[0.0, 0.5], [1.0, 0.0]]], [[[0.0, 0.0], [0.25, 0.0]]]])
        long = torch.tensor([1, 0])
        made = FoolingSet(lit, long, torch.tensor([0.5, 1.0]), torch.tensor([2, 1]), long, torch.tensor([False, True]))
        return (
            {name: tensor.clone() for name, tensor in made.tensors().items()},
            {"format": "sparring fooling set 1"},
            FoolingSet.load,
        )
    if kind == "ensemble":
        stack = sp.StackedEnsemble([network() for _ in range(2)])
        about = {"format": "sparring stacked ensemble 1", "combine": "probs"}
        return stack.state_dict(), about, lambda path: sp.StackedEnsemble.load(path, network())
    return network().state_dict(), {}, lambda path: load_weights(network(), path)


def put(value: float, *index: int) -> Callable[[Tensor], Tensor]:
    """The tensor with that value at the index."""

    def change(t: Tensor) -> Tensor:
        t = t.clone()
        t[index] = value
        return t

    return change


WRONG: list[tuple[str, str, Callable[[Tensor], Any]]] = [
    *(("fooling set", "images", change) for change in (
        put(1.5, 0, 0, 0, 0), put(-0.1, 0, 0, 0, 0), put(float("nan"), 1, 0, 0, 0), put(float("inf"), 1, 0, 0, 0),
        lambda t: t[:1], lambda t: t.flatten(1), lambda t: t[..., :0], lambda t: t.half(), lambda t: t.to(torch.uint8),
        lambda t: None,
    )),
    *(("fooling set", name, change) for name in ("targets", "sparsity", "stop_step") for change in (
        put(-5, 0), lambda t: t[:1], lambda t: t[:, None], lambda t: t.int(), lambda t: t.double(), lambda t: None,
    )),
    *(("fooling set", "prob", change) for change in (
        put(float("nan"), 0), put(1.01, 0), put(-0.01, 0), lambda t: t[:1], lambda t: t.half(), lambda t: None,
    )),
    *(("fooling set", "success", change) for change in (lambda t: t.int(), lambda t: t[:1], lambda t: None)),
    ("fooling set", "sparsity", put(3, 0)),
    *(("ensemble", "weights", change) for change in (
        put(-0.5, 0), put(float("nan"), 0), put(9.0, 0), put(float("inf"), 0), lambda t: t[:1], lambda t: t[:0],
        lambda t: t.sum(), lambda t: t.long(), lambda t: None,
        lambda t: torch.full((10**6,), 1e-6, dtype=torch.float64),
    )),
    *(("ensemble", "net.linear1.weight", change) for change in (
        put(float("nan"), 1, 0, 0), lambda t: t[:1], lambda t: t[..., 1:], lambda t: t.double(), lambda t: t.long(),
        lambda t: None,
    )),
    *(("weights", "linear1.weight", change) for change in (
        put(float("nan"), 1, 0), lambda t: t[:1], lambda t: t[None], lambda t: t.double(), lambda t: t.long(),
        lambda t: None,
    )),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name", "change"), WRONG, ids=[f"{kind}-{name}-{i}" for i, (kind, name, _) in enumerate(WRONG)]
)
def test_tensors_that_are_not_what_they_should_be(
    kind: str, name: str, change: Callable[[Tensor], Any], tmp_path: Path
) -> None:
    tensors, about, load = tensors_and_about(kind)
    path = tmp_path / "whole.safetensors"
    save_file(tensors, path, about)
    load(path)
    changed = {key: change(tensor) if key == name else tensor for key, tensor in tensors.items()}
    path = tmp_path / "wrong.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in changed.items() if tensor is not None}, path, about)
    with pytest.raises(ValueError, match=rf"wrong\.safetensors: .*\b({name}|shape)\b"):
        load(path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("fooling set", "images"), ("ensemble", "weights"), ("weights", "linear1.weight"), ("command", "x"), ("run", "x")],
)
def test_shapes_without_entries_that_torch_cannot_make(kind: str, name: str, tmp_path: Path) -> None:
    _, about, load = tensors_and_about(kind)
    if kind == "command":
        load = lambda path: load_network(path, "softmax", SHAPE, 3)  # noqa: E731
    if kind == "run":
        load = page.load
    names = FoolingSet.__dataclass_fields__ if kind == "fooling set" else [name]
    header: dict[str, Any] = {
        one: {"dtype": "F32", "shape": [0, 2**40, 2**40] if one == name else [0], "data_offsets": [0, 0]}
        for one in names
    }
    text = json.dumps({"__metadata__": about, **header}).encode()
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises((ValueError, RunError), match=r"wrong\.safetensors: .*too large|wrong\.safetensors is damaged"):
        load(path)


@pytest.mark.parametrize("kind", ["fooling set", "ensemble"])
@pytest.mark.parametrize("about", [{}, {"format": "other"}, {"format": "sparring stacked ensemble 1"}], ids=str)
def test_headers_of_other_files(kind: str, about: dict[str, str], tmp_path: Path) -> None:
    tensors, _, load = tensors_and_about(kind)
    save_file(tensors, tmp_path / "wrong.safetensors", about)
    with pytest.raises(ValueError, match=r"wrong\.safetensors"):
        load(tmp_path / "wrong.safetensors")


def test_what_is_refused_leaves_a_network_as_it_was(tmp_path: Path) -> None:
    tensors = network().state_dict()
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["linear1.bias"] = tensors["linear1.bias"][:-1].clone()
    tensors["linear1.weight"] = tensors["linear1.weight"] + 1
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"linear1\.bias has shape \(2,\), expected \(3,\)"):
        load_weights(model, tmp_path / "wrong.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_narrower_weights_are_widened(tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in network().state_dict().items()}
    save_file(tensors, tmp_path / "half.safetensors")
    loaded = load_weights(network(), tmp_path / "half.safetensors").state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in tensors.items())


def lying(header: Any, rest: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + rest


LIES = {
    "a header of 2^63 bytes": lying({}, length=2**63 - 1),
    "a header longer than the file": lying({}, length=1000),
    "offsets beyond the end": lying({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(8)),
    "offsets that overlap": lying(
        {n: {"dtype": "F32", "shape": [2], "data_offsets": [o, o + 8]} for n, o in (("a", 0), ("b", 4))}, bytes(12)
    ),
    "a product that wraps": lying({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
    "no object": lying([1, 2]),
    "bytes besides": lying({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(12)),
    "an unknown dtype": lying({"linear1.weight": {"dtype": "F9", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "a rare dtype": lying({"linear1.weight": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, bytes(8)),
    "not UTF-8": struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("loader", ["fooling set", "ensemble", "weights", "weights of a command"])
def test_headers_that_lie(loader: str, lie: str, tmp_path: Path) -> None:
    name, load = LOADERS[loader]
    (tmp_path / name).write_bytes(LIES[lie])
    with pytest.raises(ValueError, match=name):
        load(tmp_path / name)


def idx_header(*shape: int) -> bytes:
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("shape", "content", "message"),
    [
        ((2**32 - 1,) * 3, bytes(100), "truncated"),
        ((2**16, 2**16, 2**32 - 1), b"", "truncated"),
        ((2**32 - 1, 2**31, 2), b"", "truncated"),
        ((2**22, 2**21, 2**21), b"", "truncated"),  # 2^64, which is 0 in 64 bits
        ((0, 4, 4), b"", "empty"),
        ((3, 0, 4), b"", "empty"),
        ((1, 2, 2), bytes(5), "too long"),
        ((1, 2, 2), bytes(3), "truncated"),
    ],
    ids=str,
)
def test_sizes_that_an_idx_file_does_not_have(
    shape: tuple[int, ...], content: bytes, message: str, suffix: str, tmp_path: Path
) -> None:
    raw, labels = idx_header(*shape) + content, idx_header(1) + b"\1"
    for name, file in (("train-images-idx3-ubyte", raw), ("train-labels-idx1-ubyte", labels)):
        (tmp_path / f"{name}{suffix}").write_bytes(gzip.compress(file) if suffix else file)
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte{suffix}: .*{message}"):
        data.load("mnist", tmp_path, verify=False)


def test_no_more_is_unpacked_than_is_declared(tmp_path: Path) -> None:
    """Files of 300 MB in 300 KB: an IDX file that declares 4 bytes, and batches of CIFAR-10, which declare none."""
    zeros = gzip.compress(bytes(300 * 2**20), 1)
    idx = gzip.compress(idx_header(1, 2, 2) + bytes(4)) + zeros
    for name in ("a.gz", "data_batch_1.bin.gz"):
        (tmp_path / name).write_bytes(idx if name == "a.gz" else zeros)
    del zeros
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"a\.gz: too long: holds more bytes, expected 20"):
        data.read_idx(tmp_path / "a.gz", 3)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 50 * 1024
    with pytest.raises(ValueError, match=r"data_batch_1\.bin\.gz: holds more than 60000 images"):
        data.load("cifar10", tmp_path)


def test_only_official_names_are_batches(tmp_path: Path) -> None:
    record = bytes([3]) + bytes(3072)
    for name in (
        "data_batch_1.bin", "data_batch_1.bin.bak", "data_batch_1 (copy).bin", "data_batch_0.bin", "data_batch_6.bin",
        "data_batch_10.bin", "data_batch_x.bin", "data_batch_1.bin.gz.old", "data_batch_1.bin~", "test_batch.bin.bak",
    ):  # fmt: skip
        (tmp_path / name).write_bytes(record)
    (tmp_path / "data_batch_2.bin").mkdir()
    (tmp_path / "data_batch_5.bin.gz").write_bytes(gzip.compress(record * 2))
    assert len(data.load("cifar10", tmp_path)) == 3
    with pytest.raises(FileNotFoundError, match=r"neither test_batch\.bin nor test_batch\.bin\.gz"):
        data.load("cifar10", tmp_path, "test")


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: raw[:9], lambda raw: b"no gzip", lambda raw: raw + b"x"]
)
def test_gzip_files_that_are_damaged(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(damage(gzip.compress(idx_header(1, 2, 2) + bytes(4))))
    with pytest.raises(ValueError, match=r"a\.gz: expected a complete gzip file"):
        data.read_idx(tmp_path / "a.gz", 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe0\n", "holds '..0'"),
        (b"1\n" + b"9" * 5000, "holds '99999|longer than"),
        (b"0\n" * 1000, "longer than a line for each of 10"),
        (b"3\n1\n", "that ascend"),
        ("١\n".encode(), "holds"),
        (b"0x1\n", "holds '0x1'"),
        (b"+1\n", r"holds '\+1'"),
        (b"\x00", "holds"),
    ],
)
def test_index_files_that_hold_no_indices(content: bytes, message: str, tmp_path: Path) -> None:
    for part in ("train_a", "valid_a", "train_b", "valid_b"):
        (tmp_path / f"{part}.txt").write_text("")
    (tmp_path / "valid_b.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"valid_b\.txt: .*({message})"):
        data.Halves.load(tmp_path, 10)


def test_a_save_that_fails_leaves_no_ensemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        sp.StackedEnsemble([network()]).save(tmp_path / "mix.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_the_campaign_found(tmp_path: Path) -> None:
    """A header that is JSON, and not of tensors; and one whose tensors come in another order than its names."""
    tensors, _, load = tensors_and_about("weights")
    raw = save(tensors)
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    swapped = dict(reversed(header.items()))
    (tmp_path / "net.safetensors").write_bytes(lying(swapped, raw[8 + length :]))
    assert all(torch.equal(t, tensors[name]) for name, t in load(tmp_path / "net.safetensors").state_dict().items())
    (tmp_path / "net.safetensors").write_bytes(lying({"a": 1}, raw[8 + length :]))
    with pytest.raises(ValueError, match=r"net\.safetensors: not a complete safetensors file with weights"):
        load(tmp_path / "net.safetensors")
