// What every kernel needs of torch's stable interface.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace detkit {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Values of a type are computed and summed in this one.
template <class Scalar>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

// Calls f with a value of the C++ type of a floating dtype: f(float{}), f(double{}), ...
template <class F>
auto dispatch_floating(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::Half: return f(torch::headeronly::Half{});
    case ScalarType::BFloat16: return f(torch::headeronly::BFloat16{});
    default: STD_TORCH_CHECK(false, "expected a floating type of 16, 32 or 64 bits");
  }
}

inline Tensor contiguous_as(const Tensor& tensor, ScalarType dtype) {
  return torch::stable::contiguous(torch::stable::to(tensor, dtype));
}

// A graph that calls an operator itself may mix devices; a kernel must not read the memory of another one.
inline void check_same_device(const char* op, const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(), op,
                  ": all tensors must be on one device");
}

inline ScalarType accumulate_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace detkit
