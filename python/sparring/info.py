"""What this installation is and what it can use here: the text of ``sparring info``."""

from __future__ import annotations

import os
import platform
import re
from typing import TypedDict

import numpy as np
import torch

from sparring import __version__, _core

__all__ = ["CpuInfo", "CudaInfo", "Device", "Info", "Versions", "collect", "render"]


class Versions(TypedDict):
    """Versions of what is at work; ``compiler`` is the one that built the extension."""

    sparring: str
    torch: str
    numpy: str
    python: str
    platform: str
    compiler: str


class CpuInfo(TypedDict):
    """Instruction set in use, those this machine supports, and the number of threads the operations run on."""

    isa: str
    supported: list[str]
    forced: bool
    threads: int
    cores: int


class Device(TypedDict):
    """One CUDA device; ``memory`` in bytes, ``covered`` whether the wheel holds code that it can run."""

    name: str
    capability: str
    memory: int
    covered: bool


class CudaInfo(TypedDict):
    """CUDA as built and as found; ``why_not`` is None exactly when CUDA tensors can be used."""

    built: bool
    runtime: str
    architectures: list[str]
    torch: str | None
    devices: list[Device]
    why_not: str | None


class Info(TypedDict):
    """Everything that `collect` finds."""

    versions: Versions
    cpu: CpuInfo
    cuda: CudaInfo


def covers(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Whether code built for `architectures` runs on a device of this compute capability.

    Machine code (``90-real``, ``90``) runs on the same major version from its minor version on; ``90`` also carries
    PTX, which newer devices compile for themselves; ``90a`` and ``100f`` are for their own generation alone
    (CUDA C++ programming guide, "Application compatibility").
    """
    major, minor = capability
    for architecture in architectures:
        match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", architecture)
        if match is None:
            raise ValueError(f"architectures: {architecture!r} is not a CUDA architecture such as '90' or '90-real'")
        built, kind, form = (int(match[1]), int(match[2])), match[3], match[4]
        runs_binary = form != "-virtual" and built[0] == major and built[1] <= minor
        runs_ptx = form != "-real" and built <= (major, minor)
        if built == (major, minor) or (kind == "f" and runs_binary) or (not kind and (runs_binary or runs_ptx)):
            return True
    return False


def _devices(architectures: list[str]) -> list[Device]:
    """The devices that torch can use."""
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        found.append(
            Device(
                name=properties.name,
                capability=f"{properties.major}.{properties.minor}",
                memory=properties.total_memory,
                covered=covers(architectures, capability),
            )
        )
    return found


def _why_not(built: bool, visible: int, error: str, torch_cuda: str | None, devices: list[Device]) -> str | None:
    """Why CUDA tensors cannot be used, or None; the first obstacle on the way from the build to the device."""
    if not built:
        return "this build has no CUDA code: it was made without nvcc or with SPARRING_CUDA=OFF"
    if visible == 0:
        return f"no device: {error or 'the CUDA runtime lists none'}"
    if torch_cuda is None:
        return f"{visible} device(s) found, but torch {torch.__version__} is a build without CUDA"
    if not devices:
        return f"{visible} device(s) found, but torch.cuda.is_available() is False"
    if not any(device["covered"] for device in devices):
        return "no device of an architecture that this build has code for"
    return None


def collect() -> Info:
    """Look at the installation and the machine.

    Returns
    -------
    Info
        Versions, CPU (instruction set, threads) and CUDA (build, devices, and if unusable, why).
    """
    build = _core.build_info()
    status = _core.cuda_status()
    architectures = [a for a in re.split(r"[;, ]+", str(build["cuda_architectures"])) if a]
    built = bool(build["cuda"])
    devices = _devices(architectures) if built else []
    return Info(
        versions=Versions(
            sparring=__version__,
            torch=torch.__version__,
            numpy=np.__version__,
            python=platform.python_version(),
            platform=platform.platform(),
            compiler=str(build["compiler"]),
        ),
        cpu=CpuInfo(
            isa=_core.isa(),
            supported=list(_core.supported_isas()),
            forced="SPARRING_ISA" in os.environ,
            threads=torch.get_num_threads(),
            cores=os.cpu_count() or 1,
        ),
        cuda=CudaInfo(
            built=built,
            runtime=str(build["cuda_version"]),
            architectures=architectures,
            torch=torch.version.cuda,
            devices=devices,
            why_not=_why_not(built, int(status["devices"]), str(status["error"]), torch.version.cuda, devices),
        ),
    )


def render(info: Info | None = None) -> str:
    """`info` (by default `collect`'s) as lines of text, one fact a line."""
    info = collect() if info is None else info
    cpu, cuda = info["cpu"], info["cuda"]
    chosen = "forced by SPARRING_ISA" if cpu["forced"] else "chosen"
    rows = [(name, str(value)) for name, value in info["versions"].items()]
    rows += [
        ("instruction set", f"{cpu['isa']} ({chosen}; supported here: {', '.join(cpu['supported'])})"),
        ("threads", f"{cpu['threads']} (of {cpu['cores']} processors; torch.set_num_threads changes it)"),
    ]
    if cuda["built"]:
        built_for = ", ".join(cuda["architectures"])
        rows.append(("CUDA", f"built with {cuda['runtime']}, runtime linked statically, for {built_for}"))
    for index, device in enumerate(cuda["devices"]):
        note = "" if device["covered"] else ", no code for it in this build"
        size = f"{device['memory'] / 2**30:.0f} GiB"
        rows.append((f"device {index}", f"{device['name']}, capability {device['capability']}, {size}{note}"))
    if cuda["why_not"] is not None:
        rows.append(("CUDA unusable", cuda["why_not"]))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
