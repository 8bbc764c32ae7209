// Labels: 0..K-1 a class, K background, -1 ignored; and what they make of the logits of a row in a loss: a class has
// the weight `on` at its own logit and `off` at the others, a background row has `off` everywhere, an ignored row
// counts for nothing, whatever it holds.
#pragma once

#include <cstdint>
#include <optional>

namespace detkit {

constexpr int64_t kIgnored = -1;

template <class T>
struct Weights {
  T on, off;
};

template <class T>
Weights<T> weights_of(std::optional<double> alpha) {
  return {static_cast<T>(alpha.value_or(1)), static_cast<T>(alpha ? 1 - *alpha : 1)};
}

}  // namespace detkit
