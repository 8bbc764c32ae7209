// The maths headers as a Python module over NumPy arrays, without torch: for tests and for drawing the paper's curves.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "focal.h"
#include "focal_star.h"
#include "hinge.h"

namespace py = pybind11;

namespace {

template <class T>
T focal_loss(T z, T gamma) {
  return detkit::with_focal_loss<T>(gamma, [=](auto loss) { return loss.value(z); });
}

template <class T>
T focal_loss_derivative(T z, T gamma) {
  return detkit::with_focal_loss<T>(gamma, [=](auto loss) { return loss.derivative(z); });
}

// An array of type T is computed in T; whatever else is given, in the type that is bound first.
template <class T>
void bind(py::module_& m) {
  using detkit::FocalStarLoss;
  using detkit::HingeLoss;
  m.def("focal_loss", py::vectorize(focal_loss<T>));
  m.def("focal_loss_derivative", py::vectorize(focal_loss_derivative<T>));
  m.def("focal_loss_star", py::vectorize([](T z, T gamma, T beta) { return FocalStarLoss<T>{gamma, beta}.value(z); }));
  m.def("focal_loss_star_derivative",
        py::vectorize([](T z, T gamma, T beta) { return FocalStarLoss<T>{gamma, beta}.derivative(z); }));
  m.def("hinge_loss", py::vectorize([](T z, T margin) { return HingeLoss<T>{margin}.value(z); }));
  m.def("hinge_loss_derivative", py::vectorize([](T z, T margin) { return HingeLoss<T>{margin}.derivative(z); }));
}

}  // namespace

PYBIND11_MODULE(_math, m) {
  bind<double>(m);
  bind<float>(m);
}
