// A 'same' convolution, and its gradient by the weights, in float32 and GROUPS side by side, which are networks that are
// trained together: inputs [N, GROUPS × IN, HEIGHT, WIDTH], outputs [N, GROUPS × OUT, HEIGHT, WIDTH], weights
// [GROUPS × OUT, IN, KERNEL, KERNEL]. A block takes ROWS rows of one image of one group, OUTS output channels and INS
// input channels at a time. Each sum is over the same numbers in the same order each time, however many groups there
// are. Who compiles it defines what is in capitals.

#define COLUMNS (WIDTH + KERNEL - 1)
#define LINES (ROWS + KERNEL - 1)
#define TILES ((HEIGHT + ROWS - 1) / ROWS)
#define AREA (HEIGHT * WIDTH)

// The rows of an image that a block needs of INS input channels, with zeros around the image, into `room`.
__device__ void load_inputs(
    float *room, const float *in, long long image_and_group, int first_in, int width_in, int top, int stride, int plane,
    int threads
) {
    #pragma unroll 4
    for (int entry = threadIdx.x; entry < INS * LINES * COLUMNS; entry += threads) {
        int channel = entry / (LINES * COLUMNS), line = entry / COLUMNS % LINES, column = entry % COLUMNS;
        int row = top + line - KERNEL / 2, place = column - KERNEL / 2;
        bool there = first_in + channel < width_in && row >= 0 && row < HEIGHT && place >= 0 && place < WIDTH;
        long long from = (image_and_group * width_in + first_in + channel) * AREA + row * WIDTH + place;
        room[channel * plane + line * stride + column] = there ? in[from] : 0;
    }
}

// The outputs. A thread takes EACH output channels of four pixels next to each other.
#define FOURS ((WIDTH + 3) / 4)
#define OUT_THREADS (ROWS * FOURS * (OUTS / EACH))
// Floats from one line to the next, read four at a time: the last pixels' windows reach beyond the image.
#define OUT_STRIDE ((4 * FOURS + KERNEL - 1 + 3) / 4 * 4 + 4)
#define REACH ((4 + KERNEL - 1 + 3) / 4)

// grid (images × TILES, blocks of output channels, groups), OUT_THREADS.
extern "C" __global__ void __launch_bounds__(OUT_THREADS) convolve(
    const float *in, const float *weight, float *out, int groups, int width_in, int width_out
) {
    extern __shared__ float4 room[];
    float *values = (float *)room, *weights = values + INS * LINES * OUT_STRIDE;
    int image = blockIdx.x / TILES, top = blockIdx.x % TILES * ROWS, first_out = blockIdx.y * OUTS;
    long long image_and_group = (long long)image * groups + blockIdx.z;
    int four = threadIdx.x % FOURS, row = threadIdx.x / FOURS % ROWS, own_out = threadIdx.x / (FOURS * ROWS) * EACH;
    float sums[EACH][4] = {};
    for (int first_in = 0; first_in < width_in; first_in += INS) {
        if (first_in) __syncthreads();
        load_inputs(values, in, image_and_group, first_in, width_in, top, OUT_STRIDE, LINES * OUT_STRIDE, OUT_THREADS);
        for (int entry = threadIdx.x; entry < INS * KERNEL * KERNEL * OUTS; entry += OUT_THREADS) {
            int output = entry % OUTS, place = entry / OUTS, channel = place / (KERNEL * KERNEL);
            bool there = first_out + output < width_out && first_in + channel < width_in;
            long long row_of = (long long)blockIdx.z * width_out + first_out + output;
            weights[entry] = there ? weight[(row_of * width_in + first_in) * KERNEL * KERNEL + place] : 0;
        }
        __syncthreads();
        for (int channel = 0; channel < INS; channel++) {
            #pragma unroll
            for (int line = 0; line < KERNEL; line++) {
                __align__(16) float window[4 * REACH];
                const float *from = values + (channel * LINES + row + line) * OUT_STRIDE + 4 * four;
                #pragma unroll
                for (int each = 0; each < REACH; each++) ((float4 *)window)[each] = ((const float4 *)from)[each];
                #pragma unroll
                for (int place = 0; place < KERNEL; place++) {
                    __align__(16) float factors[EACH];
                    const float *of = weights + ((channel * KERNEL + line) * KERNEL + place) * OUTS + own_out;
                    #pragma unroll
                    for (int each = 0; each < EACH / 4; each++) ((float4 *)factors)[each] = ((const float4 *)of)[each];
                    #pragma unroll
                    for (int output = 0; output < EACH; output++)
                        #pragma unroll
                        for (int pixel = 0; pixel < 4; pixel++)
                            sums[output][pixel] += factors[output] * window[pixel + place];
                }
            }
        }
    }
    if (top + row >= HEIGHT) return;
    long long first = image_and_group * width_out + first_out + own_out;
    #pragma unroll
    for (int output = 0; output < EACH; output++) {
        if (first_out + own_out + output >= width_out) continue;
        float *to = out + (first + output) * AREA + (top + row) * WIDTH + 4 * four, *made = sums[output];
        if (WIDTH % 4 == 0) *(float4 *)to = make_float4(made[0], made[1], made[2], made[3]);
        #pragma unroll
        for (int pixel = 0; pixel < 4; pixel++)
            if (WIDTH % 4 && 4 * four + pixel < WIDTH) to[pixel] = made[pixel];
    }
}

// The gradient by the weights. A thread takes four output channels, an input channel and a line of the kernel, for every
// SLICES-th of the rows.

// Floats from one pixel's gradients to the next's, of which OUTS are used: 16 apart they would lie in two banks.
#define APART 20
// Lines an odd number apart, and channels 2 more than a multiple of 32: few threads meet in a bank.
#define STRIDE (COLUMNS | 1)
#define PLANE ((LINES * STRIDE + 29) / 32 * 32 + 2)
#define LANES (OUTS / 4 * INS * KERNEL)
#define THREADS (LANES * SLICES)
#define ENTRIES (LANES * 4 * KERNEL)

__device__ void add(float *sums, float slope, const float *window) {
    #pragma unroll
    for (int place = 0; place < KERNEL; place++) sums[place] += slope * window[place];
}

// grid (images × TILES, blocks of output channels, groups × blocks of input channels), THREADS: parts
// [images × TILES, GROUPS × OUT, IN, KERNEL, KERNEL], which `add_shares` adds up.
extern "C" __global__ void __launch_bounds__(THREADS) weigh(
    const float *in, const float *gradient, float *parts, int groups, int width_in, int width_out
) {
    extern __shared__ float4 room[];
    float *slopes = (float *)room, *values = slopes + ROWS * WIDTH * APART;
    int image = blockIdx.x / TILES, top = blockIdx.x % TILES * ROWS;
    int blocks_in = (width_in + INS - 1) / INS, group = blockIdx.z / blocks_in;
    int first_out = blockIdx.y * OUTS, first_in = blockIdx.z % blocks_in * INS;
    long long image_and_group = (long long)image * groups + group;

    #pragma unroll 4
    for (int entry = threadIdx.x; entry < OUTS * ROWS * WIDTH; entry += THREADS) {
        int channel = entry / (ROWS * WIDTH), pixel = entry % (ROWS * WIDTH);
        bool there = first_out + channel < width_out && top * WIDTH + pixel < AREA;
        long long from = (image_and_group * width_out + first_out + channel) * AREA + top * WIDTH + pixel;
        slopes[pixel * APART + channel] = there ? gradient[from] : 0;
    }
    load_inputs(values, in, image_and_group, first_in, width_in, top, STRIDE, PLANE, THREADS);
    __syncthreads();

    int lane = threadIdx.x % LANES, slice = threadIdx.x / LANES;
    int channel = lane % INS, line = lane / INS % KERNEL, quarter = lane / (INS * KERNEL);
    float sums[4][KERNEL] = {};
    for (int row = slice; row < ROWS; row += SLICES) {
        const float *from = values + channel * PLANE + (row + line) * STRIDE;
        const float4 *slope = room + row * WIDTH * (APART / 4) + quarter;
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
        long long weight = (((long long)blockIdx.x * groups + group) * width_out + own_out) * width_in + own_in;
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
