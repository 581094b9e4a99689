"""Data sets: what is loaded, and that damaged or wrong files are refused by name."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from sparring import data
from sparring.data import Dataset, halves, load, read_idx

TRAIN = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 5, 4), np.uint8)


@pytest.fixture
def folder(tmp_path: Path, pixels: np.ndarray) -> Path:
    """A training set in MNIST's format: 20 images of 5x4, the labels gzipped."""
    (tmp_path / TRAIN[0]).write_bytes(idx(pixels))
    (tmp_path / f"{TRAIN[1]}.gz").write_bytes(gzip.compress(idx(np.arange(20) % 10)))
    return tmp_path


def test_digits_are_scaled_split_by_class_and_the_same_each_time() -> None:
    train, test = load("digits"), load("digits", split="test")
    assert (train.images.shape, test.images.shape) == ((1442, 1, 8, 8), (355, 1, 8, 8))
    assert train.images.dtype == torch.float32
    assert train.labels.dtype == torch.int64
    assert train.classes == 10
    assert train.input_shape == (1, 8, 8)
    for part in (train, test):
        assert part.images.min() == 0
        assert part.images.max() == 1
    share = test.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert ((share > 0.19) & (share <= 0.2)).all()
    assert torch.equal(load("digits").images, train.images)


def test_digits_split_leaves_nothing_out_and_repeats_nothing() -> None:
    from sklearn.datasets import load_digits

    whole = torch.from_numpy(load_digits().data).float() / 16
    parts = torch.cat([load("digits").images, load("digits", split="test").images]).flatten(1)
    assert torch.equal(parts.unique(dim=0), whole.unique(dim=0))
    assert len(parts) == len(whole)


def test_idx_files_are_read_plain_and_gzipped(folder: Path, pixels: np.ndarray) -> None:
    loaded = load("mnist", folder, verify=False)
    assert torch.equal(loaded.images, torch.from_numpy(pixels).float()[:, None] / 255)
    assert loaded.labels.tolist() == [i % 10 for i in range(20)]
    assert np.array_equal(read_idx(folder / TRAIN[0], 3), pixels)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "truncated: holds 415 bytes, expected 416"),
        (lambda content: content[:10], "truncated: holds 10 bytes, expected a header of 16"),
        (lambda content: content + b"\0", "too long: holds 417 bytes, expected 416"),
        (lambda content: b"\0\0\x0d\3" + content[4:], "starts with 0x00000d03, expected 0x00000803"),
        (lambda content: b"", "starts with 0x, expected 0x00000803"),
    ],
)
def test_a_damaged_idx_file_is_refused(folder: Path, damage, message: str) -> None:
    path = folder / TRAIN[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{TRAIN[0]}: {message}"):
        load("mnist", folder, verify=False)


@pytest.mark.parametrize("cut", [1, 8, 15, 20])
def test_a_truncated_gzip_file_is_refused(folder: Path, cut: int) -> None:
    path = folder / f"{TRAIN[1]}.gz"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=rf"{TRAIN[1]}\.gz: expected a complete gzip file"):
        load("mnist", folder, verify=False)


def test_images_and_labels_must_match_in_number(folder: Path) -> None:
    (folder / f"{TRAIN[1]}.gz").write_bytes(gzip.compress(idx(np.zeros(19))))
    with pytest.raises(ValueError, match=rf"{TRAIN[1]}\.gz: holds 19 labels, expected 20, .* in {TRAIN[0]}"):
        load("mnist", folder, verify=False)


def test_labels_out_of_range_are_refused(folder: Path) -> None:
    (folder / f"{TRAIN[1]}.gz").write_bytes(gzip.compress(idx(np.full(20, 10))))
    with pytest.raises(ValueError, match=rf"{TRAIN[1]}\.gz: holds the label 10"):
        load("mnist", folder, verify=False)


def test_content_other_than_the_official_is_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=f"{TRAIN[0]}: the content's MD5 is .* expected 6bbc9ace898e44ae57da46a324031adb"
    ):
        load("mnist", folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither t10k-images-idx3-ubyte nor t10k-images-idx3-ubyte\.gz is in"):
        load("mnist", folder, "test", verify=False)


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def mirror(folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder served over HTTP in place of the official mirror, its checksums in place of the official ones."""
    files = []
    for name in TRAIN:
        path = folder / f"{name}.gz"
        content = (folder / name).read_bytes() if (folder / name).exists() else gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(content))
        files.append(data.MnistFile(name, hashlib.md5(content).hexdigest(), hashlib.md5(path.read_bytes()).hexdigest()))
    cache = tmp_path_factory.mktemp("cache")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(data, "MNIST_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setitem(data.MNIST_FILES, "train", tuple(files))
    monkeypatch.setattr(pooch, "os_cache", lambda name: cache / name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_mnist_is_downloaded_once(mirror: Path, pixels: np.ndarray) -> None:
    first = load("mnist")
    assert torch.equal(first.images, torch.from_numpy(pixels).float()[:, None] / 255)
    for name in TRAIN:
        (mirror / f"{name}.gz").unlink()
    assert torch.equal(load("mnist").images, first.images)


def test_a_download_with_another_checksum_is_refused(mirror: Path) -> None:
    (mirror / f"{TRAIN[0]}.gz").write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"{TRAIN[0]}.* does not match the known hash: expected md5:"):
        load("mnist")


def cifar_batch(count: int, label: int = 3) -> bytes:
    return b"".join(
        bytes([label]) + bytes([10]) * 1024 + bytes([20]) * 1024 + bytes([255]) * 1024 for _ in range(count)
    )


def test_cifar_is_read_plane_by_plane_from_all_batches(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(cifar_batch(2))
    (tmp_path / "data_batch_2.bin.gz").write_bytes(gzip.compress(cifar_batch(3, label=7)))
    (tmp_path / "test_batch.bin").write_bytes(cifar_batch(1))
    train, test = load("cifar10", tmp_path), load("cifar10", tmp_path, "test")
    assert train.images.shape == (5, 3, 32, 32)
    assert train.labels.tolist() == [3, 3, 7, 7, 7]
    assert len(test) == 1
    for channel, value in enumerate((10, 20, 255)):
        assert (train.images[:, channel] == torch.tensor(value, dtype=torch.float32) / 255).all()


def test_whether_bytes_are_the_official_ones(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load("digits").official is True
    other = load("mnist", folder, verify=False)
    assert (other.official, other.note) == (False, "not the official files, by their MD5")
    (tmp_path / "data_batch_1.bin").write_bytes(cifar_batch(2))
    short = load("cifar10", tmp_path)
    assert short.official is False
    assert "data_batch_1.bin holds 2 images in place of 10000" in short.note

    monkeypatch.setattr(data, "CIFAR_BATCH", 2)  # as if files of two images were the official ones
    assert load("cifar10", tmp_path).official is False
    assert (
        "data_batch_1.bin holds [0, 0, 0, 2, 0, 0, 0, 0, 0, 0] images of the classes" in load("cifar10", tmp_path).note
    )
    monkeypatch.setitem(data.CIFAR_COUNTS, "data_batch_1.bin", [0, 0, 0, 2, 0, 0, 0, 0, 0, 0])
    alike = load("cifar10", tmp_path)
    assert alike.official is None
    assert "not verified" in alike.note
    assert alike[:1].note == alike.note


def test_known_counts_of_cifar_are_of_whole_files() -> None:
    assert [sum(counts) for counts in data.CIFAR_COUNTS.values()] == [data.CIFAR_BATCH] * 2


def test_lifted_images_are_nowhere_black(folder: Path, pixels: np.ndarray) -> None:
    plain, lifted = load("mnist", folder, verify=False), load("mnist-non-sparse", folder, verify=False)
    wanted = np.minimum(pixels / 255 + 0.3, 1)
    assert lifted.name == "mnist-non-sparse"
    assert np.allclose(lifted.images[:, 0].numpy(), wanted, atol=1e-6)
    assert lifted.images.dtype == torch.float32
    assert torch.equal(lifted.labels, plain.labels)
    assert (lifted.official, lifted.note) == (
        False, "not the official files, by their MD5; 0.3 added to every entry, then clamped to [0, 1]",
    )  # fmt: skip
    assert load("digits-non-sparse", split="test").images.min() == pytest.approx(0.3)


@pytest.mark.parametrize("by", [0.0, 1.0, -0.1, float("nan")])
def test_a_lift_that_makes_no_sense_is_refused(by: float) -> None:
    with pytest.raises(ValueError, match="by must be between 0 and 1"):
        load("digits").lifted(by)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (cifar_batch(2)[:-1], "holds 6145 bytes, expected a positive multiple of 3073"),
        (b"", "holds 0 bytes"),
        (cifar_batch(1, label=10), "holds the label 10, expected labels from 0 to 9"),
    ],
)
def test_a_damaged_cifar_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"test_batch\.bin: {message}"):
        load("cifar10", tmp_path, "test")


def test_cifar_without_batches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data_batch_"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "imagenet"},
            "name must be one of digits, digits-non-sparse, mnist, mnist-non-sparse, cifar10; got 'imagenet'",
        ),
        ({"name": "digits", "split": "valid"}, "split must be 'train' or 'test', got 'valid'"),
        ({"name": "digits", "data_dir": "."}, "data_dir must be None for 'digits'"),
        ({"name": "cifar10"}, "data_dir must be given for 'cifar10'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(**arguments)


@pytest.mark.parametrize("n", [0, 1, 10, 37, 340])
def test_a_subset_is_balanced_without_repeats_and_reproducible(n: int) -> None:
    whole = load("digits", split="test")
    part = whole.subset(n, torch.Generator().manual_seed(5))
    counts = part.labels.bincount(minlength=10)
    assert len(part) == len(part.images) == n
    assert counts.max() - counts.min() <= 1
    assert len(part.images.unique(dim=0)) == n
    assert torch.equal(part.images, whole.subset(n, torch.Generator().manual_seed(5)).images)


def test_subsets_differ_by_generator_and_leave_the_global_one_alone() -> None:
    whole = load("digits", split="test")
    before = torch.get_rng_state()
    first, second = (whole.subset(100, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.equal(first.images, second.images)
    assert torch.equal(whole.subset(100).images, whole.subset(100).images)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_subset_that_cannot_be_is_refused() -> None:
    few = Dataset("few", "train", torch.zeros(5, 1, 2, 2), torch.tensor([0, 0, 0, 0, 1]), 2)
    assert few.subset(3).labels.bincount().tolist() == [2, 1]
    with pytest.raises(ValueError, match="n=4 needs 2 images of class 1, but there are 1"):
        few.subset(4)
    with pytest.raises(ValueError, match="n must be between 0 and 5"):
        few.subset(6)


def test_indexing_and_moving_keep_images_and_labels_together() -> None:
    whole = load("digits")
    threes = whole[whole.labels == 3]
    assert (threes.labels == 3).all()
    assert torch.equal(threes.images, whole.images[whole.labels == 3])
    assert whole[:7].to("meta").images.shape == (7, 1, 8, 8)


@pytest.mark.shared
def test_the_official_mnist_passes_the_check(shared: Path) -> None:
    train, test = load("mnist", shared / "data" / "mnist"), load("mnist", shared / "data" / "mnist", "test")
    assert (len(train), len(test)) == (60000, 10000)
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert float(train.images.mean()) == pytest.approx(0.1307, abs=1e-4)  # the figure used everywhere to normalise it
    assert train.official
    assert test.official

    both = halves(train)
    assert [len(part) for part in (both.train_a, both.valid_a, both.train_b, both.valid_b)] == [25000, 5000] * 2


@pytest.mark.shared
def test_cifar_files_are_read(shared: Path) -> None:
    train, test = (load("cifar10", shared / "data" / "cifar10", split) for split in ("train", "test"))
    assert train.labels.bincount().tolist() == [1000] * 10
    assert test.labels.bincount().tolist() == [200] * 10
    for part in (train, test):
        assert part.input_shape == (3, 32, 32)
        assert part.images.mean((0, 2, 3)).tolist() == pytest.approx([0.491, 0.482, 0.447], abs=0.02)  # of all CIFAR-10
        assert part.official is False
    assert "data_batch_1.bin holds [1000, 1000," in train.note
    assert "test_batch.bin holds 2000 images in place of 10000" in test.note
