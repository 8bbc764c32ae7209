"""Build script. The metadata is in pyproject.toml; here is the compiled library, which is no condition of install."""

from __future__ import annotations

import os
import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = runpy.run_path(str(ROOT / "detkit" / "ops" / "_sources.py"))


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
    """Return the arguments of setup() that build the library; none where torch is missing."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except Exception as error:  # a damaged torch raises more than ImportError
        say_that_nothing_is_compiled(f"torch cannot be imported ({error})")
        return {}

    class BuildLibrary(BuildExtension):
        """Compiles the library; a failure leaves a package without it."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # whatever a compiler, or its absence, may raise
                say_that_nothing_is_compiled(str(error) or type(error).__name__)
                self.extensions.clear()

        def build_extensions(self) -> None:
            super().build_extensions()
            for extension in self.extensions:
                path = Path(self.get_ext_fullpath(extension.name))
                content = path.read_bytes()
                path.write_bytes(content if SOURCES["is_whole"](content) else SOURCES["sealed"](content))

    library = CppExtension(
        "detkit._C",
        [os.path.relpath(path, ROOT) for path in SOURCES["library_sources"]()],
        depends=[os.path.relpath(path, ROOT) for path in SOURCES["source_files"]("common", "cpu", "math")],
        extra_compile_args=[*SOURCES["library_flags"](), "-g0"],  # setuptools asks for debugging data
        py_limited_api=True,
    )
    return {
        "ext_modules": [library],
        "cmdclass": {"build_ext": BuildLibrary, "build_py": BuildPackage},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def say_that_nothing_is_compiled(reason: str) -> None:
    """Print why this build has no compiled library, and what happens then."""
    print(
        f"detkit: no compiled operations in this build: {reason.strip().splitlines()[0].rstrip('.')}. "
        "The operations are built at first use if there is a C++ compiler then; else PyTorch runs them, slower."
    )


setup(**{"cmdclass": {"build_py": BuildPackage}, **extensions()})
