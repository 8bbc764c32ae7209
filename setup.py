"""Build script. The metadata is in pyproject.toml; here are the compiled libraries, which are no condition of install.

DETKIT_BUILD_CUDA=0 leaves out the CUDA kernels; =1 wants them, even where torch is built without CUDA, as for a wheel
to be given away, and is the one case in which a failure ends the build. TORCH_CUDA_ARCH_LIST names the GPUs.
"""

from __future__ import annotations

import os
import runpy
import shutil
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = runpy.run_path(str(ROOT / "detkit" / "ops" / "_sources.py"))
NVCC = runpy.run_path(str(ROOT / "detkit" / "ops" / "_nvcc.py"))
BUILD_CUDA = os.environ.get("DETKIT_BUILD_CUDA", "")
CPU, CUDA = "detkit._C", "detkit._C_cuda"
LACKING = {
    CPU: "no compiled operations in this build: {}. The operations are built at first use if there is a C++ compiler "
    "then; else PyTorch runs them, slower.",
    CUDA: "no CUDA kernels in this build: {}. They are built at first use if there is a CUDA toolkit then; else "
    "PyTorch runs the operations on GPUs, slower.",
}


class BuildPackage(build_py):
    """Puts csrc/ into the package, so that an installed one can build at first use too."""

    def run(self) -> None:
        """Copy the package, and the sources unless the package stays in place."""
        built = Path(self.build_lib) / "detkit"
        stays_in_place = self.editable_mode or built.resolve() == ROOT / "detkit"
        if not stays_in_place:
            remove_left_by_earlier_builds(built)
        super().run()
        if not stays_in_place:
            shutil.copytree(ROOT / "csrc", built / "csrc")


def remove_left_by_earlier_builds(package: Path) -> None:
    """Remove what a folder of builds has of other sources, and would be installed too: csrc/ and libraries."""
    shutil.rmtree(package / "csrc", ignore_errors=True)
    for library in package.glob("_C*.so"):
        library.unlink()


def extensions() -> dict:
    """Return the arguments of setup() that build the libraries; none where torch is missing."""
    if BUILD_CUDA not in ("", "0", "1"):
        raise ValueError(f"DETKIT_BUILD_CUDA={BUILD_CUDA!r} is neither 0 nor 1; unset it to choose by itself")
    try:
        from torch.utils import cpp_extension
    except Exception as error:  # a damaged torch raises more than ImportError
        lacking = ImportError(f"torch cannot be imported ({error})")
        refuse_if_wanted(CUDA, lacking)
        say_what_is_lacking(CPU, lacking)
        return {}

    class BuildLibraries(cpp_extension.BuildExtension):
        """Compiles the libraries, each by itself; a failure leaves a package without the one that failed."""

        def run(self) -> None:
            wanted, compiler, folder, inplace = self.extensions, self.compiler, self.build_temp, self.inplace
            built = []
            for library in wanted:
                self.extensions, self.compiler, self.inplace = [library], compiler, inplace
                self.build_temp = os.path.join(folder, library.name)  # their objects may have the same names
                try:
                    super().run()
                    built.append(library)
                except Exception as error:  # whatever a compiler, or its absence, may raise
                    refuse_if_wanted(library.name, error)
                    say_what_is_lacking(library.name, error)
            wanted[:] = built
            self.extensions, self.inplace = wanted, inplace

        def build_extensions(self) -> None:
            super().build_extensions()
            for library in self.extensions:
                path = Path(self.get_ext_fullpath(library.name))
                content = path.read_bytes()
                path.write_bytes(content if SOURCES["is_whole"](content) else SOURCES["sealed"](content))

    return {
        "ext_modules": libraries(cpp_extension),
        "cmdclass": {"build_ext": BuildLibraries, "build_py": BuildPackage},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def libraries(cpp_extension: ModuleType) -> list[Extension]:
    """Return the libraries to build: that of the CPU, and that of CUDA where torch has CUDA or it is wanted."""
    found = [cpu_library(cpp_extension)]
    if BUILD_CUDA == "1" or (BUILD_CUDA == "" and cpp_extension.torch.version.cuda):
        try:
            found.append(cuda_library(cpp_extension))
        except Exception as error:
            refuse_if_wanted(CUDA, error)
            say_what_is_lacking(CUDA, error)
    return found


def cpu_library(cpp_extension: ModuleType) -> Extension:
    """Return how to build the library of CPU kernels."""
    flags = [*SOURCES["COMPILE_FLAGS"], *SOURCES["definitions"]("cpu"), "-g0"]  # setuptools asks for debugging data
    return cpp_extension.CppExtension(CPU, extra_compile_args=flags, **sources_of("cpu"))


def cuda_library(cpp_extension: ModuleType) -> Extension:
    """Return how to build the library of CUDA kernels; raise what says why that is impossible.

    torch looks for no nvcc where it is built without CUDA, and then has no libraries of CUDA to link with.
    """
    torch_cuda = cpp_extension.torch.version.cuda
    nvcc = NVCC["find"](torch_cuda)
    cpp_extension.CUDA_HOME = str(nvcc.toolkit())
    named = os.environ.get("TORCH_CUDA_ARCH_LIST")
    # torch's own reading, though private: the list means what it means to any extension ("9.0a+PTX", "Hopper", ...).
    options = cpp_extension._get_cuda_arch_flags() if named else NVCC["flags"](NVCC["default_architectures"](nvcc))
    macros = [*SOURCES["definitions"]("cuda"), NVCC["definition"](NVCC["architectures_of"](options))]
    library = cpp_extension.CUDAExtension(
        CUDA,
        extra_compile_args={
            "cxx": [*SOURCES["COMPILE_FLAGS"], *macros, "-g0"],
            "nvcc": [*SOURCES["NVCC_FLAGS"], *macros, *options],
        },
        extra_link_args=["-Wl,--no-as-needed", "-ltorch"],  # through which the symbols of torch's CUDA part are found
        **sources_of("cuda"),
    )
    if not torch_cuda:
        library.libraries = [name for name in library.libraries if name not in ("c10_cuda", "torch_cuda")]
    return library


def sources_of(room: str) -> dict:
    """Return the arguments of an extension that say what it is built from."""
    return {
        "sources": [os.path.relpath(path, ROOT) for path in SOURCES["library_sources"](room)],
        "depends": [os.path.relpath(path, ROOT) for path in SOURCES["source_files"]("common", room, "math")],
        "py_limited_api": True,
    }


def refuse_if_wanted(library: str, error: Exception) -> None:
    """End the build where the library that cannot be built was asked for."""
    if library == CUDA and BUILD_CUDA == "1":
        wanted = "DETKIT_BUILD_CUDA=1 wants the CUDA kernels, which cannot be built"
        raise RuntimeError(f"{wanted}: {first_line(error)}; unset it to go without them") from error


def say_what_is_lacking(library: str, error: Exception) -> None:
    """Print why this build lacks a library, and what happens then."""
    print("detkit: " + LACKING[library].format(first_line(error)))


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, without a full stop; the error's type where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


setup(**{"cmdclass": {"build_py": BuildPackage}, **extensions()})
