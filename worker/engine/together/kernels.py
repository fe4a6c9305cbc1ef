# ruff: noqa: N803 - constants of a kernel are written as constants
"""Triton kernels for the convolutional layers of members that are trained together on a GPU.

cuDNN runs a grouped convolution in float32 group by group, and a training alone is held up by BatchNorm and by the
gradients of the weights, which leave most of the GPU idle. Here one launch does the layer of all members, and of each
tensor little is read twice. Tensors lie as [members, channels, batch, height, width]: a channel's pixels, of all
images, are next to each other, and that row of them is what BatchNorm normalizes.

Nothing is added up in an order that may change, so the same input gives the same bits. Products are of three TF32
parts, which come to float32's precision but for the last bit or two.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = 1024
"""Elements that a program of the pointwise kernels takes at a time."""


@triton.jit
def convolve(
    x, weight, bias, out, width_in, width_out, pixels,
    KERNEL: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT: tl.constexpr, PIXELS: tl.constexpr, DEPTH: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """x [members, width_in, pixels], weight [members, width_out, width_in, KERNEL, KERNEL], bias [members, width_out]
    → out [members, width_out, pixels]; 'same' padding with zeros. Grid: blocks of pixels, members, blocks of `OUT`."""
    member = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel_out = tl.program_id(2) * OUT + tl.arange(0, OUT)
    row, column = (place // WIDTH) % HEIGHT, place % WIDTH
    taps: tl.constexpr = KERNEL * KERNEL
    depth = width_in * taps
    x += member * width_in * pixels
    weight += member * width_out * depth
    total = tl.zeros((OUT, PIXELS), dtype=tl.float32)
    if BIASED:
        known = tl.load(bias + member * width_out + channel_out, mask=channel_out < width_out, other=0.0)
        total += known[:, None]
    for start in range(0, depth, DEPTH):
        k = start + tl.arange(0, DEPTH)
        tap = k % taps
        down, right = tap // KERNEL - KERNEL // 2, tap % KERNEL - KERNEL // 2
        wanted = (channel_out[:, None] < width_out) & (k[None, :] < depth)
        weights = tl.load(weight + channel_out[:, None] * depth + k[None, :], mask=wanted, other=0.0)
        y, z = row[None, :] + down[:, None], column[None, :] + right[:, None]
        inside = (y >= 0) & (y < HEIGHT) & (z >= 0) & (z < WIDTH) & (k[:, None] < depth) & (place[None, :] < pixels)
        offset = (k // taps) * pixels + down * WIDTH + right
        values = tl.load(x + offset[:, None] + place[None, :], mask=inside, other=0.0)
        total = tl.dot(weights, values, total, input_precision="tf32x3")
    kept = (channel_out[:, None] < width_out) & (place[None, :] < pixels)
    out += member * width_out * pixels
    tl.store(out + channel_out[:, None] * pixels + place[None, :], total, mask=kept)


@triton.jit
def convolve_taps(
    x, weight, bias, out, width_in, width_out, pixels,
    KERNEL: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT: tl.constexpr, PIXELS: tl.constexpr, DEPTH: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """The same, an entry of the kernel at a time, for many channels: what is inside the image is then asked once for
    all of them."""
    member = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel_out = tl.program_id(2) * OUT + tl.arange(0, OUT)
    row, column = (place // WIDTH) % HEIGHT, place % WIDTH
    taps: tl.constexpr = KERNEL * KERNEL
    x += member * width_in * pixels
    weight += member * width_out * width_in * taps
    total = tl.zeros((OUT, PIXELS), dtype=tl.float32)
    if BIASED:
        known = tl.load(bias + member * width_out + channel_out, mask=channel_out < width_out, other=0.0)
        total += known[:, None]
    blocks = tl.cdiv(width_in, DEPTH)
    for step in range(0, taps * blocks):
        tap = step // blocks
        channel = (step % blocks) * DEPTH + tl.arange(0, DEPTH)
        down, right = tap // KERNEL - KERNEL // 2, tap % KERNEL - KERNEL // 2
        wanted = (channel_out[:, None] < width_out) & (channel[None, :] < width_in)
        entry = (channel_out[:, None] * width_in + channel[None, :]) * taps + tap
        weights = tl.load(weight + entry, mask=wanted, other=0.0)
        y, z = row + down, column + right
        inside = (y >= 0) & (y < HEIGHT) & (z >= 0) & (z < WIDTH) & (place < pixels)
        at = x + channel[:, None] * pixels + (place + down * WIDTH + right)[None, :]
        values = tl.load(at, mask=inside[None, :] & (channel[:, None] < width_in), other=0.0)
        total = tl.dot(weights, values, total, input_precision="tf32x3")
    kept = (channel_out[:, None] < width_out) & (place[None, :] < pixels)
    out += member * width_out * pixels
    tl.store(out + channel_out[:, None] * pixels + place[None, :], total, mask=kept)


@triton.jit
def weigh(
    x, gradient, out, width_in, width_out, pixels, members, share,
    KERNEL: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT: tl.constexpr, PIXELS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The gradient of `convolve` by its weight: out [shares, members, width_out, width_in, KERNEL, KERNEL], which is to
    be added up over the shares, of `share` pixels each. Grid: shares, members, blocks of `OUT` by those of `DEPTH`."""
    member = tl.program_id(1).to(tl.int64)
    taps: tl.constexpr = KERNEL * KERNEL
    depth = width_in * taps
    blocks = tl.cdiv(depth, DEPTH)
    channel_out = (tl.program_id(2) // blocks) * OUT + tl.arange(0, OUT)
    k = (tl.program_id(2) % blocks) * DEPTH + tl.arange(0, DEPTH)
    tap = k % taps
    down, right = tap // KERNEL - KERNEL // 2, tap % KERNEL - KERNEL // 2
    offset = (k // taps) * pixels + down * WIDTH + right
    x += member * width_in * pixels
    gradient += member * width_out * pixels
    first = tl.program_id(0) * share
    end = tl.minimum(first + share, pixels)
    total = tl.zeros((OUT, DEPTH), dtype=tl.float32)
    for start in range(first, end, PIXELS):
        place = start + tl.arange(0, PIXELS)
        row, column = (place // WIDTH) % HEIGHT, place % WIDTH
        wanted = (channel_out[:, None] < width_out) & (place[None, :] < end)
        gradients = tl.load(gradient + channel_out[:, None] * pixels + place[None, :], mask=wanted, other=0.0)
        y, z = row[:, None] + down[None, :], column[:, None] + right[None, :]
        inside = (y >= 0) & (y < HEIGHT) & (z >= 0) & (z < WIDTH) & (k[None, :] < depth) & (place[:, None] < end)
        values = tl.load(x + place[:, None] + offset[None, :], mask=inside, other=0.0)
        total = tl.dot(gradients, values, total, input_precision="tf32x3")
    out += (tl.program_id(0) * members + member) * width_out * depth
    kept = (channel_out[:, None] < width_out) & (k[None, :] < depth)
    tl.store(out + channel_out[:, None] * depth + k[None, :], total, mask=kept)


@triton.jit
def weigh_taps(
    x, gradient, out, width_in, width_out, pixels, members, share,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr, PIXELS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The same for 3×3 kernels and many channels, a row of the kernel at a time. Grid: shares, members, blocks of `OUT`
    times blocks of `DEPTH` channels times three."""
    member = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(width_in, DEPTH)
    line, block = tl.program_id(2) % 3, tl.program_id(2) // 3
    channel_out = (block // blocks) * OUT + tl.arange(0, OUT)
    channel = (block % blocks) * DEPTH + tl.arange(0, DEPTH)
    x += member * width_in * pixels + (line - 1) * WIDTH
    gradient += member * width_out * pixels
    first = tl.program_id(0) * share
    end = tl.minimum(first + share, pixels)
    left = tl.zeros((OUT, DEPTH), dtype=tl.float32)
    middle = tl.zeros((OUT, DEPTH), dtype=tl.float32)
    right = tl.zeros((OUT, DEPTH), dtype=tl.float32)
    for start in range(first, end, PIXELS):
        place = start + tl.arange(0, PIXELS)
        y, z = (place // WIDTH) % HEIGHT + line - 1, place % WIDTH
        wanted = (channel_out[:, None] < width_out) & (place[None, :] < end)
        gradients = tl.load(gradient + channel_out[:, None] * pixels + place[None, :], mask=wanted, other=0.0)
        inside = (y >= 0) & (y < HEIGHT) & (place < end)
        known = channel[None, :] < width_in
        at = x + place[:, None] + channel[None, :] * pixels
        before = tl.load(at - 1, mask=(inside & (z > 0))[:, None] & known, other=0.0)
        here = tl.load(at, mask=inside[:, None] & known, other=0.0)
        after = tl.load(at + 1, mask=(inside & (z < WIDTH - 1))[:, None] & known, other=0.0)
        left = tl.dot(gradients, before, left, input_precision="tf32x3")
        middle = tl.dot(gradients, here, middle, input_precision="tf32x3")
        right = tl.dot(gradients, after, right, input_precision="tf32x3")
    out += (tl.program_id(0) * members + member) * width_out * width_in * 9
    at = out + (channel_out[:, None] * width_in + channel[None, :]) * 9 + line * 3
    kept = (channel_out[:, None] < width_out) & (channel[None, :] < width_in)
    tl.store(at, left, mask=kept)
    tl.store(at + 1, middle, mask=kept)
    tl.store(at + 2, right, mask=kept)


@triton.jit
def activate(x, mean, scale, shift, out, pixels, CHUNK: tl.constexpr):
    """out = ReLU((x − mean)·scale + shift), row by row: [rows, pixels]. Grid: chunks, rows."""
    line = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    within = place < pixels
    values = tl.load(x + line * pixels + place, mask=within)
    normal = (values - tl.load(mean + line)) * tl.load(scale + line) + tl.load(shift + line)
    # Not a maximum, which would take 0 for what is no number.
    tl.store(out + line * pixels + place, tl.where(normal <= 0, 0.0, normal), mask=within)


@triton.jit
def activate_pooled(
    x, mean, scale, shift, out, best, which, pixels, pooled,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The same followed by 2×2 max pooling: out [rows, pooled]. Also which of four was taken, the first of equals, or 4
    where ReLU left nothing; and its x. Grid: chunks of `pooled`, rows."""
    line = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    within = place < pooled
    half_height: tl.constexpr = HEIGHT // 2
    half_width: tl.constexpr = WIDTH // 2
    image, row, column = place // (half_height * half_width), (place // half_width) % half_height, place % half_width
    source = x + line * pixels + image * (HEIGHT * WIDTH) + 2 * row * WIDTH + 2 * column
    middle, factor, added = tl.load(mean + line), tl.load(scale + line), tl.load(shift + line)
    taken = tl.load(source, mask=within)
    most = (taken - middle) * factor + added
    found = tl.zeros((CHUNK,), dtype=tl.int32)
    for number in tl.static_range(1, 4):
        other = tl.load(source + (number // 2) * WIDTH + number % 2, mask=within)
        normal = (other - middle) * factor + added
        better = (normal > most) | (normal != normal)
        taken, most = tl.where(better, other, taken), tl.where(better, normal, most)
        found = tl.where(better, number, found)
    at = line * pooled + place
    tl.store(out + at, tl.where(most <= 0, 0.0, most), mask=within)
    tl.store(best + at, taken, mask=within)
    tl.store(which + at, tl.where(most <= 0, 4, found).to(tl.uint8), mask=within)


@triton.jit
def add_up(x, mean, scale, shift, which, gradient, sums, count, share, rows, POOLED: tl.constexpr, CHUNK: tl.constexpr):
    """Sums over a share of a row, of the gradient behind ReLU, and of that times x − mean: sums [2, shares, rows]. With
    pooling, x is what was taken. Grid: shares, rows."""
    line = tl.program_id(1).to(tl.int64)
    middle, factor, added = tl.load(mean + line), tl.load(scale + line), tl.load(shift + line)
    plain, weighted = tl.zeros((CHUNK,), dtype=tl.float32), tl.zeros((CHUNK,), dtype=tl.float32)
    first = tl.program_id(0) * share
    end = tl.minimum(first + share, count)
    for start in range(first, end, CHUNK):
        place = start + tl.arange(0, CHUNK)
        within = place < end
        at = line * count + place
        centred = tl.load(x + at, mask=within, other=0.0) - middle
        slope = tl.load(gradient + at, mask=within, other=0.0)
        if POOLED:  # noqa: SIM108 - the compiler drops the other branch
            live = tl.load(which + at, mask=within, other=4) != 4
        else:
            live = (centred * factor + added > 0) & within
        slope = tl.where(live, slope, 0.0)
        plain += slope
        weighted += slope * centred
    at = tl.program_id(0) * rows + line
    tl.store(sums + at, tl.sum(plain, axis=0))
    tl.store(sums + tl.num_programs(0) * rows + at, tl.sum(weighted, axis=0))


@triton.jit
def spread(
    x, mean, scale, shift, which, gradient, base, slope, out, pixels, pooled,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOLED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradient by x: out = scale·g − base − (x − mean)·slope, g the gradient behind ReLU and pooling, `base` and
    `slope` what BatchNorm's mean and variance make of it, a number a row. Grid: chunks, rows."""
    line = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    within = place < pixels
    middle, factor, added = tl.load(mean + line), tl.load(scale + line), tl.load(shift + line)
    centred = tl.load(x + line * pixels + place, mask=within, other=0.0) - middle
    if POOLED:
        half_height: tl.constexpr = HEIGHT // 2
        half_width: tl.constexpr = WIDTH // 2
        row, column = (place // WIDTH) % HEIGHT, place % WIDTH
        read = within & (row < 2 * half_height) & (column < 2 * half_width)
        source = ((place // (HEIGHT * WIDTH)) * half_height + row // 2) * half_width + column // 2
        at = line * pooled + source
        live = tl.load(which + at, mask=read, other=4) == (row % 2) * 2 + column % 2
        arrived = tl.load(gradient + at, mask=read, other=0.0)
    else:
        live = centred * factor + added > 0
        arrived = tl.load(gradient + line * pixels + place, mask=within, other=0.0)
    found = factor * tl.where(live, arrived, 0.0) - tl.load(base + line) - centred * tl.load(slope + line)
    tl.store(out + line * pixels + place, found, mask=within)
