// The maths headers as a Python module over NumPy arrays, without torch: for tests and for drawing the paper's curves.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "focal.h"

namespace py = pybind11;

namespace {

// An array of type T is computed in T; whatever else is given, in the type that is bound first.
template <class T>
void bind(py::module_& m) {
  m.def("focal_loss", py::vectorize([](T z, T gamma) { return detkit::FocalShape<T>{gamma}.value(z); }));
  m.def("focal_loss_derivative", py::vectorize([](T z, T gamma) { return detkit::FocalShape<T>{gamma}.derivative(z); }));
}

}  // namespace

PYBIND11_MODULE(_math, m) {
  bind<double>(m);
  bind<float>(m);
}
