"""Damaged files of every kind that the package reads: refused with the file's name, or right.

    python tests/campaigns/fuzz.py [--inputs 100000] [--seed 0] [--only NAME] [--keep FOLDER]

An input is a whole file with a few changes: bits, lengths, blocks, fields of its header. What comes of it is a finding
unless it is a ValueError or OSError that names the file, or data that satisfies what the loader promises; so are more
than a second, a gigabyte, and the end of the process. Inputs follow from the seed and their number. Findings are
printed, and kept in a folder if there is one for them; the exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

import sparring as sp
from sparring import data
from sparring.cli._weights import load_network
from sparring.networks import build, load_weights, mlp
from sparring.training import FoolingSet

SECONDS = 1.0  # of the processor
BYTES = 2**30
CHUNK = 5000
CLASSES, IMAGES = 10, 12
SHAPE = (1, 8, 8)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def network() -> nn.Module:
    return mlp((16, 5, 3))


@dataclass
class Loader:
    """A whole file, what reads it, and what has to be true of what it read."""

    name: str
    file: str
    """Its name in a folder."""
    whole: bytes
    load: Callable[[Path], Any]
    check: Callable[[Any], bool]
    others: dict[str, bytes]
    """Whole files beside it."""
    share: int = 4
    """Of the inputs."""


def proper_images(dataset: data.Dataset) -> bool:
    images, labels = dataset.images, dataset.labels
    return (
        images.dtype == torch.float32
        and images.ndim == 4
        and images.numel() > 0
        and bool(((images >= 0) & (images <= 1)).all())
        and labels.dtype == torch.int64
        and labels.shape == images.shape[:1]
        and bool(((labels >= 0) & (labels < dataset.classes)).all())
    )


def proper_halves(halves: data.Halves) -> bool:
    parts = [halves.train_a, halves.valid_a, halves.train_b, halves.valid_b]
    together = torch.cat(parts)
    return (
        all(part.dtype == torch.int64 and bool((part.diff() > 0).all()) for part in parts)
        and len(together.unique()) == len(together)
        and bool(((together >= 0) & (together < IMAGES)).all())
    )


def proper_set(found: FoolingSet) -> bool:
    count = len(found.images)
    return (
        found.images.ndim == 4
        and bool(((found.images >= 0) & (found.images <= 1)).all())
        and all(len(t) == count and t.ndim == 1 for name, t in found.tensors().items() if name != "images")
        and bool((found.targets >= 0).all() & ((found.prob >= 0) & (found.prob <= 1)).all())
        and torch.equal(found.sparsity, (found.images > 0).flatten(1).sum(1))
        and bool((found.stop_step >= 0).all())
        and found.success.dtype == torch.bool
    )


def proper_network(model: nn.Module) -> bool:
    tensors = [*model.parameters(), *model.buffers()]
    return all(not t.isnan().any() for t in tensors) and all(p.dtype == torch.float32 for p in model.parameters())


def proper_ensemble(ensemble: sp.StackedEnsemble) -> bool:
    weights = ensemble.weights
    logits = ensemble(torch.zeros(2, 1, 4, 4)) if ensemble.combine != "vote" else torch.zeros(2, 3)
    return proper_network(ensemble) and bool((weights >= 0).all()) and logits.shape == (2, 3)


def loaders() -> list[Loader]:
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 5, 4), np.uint8)
    labels = np.arange(IMAGES) % CLASSES
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    pairs = dict(zip(names, (idx(images), idx(labels)), strict=True))

    def mnist(path: Path) -> data.Dataset:
        return data.load("mnist", path.parent, verify=False)

    def cifar(path: Path) -> data.Dataset:
        return data.load("cifar10", path.parent)

    record = b"".join(bytes([i % 10]) + rng.bytes(3072) for i in range(3))
    lit = torch.rand(6, 1, 3, 3, generator=generator)
    prob = torch.rand(6, generator=generator)
    parts = [torch.arange(6) % 3, prob, (lit > 0).flatten(1).sum(1), torch.arange(6), prob > 0.5]
    made = FoolingSet(lit, *parts)
    fooling = safetensors_bytes(made.tensors(), {"format": "sparring fooling set 1"})
    state = sp.StackedEnsemble([network() for _ in range(3)]).state_dict()
    ensemble = safetensors_bytes(state, {"format": "sparring stacked ensemble 1", "combine": "probs"})
    weights = safetensors_bytes(network().state_dict())
    indices = {f"{name}.txt": "".join(f"{i}\n" for i in range(k, IMAGES, 4)).encode() for k, name in enumerate(PARTS)}
    beside = {name: content for name, content in indices.items() if name != "valid_b.txt"}
    built = safetensors_bytes(build("softmax", SHAPE, CLASSES).state_dict())
    others = {name: {key: value for key, value in pairs.items() if key != name} for name in names}
    gz = {name: gzip.compress(content) for name, content in pairs.items()}
    return [
        Loader("idx images", names[0], pairs[names[0]], mnist, proper_images, others[names[0]]),
        Loader("idx labels", names[1], pairs[names[1]], mnist, proper_images, others[names[1]]),
        Loader("idx images, gzip", f"{names[0]}.gz", gz[names[0]], mnist, proper_images, others[names[0]]),
        Loader("idx labels, gzip", f"{names[1]}.gz", gz[names[1]], mnist, proper_images, others[names[1]]),
        Loader("read_idx", "a", pairs[names[0]], lambda path: data.read_idx(path, 3), lambda a: a.ndim == 3, {}),
        Loader("cifar10", "data_batch_1.bin", record, cifar, proper_images, {}),
        Loader("cifar10, gzip", "data_batch_2.bin.gz", gzip.compress(record), cifar, proper_images, {}),
        Loader("halves", "valid_b.txt", indices["valid_b.txt"],
               lambda path: data.Halves.load(path.parent, IMAGES), proper_halves, beside),
        Loader("fooling set", "set.safetensors", fooling, FoolingSet.load, proper_set, {}),
        Loader("ensemble", "mix.safetensors", ensemble,
               lambda path: sp.StackedEnsemble.load(path, network()), proper_ensemble, {}),
        Loader("weights", "net.safetensors", weights, lambda path: load_weights(network(), path), proper_network, {}),
        Loader("weights of a command", "own.safetensors", built,
               lambda path: load_network(path, "softmax", SHAPE, CLASSES), proper_network, {}, share=1),
    ]  # fmt: skip


PARTS = ("train_a", "valid_a", "train_b", "valid_b")
LENGTHS = [
    0,
    1,
    2,
    3,
    7,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**16,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**63 - 1,
    2**64 - 1,
]


def changed(content: bytes, rng: random.Random, foreign: bytes) -> bytes:
    """The content with one change of its bytes."""
    raw = bytearray(content)
    at = rng.randrange(len(raw) + 1)
    size = rng.choice([1, 2, 4, 8, 16, 64, 1000])
    kind = rng.randrange(9)
    if kind == 0 and raw:
        for _ in range(rng.choice([1, 1, 2, 8])):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del raw[at:]
    elif kind == 2:
        del raw[at : at + size]
    elif kind == 3:
        raw[at:at] = rng.randbytes(size) if rng.random() < 0.5 else bytes(size)
    elif kind == 4:
        raw[at:at] = raw[at : at + size] * rng.choice([1, 2, 50])
    elif kind == 5:  # a length, in one or other order of bytes, most often in the header
        form = rng.choice(["<I", ">I", "<Q", ">Q", "<H", "B"])
        number = struct.pack(form, rng.choice(LENGTHS) % 2 ** (8 * struct.calcsize(form)))
        at = rng.randrange(min(len(raw) + 1, 24)) if rng.random() < 0.7 else at
        raw[at : at + len(number)] = number
    elif kind == 6:
        raw[at : at + size] = foreign[: rng.randrange(len(foreign) + 1)]
    elif kind == 7:
        raw += rng.choice([b"\0", b"\n", b"0\n", bytes(1000), content])
    else:
        raw[at : at + size] = rng.choice([b"\0", b"\xff", b"9", b"-", b"\n", b" "]) * size
    return bytes(raw)


def changed_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with one change of its header, which stays JSON and of the length that it says."""
    (length,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry = header[name]
    kind = rng.randrange(9)
    if kind == 0:
        entry["dtype"] = rng.choice(["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "U64", "X", 3])
    elif kind == 1:
        entry["shape"] = rng.choice([[], [0], [2**63], [2**32, 2**32], [-1], [1, *entry["shape"]], entry["shape"][::-1],
                                     entry["shape"] + [1], [2**62, 0], ["1"], [1.5]])  # fmt: skip
    elif kind == 2:
        entry["data_offsets"] = rng.choice(
            [[0, 0], [0, len(rest)], [0, 2**63], [5, 3], header[rng.choice(names)]["data_offsets"]]
        )
    elif kind == 3:
        header[rng.choice([name + "x", "", "weights", "é" * 50, "a" * 5000])] = header.pop(name)
    elif kind == 4:
        del header[name]
    elif kind == 5:
        header["__metadata__"] = rng.choice(
            [{}, {"format": "pt"}, {"format": "sparring fooling set 1"}, {"combine": "x"}, {"format": 1}]
        )
    elif kind == 6:  # consistent and wrong: fewer of something
        if entry["shape"] and entry["shape"][0] > 1:
            begin, end = entry["data_offsets"]
            gone = (end - begin) // entry["shape"][0]
            rest = rest[: end - gone] + rest[end:]
            entry["shape"][0] -= 1
            for other in names:
                header[other]["data_offsets"] = [o - gone if o >= end else o for o in header[other]["data_offsets"]]
    elif kind == 7:  # numbers of any kind in place of the right ones
        begin, end = entry["data_offsets"]
        filler = rng.choice([*(struct.pack("<f", x) for x in (math.nan, -1.0, 2.0)), struct.pack("<d", math.inf),
                             struct.pack("<q", 2**62), b"\xff" * 4, bytes(4)])  # fmt: skip
        rest = rest[:begin] + (filler * (end - begin))[: end - begin] + rest[end:]
    else:
        header = rng.choice(
            [{}, [], 3, {"a": 1}, {**header, "b": {"dtype": "F32", "shape": [0], "data_offsets": [len(rest)] * 2}}]
        )
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def mutated(loader: Loader, rng: random.Random, pool: list[bytes]) -> bytes:
    """The loader's file with one to three changes, of what is packed in it too."""
    content = loader.whole
    for _ in range(rng.choice([1, 1, 2, 3])):
        inside = loader.file.endswith(".gz") and rng.random() < 0.6
        try:
            if inside:
                content = gzip.compress(changed(gzip.decompress(content), rng, rng.choice(pool)), 1)
            elif loader.file.endswith(".safetensors") and rng.random() < 0.6:
                content = changed_header(content, rng)
            else:
                content = changed(content, rng, rng.choice(pool))
        except Exception:  # an earlier change broke what this one unpacks
            content = changed(content, rng, rng.choice(pool))
    return content


class TooSlow(BaseException):
    """Raised by the alarm."""


def tried(loader: Loader, folder: Path, content: bytes) -> str:
    """What is wrong with how the loader takes the content; "" if nothing is."""
    path = folder / loader.file
    path.write_bytes(content)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        found = loader.load(path)
        good = loader.check(found)
    except (ValueError, OSError) as error:
        return "" if path.name in str(error) else f"does not name the file: {type(error).__name__}: {error}"
    except TooSlow:
        return f"takes more than {SECONDS} s"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return "" if good else "accepted, though it is not what is promised"


def run(numbers: range, seed: int, only: str | None, keep: Path | None, progress: Path) -> None:
    """Try the inputs of these numbers in this process; print findings, and write how far it is and how many so far."""
    torch.set_num_threads(1)
    every = [loader for loader in loaders() if only in (None, loader.name)]
    pool = [loader.whole for loader in every]
    turns = [loader for loader in every for _ in range(loader.share)]
    signal.signal(signal.SIGVTALRM, _alarm)
    for loader in every:  # imports, before there is a limit
        with tempfile.TemporaryDirectory() as name:
            _fill(Path(name), loader)
            why = tried(loader, Path(name), loader.whole)
            if why and "more than" not in why:
                raise SystemExit(f"the whole file of {loader.name} is refused: {why}")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    findings = 0
    with tempfile.TemporaryDirectory() as name:
        folders = {}
        for loader in every:
            folders[loader.name] = Path(name, loader.name)
            folders[loader.name].mkdir()
            _fill(folders[loader.name], loader)
        for number in numbers:
            progress.write_text(f"{number} {findings}")
            rng = random.Random(f"{seed} {number}")
            loader = rng.choice(turns)
            content = mutated(loader, rng, pool)
            why = tried(loader, folders[loader.name], content)
            if why:
                findings += 1
                print(f"input {number} ({loader.name}, {len(content)} bytes): {why}"[:400], flush=True)
                if keep is not None:
                    (keep / f"{number}-{loader.file}").write_bytes(content)
    progress.write_text(f"{numbers.stop - 1} {findings}")


def _fill(folder: Path, loader: Loader) -> None:
    for name, content in loader.others.items():
        (folder / name).write_bytes(content)


def _alarm(*_: Any) -> None:
    raise TooSlow


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one loader, by name")
    parser.add_argument("--keep", type=Path, help="folder for inputs that are findings")
    parser.add_argument("--progress", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    if options.progress is not None:
        numbers = range(options.first, options.first + options.inputs)
        run(numbers, options.seed, options.only, options.keep, options.progress)
        return 0
    began, findings, first, end = time.monotonic(), 0, options.first, options.first + options.inputs
    rest = [f"--seed={options.seed}", *([f"--only={options.only}"] * (options.only is not None))]
    rest += [f"--keep={options.keep}"] * (options.keep is not None)
    with tempfile.TemporaryDirectory() as name:
        progress = Path(name, "number")
        while first < end:
            some = [f"--inputs={min(CHUNK, end - first)}", f"--first={first}", f"--progress={progress}"]
            status = subprocess.run([sys.executable, __file__, *some, *rest], check=False).returncode
            last, found = map(int, progress.read_text().split())
            first, findings = last + 1, findings + found
            if status:  # the process ended with its last input
                findings += 1
                print(f"input {last}: the process ended with {status}", flush=True)
            done, seconds = first - options.first, time.monotonic() - began
            print(f"{done} of {options.inputs} inputs, {findings} findings, {seconds:.0f} s", flush=True)
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
