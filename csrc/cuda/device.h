// What the kernels use of the device beyond the language itself, and how the host starts them. This header is the seam
// at which the tests put a device emulated on the CPU (tests/emulation).
//
// The rules that both keep: a warp operation is called by all 32 lanes, __syncthreads() by all threads of a block, and
// DETKIT_SHARED stands at the head of a kernel. Kernels use only what tests/emulation/emulated_device.h has; it is
// short.
#pragma once

#ifdef DETKIT_EMULATED_DEVICE
#include DETKIT_EMULATED_DEVICE
#else

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

// Declares `name` as memory of the block, of a type without constructors.
#define DETKIT_SHARED(name, ...) __shared__ __VA_ARGS__ name

namespace detkit {

using Stream = cudaStream_t;

inline void check(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();  // forgets it: it is said here, not at torch's next launch
  const bool is_of_the_build = error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion;
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error),
                  is_of_the_build
                      ? " (`python -m detkit.env` says what the kernels were compiled for; a newer driver, or "
                        "TORCH_CUDA_ARCH_LIST with this GPU at install, mends it; DETKIT_OPS=reference goes "
                        "without them)"
                      : "");
}

// Makes a device the current one while it lives, and knows its current stream.
class OnDevice {
 public:
  explicit OnDevice(int32_t index) : guard_(index) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
    stream_ = static_cast<Stream>(stream);
  }

  Stream stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Stream stream_;
};

// Starts a kernel; none for no blocks. A launch that fails says so here.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, Stream stream, Arguments... arguments) {
  if (blocks == 0) return;
  STD_TORCH_CHECK(blocks < int64_t{1} << 31, "CUDA: an input of this size needs ", blocks,
                  " blocks, more than 2^31 - 1");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

// Sets memory to zero bytes, after what the stream does before.
inline void set_to_zero(void* memory, int64_t bytes, Stream stream) {
  if (bytes) check(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream));
}

// Reads a number that the stream's work leaves in memory: waits for it.
inline int64_t read_when_done(const int64_t* number, Stream stream) {
  int64_t value = 0;
  check(cudaMemcpyAsync(&value, number, sizeof(value), cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  return value;
}

}  // namespace detkit

#endif  // DETKIT_EMULATED_DEVICE
