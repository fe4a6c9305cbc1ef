// The gradient of a 'same' convolution by its weights: float32, inputs [N, IN, HEIGHT, WIDTH], gradients
// [N, OUT, HEIGHT, WIDTH], a kernel of KERNEL × KERNEL. A block takes ROWS rows of one image, OUTS output channels and
// INS input channels; a thread of it four output channels, an input channel and a line of the kernel, for every
// SLICES-th of the rows. Each sum is over the same numbers in the same order each time. Who compiles it defines what is
// in capitals.

// Floats from one pixel's gradients to the next's, of which OUTS are used: 16 apart they would lie in two banks.
#define APART 20
#define COLUMNS (WIDTH + KERNEL - 1)
#define LINES (ROWS + KERNEL - 1)
// Lines an odd number apart, and channels 2 more than a multiple of 32: few threads meet in a bank.
#define STRIDE (COLUMNS | 1)
#define PLANE ((LINES * STRIDE + 29) / 32 * 32 + 2)
#define TILES ((HEIGHT + ROWS - 1) / ROWS)
#define LANES (OUTS / 4 * INS * KERNEL)
#define THREADS (LANES * SLICES)
#define ENTRIES (LANES * 4 * KERNEL)

__device__ void add(float *sums, float slope, const float *window) {
    #pragma unroll
    for (int place = 0; place < KERNEL; place++) sums[place] += slope * window[place];
}

// grid (images × TILES, blocks of output channels, blocks of input channels), THREADS: parts
// [images × TILES, OUT, IN, KERNEL, KERNEL], which `add_shares` adds up.
extern "C" __global__ void __launch_bounds__(THREADS) weigh(
    const float *in, const float *gradient, float *parts, int width_in, int width_out
) {
    extern __shared__ float4 room[];
    float *slopes = (float *)room, *values = slopes + ROWS * WIDTH * APART;
    int image = blockIdx.x / TILES, top = blockIdx.x % TILES * ROWS;
    int first_out = blockIdx.y * OUTS, first_in = blockIdx.z * INS;

    #pragma unroll 4
    for (int entry = threadIdx.x; entry < OUTS * ROWS * WIDTH; entry += THREADS) {
        int channel = entry / (ROWS * WIDTH), pixel = entry % (ROWS * WIDTH);
        bool there = first_out + channel < width_out && top * WIDTH + pixel < HEIGHT * WIDTH;
        long long from = ((long long)image * width_out + first_out + channel) * (HEIGHT * WIDTH) + top * WIDTH + pixel;
        slopes[pixel * APART + channel] = there ? gradient[from] : 0;
    }
    #pragma unroll 4
    for (int entry = threadIdx.x; entry < INS * LINES * COLUMNS; entry += THREADS) {
        int channel = entry / (LINES * COLUMNS), line = entry / COLUMNS % LINES, column = entry % COLUMNS;
        int row = top + line - KERNEL / 2, place = column - KERNEL / 2;
        bool there = first_in + channel < width_in && row >= 0 && row < HEIGHT && place >= 0 && place < WIDTH;
        long long from = ((long long)image * width_in + first_in + channel) * (HEIGHT * WIDTH) + row * WIDTH + place;
        values[channel * PLANE + line * STRIDE + column] = there ? in[from] : 0;
    }
    __syncthreads();

    int lane = threadIdx.x % LANES, slice = threadIdx.x / LANES;
    int channel = lane % INS, line = lane / INS % KERNEL, group = lane / (INS * KERNEL);
    float sums[4][KERNEL] = {};
    for (int row = slice; row < ROWS; row += SLICES) {
        const float *from = values + channel * PLANE + (row + line) * STRIDE;
        const float4 *slope = room + row * WIDTH * (APART / 4) + group;
        float window[KERNEL];
        #pragma unroll
        for (int place = 0; place < KERNEL - 1; place++) window[place + 1] = from[place];
        #pragma unroll 14
        for (int column = 0; column < WIDTH; column++) {
            #pragma unroll
            for (int place = 0; place < KERNEL - 1; place++) window[place] = window[place + 1];
            window[KERNEL - 1] = from[column + KERNEL - 1];
            float4 four = slope[column * (APART / 4)];
            add(sums[0], four.x, window);
            add(sums[1], four.y, window);
            add(sums[2], four.z, window);
            add(sums[3], four.w, window);
        }
    }
    __syncthreads();

    float *of_slices = (float *)room;
    #pragma unroll
    for (int out = 0; out < 4; out++)
        #pragma unroll
        for (int place = 0; place < KERNEL; place++)
            of_slices[slice * ENTRIES + (out * KERNEL + place) * LANES + lane] = sums[out][place];
    __syncthreads();
    for (int entry = threadIdx.x; entry < ENTRIES; entry += THREADS) {
        float sum = 0;
        for (int each = 0; each < SLICES; each++) sum += of_slices[each * ENTRIES + entry];
        int of = entry % LANES, place = entry / LANES % KERNEL, out = entry / LANES / KERNEL;
        int own_in = first_in + of % INS, own_line = of / INS % KERNEL;
        int own_out = first_out + of / (INS * KERNEL) * 4 + out;
        if (own_in >= width_in || own_out >= width_out) continue;
        long long weight = ((long long)blockIdx.x * width_out + own_out) * width_in + own_in;
        parts[(weight * KERNEL + own_line) * KERNEL + place] = sum;
    }
}

// grid (entries / 32), (32, SHARES) threads.
extern "C" __global__ void add_shares(const float *parts, float *out, int count, int entries) {
    __shared__ double sums[SHARES][32];
    int entry = blockIdx.x * 32 + threadIdx.x;
    double sum = 0;
    if (entry < entries)
        #pragma unroll 8
        for (int part = threadIdx.y; part < count; part += SHARES) sum += parts[(long long)part * entries + entry];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || entry >= entries) return;
    for (int share = 1; share < SHARES; share++) sum += sums[share][threadIdx.x];
    out[entry] = (float)sum;
}
