"""The formulas that the kernels run, element by element over NumPy arrays: the same C++ headers, without torch.

Built with ninja at first use; needs a C++ compiler and the headers of Python.
"""

from __future__ import annotations

import functools
import importlib.util
import shlex
import sysconfig
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from detkit.ops import _build, _sources


def focal_loss(z: npt.ArrayLike, gamma: npt.ArrayLike = 2.0) -> np.ndarray:
    """Return -(1 - p_t)^gamma log p_t at p_t = sigmoid(z) (Lin et al. 2017, eq. 4).

    Args:
        z: any shape: the logit where the label is the class, minus the logit elsewhere.
        gamma: exponent >= 0, broadcast with z.

    Returns:
        float32 for float32 z and finite for |z| <= 1e4; float64 for all else.

    Raises:
        detkit.ops.math.BuildError: the module cannot be built here; the message says why.
    """
    return _call("focal_loss", z, gamma)


def focal_loss_derivative(z: npt.ArrayLike, gamma: npt.ArrayLike = 2.0) -> np.ndarray:
    """Return the derivative of focal_loss to z; arguments, type and errors are the same."""
    return _call("focal_loss_derivative", z, gamma)


def focal_loss_star(z: npt.ArrayLike, gamma: npt.ArrayLike = 2.0, beta: npt.ArrayLike = 1.0) -> np.ndarray:
    """Return FL* = -log(p_t*) / gamma at p_t* = sigmoid(gamma z + beta), gamma > 0 (appendix A); else as focal_loss."""
    return _call("focal_loss_star", z, gamma, beta)


def focal_loss_star_derivative(z: npt.ArrayLike, gamma: npt.ArrayLike = 2.0, beta: npt.ArrayLike = 1.0) -> np.ndarray:
    """Return the derivative of focal_loss_star to z, p_t* - 1; arguments, type and errors are the same."""
    return _call("focal_loss_star_derivative", z, gamma, beta)


def hinge_loss(z: npt.ArrayLike, margin: npt.ArrayLike = 0.5) -> np.ndarray:
    """Return max(0, margin - p_t) at p_t = sigmoid(z) (section 5.1); type and errors as of focal_loss."""
    return _call("hinge_loss", z, margin)


def hinge_loss_derivative(z: npt.ArrayLike, margin: npt.ArrayLike = 0.5) -> np.ndarray:
    """Return the derivative of hinge_loss to z: -p_t (1 - p_t) below the margin, else 0."""
    return _call("hinge_loss_derivative", z, margin)


BuildError = _build.BuildError


def _call(name: str, z: npt.ArrayLike, *parameters: npt.ArrayLike) -> np.ndarray:
    values = np.asarray(z)
    dtype = np.float32 if values.dtype == np.float32 else np.float64
    return np.asarray(getattr(_module(), name)(values.astype(dtype), *(np.asarray(p, dtype) for p in parameters)))


@functools.cache
def _module() -> ModuleType:
    try:
        import pybind11
    except ImportError as error:
        raise BuildError("pybind11 is not installed (pip install pybind11)") from error
    includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = [*_sources.COMPILE_FLAGS, *(f"-isystem {shlex.quote(folder)}" for folder in includes)]
    name = f"{_sources.digest('math')}-{sysconfig.get_config_var('SOABI')}-pybind11-{pybind11.__version__}"
    sources = [_sources.csrc_folder() / "math" / "bindings.cpp"]
    return _build.opened_library(_build.cache_folder("math", name), sources, flags, [], _imported)


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_math", path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no module of Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
