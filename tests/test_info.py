"""`sparring info`: what it finds, and that it says why CUDA cannot be used."""

from __future__ import annotations

import platform

import numpy as np
import pytest
import torch

import sparring
from sparring import _core, info


def test_collect_agrees_with_its_sources() -> None:
    found = info.collect()
    assert found["versions"]["sparring"] == sparring.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["compiler"]
    assert found["cpu"]["isa"] == _core.isa()
    assert found["cpu"]["isa"] in found["cpu"]["supported"]
    assert found["cpu"]["threads"] == torch.get_num_threads()
    assert found["cuda"]["built"] == _core.build_info()["cuda"]
    assert bool(found["cuda"]["architectures"]) == found["cuda"]["built"]


def test_usable_cuda_is_one_that_torch_can_use() -> None:
    found = info.collect()["cuda"]
    usable = found["built"] and torch.cuda.is_available() and any(device["covered"] for device in found["devices"])
    assert (found["why_not"] is None) == usable


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (["75-real", "90"], (7, 5), True),
        (["75-real", "90"], (8, 0), False),
        (["80-real"], (8, 6), True),  # machine code runs on later minor versions of its major one
        (["86-real"], (8, 0), False),
        (["90-real"], (10, 0), False),
        (["90"], (10, 0), True),  # from PTX
        (["90-virtual"], (9, 0), True),
        (["90-virtual"], (8, 9), False),
        (["90a"], (9, 0), True),
        (["90a"], (10, 0), False),
        (["100f-real"], (10, 3), True),
        (["100f-real"], (12, 0), False),
        ([], (9, 0), False),
    ],
)
def test_covers(architectures: list[str], capability: tuple[int, int], expected: bool) -> None:
    assert info.covers(architectures, capability) is expected


def test_covers_rejects_what_is_no_architecture() -> None:
    with pytest.raises(ValueError, match="'native' is not a CUDA architecture"):
        info.covers(["native"], (9, 0))


DEVICE = info.Device(name="Example", capability="9.0", memory=2**33, covered=True)
STRANGER = info.Device(name="Example", capability="7.0", memory=2**33, covered=False)


@pytest.mark.parametrize(
    ("built", "visible", "error", "torch_cuda", "devices", "expected"),
    [
        (False, 0, "", None, [], "no CUDA code"),
        (True, 0, "CUDA driver version is insufficient", None, [], "no device: CUDA driver version is insufficient"),
        (True, 0, "", "13.0", [], "lists none"),
        (True, 1, "", None, [], "is a build without CUDA"),
        (True, 1, "", "13.0", [], "torch.cuda.is_available() is False"),
        (True, 1, "", "13.0", [STRANGER], "no device of an architecture"),
        (True, 2, "", "13.0", [STRANGER, DEVICE], None),
    ],
)
def test_the_first_obstacle_is_named(
    built: bool, visible: int, error: str, torch_cuda: str | None, devices: list[info.Device], expected: str | None
) -> None:
    reason = info._why_not(built, visible, error, torch_cuda, devices)
    if expected is None:
        assert reason is None
    else:
        assert reason is not None
        assert expected in reason


def test_render_shows_every_fact() -> None:
    found = info.collect()
    found["cpu"] = info.CpuInfo(isa="v3", supported=["baseline", "v3"], forced=True, threads=3, cores=8)
    found["cuda"] = info.CudaInfo(
        built=True, runtime="13.0", architectures=["90"], torch="13.0", devices=[DEVICE, STRANGER], why_not="a reason"
    )
    text = info.render(found)
    for fact in [*found["versions"].values(), "forced by SPARRING_ISA", "baseline, v3", "3 (of 8", "built with 13.0"]:
        assert fact in text
    assert "Example, capability 9.0, 8 GiB\n" in text
    assert "Example, capability 7.0, 8 GiB, no code for it in this build\n" in text
    assert text.endswith("a reason")


def test_render_collects_by_default() -> None:
    text = info.render()
    assert f"sparring         {sparring.__version__}\n" in text
    assert ("CUDA unusable" in text) == (info.collect()["cuda"]["why_not"] is not None)
