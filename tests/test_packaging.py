"""The package as built: versions agree, the extension links nothing it must not, importing stays light."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import files, version
from pathlib import Path

import pytest

import sparring
from sparring import _core

PACKAGE = Path(sparring.__file__).parent
INSTALLED = "site-packages" in PACKAGE.parts
SOURCE = Path(os.environ.get("SPARRING_SOURCE", Path(__file__).parents[1]))


def test_versions_agree() -> None:
    pyproject = (SOURCE / "pyproject.toml").read_text()
    stated = re.search(r'^version = "(.+)"$', pyproject, re.MULTILINE)
    assert stated is not None
    assert sparring.__version__ == stated[1]
    built = _core.build_info()["version"]
    if INSTALLED:
        assert built == sparring.__version__ == version("sparring")
    else:  # a CMake build for a source tree does not know the version
        assert built in (sparring.__version__, "development")


def test_typing_files_and_licence_are_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_core.pyi").is_file()
    if INSTALLED:
        listed = [path.name for path in files("sparring") or []]
        assert "LICENSE" in listed
        assert "_core.pyi" in listed
        assert not [name for name in listed if name.endswith((".cpp", ".cu", ".h"))]


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_extension_links_only_the_system() -> None:
    """No torch, no OpenMP, no CUDA runtime or driver: the wheel works with any torch and without a GPU."""
    listing = subprocess.run(["readelf", "-d", str(_core.__file__)], capture_output=True, text=True, check=True).stdout
    needed = {name.split(".so")[0] for name in re.findall(r"NEEDED.*\[(.+)\]", listing)}
    system = {"libstdc++", "libgcc_s", "libc", "libm", "libpthread", "libdl", "librt"}
    sanitizers = {"libasan", "libubsan"}
    assert needed
    assert {name for name in needed if not name.startswith("ld-linux")} <= system | sanitizers


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_import_is_light() -> None:
    added = {name.split(".")[0] for name in loaded_by("import sparring") - loaded_by("import torch, numpy")}
    third_party = {name for name in added if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert third_party == {"sparring"}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="levels of x86-64")
@pytest.mark.parametrize("level", ["v3", "v4"])
def test_kernels_keep_their_instructions_to_themselves(level: str, tmp_path: Path) -> None:
    """No weak symbol outside the level's namespace: linked in, it could run on a machine without the level.

    Without optimisation, so that the compiler hides nothing by inlining what it need not.
    """
    for kernel in sorted((SOURCE / "csrc" / "ops").glob("*.cpp")):
        target = tmp_path / f"{kernel.stem}.o"
        flags = ["-std=c++17", "-O0", "-fPIC", f"-march=x86-64-{level}", f"-DSPARRING_ISA_NAMESPACE={level}"]
        subprocess.run(["g++", *flags, f"-I{SOURCE / 'csrc'}", "-c", str(kernel), "-o", str(target)], check=True)
        symbols = subprocess.run(["nm", "-C", str(target)], capture_output=True, text=True, check=True).stdout
        assert f"sparring::{level}::launch" in symbols
        weak = re.findall(r"^[0-9a-f]+ [uVW] (?!DW\.ref)(.+)$", symbols, re.MULTILINE)
        assert [name for name in weak if f"sparring::{level}::" not in name] == []
