"""Builds the module ``_simt``, the CUDA kernels as host code, and offers it under the signatures of `sparring.ops`."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

SOURCE = Path(os.environ.get("SPARRING_SOURCE", Path(__file__).resolve().parents[1]))


@cache
def load(defines: tuple[str, ...] = ()) -> ModuleType:
    """The module, built from csrc/ with further preprocessor `defines`; kept in build/, rebuilt when sources change."""
    tag = hashlib.sha256(" ".join((sys.version, *defines)).encode()).hexdigest()[:8]
    build = SOURCE / "build" / f"simt-{tag}"
    build.mkdir(parents=True, exist_ok=True)
    configure = ["-DSPARRING_SIMT=ON", "-DSPARRING_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    configure.append(f"-DSPARRING_SIMT_DEFINES={';'.join(defines)}")
    with (build / "lock").open("w") as lock:  # of several processes that run tests, one builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run("cmake", "-S", SOURCE, "-B", build, "-G", "Ninja", *configure)
        _run("cmake", "--build", build, "--target", "_simt")
    (path,) = build.glob("_simt*.so")
    spec = importlib.util.spec_from_file_location("_simt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(*command: object) -> None:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | {"PATH": path})
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")


class SimtOps:
    """`sparring.ops` on CPU tensors, but calls run the CUDA kernels, their lanes in an order drawn from `seed`."""

    def __init__(self, module: ModuleType, seed: int) -> None:
        self._module, self._seed = module, seed

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from sparring import ops

        return partial(self.call, getattr(ops, name))

    def call(self, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`op`, a function of the package that calls compiled code on CPU tensors."""
        from sparring import _bridge

        def on_device_0(tensor: Any, name: str) -> _bridge.Place:
            return place_of(tensor, name)._replace(device=0)

        place_of = _bridge.place_of
        self._module.set_lane_order(self._seed)
        with mock.patch.object(_bridge, "native", self._module), mock.patch.object(_bridge, "place_of", on_device_0):
            return op(*args, **kwargs)
