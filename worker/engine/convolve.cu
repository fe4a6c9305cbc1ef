// The outputs. A thread takes EACH output channels of TALL pixels below one another, so that neighbours read neighbours;
// whatever these are, a sum goes through the input channels, and the lines and places of the kernel, in the same order.
// Lines are STRIDE floats apart.

#define THREADS (WIDTH * STACKS * (OUTS / EACH))
#define PLANE (LINES * STRIDE)

// grid (images × TILES, blocks of output channels, groups), THREADS.
extern "C" __global__ void __launch_bounds__(THREADS) convolve(
    const float *in, const float *weight, float *out, int groups, int width_in, int width_out
) {
    extern __shared__ float4 room[];
    float *weights = (float *)room, *values = weights + INS * TAPS * APART;
    int image = blockIdx.x / TILES, top = blockIdx.x % TILES * ROWS, first_out = blockIdx.y * OUTS;
    long long image_and_group = (long long)image * groups + blockIdx.z;
    const float *images = in + image_and_group * width_in * AREA;
    const float *factors = weight + ((long long)blockIdx.z * width_out + first_out) * width_in * TAPS;
    int column = threadIdx.x % WIDTH, above = threadIdx.x / WIDTH % STACKS * TALL;
    int own_out = threadIdx.x / (WIDTH * STACKS) * EACH;
    float sums[EACH][TALL] = {};
    for (int first_in = 0; first_in < width_in; first_in += INS) {
        int channels = min(INS, width_in - first_in);
        if (first_in) __syncthreads();
        load_inputs(values, images + first_in * AREA, channels, top, STRIDE, PLANE, THREADS);
        for (int place = threadIdx.x; place < INS * TAPS; place += THREADS) {
            const float *read = factors + first_in * TAPS + place;
            #pragma unroll
            for (int output = 0; output < OUTS; output++) {
                bool there = first_out + output < width_out && place < channels * TAPS;
                weights[place * APART + output] = there ? read[output * width_in * TAPS] : 0;
            }
        }
        __syncthreads();
        for (int channel = 0; channel < channels; channel++) {
            const float *from = values + channel * PLANE + above * STRIDE + column;
            const float *by = weights + channel * TAPS * APART + own_out;
            float window[TALL + KERNEL - 1][KERNEL];
            #pragma unroll
            for (int line = 0; line < TALL + KERNEL - 1; line++)
                #pragma unroll
                for (int place = 0; place < KERNEL; place++) window[line][place] = from[line * STRIDE + place];
            #pragma unroll
            for (int tap = 0; tap < TAPS; tap++) {
                __align__(16) float factor[EACH];
                #pragma unroll
                for (int each = 0; each < EACH / 4; each++)
                    ((float4 *)factor)[each] = ((const float4 *)(by + tap * APART))[each];
                #pragma unroll
                for (int output = 0; output < EACH; output++)
                    #pragma unroll
                    for (int pixel = 0; pixel < TALL; pixel++)
                        sums[output][pixel] += factor[output] * window[pixel + tap / KERNEL][tap % KERNEL];
            }
        }
    }
    float *to = out + (image_and_group * width_out + first_out + own_out) * AREA + (top + above) * WIDTH + column;
    #pragma unroll
    for (int output = 0; output < EACH; output++)
        #pragma unroll
        for (int pixel = 0; pixel < TALL; pixel++)
            if (first_out + own_out + output < width_out && top + above + pixel < HEIGHT)
                to[output * AREA + pixel * WIDTH] = sums[output][pixel];
}
