// What `convolve.cu` and `weigh.cu` share: 'same' convolutions in float32 and GROUPS side by side, which are networks that
// are trained together. Inputs are [N, GROUPS × IN, HEIGHT, WIDTH], outputs [N, GROUPS × OUT, HEIGHT, WIDTH], weights
// [GROUPS × OUT, IN, KERNEL, KERNEL]. A block takes ROWS rows of an image, OUTS output channels and INS input channels of
// a group at a time. Each sum is over the same numbers in the same order each time, however many groups there are. Who
// compiles it defines what is in capitals.

#define COLUMNS (WIDTH + KERNEL - 1)
#define LINES (ROWS + KERNEL - 1)
#define TILES ((HEIGHT + ROWS - 1) / ROWS)
#define AREA (HEIGHT * WIDTH)
#define TAPS (KERNEL * KERNEL)
// Floats from the OUTS numbers that belong together to the next, four at a time: 16 apart they would lie in two banks.
#define APART (OUTS + 4)

// The rows of an image that a block needs of INS input channels, of which there are `channels`, with zeros around the
// image, into `room`.
__device__ void load_inputs(
    float *room, const float *in, int channels, int top, int stride, int plane, int threads
) {
    for (int place = threadIdx.x; place < LINES * COLUMNS; place += threads) {
        int line = place / COLUMNS, row = top + line - KERNEL / 2, column = place % COLUMNS - KERNEL / 2;
        bool inside = row >= 0 && row < HEIGHT && column >= 0 && column < WIDTH;
        const float *from = in + row * WIDTH + column;
        float *to = room + line * stride + place % COLUMNS;
        #pragma unroll
        for (int channel = 0; channel < INS; channel++)
            to[channel * plane] = inside && channel < channels ? from[channel * AREA] : 0;
    }
}
