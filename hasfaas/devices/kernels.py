"""The source of the probe kernels, compiled by NVRTC when a probe first runs, for the GPU that it runs on.

Law: no include and no template, so the compiler alone is enough; every kernel compiles for sm_70 to sm_120, which a test
does without a GPU. Sizes are arguments: the host decides, from the device's attributes.

%smid, %globaltimer and their limits: PTX ISA, special registers. An SM number is below %nsmid and says nothing more;
%globaltimer counts nanoseconds in steps that differ by GPU, 1.024 us and finer on those seen in public reports.
"""

from __future__ import annotations

OPTIONS = ("--std=c++17",)
NAMES = ("census", "triad", "multiply_add", "nothing")

THREADS = 256
"""Threads of a block of `triad` and `multiply_add`."""
TRIAD_WIDTH = 4
"""Groups of four floats that one thread of `triad` handles: a block takes THREADS * TRIAD_WIDTH of them, always whole."""
CHAINS = 8
"""Independent chains of one thread of `multiply_add`: two warps of each scheduler hide an FMA's latency of 4 cycles."""

_SIZES = f"#define THREADS {THREADS}\n#define WIDTH {TRIAD_WIDTH}\n#define CHAINS {CHAINS}\n"
SOURCE = (
    _SIZES
    + r"""
extern "C" {

__device__ __forceinline__ long long now_ns() {
    long long ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

// One thread a block. Each block stays where it began for `spin` clock cycles and leaves its SM, the cycles and the
// nanoseconds: seen[0][block], seen[1][block], seen[2][block].
__global__ void census(long long* seen, long long spin) {
    unsigned int sm;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
    const long long began_ns = now_ns();
    const long long began = clock64();
    long long cycles;
    do {
        cycles = clock64() - began;
    } while (cycles < spin);
    const long long ns = now_ns() - began_ns;
    seen[blockIdx.x] = sm;
    seen[gridDim.x + blockIdx.x] = cycles;
    seen[2 * gridDim.x + blockIdx.x] = ns;
}

// a = b + scale * c, WIDTH float4 a thread, no bounds checked: two reads and one write of 16 bytes for each float4. All loads
// go out before the first store, so that few SMs can still have much in flight.
__global__ void __launch_bounds__(THREADS) triad(float4* __restrict__ a, const float4* __restrict__ b,
                                             const float4* __restrict__ c, float scale) {
    const long long first = (long long)blockIdx.x * (WIDTH * THREADS) + threadIdx.x;
    float4 x[WIDTH], y[WIDTH];
    #pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        x[k] = b[first + k * THREADS];
        y[k] = c[first + k * THREADS];
    }
    #pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        a[first + k * THREADS] = make_float4(fmaf(scale, y[k].x, x[k].x), fmaf(scale, y[k].y, x[k].y),
                                         fmaf(scale, y[k].z, x[k].z), fmaf(scale, y[k].w, x[k].w));
    }
}

// CHAINS chains of x = x * scale + shift, `rounds` steps each: 2 * CHAINS * rounds operations a thread. The sum is
// stored, so that no step can be left out.
__global__ void __launch_bounds__(THREADS) multiply_add(float* out, float scale, float shift, int rounds) {
    float x[CHAINS];
    #pragma unroll
    for (int k = 0; k < CHAINS; ++k) {
        x[k] = (float)(threadIdx.x + k);
    }
    #pragma unroll 16
    for (int i = 0; i < rounds; ++i) {
        #pragma unroll
        for (int k = 0; k < CHAINS; ++k) {
            x[k] = fmaf(x[k], scale, shift);
        }
    }
    float sum = 0.0f;
    #pragma unroll
    for (int k = 0; k < CHAINS; ++k) {
        sum += x[k];
    }
    out[(long long)blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

__global__ void nothing() {}

}
"""
)
