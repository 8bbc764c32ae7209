// Contexts of execution that a program changes between by itself. On x86-64 a change saves the few registers that a
// call must keep; elsewhere it is swapcontext, which also asks the system, and takes ten times as long. (For fibres.cpp
// alone.)
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __x86_64__

extern "C" void emulation_change(void** save_stack, void* load_stack);

asm(R"(
.text
.globl emulation_change
.hidden emulation_change
.type emulation_change, @function
emulation_change:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_change, .-emulation_change
)");

namespace emulation {

class Context {
 public:
  // Will run `entry`, which never returns, on a stack.
  void make(char* stack, size_t size, void (*entry)()) {
    auto* top = reinterpret_cast<uintptr_t*>(reinterpret_cast<uintptr_t>(stack + size) & ~uintptr_t{15});
    *--top = 0;  // where the entry would return to, which also aligns the stack as a call does
    *--top = reinterpret_cast<uintptr_t>(entry);
    for (int i = 0; i < 6; ++i) *--top = 0;
    stack_ = top;
  }

  void change_to(Context& other) { emulation_change(&stack_, other.stack_); }

 private:
  void* stack_ = nullptr;
};

}  // namespace emulation

#else

#include <ucontext.h>

namespace emulation {

class Context {
 public:
  void make(char* stack, size_t size, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = size;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }

  void change_to(Context& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_;
};

}  // namespace emulation

#endif
