//! Inner products of queries with many rows: the only hot loops of the crate.
//!
//! | kernel | CPU | int8 | 4 bits | many queries | f32 | f16 |
//! |---|---|---|---|---|---|---|
//! | `scalar` | any | i32 loop, the oracle | likewise | likewise | 8 lanes, the oracle | widen, then 8 lanes |
//! | `avx2` | x86-64 with AVX2, FMA and F16C | sign + `maddubs`, 8 rows a step, prefetch | mask, shift, `maddubs` | outer products of 16 rows × 3 queries, `maddubs` | 8 lanes, 8 rows a step | `cvtph`, likewise |
//! | `avx-vnni` | and AVX-VNNI | `vpdpbusd` on rows plus 128 | `vpdpbusd` | outer products, `vpdpbusd` | as `avx2` | as `avx2` |
//! | `avx512-vnni` | and AVX512-VNNI with VL | as `avx-vnni`: in 256 bits the memory is the limit already | likewise | likewise | as `avx2` | as `avx2` |
//! | `neon` | aarch64 | `vmull_s8` + `vpadalq_s16` | mask, shift, `vmull_s8` | one by one | 2 × 4 lanes | widen, then 2 × 4 lanes |
//! | `neon-dotprod` | and FEAT_DotProd | `sdot` | `sdot` | 4 rows a time, `sdot` | as `neon` | as `neon` |
//! | `neon-i8mm` | and FEAT_I8MM | as `neon-dotprod` | likewise | 2 rows × 2 queries, `smmla` | as `neon` | as `neon` |
//!
//! The layers of a network ([`Kernel::linear_i8`]) have lanes for outputs instead: six rows × two
//! vectors of outputs at a time, or one row × eight vectors. Where the inputs are codes as well
//! ([`Kernel::linear_coded`]), a lane takes two of them at a time on `avx2` and `neon` (`madd`,
//! `vmlal_s16`), four elsewhere (`vpdpbusd`, `sdot`). Here `avx512-vnni` has vectors of 512 bits: the
//! weights are in the cache.
//!
//! One table of function pointers is chosen on first use. The environment variable
//! `TERCET_KERNEL` forces one by name; [`check`] reports a name that this machine cannot run,
//! and [`active`] falls back to the best available one then.
//!
//! All kernels agree to the last bit, so a score does not depend on the CPU: integers for codes
//! within ±127 (a code of −128, which the format forbids, gives a wrong score at worst), floats
//! because the order of their additions is fixed; see `scalar.rs`.

#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::OnceLock;

use crate::error::{Error, Result};

#[macro_use]
mod coded;
#[macro_use]
mod linear;
#[cfg(target_arch = "aarch64")]
mod aarch64;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use coded::Panels;

/// `rows` holds `out.len()` rows of `query.len()` values each.
type DotI8 = unsafe fn(query: &[i8], rows: &[i8], out: &mut [i32]);
type DotF32 = unsafe fn(query: &[f32], rows: &[f32], out: &mut [f32]);
type DotF16 = unsafe fn(query: &[f32], rows: &[u16], out: &mut [f32]);
type DotI4 = unsafe fn(query: &[i8], rows: &[u8], factors: &[u8], out: &mut [i32]);
type DotU4 = unsafe fn(query: &[i8], rows: &[u8], out: &mut [i32]);
type LinearI8 = unsafe fn(xs: &[f32], layer: Layer<'_, i8>, out: &mut [f32]);
type LinearCoded =
    unsafe fn(xs: &[i8], steps: &[f32], panels: &Panels, scales: &[f32], out: &mut [f32]);
type LinearF32 = unsafe fn(xs: &[f32], layer: Layer<'_, f32>, out: &mut [f32]);
type Fade = unsafe fn(sums: &mut [f32], keep: f32, weights: &[f32], xs: &[f32]);
type ManyI8 = unsafe fn(queries: &[i8], dim: usize, rows: &[i8], out: &mut [i32]);
/// Bit i tells whether `scores[i]`, of at most 64, is above the threshold.
type Above = unsafe fn(scores: &[f32], threshold: f32) -> u64;
/// Which of at most 64 codes equal the wanted one, and whether one is neither below the limit nor
/// `u32::MAX`.
type Equal = unsafe fn(codes: &[u32], wanted: u32, limit: u32) -> (u64, bool);
/// Bit i tells whether `sums[i]` · `scales[i]`, of at most 64, is above the threshold.
type AboveScaled = unsafe fn(sums: &[i32], scales: &[f32], threshold: f32) -> u64;

/// A set of inner-product functions for one kind of CPU.
///
/// Values exist only for CPUs on which they run.
#[derive(Clone, Copy)]
pub struct Kernel {
    name: &'static str,
    dot_i8: DotI8,
    dot_f32: DotF32,
    dot_f16: DotF16,
    dot_u4: DotU4,
    dot_i4: DotI4,
    linear_i8: LinearI8,
    linear_f32: LinearF32,
    /// Inputs that a lane of `linear_coded` takes at once.
    group: usize,
    linear_coded: LinearCoded,
    fade: Fade,
    many_i8: ManyI8,
    above: Above,
    above_scaled: AboveScaled,
    equal: Equal,
}

/// A layer of a network, or some neighbouring outputs of one: `y = x W`, then each output times its
/// scale, plus its bias, and nothing below zero, where that is wanted.
#[derive(Clone, Copy)]
pub struct Layer<'a, T> {
    /// `[inputs, stride]`, from the first of the outputs on.
    weights: &'a [T],
    inputs: usize,
    stride: usize,
    outputs: usize,
    /// `[outputs]`, or nothing.
    scales: &'a [f32],
    /// `[outputs]`, or nothing.
    bias: &'a [f32],
    relu: bool,
}

impl<'a, T> Layer<'a, T> {
    /// The columns `outputs` of `matrix` `[inputs, stride]`, and of `scales` and `bias`, each
    /// `[stride]` or empty.
    ///
    /// # Panics
    /// If the shapes disagree, or there are no such columns.
    pub fn new(
        matrix: &'a [T],
        (inputs, stride): (usize, usize),
        outputs: Range<usize>,
        (scales, bias): (&'a [f32], &'a [f32]),
        relu: bool,
    ) -> Self {
        assert_eq!(inputs.checked_mul(stride), Some(matrix.len()), "weights");
        let of = |values: &'a [f32]| {
            if values.is_empty() {
                values
            } else {
                &values[outputs.clone()]
            }
        };
        assert!(outputs.start <= outputs.end && outputs.end <= stride);
        Layer {
            weights: matrix.get(outputs.start..).unwrap_or_default(),
            inputs,
            stride,
            outputs: outputs.len(),
            scales: of(scales),
            bias: of(bias),
            relu,
        }
    }

    /// Checks the shapes of a product, and tells whether there is anything to do.
    fn fits(&self, xs: &[f32], out: &[f32]) -> bool {
        let batch = out.len().checked_div(self.outputs).unwrap_or(0);
        assert_eq!(batch * self.outputs, out.len(), "outputs");
        assert!(
            batch == 0 || batch.checked_mul(self.inputs) == Some(xs.len()),
            "inputs"
        );
        batch > 0
    }
}

/// Values that are packed together: byte j of a block's bytes holds value j in its low half
/// and value j + `half` in its high half.
pub(crate) struct Packed {
    /// First value of the block; its bytes begin at half of that.
    pub(crate) first: usize,
    /// Bytes, and half the number of values: 32, less in the last block.
    pub(crate) half: usize,
}

/// The blocks of a row of `dim` values, an even number, in 4 bits each: 64 values a block.
pub(crate) fn packed(dim: usize) -> impl Iterator<Item = Packed> {
    (0..dim).step_by(64).map(move |first| Packed {
        first,
        half: (dim - first).min(64) / 2,
    })
}

/// Groups of a row of `dim` values in 4 bits: the halves of its blocks.
pub(crate) fn groups(dim: usize) -> usize {
    2 * dim.div_ceil(64)
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Kernel").field(&self.name).finish()
    }
}

impl Kernel {
    /// The first column of the table above.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Inner products of i8 vectors.
    ///
    /// # Shapes
    /// `query` `[D]` within ±127, `rows` `[R, D]`, `out` `[R]`.
    ///
    /// # Panics
    /// If the shapes disagree or D exceeds 65536.
    pub fn dot_i8(&self, query: &[i8], rows: &[i8], out: &mut [i32]) {
        check_shapes(query.len(), rows.len(), out.len());
        // SAFETY: `Kernel` values are made by `available` only, for CPUs that have the
        // features; the shapes were checked above.
        unsafe { (self.dot_i8)(query, rows, out) }
    }

    /// Inner products of f32 vectors.
    ///
    /// # Shapes
    /// `query` `[D]`, `rows` `[R, D]`, `out` `[R]`.
    ///
    /// # Panics
    /// If the shapes disagree or D exceeds 65536.
    pub fn dot_f32(&self, query: &[f32], rows: &[f32], out: &mut [f32]) {
        check_shapes(query.len(), rows.len(), out.len());
        // SAFETY: as in `dot_i8`.
        unsafe { (self.dot_f32)(query, rows, out) }
    }

    /// Inner products of an f32 query with rows of f16 bits.
    ///
    /// # Shapes
    /// `query` `[D]`, `rows` `[R, D]`, `out` `[R]`.
    ///
    /// # Panics
    /// If the shapes disagree or D exceeds 65536.
    pub fn dot_f16(&self, query: &[f32], rows: &[u16], out: &mut [f32]) {
        check_shapes(query.len(), rows.len(), out.len());
        // SAFETY: as in `dot_i8`.
        unsafe { (self.dot_f16)(query, rows, out) }
    }

    /// Inner products with rows of unsigned 4-bit codes.
    ///
    /// # Shapes
    /// `query` `[D]` within ±127, D even; `rows` `[R, D / 2]`, packed in blocks of 64 values
    /// whose low halves come first; `out` `[R]`.
    ///
    /// # Panics
    /// If the shapes disagree or D exceeds 65536.
    pub fn dot_u4(&self, query: &[i8], rows: &[u8], out: &mut [i32]) {
        check_packed(query.len(), rows.len(), out.len());
        // SAFETY: as in `dot_i8`.
        unsafe { (self.dot_u4)(query, rows, out) }
    }

    /// Inner products with rows of 4-bit codes stored plus 8, each group of them times its
    /// factor.
    ///
    /// # Shapes
    /// As [`Kernel::dot_u4`], D up to 1024; `factors` `[R, G]`, with a group for the low and
    /// one for the high halves of each block.
    ///
    /// # Panics
    /// If the shapes disagree or D exceeds 1024.
    pub fn dot_i4(&self, query: &[i8], rows: &[u8], factors: &[u8], out: &mut [i32]) {
        check_packed(query.len(), rows.len(), out.len());
        assert!(query.len() <= 1024, "{} values in a row", query.len());
        let wanted = groups(query.len()).checked_mul(out.len());
        assert_eq!(wanted, Some(factors.len()), "rows × groups");
        // SAFETY: as in `dot_i8`.
        unsafe { (self.dot_i4)(query, rows, factors, out) }
    }

    /// A layer applied to several inputs. Each output is the sum over the inputs one after the other,
    /// each product added without being rounded first (fused), so that the outputs for one input do
    /// not depend on those beside it.
    ///
    /// # Shapes
    /// `xs` `[B, inputs]`, `out` `[B, outputs]`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn linear_i8(&self, xs: &[f32], layer: Layer<'_, i8>, out: &mut [f32]) {
        if layer.fits(xs, out) {
            // SAFETY: as in `dot_i8`; the shapes were checked just now.
            unsafe { (self.linear_i8)(xs, layer, out) }
        }
    }

    /// As [`Kernel::linear_i8`].
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn linear_f32(&self, xs: &[f32], layer: Layer<'_, f32>, out: &mut [f32]) {
        if layer.fits(xs, out) {
            // SAFETY: as in `linear_i8`.
            unsafe { (self.linear_f32)(xs, layer, out) }
        }
    }

    /// The int8 weights `[inputs, outputs]` of a layer, for [`Kernel::linear_coded`] of this kernel;
    /// nothing if the layer has more than 256 inputs, or not a multiple of 4 inputs and of 16
    /// outputs.
    pub fn panels(&self, weights: &[i8], shape: (usize, usize)) -> Option<Panels> {
        Panels::new(weights, shape, self.group)
    }

    /// A layer with int8 weights applied to inputs that are int8 codes times a step of their own. The
    /// sum of the products is an integer; it is multiplied by the output's scale, then by the input's
    /// step, and added to what `out` holds. Nothing below zero is left.
    ///
    /// # Shapes
    /// `xs` `[B, inputs]`, `steps` `[B]`, `scales` `[outputs]`, `out` `[B, outputs]`.
    ///
    /// # Panics
    /// If the shapes disagree, or the panels are those of another kernel.
    pub fn linear_coded(
        &self,
        xs: &[i8],
        steps: &[f32],
        panels: &Panels,
        scales: &[f32],
        out: &mut [f32],
    ) {
        assert_eq!(panels.group, self.group, "panels of another kernel");
        assert_eq!(scales.len(), panels.outputs, "scales");
        assert_eq!(
            steps.len().checked_mul(panels.inputs),
            Some(xs.len()),
            "inputs"
        );
        assert_eq!(
            steps.len().checked_mul(panels.outputs),
            Some(out.len()),
            "outputs"
        );
        // SAFETY: as in `dot_i8`; shapes and groups were checked just now.
        unsafe { (self.linear_coded)(xs, steps, panels, scales, out) }
    }

    /// For each row in turn: `sums · keep + weight · row`, value by value.
    ///
    /// # Shapes
    /// `sums` `[W]`, `weights` `[R]`, `xs` `[R, W]`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn fade(&self, sums: &mut [f32], keep: f32, weights: &[f32], xs: &[f32]) {
        assert_eq!(sums.len().checked_mul(weights.len()), Some(xs.len()));
        // SAFETY: as in `dot_i8`; the shapes were checked above.
        unsafe { (self.fade)(sums, keep, weights, xs) }
    }

    /// Inner products of many queries with many rows.
    ///
    /// # Shapes
    /// `queries` `[B, D]` within ±63, `rows` `[R, D]` within ±127, `out` `[B, R]`.
    ///
    /// # Panics
    /// If the shapes disagree, D is 0 or D exceeds 65536.
    pub fn many_i8(&self, queries: &[i8], dim: usize, rows: &[i8], out: &mut [i32]) {
        assert!(dim > 0 && dim <= 1 << 16, "{dim} values in a row");
        assert!(queries.len().is_multiple_of(dim) && rows.len().is_multiple_of(dim));
        let scores = (queries.len() / dim).checked_mul(rows.len() / dim);
        assert_eq!(scores, Some(out.len()), "queries × rows");
        if out.is_empty() {
            return;
        }
        // SAFETY: as in `dot_i8`.
        unsafe { (self.many_i8)(queries, dim, rows, out) }
    }

    /// Bit i is set if `scores[i]` > `threshold`; a NaN is never above.
    ///
    /// # Panics
    /// If there are more than 64 scores.
    pub fn above(&self, scores: &[f32], threshold: f32) -> u64 {
        assert!(scores.len() <= 64, "{} scores in a group", scores.len());
        // SAFETY: as in `dot_i8`; the length was checked above.
        unsafe { (self.above)(scores, threshold) }
    }

    /// Bit i is set if `sums[i]` as f32 · `scales[i]` > `threshold`; a NaN is never above.
    ///
    /// # Panics
    /// If there are more than 64 sums, or not as many scales.
    pub fn above_scaled(&self, sums: &[i32], scales: &[f32], threshold: f32) -> u64 {
        assert!(sums.len() <= 64, "{} sums in a group", sums.len());
        assert_eq!(sums.len(), scales.len());
        // SAFETY: as in `dot_i8`; the lengths were checked above.
        unsafe { (self.above_scaled)(sums, scales, threshold) }
    }

    /// Which of the codes of an attribute column equal `wanted`, one bit each, and whether one
    /// is stray: neither below `limit` nor `u32::MAX`.
    ///
    /// # Panics
    /// If there are more than 64 codes.
    pub fn equal(&self, codes: &[u32], wanted: u32, limit: u32) -> (u64, bool) {
        assert!(codes.len() <= 64, "{} codes in a group", codes.len());
        // SAFETY: as in `dot_i8`; the length was checked above.
        unsafe { (self.equal)(codes, wanted, limit) }
    }
}

/// 65536 · 127² < 2³¹, so i32 sums cannot overflow.
fn check_shapes(dim: usize, values: usize, rows: usize) {
    assert!(dim <= 1 << 16, "{dim} values in a row");
    assert_eq!(dim.checked_mul(rows), Some(values), "rows × dim");
}

fn check_packed(dim: usize, bytes: usize, rows: usize) {
    assert!(
        dim <= 1 << 16 && dim.is_multiple_of(2),
        "{dim} values in a row"
    );
    assert_eq!((dim / 2).checked_mul(rows), Some(bytes), "rows × dim / 2");
}

/// The kernels that run on this machine, best first; `scalar` is always the last.
pub fn available() -> Vec<Kernel> {
    let mut kernels = Vec::new();
    #[cfg(target_arch = "x86_64")]
    if x86_64::is_available() {
        let avx2 = Kernel {
            name: "avx2",
            dot_i8: x86_64::dot_i8,
            dot_f32: x86_64::dot_f32,
            dot_f16: x86_64::dot_f16,
            dot_u4: x86_64::dot_u4,
            dot_i4: x86_64::dot_i4,
            linear_i8: x86_64::linear_i8,
            linear_f32: x86_64::linear_f32,
            group: x86_64::GROUP,
            linear_coded: x86_64::linear_coded,
            fade: x86_64::fade,
            many_i8: x86_64::many_i8,
            above: x86_64::above,
            above_scaled: x86_64::above_scaled,
            equal: x86_64::equal,
        };
        if x86_64::has_avx512_vnni() {
            kernels.push(Kernel {
                name: "avx512-vnni",
                dot_i8: x86_64::avx512_vnni::dot_i8,
                dot_u4: x86_64::avx512_vnni::dot_u4,
                linear_i8: x86_64::wide::linear_i8,
                linear_f32: x86_64::wide::linear_f32,
                group: x86_64::avx512_vnni::GROUP,
                linear_coded: x86_64::wide::linear_coded,
                fade: x86_64::wide::fade,
                many_i8: x86_64::avx512_vnni::many_i8,
                ..avx2
            });
        }
        if x86_64::has_avx_vnni() {
            kernels.push(Kernel {
                name: "avx-vnni",
                dot_i8: x86_64::avx_vnni::dot_i8,
                dot_u4: x86_64::avx_vnni::dot_u4,
                group: x86_64::avx_vnni::GROUP,
                linear_coded: x86_64::avx_vnni::linear_coded,
                many_i8: x86_64::avx_vnni::many_i8,
                ..avx2
            });
        }
        kernels.push(avx2);
    }
    #[cfg(target_arch = "aarch64")]
    if aarch64::is_available() {
        let neon = Kernel {
            name: "neon",
            dot_i8: aarch64::dot_i8,
            dot_f32: aarch64::dot_f32,
            dot_f16: aarch64::dot_f16,
            dot_u4: aarch64::dot_u4,
            dot_i4: aarch64::dot_i4,
            linear_i8: aarch64::linear_i8,
            linear_f32: aarch64::linear_f32,
            group: aarch64::GROUP,
            linear_coded: aarch64::linear_coded,
            fade: aarch64::fade,
            many_i8: aarch64::many_i8,
            above: scalar::above,
            above_scaled: scalar::above_scaled,
            equal: scalar::equal,
        };
        if aarch64::has_dotprod() {
            let dotprod = Kernel {
                name: "neon-dotprod",
                dot_i8: aarch64::dotprod::dot_i8,
                dot_u4: aarch64::dotprod::dot_u4,
                group: aarch64::dotprod_layer::GROUP,
                linear_coded: aarch64::dotprod_layer::linear_coded,
                many_i8: aarch64::dotprod::many_i8,
                ..neon
            };
            if aarch64::has_i8mm() {
                kernels.push(Kernel {
                    name: "neon-i8mm",
                    many_i8: aarch64::many_i8mm,
                    ..dotprod
                });
            }
            kernels.push(dotprod);
        }
        kernels.push(neon);
    }
    kernels.push(SCALAR);
    kernels
}

const SCALAR: Kernel = Kernel {
    name: "scalar",
    dot_i8: scalar::dot_i8,
    dot_f32: scalar::dot_f32,
    dot_f16: scalar::dot_f16,
    dot_u4: scalar::dot_u4,
    dot_i4: scalar::dot_i4,
    linear_i8: scalar::all_i8,
    linear_f32: scalar::all_f32,
    group: 1,
    linear_coded: scalar::linear_coded,
    fade: scalar::fade,
    many_i8: scalar::many_i8,
    above: scalar::above,
    above_scaled: scalar::above_scaled,
    equal: scalar::equal,
};

/// The kernel of that name.
///
/// # Errors
/// [`Error::Kernel`] if it is unknown or does not run here.
pub fn by_name(name: &str) -> Result<Kernel> {
    let kernels = available();
    match kernels.iter().find(|k| k.name == name) {
        Some(kernel) => Ok(*kernel),
        None => Err(Error::Kernel {
            requested: name.to_string(),
            available: kernels.iter().map(|k| k.name).collect(),
        }),
    }
}

/// The kernel in use, chosen on first call: `TERCET_KERNEL` if it names one that runs here,
/// else the best one.
pub fn active() -> &'static Kernel {
    static ACTIVE: OnceLock<Kernel> = OnceLock::new();
    ACTIVE.get_or_init(|| {
        requested()
            .and_then(|name| by_name(&name).ok())
            .unwrap_or_else(|| available().first().copied().unwrap_or(SCALAR))
    })
}

/// Reports whether `TERCET_KERNEL`, if set, is honoured.
///
/// # Errors
/// [`Error::Kernel`] if it names a kernel that does not run here.
pub fn check() -> Result<()> {
    match requested() {
        Some(name) => by_name(&name).map(drop),
        None => Ok(()),
    }
}

fn requested() -> Option<String> {
    std::env::var("TERCET_KERNEL")
        .ok()
        .filter(|n| !n.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator, so that tests need no seed from outside.
    struct Lcg(u64);

    impl Lcg {
        fn next(&mut self) -> u32 {
            self.0 = self
                .0
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (self.0 >> 33) as u32
        }
        fn code(&mut self) -> i8 {
            ((self.next() % 255) as i32 - 127) as i8
        }
        fn float(&mut self) -> f32 {
            (self.next() as f32 / 2f32.powi(30)) - 1.0
        }
    }

    /// What runs here, and what can be checked here without its instructions.
    fn tested() -> Vec<Kernel> {
        #[allow(unused_mut)]
        let mut kernels = available();
        #[cfg(target_arch = "x86_64")]
        if x86_64::is_available() {
            kernels.push(Kernel {
                name: "vnni on avx2",
                dot_i8: x86_64::emulated::with_avx2::dot_i8,
                dot_u4: x86_64::emulated::with_avx2::dot_u4,
                group: x86_64::emulated::with_avx2::GROUP,
                linear_coded: x86_64::emulated::with_avx2::linear_coded,
                many_i8: x86_64::emulated::with_avx2::many_i8,
                ..SCALAR
            });
        }
        kernels
    }

    fn codes(rng: &mut Lcg, n: usize, kind: usize) -> Vec<i8> {
        (0..n)
            .map(|i| match kind {
                0 => 127,
                1 => -127,
                2 => {
                    if i % 2 == 0 {
                        127
                    } else {
                        -127
                    }
                }
                3 => 0,
                _ => rng.code(),
            })
            .collect()
    }

    #[test]
    fn int8_equals_scalar_at_every_length_and_start() {
        let mut rng = Lcg(1);
        for kernel in tested() {
            for dim in 0..=130 {
                for rows in [0, 1, 3, 7, 8, 9, 17] {
                    for kind in 0..5 {
                        let start = (dim + rows) % 7;
                        let query = codes(&mut rng, start + dim, (kind + dim) % 5);
                        let table = codes(&mut rng, start + dim * rows, kind);
                        let (query, table) = (&query[start..], &table[start..]);
                        let mut got = vec![-1; rows];
                        let mut want = vec![-2; rows];
                        kernel.dot_i8(query, table, &mut got);
                        SCALAR.dot_i8(query, table, &mut want);
                        assert_eq!(got, want, "{} dim {dim} rows {rows}", kernel.name());
                    }
                }
            }
        }
    }

    #[test]
    fn int8_at_the_largest_dim() {
        let (a, b) = (vec![127i8; 1 << 16], vec![-127i8; 1 << 16]);
        for kernel in tested() {
            let mut out = [0];
            kernel.dot_i8(&a, &b, &mut out);
            assert_eq!(out[0], -((127 * 127) << 16), "{}", kernel.name());
        }
    }

    #[test]
    fn four_bits_equal_scalar_at_every_even_length_and_start() {
        let mut rng = Lcg(4);
        for kernel in tested() {
            for dim in (0..=130).step_by(2).chain([192, 256]) {
                for rows in [0, 1, 7, 8, 9, 17] {
                    for kind in 0..5 {
                        let start = (dim + rows) % 7;
                        let query = codes(&mut rng, start + dim, (kind + dim) % 5);
                        let table: Vec<u8> = (0..start + dim / 2 * rows)
                            .map(|_| match kind {
                                0 => 0xff,
                                1 => 0,
                                2 => 0x0f,
                                _ => rng.next() as u8,
                            })
                            .collect();
                        let factors: Vec<u8> = (0..rows * groups(dim))
                            .map(|_| if kind == 0 { 255 } else { rng.next() as u8 })
                            .collect();
                        let (query, table) = (&query[start..], &table[start..]);
                        let mut got = vec![-1; rows];
                        let mut want = vec![-2; rows];
                        kernel.dot_u4(query, table, &mut got);
                        SCALAR.dot_u4(query, table, &mut want);
                        assert_eq!(got, want, "{} u4 dim {dim} rows {rows}", kernel.name());
                        kernel.dot_i4(query, table, &factors, &mut got);
                        SCALAR.dot_i4(query, table, &factors, &mut want);
                        assert_eq!(got, want, "{} i4 dim {dim} rows {rows}", kernel.name());
                    }
                }
            }
        }
    }

    #[test]
    fn four_bits_by_hand() {
        // Two blocks: 64 values in 32 bytes, then 6 in 3. Value 1 is the low half of byte 1,
        // value 33 its high half; values 64 and 67 share byte 32.
        let mut query = [0i8; 70];
        (query[1], query[33], query[64], query[67]) = (1, 10, 100, -1);
        let mut row = [0u8; 35];
        (row[1], row[32]) = (0x52, 0x43);
        let mut out = [0];
        SCALAR.dot_u4(&query, &row, &mut out);
        assert_eq!(out[0], 2 + 50 + 300 - 4);
        // Less 8 each, times 1, 2, 3, 4 by group.
        SCALAR.dot_i4(&query, &row, &[1, 2, 3, 4], &mut out);
        assert_eq!(out[0], -6 + 2 * -30 + 3 * -500 + 4 * 4);
    }

    #[test]
    fn four_bits_at_the_largest_dim() {
        let query = vec![127i8; 1024];
        for kernel in tested() {
            let mut out = vec![0; 8];
            kernel.dot_i4(&query, &vec![0xff; 8 * 512], &[255; 8 * 32], &mut out);
            assert_eq!(out, [1024 * 7 * 127 * 255; 8], "{}", kernel.name());
            kernel.dot_i4(&query, &vec![0; 8 * 512], &[255; 8 * 32], &mut out);
            assert_eq!(out, [-1024 * 8 * 127 * 255; 8], "{}", kernel.name());
        }
    }

    #[test]
    fn many_equal_scalar() {
        let mut rng = Lcg(5);
        for kernel in tested() {
            for dim in (1..=130).chain([256, 1024, 1028]) {
                for (queries, rows) in [(1, 1), (2, 16), (3, 17), (4, 33), (7, 48), (0, 3), (3, 0)]
                {
                    let kind = (dim + queries) % 5;
                    let limit = |v: i8| v.clamp(-63, 63);
                    let q: Vec<i8> = codes(&mut rng, dim * queries, 4 - kind)
                        .into_iter()
                        .map(limit)
                        .collect();
                    let start = dim % 3;
                    let table = codes(&mut rng, start + dim * rows, kind);
                    let mut got = vec![-1; queries * rows];
                    let mut want = vec![-2; queries * rows];
                    kernel.many_i8(&q, dim, &table[start..], &mut got);
                    SCALAR.many_i8(&q, dim, &table[start..], &mut want);
                    assert_eq!(got, want, "{} dim {dim} {queries} × {rows}", kernel.name());
                }
            }
        }
    }

    /// Any order of summation of n products is within n·ε·Σ|x·y| of the exact value, so two of
    /// them are within twice that.
    fn bound(query: &[f32], row: &[f32]) -> f64 {
        let sum: f64 = query
            .iter()
            .zip(row)
            .map(|(a, b)| f64::from(a * b).abs())
            .sum();
        (query.len() + 1) as f64 * f64::from(f32::EPSILON) * sum
    }

    #[test]
    fn f32_and_f16_are_equal_and_within_the_derived_bound() {
        let mut rng = Lcg(2);
        for kernel in tested() {
            for dim in 0..=130 {
                for rows in [0, 1, 2, 5] {
                    let start = dim % 5;
                    let query: Vec<f32> = (0..start + dim).map(|_| rng.float()).collect();
                    let table: Vec<f32> = (0..start + dim * rows)
                        .map(|_| half::f16::from_f32(rng.float() * 100.0).to_f32())
                        .collect();
                    let halves: Vec<u16> = table
                        .iter()
                        .map(|&x| half::f16::from_f32(x).to_bits())
                        .collect();
                    let (query, table, halves) =
                        (&query[start..], &table[start..], &halves[start..]);
                    let mut wide = vec![f32::NAN; rows];
                    let mut narrow = vec![f32::NAN; rows];
                    kernel.dot_f32(query, table, &mut wide);
                    kernel.dot_f16(query, halves, &mut narrow);
                    let mut oracle = vec![f32::NAN; rows];
                    SCALAR.dot_f32(query, table, &mut oracle);
                    for got in [&wide, &narrow] {
                        let same = got
                            .iter()
                            .zip(&oracle)
                            .all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{} dim {dim}: {got:?} {oracle:?}", kernel.name());
                    }
                    for r in 0..rows {
                        let row = &table[r * dim..(r + 1) * dim];
                        let exact: f64 = query
                            .iter()
                            .zip(row)
                            .map(|(a, b)| f64::from(*a) * f64::from(*b))
                            .sum();
                        for got in [wide[r], narrow[r]] {
                            let error = (f64::from(got) - exact).abs();
                            assert!(
                                error <= bound(query, row),
                                "{} dim {dim}: {got} {exact}",
                                kernel.name()
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn linear_equals_scalar_and_is_within_the_derived_bound() {
        let mut rng = Lcg(7);
        let shapes = [
            (1, 0..1),
            (16, 0..16),
            (17, 0..17),
            (80, 0..80),
            (200, 3..153),
            (9, 9..9),
        ];
        for kernel in tested() {
            for inputs in [0, 1, 2, 63, 64, 129] {
                for (stride, range) in shapes.clone() {
                    for batch in [0, 1, 5, 6, 13] {
                        let (first, outputs) = (range.start, range.len());
                        let mut floats =
                            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.float()).collect() };
                        let (xs, scales) = (floats(batch * inputs), floats(stride));
                        let bias = if batch == 1 {
                            Vec::new()
                        } else {
                            floats(stride)
                        };
                        let codes = codes(&mut rng, inputs * stride, inputs % 5);
                        let wide: Vec<f32> = codes.iter().map(|&c| f32::from(c)).collect();
                        let (shape, relu) = ((inputs, stride), batch == 5);
                        let more = (&scales[..], &bias[..]);
                        let of_codes = Layer::new(&codes, shape, range.clone(), more, relu);
                        let of_floats = Layer::new(&wide, shape, range.clone(), more, relu);
                        let plain = Layer::new(&wide, shape, range.clone(), (&[], &[]), false);
                        let [mut got, mut same, mut want, mut sums] =
                            std::array::from_fn(|_| vec![f32::NAN; batch * outputs]);
                        kernel.linear_i8(&xs, of_codes, &mut got);
                        kernel.linear_f32(&xs, of_floats, &mut same);
                        kernel.linear_f32(&xs, plain, &mut sums);
                        SCALAR.linear_i8(&xs, of_codes, &mut want);
                        let name = kernel.name();
                        assert_eq!(bits(&got), bits(&want), "{name} {inputs} {outputs} {batch}");
                        assert_eq!(
                            bits(&same),
                            bits(&want),
                            "{name} {inputs} {outputs} {batch}"
                        );
                        for (k, sum) in sums.iter().enumerate() {
                            let (x, o) =
                                (&xs[k / outputs * inputs..][..inputs], first + k % outputs);
                            let column: Vec<f32> =
                                (0..inputs).map(|i| wide[i * stride + o]).collect();
                            let products = x.iter().zip(&column);
                            let exact: f64 =
                                products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                            let error = (f64::from(*sum) - exact).abs();
                            assert!(error <= bound(x, &column), "{name}: {sum} {exact}");
                            let bias = bias.get(o).copied().unwrap_or(0.0);
                            let y = sum * scales[o] + bias;
                            assert_eq!(got[k], if relu { y.max(0.0) } else { y }, "{name}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn layers_of_codes_equal_scalar_and_are_exact_sums() {
        let mut rng = Lcg(8);
        for kernel in tested() {
            for (inputs, outputs) in [(4, 16), (64, 48), (132, 16), (256, 32)] {
                for batch in [0, 1, 2, 3, 4, 5, 6, 13] {
                    let xs = codes(&mut rng, batch * inputs, batch % 5);
                    let matrix = codes(&mut rng, inputs * outputs, 4 - inputs / 64 % 2);
                    let mut floats =
                        |n: usize| -> Vec<f32> { (0..n).map(|_| rng.float()).collect() };
                    let (scales, steps) = (floats(outputs), floats(batch));
                    let start = floats(batch * outputs);
                    let run = |kernel: Kernel| {
                        let panels = kernel.panels(&matrix, (inputs, outputs)).unwrap();
                        let mut out = start.clone();
                        kernel.linear_coded(&xs, &steps, &panels, &scales, &mut out);
                        out
                    };
                    let got = run(kernel);
                    let name = kernel.name();
                    assert_eq!(
                        bits(&got),
                        bits(&run(SCALAR)),
                        "{name} {inputs} {outputs} {batch}"
                    );
                    for (k, start) in start.iter().enumerate() {
                        let (r, o) = (k / outputs, k % outputs);
                        let product = |i: usize| {
                            i32::from(xs[r * inputs + i]) * i32::from(matrix[i * outputs + o])
                        };
                        let sum: i32 = (0..inputs).map(product).sum();
                        let y = sum as f32 * scales[o] * steps[r] + start;
                        assert_eq!(got[k], y.max(0.0), "{name}");
                    }
                }
            }
            for shape in [(0, 16), (16, 0), (6, 16), (16, 24), (260, 16)] {
                let matrix = vec![0; shape.0 * shape.1];
                assert!(kernel.panels(&matrix, shape).is_none(), "{shape:?}");
            }
        }
    }

    #[test]
    fn fade_equals_plain_loops() {
        let mut rng = Lcg(8);
        for kernel in tested() {
            for len in (0..40).chain([64, 81, 320]) {
                for rows in [0, 1, 3] {
                    let mut floats =
                        |n: usize| -> Vec<f32> { (0..n).map(|_| rng.float()).collect() };
                    let (mut got, weights, xs) = (floats(len), floats(rows), floats(rows * len));
                    let mut want = got.clone();
                    kernel.fade(&mut got, 0.75, &weights, &xs);
                    for (r, w) in weights.iter().enumerate() {
                        for (sum, x) in want.iter_mut().zip(&xs[r * len..]) {
                            *sum = sum.mul_add(0.75, w * x);
                        }
                    }
                    assert_eq!(bits(&got), bits(&want), "{} {len}", kernel.name());
                }
            }
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    #[should_panic(expected = "inputs")]
    fn layers_of_wrong_shapes_are_our_own_bug() {
        let layer = Layer::new(&[1; 6], (3, 2), 0..2, (&[], &[]), false);
        SCALAR.linear_i8(&[1.0; 5], layer, &mut [0.0; 4]);
    }

    #[test]
    fn f16_specials_are_widened_exactly() {
        for kernel in tested() {
            for bits in [0u16, 1, 0x03ff, 0x0400, 0x3c00, 0x7bff, 0x8001, 0xfbff] {
                for dim in [1, 8, 9] {
                    let mut query = vec![0.0f32; dim];
                    query[dim - 1] = 1.0;
                    let row = vec![bits; dim];
                    let mut out = [0.0];
                    kernel.dot_f16(&query, &row, &mut out);
                    assert_eq!(
                        out[0],
                        half::f16::from_bits(bits).to_f32(),
                        "{}",
                        kernel.name()
                    );
                }
            }
        }
    }

    #[test]
    fn above_equals_plain_comparisons() {
        let mut rng = Lcg(3);
        for kernel in tested() {
            for len in 0..=64 {
                let mut scores: Vec<f32> = (0..len).map(|_| rng.float()).collect();
                if len > 9 {
                    scores[1] = f32::NAN;
                    scores[5] = f32::INFINITY;
                    scores[9] = f32::NEG_INFINITY;
                }
                for t in [-2.0, -0.0, 0.3, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                    let want = (0..len).fold(0, |m, i| m | u64::from(scores[i] > t) << i);
                    assert_eq!(kernel.above(&scores, t), want, "{} {len}", kernel.name());
                    let sums: Vec<i32> = (0..len)
                        .map(|i| i as i32 * 1_000_003 - 20_000_000)
                        .collect();
                    let scaled = |i: usize| u64::from(sums[i] as f32 * scores[i] > t) << i;
                    let want = (0..len).fold(0, |m, i| m | scaled(i));
                    assert_eq!(
                        kernel.above_scaled(&sums, &scores, t),
                        want,
                        "{} {len}",
                        kernel.name()
                    );
                }
            }
        }
    }

    #[test]
    fn equal_equals_plain_comparisons() {
        let mut rng = Lcg(6);
        for kernel in available() {
            for len in 0..=64 {
                for limit in [1, 3, 4, u32::MAX] {
                    for kind in 0..3 {
                        let codes: Vec<u32> = (0..len)
                            .map(|_| match (kind, rng.next() % 5) {
                                (1, 4) => u32::MAX,
                                (2, 4) => u32::MAX - 1,
                                (_, code) => code.min(3),
                            })
                            .collect();
                        let wanted = rng.next() % 4;
                        let mask = (0..len).fold(0, |m, i| m | u64::from(codes[i] == wanted) << i);
                        let stray = codes.iter().any(|&c| c >= limit && c != u32::MAX);
                        let got = kernel.equal(&codes, wanted, limit);
                        assert_eq!(got, (mask, stray), "{} {codes:?}", kernel.name());
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows × dim")]
    fn wrong_shapes_are_our_own_bug() {
        SCALAR.dot_i8(&[1, 2], &[1, 2, 3], &mut [0]);
    }

    #[test]
    fn names() {
        assert_eq!(by_name("scalar").unwrap().name(), "scalar");
        assert!(matches!(by_name("avx1024"), Err(Error::Kernel { .. })));
        assert!(available().iter().any(|k| k.name() == active().name()));
    }

    /// Else the tests above would compare `scalar` with itself.
    #[test]
    #[cfg(target_arch = "aarch64")]
    fn neon_is_among_the_kernels() {
        let names: Vec<&str> = available().iter().map(Kernel::name).collect();
        let mut wanted = vec!["neon", "scalar"];
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            wanted.insert(0, "neon-dotprod");
        }
        if std::arch::is_aarch64_feature_detected!("i8mm") {
            wanted.insert(0, "neon-i8mm");
        }
        assert_eq!(names, wanted);
    }
}
