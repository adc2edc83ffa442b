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
        if x86_64::vnni::has_avx512_vnni() {
            kernels.push(Kernel {
                name: "avx512-vnni",
                dot_i8: x86_64::vnni::avx512_vnni::dot_i8,
                dot_u4: x86_64::vnni::avx512_vnni::dot_u4,
                linear_i8: x86_64::avx512::linear_i8,
                linear_f32: x86_64::avx512::linear_f32,
                group: x86_64::vnni::avx512_vnni::GROUP,
                linear_coded: x86_64::avx512::linear_coded,
                fade: x86_64::avx512::fade,
                many_i8: x86_64::vnni::avx512_vnni::many_i8,
                ..avx2
            });
        }
        if x86_64::vnni::has_avx_vnni() {
            kernels.push(Kernel {
                name: "avx-vnni",
                dot_i8: x86_64::vnni::avx_vnni::dot_i8,
                dot_u4: x86_64::vnni::avx_vnni::dot_u4,
                group: x86_64::vnni::avx_vnni::GROUP,
                linear_coded: x86_64::vnni::avx_vnni::linear_coded,
                many_i8: x86_64::vnni::avx_vnni::many_i8,
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
mod tests;
