// Batch normalization, 2x2 max pooling where there is one, and ReLU, for training: float32, [N, C, H, W].
// Each sum is over the same numbers in the same order each time: PARTS blocks a channel, of THREADS each, then their
// sums. Who compiles it defines these two, and HEIGHT, WIDTH and whether POOLED: so no thread divides by what only
// comes to be known when it runs.

#define AREA (HEIGHT * WIDTH)
#define SIDE (POOLED ? 2 : 1)
#define ROWS (HEIGHT / SIDE)
#define COLUMNS (WIDTH / SIDE)

// The sums of both over the block, in every thread of it.
__device__ void add_up(double &first, double &second) {
    __shared__ double sums[2][THREADS];
    int own = threadIdx.x;
    sums[0][own] = first;
    sums[1][own] = second;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (own < half) {
            sums[0][own] += sums[0][own + half];
            sums[1][own] += sums[1][own + half];
        }
        __syncthreads();
    }
    first = sums[0][0];
    second = sums[1][0];
}

// The sums of a channel out of those of its parts, in every thread of the block, which read them at once.
__device__ void of_parts(const double *parts, int channel, double &first, double &second) {
    __shared__ double read[2 * PARTS];
    for (int each = threadIdx.x; each < 2 * PARTS; each += THREADS) read[each] = parts[2 * channel * PARTS + each];
    __syncthreads();
    first = second = 0;
    #pragma unroll 10
    for (int part = 0; part < PARTS; part++) {
        first += read[2 * part];
        second += read[2 * part + 1];
    }
}

// What the layer makes of a number, but for ReLU: in the same way each time, so that it need not be kept.
__device__ float made(float value, float center, float factor, float added) {
    return fmaf(value - center, factor, added);
}

// grid (channels, PARTS): of its share of the images, the sum and the sum of squares.
extern "C" __global__ void sums(const float *in, double *parts, int images, int channels) {
    int channel = blockIdx.x;
    double sum = 0, squares = 0;
    for (int image = blockIdx.y; image < images; image += PARTS) {
        const float *plane = in + ((long long)image * channels + channel) * AREA;
        #pragma unroll 4
        for (int place = threadIdx.x; place < AREA; place += THREADS) {
            double value = plane[place];
            sum += value;
            squares += value * value;
        }
    }
    add_up(sum, squares);
    if (threadIdx.x == 0) {
        parts[2 * (channel * PARTS + blockIdx.y)] = sum;
        parts[2 * (channel * PARTS + blockIdx.y) + 1] = squares;
    }
}

// grid (channels, PARTS): the outputs of its share of the images; where the largest of each window was; `kept` has the
// mean and 1/deviation of each channel. `bias` is the convolution's, which only moves the running mean.
extern "C" __global__ void forward(
    const float *in, const double *parts, const float *bias, const float *scale, const float *shift,
    float *running_mean, float *running_variance, float *out, unsigned char *places, float *kept,
    int images, int channels, double momentum, double epsilon
) {
    int channel = blockIdx.x;
    double sum, squares, count = (double)images * AREA;
    of_parts(parts, channel, sum, squares);
    double mean = sum / count, variance = squares / count - mean * mean;
    variance = variance < 0 ? 0 : variance;
    float center = (float)mean, inverse = (float)(1 / sqrt(variance + epsilon));
    if (blockIdx.y == 0 && threadIdx.x == 0) {
        kept[2 * channel] = center;
        kept[2 * channel + 1] = inverse;
        double unbiased = variance * count / (count - 1);
        running_mean[channel] = (float)((1 - momentum) * running_mean[channel] + momentum * (mean + bias[channel]));
        running_variance[channel] = (float)((1 - momentum) * running_variance[channel] + momentum * unbiased);
    }
    float factor = scale[channel] * inverse, added = shift[channel];
    for (int image = blockIdx.y; image < images; image += PARTS) {
        long long plane = (long long)image * channels + channel;
        const float *from = in + plane * AREA;
        #pragma unroll 4
        for (int place = threadIdx.x; place < ROWS * COLUMNS; place += THREADS) {
            int row = place / COLUMNS * SIDE, column = place % COLUMNS * SIDE, largest = 0;
            float most = made(from[row * WIDTH + column], center, factor, added);
            #pragma unroll
            for (int other = 1; other < SIDE * SIDE; other++) {
                int there = (row + other / 2) * WIDTH + column + other % 2;
                float value = made(from[there], center, factor, added);
                if (value > most || value != value) {
                    most = value;
                    largest = other;
                }
            }
            out[plane * ROWS * COLUMNS + place] = most < 0 ? 0 : most;
            if (POOLED) places[plane * ROWS * COLUMNS + place] = (unsigned char)largest;
        }
    }
}

// grid (channels, PARTS): of its share, the sums of the gradient and of the gradient times the normalized input.
extern "C" __global__ void backward_sums(
    const float *gradient, const float *in, const unsigned char *places, const float *kept, const float *scale,
    const float *shift, double *parts, int images, int channels
) {
    int channel = blockIdx.x;
    float center = kept[2 * channel], inverse = kept[2 * channel + 1];
    float factor = scale[channel] * inverse, added = shift[channel];
    double sum = 0, product = 0;
    for (int image = blockIdx.y; image < images; image += PARTS) {
        long long plane = (long long)image * channels + channel, first = plane * ROWS * COLUMNS;
        #pragma unroll 4
        for (int place = threadIdx.x; place < ROWS * COLUMNS; place += THREADS) {
            int largest = POOLED ? places[first + place] : 0;
            int row = place / COLUMNS * SIDE + largest / 2, column = place % COLUMNS * SIDE + largest % 2;
            // All is read before it is asked for, so that reads do not wait for one another.
            float value = gradient[first + place], read = in[plane * AREA + row * WIDTH + column];
            double slope = made(read, center, factor, added) <= 0 ? 0 : value;
            sum += slope;
            product += slope * ((read - center) * inverse);
        }
    }
    add_up(sum, product);
    if (threadIdx.x == 0) {
        parts[2 * (channel * PARTS + blockIdx.y)] = sum;
        parts[2 * (channel * PARTS + blockIdx.y) + 1] = product;
    }
}

// grid (channels, PARTS): the gradient by its share of the inputs, and by the channel's parameters. By the bias of the
// convolution it is 0, since the mean takes it away again.
extern "C" __global__ void backward(
    const float *gradient, const float *in, const unsigned char *places, const float *kept, const float *scale,
    const float *shift, const double *parts, float *by_in, float *by_bias, float *by_scale, float *by_shift,
    int images, int channels
) {
    int channel = blockIdx.x;
    double sum, product, count = (double)images * AREA;
    of_parts(parts, channel, sum, product);
    if (blockIdx.y == 0 && threadIdx.x == 0) {
        by_bias[channel] = 0;
        by_scale[channel] = (float)product;
        by_shift[channel] = (float)sum;
    }
    float center = kept[2 * channel], inverse = kept[2 * channel + 1];
    float factor = scale[channel] * inverse, added = shift[channel];
    float mean = (float)(sum / count), slope = (float)(product / count);
    for (int image = blockIdx.y; image < images; image += PARTS) {
        long long plane = (long long)image * channels + channel, first = plane * ROWS * COLUMNS;
        #pragma unroll 4
        for (int place = threadIdx.x; place < AREA; place += THREADS) {
            int row = place / WIDTH, column = place % WIDTH;
            float own = 0, read = in[plane * AREA + place];
            if (row / SIDE < ROWS && column / SIDE < COLUMNS) {
                long long window = first + row / SIDE * COLUMNS + column / SIDE;
                bool is_largest = !POOLED || places[window] == row % 2 * 2 + column % 2;
                float arrived = gradient[window];
                if (is_largest && !(made(read, center, factor, added) <= 0)) own = arrived;
            }
            float normalized = (read - center) * inverse;
            by_in[plane * AREA + place] = factor * (own - mean - normalized * slope);
        }
    }
}
