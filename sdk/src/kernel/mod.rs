//! Inner products of one query with many rows: the only hot loops of the crate.
//!
//! | kernel | CPU | int8 | f32 | f16 |
//! |---|---|---|---|---|
//! | `scalar` | any | i32 loop, the oracle | f32 loop, the oracle | widen, then f32 loop |
//! | `avx2` | x86-64 with AVX2, FMA and F16C | sign + `maddubs`, 8 rows a step, prefetch | FMA, 2 × 8 lanes | `cvtph`, FMA |
//! | `neon` | aarch64 | `vmull_s8` + `vpadalq_s16` | FMA, 2 × 4 lanes | widen, then FMA |
//!
//! One table of function pointers is chosen on first use. The environment variable
//! `TERCET_KERNEL` forces one by name; [`check`] reports a name that this machine cannot run,
//! and [`active`] falls back to the best available one then.
//!
//! Integer kernels agree exactly for codes within ±127. A code of −128, which the format
//! forbids, gives a wrong score at worst.

#![allow(unsafe_code)]

use std::sync::OnceLock;

use crate::error::{Error, Result};

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86_64;

/// `rows` holds `out.len()` rows of `query.len()` values each.
type DotI8 = unsafe fn(query: &[i8], rows: &[i8], out: &mut [i32]);
type DotF32 = unsafe fn(query: &[f32], rows: &[f32], out: &mut [f32]);
type DotF16 = unsafe fn(query: &[f32], rows: &[u16], out: &mut [f32]);

/// A set of inner-product functions for one kind of CPU.
///
/// Values exist only for CPUs on which they run.
#[derive(Clone, Copy)]
pub struct Kernel {
    name: &'static str,
    dot_i8: DotI8,
    dot_f32: DotF32,
    dot_f16: DotF16,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Kernel").field(&self.name).finish()
    }
}

impl Kernel {
    /// `scalar`, `avx2` or `neon`.
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
}

/// 65536 · 127² < 2³¹, so i32 sums cannot overflow.
fn check_shapes(dim: usize, values: usize, rows: usize) {
    assert!(dim <= 1 << 16, "{dim} values in a row");
    assert_eq!(dim.checked_mul(rows), Some(values), "rows × dim");
}

/// The kernels that run on this machine, best first; `scalar` is always the last.
pub fn available() -> Vec<Kernel> {
    let mut kernels = Vec::new();
    #[cfg(target_arch = "x86_64")]
    if x86_64::is_available() {
        kernels.push(Kernel {
            name: "avx2",
            dot_i8: x86_64::dot_i8,
            dot_f32: x86_64::dot_f32,
            dot_f16: x86_64::dot_f16,
        });
    }
    #[cfg(target_arch = "aarch64")]
    if aarch64::is_available() {
        kernels.push(Kernel {
            name: "neon",
            dot_i8: aarch64::dot_i8,
            dot_f32: aarch64::dot_f32,
            dot_f16: aarch64::dot_f16,
        });
    }
    kernels.push(SCALAR);
    kernels
}

const SCALAR: Kernel = Kernel {
    name: "scalar",
    dot_i8: scalar::dot_i8,
    dot_f32: scalar::dot_f32,
    dot_f16: scalar::dot_f16,
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
        for kernel in available() {
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
        for kernel in available() {
            let mut out = [0];
            kernel.dot_i8(&a, &b, &mut out);
            assert_eq!(out[0], -((127 * 127) << 16), "{}", kernel.name());
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
    fn f32_and_f16_are_within_the_derived_bound() {
        let mut rng = Lcg(2);
        for kernel in available() {
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
    fn f16_specials_are_widened_exactly() {
        for kernel in available() {
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
        assert_eq!(available()[0].name(), "neon");
    }
}
