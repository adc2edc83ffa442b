//! Plain loops: run everywhere, and the oracle of the other kernels.

use std::ops::Range;

use super::{Layer, Panels};

pub(super) fn dot_i8(query: &[i8], rows: &[i8], out: &mut [i32]) {
    for (r, o) in out.iter_mut().enumerate() {
        let row = &rows[r * query.len()..(r + 1) * query.len()];
        // At most 65536 products of at most 127 · 128: below 2³¹.
        *o = query
            .iter()
            .zip(row)
            .map(|(&a, &b)| i32::from(a) * i32::from(b))
            .sum();
    }
}

/// The order in which every kernel adds the products of floats, so that a score has the same bits
/// on every CPU: eight lanes, each rounded after the product and after the sum (no fused
/// multiply-add, which some CPUs lack), then neighbours; the last values one after the other.
fn dot<T: Copy>(query: &[f32], row: &[T], widen: impl Fn(T) -> f32) -> f32 {
    let mut lanes = [0.0f32; 8];
    let mut groups = query.chunks_exact(8);
    for (q, x) in (&mut groups).zip(row.chunks_exact(8)) {
        for ((lane, q), &x) in lanes.iter_mut().zip(q).zip(x) {
            *lane += q * widen(x);
        }
    }
    let rest = groups.remainder();
    let tail = rest.iter().zip(&row[row.len() - rest.len()..]);
    sum(lanes) + tail.fold(0.0, |sum, (q, &x)| sum + q * widen(x))
}

/// The sum of eight lanes.
fn sum(l: [f32; 8]) -> f32 {
    ((l[0] + l[1]) + (l[2] + l[3])) + ((l[4] + l[5]) + (l[6] + l[7]))
}

pub(super) fn dot_f32(query: &[f32], rows: &[f32], out: &mut [f32]) {
    for (r, o) in out.iter_mut().enumerate() {
        *o = dot(query, &rows[r * query.len()..(r + 1) * query.len()], |x| x);
    }
}

pub(super) fn dot_f16(query: &[f32], rows: &[u16], out: &mut [f32]) {
    let widen = |x| half::f16::from_bits(x).to_f32();
    for (r, o) in out.iter_mut().enumerate() {
        *o = dot(query, &rows[r * query.len()..(r + 1) * query.len()], widen);
    }
}

/// An int8 weight as it is multiplied is a whole number of these: a vector unit widens it by
/// moving it to the top of 32 bits, which takes one instruction.
pub(super) const I8_UNIT: f32 = 1.0 / (1 << 24) as f32;

/// The outputs `columns` of a layer, see `Kernel::linear_i8`. Inlined like [`fade_from`].
#[inline(always)]
pub(super) fn linear_i8(xs: &[f32], layer: Layer<'_, i8>, columns: Range<usize>, out: &mut [f32]) {
    let widen = |w| f32::from(w) * (1 << 24) as f32;
    linear(xs, layer, columns, (widen, I8_UNIT), out);
}

/// The same with f32 weights.
#[inline(always)]
pub(super) fn linear_f32(
    xs: &[f32],
    layer: Layer<'_, f32>,
    columns: Range<usize>,
    out: &mut [f32],
) {
    linear(xs, layer, columns, (|w| w, 1.0), out);
}

#[inline(always)]
fn linear<T: Copy>(
    xs: &[f32],
    layer: Layer<'_, T>,
    columns: Range<usize>,
    (widen, unit): (impl Fn(T) -> f32, f32),
    out: &mut [f32],
) {
    for (r, out) in out.chunks_exact_mut(layer.outputs).enumerate() {
        let x = &xs[r * layer.inputs..(r + 1) * layer.inputs];
        for o in columns.clone() {
            let column = layer.weights.iter().skip(o).step_by(layer.stride);
            let products = x.iter().zip(column);
            let mut y = unit * products.fold(0.0f32, |sum, (x, &w)| x.mul_add(widen(w), sum));
            if let Some(scale) = layer.scales.get(o) {
                y *= scale;
            }
            if let Some(bias) = layer.bias.get(o) {
                y += bias;
            }
            out[o] = if layer.relu { positive(y) } else { y };
        }
    }
}

pub(super) fn all_i8(xs: &[f32], layer: Layer<'_, i8>, out: &mut [f32]) {
    linear_i8(xs, layer, 0..layer.outputs, out);
}

pub(super) fn all_f32(xs: &[f32], layer: Layer<'_, f32>, out: &mut [f32]) {
    linear_f32(xs, layer, 0..layer.outputs, out);
}

/// Panels of this kernel have groups of one: sixteen outputs side by side.
pub(super) fn linear_coded(
    xs: &[i8],
    steps: &[f32],
    panels: &Panels,
    scales: &[f32],
    out: &mut [f32],
) {
    let rows = xs.chunks_exact(panels.inputs).zip(steps);
    for ((x, step), out) in rows.zip(out.chunks_exact_mut(panels.outputs)) {
        for (o, (y, scale)) in out.iter_mut().zip(scales).enumerate() {
            let column = panels.values[o / 16 * 16 * panels.inputs..].iter();
            let products = x.iter().zip(column.skip(o % 16).step_by(16));
            // At most 256 products of at most 2¹⁴.
            let sum: i32 = products.map(|(&x, &w)| i32::from(x) * i32::from(w)).sum();
            *y = positive(sum as f32 * scale * step + *y);
        }
    }
}

/// Zero for what is negative or not a number.
fn positive(y: f32) -> f32 {
    if y > 0.0 { y } else { 0.0 }
}

pub(super) fn fade(sums: &mut [f32], keep: f32, weights: &[f32], xs: &[f32]) {
    fade_from(0, sums, keep, weights, xs);
}

/// The values from `first` on. Inlined, so that it is compiled for the CPU of the kernel whose rest
/// this is: a fused multiply-add takes a function call elsewhere.
#[inline(always)]
pub(super) fn fade_from(first: usize, sums: &mut [f32], keep: f32, weights: &[f32], xs: &[f32]) {
    let rows = xs.chunks_exact(sums.len().max(1));
    for (weight, row) in weights.iter().zip(rows) {
        for (sum, x) in sums.iter_mut().zip(row).skip(first) {
            *sum = sum.mul_add(keep, weight * x);
        }
    }
}

pub(super) fn above(scores: &[f32], threshold: f32) -> u64 {
    bits(scores.iter().map(|&score| score > threshold))
}

pub(super) fn above_scaled(sums: &[i32], scales: &[f32], threshold: f32) -> u64 {
    let pairs = sums.iter().zip(scales);
    bits(pairs.map(|(&sum, scale)| sum as f32 * scale > threshold))
}

pub(super) fn equal(codes: &[u32], wanted: u32, limit: u32) -> (u64, bool) {
    let stray = codes
        .iter()
        .fold(false, |any, &c| any | (c >= limit && c != u32::MAX));
    (bits(codes.iter().map(|&code| code == wanted)), stray)
}

fn bits(values: impl Iterator<Item = bool>) -> u64 {
    // Bytes first: that loop compiles to vector compares.
    let mut flags = [0u8; 64];
    for (flag, value) in flags.iter_mut().zip(values) {
        *flag = u8::from(value);
    }
    if flags.iter().fold(0, |any, &flag| any | flag) == 0 {
        return 0;
    }
    flags
        .iter()
        .rev()
        .fold(0, |word, &flag| word << 1 | u64::from(flag))
}

/// Calls `f` with the row's byte and the places of the two values in it, in order: see
/// [`packed`](super::packed).
fn nibbles(dim: usize, mut f: impl FnMut(usize, usize, usize)) {
    for block in super::packed(dim) {
        for j in 0..block.half {
            f(
                block.first / 2 + j,
                block.first + j,
                block.first + block.half + j,
            );
        }
    }
}

pub(super) fn dot_u4(query: &[i8], rows: &[u8], out: &mut [i32]) {
    let bytes = query.len() / 2;
    for (r, o) in out.iter_mut().enumerate() {
        let row = &rows[r * bytes..(r + 1) * bytes];
        *o = 0;
        // At most 65536 products of at most 15 · 127.
        nibbles(query.len(), |byte, low, high| {
            *o += i32::from(row[byte] & 15) * i32::from(query[low]);
            *o += i32::from(row[byte] >> 4) * i32::from(query[high]);
        });
    }
}

pub(super) fn dot_i4(query: &[i8], rows: &[u8], factors: &[u8], out: &mut [i32]) {
    let (bytes, groups) = (query.len() / 2, super::groups(query.len()));
    for (r, o) in out.iter_mut().enumerate() {
        let row = &rows[r * bytes..(r + 1) * bytes];
        let factors = &factors[r * groups..(r + 1) * groups];
        *o = 0;
        for (block, pair) in super::packed(query.len()).zip(factors.chunks_exact(2)) {
            let (mut low, mut high) = (0i32, 0i32);
            for j in 0..block.half {
                let byte = row[block.first / 2 + j];
                let at = block.first + j;
                low += (i32::from(byte & 15) - 8) * i32::from(query[at]);
                high += (i32::from(byte >> 4) - 8) * i32::from(query[at + block.half]);
            }
            // At most 1024 values of at most 8 · 127 · 255 each in total: below 2²⁹.
            *o += low * i32::from(pair[0]) + high * i32::from(pair[1]);
        }
    }
}

pub(super) fn many_i8(queries: &[i8], dim: usize, rows: &[i8], out: &mut [i32]) {
    let count = rows.len() / dim.max(1);
    for (query, out) in queries.chunks_exact(dim).zip(out.chunks_exact_mut(count)) {
        dot_i8(query, rows, out);
    }
}
