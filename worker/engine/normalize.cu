// Batch normalization, 2x2 max pooling where there is one, and ReLU, for training: float32, [N, C, H, W].
// Each sum is over the same numbers in the same order each time: PARTS blocks a channel, then their sums.

#define THREADS 256
#define PARTS 16

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

// The sums of a channel out of those of its parts.
__device__ void of_parts(const double *parts, int channel, double &first, double &second) {
    first = second = 0;
    for (int part = 0; part < PARTS; part++) {
        first += parts[2 * (channel * PARTS + part)];
        second += parts[2 * (channel * PARTS + part) + 1];
    }
}

// grid (PARTS, channels): of its share of the images, the sum and the sum of squares.
extern "C" __global__ void sums(const float *in, double *parts, int images, int channels, int area) {
    int channel = blockIdx.y;
    double sum = 0, squares = 0;
    for (int image = blockIdx.x; image < images; image += PARTS) {
        const float *plane = in + ((long long)image * channels + channel) * area;
        for (int place = threadIdx.x; place < area; place += THREADS) {
            double value = plane[place];
            sum += value;
            squares += value * value;
        }
    }
    add_up(sum, squares);
    if (threadIdx.x == 0) {
        parts[2 * (channel * PARTS + blockIdx.x)] = sum;
        parts[2 * (channel * PARTS + blockIdx.x) + 1] = squares;
    }
}

// grid (PARTS, channels): the outputs of its share of the images; where the largest of each window was; `kept` has the
// mean and 1/deviation of each channel. `bias` is the convolution's, which only moves the running mean.
extern "C" __global__ void forward(
    const float *in, const double *parts, const float *bias, const float *scale, const float *shift,
    float *running_mean, float *running_variance, float *out, unsigned char *places, float *kept,
    int images, int channels, int height, int width, int pooled, double momentum, double epsilon
) {
    int channel = blockIdx.y, area = height * width;
    double sum, squares, count = (double)images * area;
    of_parts(parts, channel, sum, squares);
    double mean = sum / count, variance = squares / count - mean * mean;
    variance = variance < 0 ? 0 : variance;
    float center = (float)mean, inverse = (float)(1 / sqrt(variance + epsilon));
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        kept[2 * channel] = center;
        kept[2 * channel + 1] = inverse;
        double unbiased = variance * count / (count - 1);
        running_mean[channel] = (float)((1 - momentum) * running_mean[channel] + momentum * (mean + bias[channel]));
        running_variance[channel] = (float)((1 - momentum) * running_variance[channel] + momentum * unbiased);
    }
    float factor = scale[channel] * inverse, added = shift[channel];
    int side = pooled ? 2 : 1, rows = height / side, columns = width / side;
    for (int image = blockIdx.x; image < images; image += PARTS) {
        long long plane = (long long)image * channels + channel;
        const float *from = in + plane * area;
        for (int place = threadIdx.x; place < rows * columns; place += THREADS) {
            int row = place / columns * side, column = place % columns * side, largest = 0;
            float most = (from[row * width + column] - center) * factor + added;
            for (int other = 1; other < side * side; other++) {
                int there = (row + other / 2) * width + column + other % 2;
                float value = (from[there] - center) * factor + added;
                if (value > most || value != value) {
                    most = value;
                    largest = other;
                }
            }
            out[plane * rows * columns + place] = most < 0 ? 0 : most;
            if (pooled) places[plane * rows * columns + place] = (unsigned char)largest;
        }
    }
}

// grid (PARTS, channels): of its share, the sums of the gradient and of the gradient times the normalized input.
extern "C" __global__ void backward_sums(
    const float *gradient, const float *out, const float *in, const unsigned char *places, const float *kept,
    double *parts, int images, int channels, int height, int width, int pooled
) {
    int channel = blockIdx.y, side = pooled ? 2 : 1, rows = height / side, columns = width / side;
    float center = kept[2 * channel], inverse = kept[2 * channel + 1];
    double sum = 0, product = 0;
    for (int image = blockIdx.x; image < images; image += PARTS) {
        long long plane = (long long)image * channels + channel, first = plane * rows * columns;
        for (int place = threadIdx.x; place < rows * columns; place += THREADS) {
            if (out[first + place] <= 0) continue;
            int largest = pooled ? places[first + place] : 0;
            int row = place / columns * side + largest / 2, column = place % columns * side + largest % 2;
            double value = gradient[first + place];
            sum += value;
            product += value * ((in[plane * height * width + row * width + column] - center) * inverse);
        }
    }
    add_up(sum, product);
    if (threadIdx.x == 0) {
        parts[2 * (channel * PARTS + blockIdx.x)] = sum;
        parts[2 * (channel * PARTS + blockIdx.x) + 1] = product;
    }
}

// grid (PARTS, channels): the gradient by its share of the inputs, and by the channel's parameters. By the bias of the
// convolution it is 0, since the mean takes it away again.
extern "C" __global__ void backward(
    const float *gradient, const float *out, const float *in, const unsigned char *places, const float *kept,
    const double *parts, const float *scale, float *by_in, float *by_bias, float *by_scale, float *by_shift,
    int images, int channels, int height, int width, int pooled
) {
    int channel = blockIdx.y, side = pooled ? 2 : 1, rows = height / side, columns = width / side, area = height * width;
    double sum, product, count = (double)images * area;
    of_parts(parts, channel, sum, product);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        by_bias[channel] = 0;
        by_scale[channel] = (float)product;
        by_shift[channel] = (float)sum;
    }
    float center = kept[2 * channel], inverse = kept[2 * channel + 1], factor = scale[channel] * inverse;
    float mean = (float)(sum / count), slope = (float)(product / count);
    for (int image = blockIdx.x; image < images; image += PARTS) {
        long long plane = (long long)image * channels + channel, first = plane * rows * columns;
        for (int place = threadIdx.x; place < area; place += THREADS) {
            int row = place / width, column = place % width;
            float own = 0;
            if (row / side < rows && column / side < columns) {
                long long window = first + row / side * columns + column / side;
                bool is_largest = !pooled || places[window] == row % 2 * 2 + column % 2;
                if (is_largest && !(out[window] <= 0)) own = gradient[window];
            }
            float normalized = (in[plane * area + place] - center) * inverse;
            by_in[plane * area + place] = factor * (own - mean - normalized * slope);
        }
    }
}
