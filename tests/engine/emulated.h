// What makes the text of a CUDA kernel C++. `emulated.py` puts this ahead of it, and `EMULATED(kernel, most threads)`
// behind; `emulated.cpp` runs it. Without headers, which take longer to compile than a kernel does.

// With `extern "C"` left out: what another kernel has of shared memory does not count.
#define __global__ static
#define __device__ static inline __attribute__((always_inline))  // so that threads keep more to themselves
#define __shared__ static __attribute__((section("shared_memory")))
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(threads)
#define __syncthreads() emulated::stop(__LINE__)

struct Place {
    unsigned x, y, z;
};
extern Place threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) float4 {
    float x, y, z, w;
};
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

extern "C" float fmaf(float, float, float) noexcept;
extern "C" double sqrt(double) noexcept;
static inline int min(int one, int other) { return one < other ? one : other; }

// The linker's names for where __shared__ begins and ends; there may be none.
#define OF_LINKER __attribute__((weak, visibility("hidden")))
extern "C" unsigned char __start_shared_memory[] OF_LINKER, __stop_shared_memory[] OF_LINKER;

namespace emulated {

extern void **arguments;
unsigned char *room();
void stop(int line);
void live();

// What PyTorch can give for a parameter; with one of another type a kernel is not compiled.
template <typename Parameter> struct Kind;
template <> struct Kind<int> { static constexpr const char *name = "int"; };
template <> struct Kind<double> { static constexpr const char *name = "double"; };
template <> struct Kind<float *> { static constexpr const char *name = "torch.float32"; };
template <> struct Kind<double *> { static constexpr const char *name = "torch.float64"; };
template <> struct Kind<unsigned char *> { static constexpr const char *name = "torch.uint8"; };
template <typename To> struct Kind<const To *> : Kind<To *> {};

template <typename... Parameters> const char *kind(void (*)(Parameters...), int number) {
    const char *const names[] = {Kind<Parameters>::name..., nullptr};
    return names[number];
}

// Not a kernel's text, and not looked after.
#define OURS __attribute__((no_sanitize_thread, noinline))

struct Called {
    template <typename... Parameters> OURS Called(void (*kernel)(Parameters...), Parameters... given) {
        kernel(given...);
    }
};

template <typename... Parameters> OURS void call(void (*kernel)(Parameters...)) {
    void **next = arguments;
    Called{kernel, *(Parameters *)*next++...};  // in braces: in this order
}

}  // namespace emulated

#define EMULATED(kernel, most_threads)                                                          \
    extern "C" const char *emulated_kind(int number) { return emulated::kind(kernel, number); } \
    extern "C" int emulated_most_threads() { return most_threads; }                             \
    void emulated::live() {                                                                     \
        for (;;) {                                                                              \
            call(kernel);                                                                       \
            stop(0);                                                                            \
        }                                                                                       \
    }
