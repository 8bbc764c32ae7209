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
AT_FIRST_USE = "The operations are built at first use if there is a C++ compiler then; else PyTorch runs them, slower."


class BuildPackage(build_py):
    """Puts csrc/ into the package, so that an installed one can build at first use too."""

    def run(self) -> None:
        """Copy the package, and the sources unless the package stays in place."""
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "csrc", Path(self.build_lib) / "detkit" / "csrc", dirs_exist_ok=True)


def extensions() -> dict:
    """Return the arguments of setup() that build the library; none where torch is missing."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        print(f"detkit: no compiled operations in this build: torch cannot be imported ({error}). {AT_FIRST_USE}")
        return {}

    class BuildLibrary(BuildExtension):
        """Compiles the library; a failure leaves a package without it."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:  # whatever a compiler, or its absence, may raise
                lines = str(error).strip().splitlines() or [type(error).__name__]
                print(f"detkit: no compiled operations in this build: {lines[0].rstrip('.')}. {AT_FIRST_USE}")
                self.extensions.clear()

    library = CppExtension(
        "detkit._C",
        [os.path.relpath(path, ROOT) for path in SOURCES["library_sources"]()],
        extra_compile_args=[*SOURCES["library_flags"](), "-g0"],  # setuptools asks for debugging data
        py_limited_api=True,
    )
    return {
        "ext_modules": [library],
        "cmdclass": {"build_ext": BuildLibrary, "build_py": BuildPackage},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**{"cmdclass": {"build_py": BuildPackage}, **extensions()})
