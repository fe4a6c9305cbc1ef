// The gradient by the weights. A thread takes eight output channels, an input channel and DEEP lines of the kernel, for
// every SLICES-th of the rows.

// Lines an odd number apart, and channels 2 more than a multiple of 32: few threads meet in a bank.
#define STRIDE (COLUMNS | 1)
#define PLANE ((LINES * STRIDE + 29) / 32 * 32 + 2)
#define LANES (OUTS / 8 * INS * (KERNEL / DEEP))
#define THREADS (LANES * SLICES)
// Of a block, with the same of its DEEP lines.
#define ENTRIES (LANES * 8 * KERNEL)

__device__ void add(float *sums, float slope, const float *window) {
    #pragma unroll
    for (int place = 0; place < KERNEL; place++) sums[place] += slope * window[place];
}

// grid (images, blocks of output channels, groups × blocks of input channels), THREADS: `parts` [images, groups × blocks
// of input channels, blocks of output channels, DEEP, ENTRIES], which `add_shares` adds up.
extern "C" __global__ void __launch_bounds__(THREADS) weigh(
    const float *in, const float *gradient, float *parts, int groups, int width_in, int width_out
) {
    extern __shared__ float4 room[];
    float *values = (float *)room + ROWS * WIDTH * APART;
    int blocks_in = (width_in + INS - 1) / INS, group = blockIdx.z / blocks_in;
    int first_out = blockIdx.y * OUTS, first_in = blockIdx.z % blocks_in * INS;
    long long image_and_group = (long long)blockIdx.x * groups + group;
    const float *images = in + (image_and_group * width_in + first_in) * AREA;
    const float *slopes = gradient + (image_and_group * width_out + first_out) * AREA;
    int lane = threadIdx.x % LANES, slice = threadIdx.x / LANES;
    int channel = lane % INS, first_line = lane / INS % (KERNEL / DEEP) * DEEP, eighth = lane / (INS * (KERNEL / DEEP));
    float sums[DEEP][8][KERNEL] = {};

    for (int top = 0; top < HEIGHT; top += ROWS) {
        if (top) __syncthreads();
        for (int pixel = threadIdx.x; pixel < ROWS * WIDTH; pixel += THREADS) {
            bool inside = top * WIDTH + pixel < AREA;
            #pragma unroll
            for (int four = 0; four < OUTS / 4; four++) {
                float read[4];
                #pragma unroll
                for (int each = 0; each < 4; each++) {
                    int output = 4 * four + each;
                    bool there = inside && first_out + output < width_out;
                    read[each] = there ? slopes[output * AREA + top * WIDTH + pixel] : 0;
                }
                room[pixel * (APART / 4) + four] = make_float4(read[0], read[1], read[2], read[3]);
            }
        }
        load_inputs(values, images, width_in - first_in, top, STRIDE, PLANE, THREADS);
        __syncthreads();

        for (int row = slice; row < ROWS; row += SLICES) {
            const float *from = values + channel * PLANE + (row + first_line) * STRIDE;
            const float4 *slope = room + row * WIDTH * (APART / 4) + 2 * eighth;
            float window[DEEP][KERNEL];
            #pragma unroll
            for (int line = 0; line < DEEP; line++)
                #pragma unroll
                for (int place = 0; place < KERNEL - 1; place++) window[line][place + 1] = from[line * STRIDE + place];
            #pragma unroll 7
            for (int column = 0; column < WIDTH; column++) {
                float4 low = slope[column * (APART / 4)], high = slope[column * (APART / 4) + 1];
                #pragma unroll
                for (int line = 0; line < DEEP; line++) {
                    #pragma unroll
                    for (int place = 0; place < KERNEL - 1; place++) window[line][place] = window[line][place + 1];
                    window[line][KERNEL - 1] = from[line * STRIDE + column + KERNEL - 1];
                    add(sums[line][0], low.x, window[line]);
                    add(sums[line][1], low.y, window[line]);
                    add(sums[line][2], low.z, window[line]);
                    add(sums[line][3], low.w, window[line]);
                    add(sums[line][4], high.x, window[line]);
                    add(sums[line][5], high.y, window[line]);
                    add(sums[line][6], high.z, window[line]);
                    add(sums[line][7], high.w, window[line]);
                }
            }
        }
    }

    float *of_slices = (float *)room;
    long long block = ((long long)blockIdx.x * gridDim.z + blockIdx.z) * gridDim.y + blockIdx.y;
    #pragma unroll
    for (int line = 0; line < DEEP; line++) {
        __syncthreads();
        #pragma unroll
        for (int out = 0; out < 8; out++)
            #pragma unroll
            for (int place = 0; place < KERNEL; place++)
                of_slices[slice * ENTRIES + (out * KERNEL + place) * LANES + lane] = sums[line][out][place];
        __syncthreads();
        #pragma unroll 1
        for (int entry = threadIdx.x; entry < ENTRIES; entry += THREADS) {
            float sum = 0;
            #pragma unroll
            for (int each = 0; each < SLICES; each++) sum += of_slices[each * ENTRIES + entry];
            parts[(block * DEEP + line) * ENTRIES + entry] = sum;
        }
    }
}

// grid (entries / 32), (32, SHARES) threads: [groups × OUT, IN, KERNEL, KERNEL] out of `count` parts of `entries` each.
extern "C" __global__ void add_shares(
    const float *parts, float *out, int count, int entries, int width_in, int width_out
) {
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
    // Where it belongs, as `weigh` laid it down.
    int lane = entry % LANES, place = entry / LANES % KERNEL, eighth = lane / (INS * (KERNEL / DEEP));
    int line = lane / INS % (KERNEL / DEEP) * DEEP + entry / ENTRIES % DEEP;
    int blocks_in = (width_in + INS - 1) / INS, blocks_out = (width_out + OUTS - 1) / OUTS;
    int block = entry / (ENTRIES * DEEP), of_in = block / blocks_out;
    int own_out = block % blocks_out * OUTS + eighth * 8 + entry / (LANES * KERNEL) % 8;
    int own_in = of_in % blocks_in * INS + lane % INS;
    if (own_in >= width_in || own_out >= width_out) return;
    long long weight = ((long long)(of_in / blocks_in) * width_out + own_out) * width_in + own_in;
    out[(weight * KERNEL + line) * KERNEL + place] = (float)sum;
}
