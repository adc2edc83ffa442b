//! Named random streams: every draw in training depends only on `(seed, purpose, epoch, index)`.
//!
//! A run that was interrupted and resumed therefore draws the same numbers as one that was not,
//! without storing the state of any generator.

use candle_core::{Device, Shape, Tensor};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::error::Result;

/// The generator behind every stream: fast, small, and fixed by its published definition.
pub type Stream = Xoshiro256PlusPlus;

/// What a stream is drawn for; part of its seed, so purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// Initial parameter values.
    Init = 1,
    /// Order of examples within an epoch.
    Shuffle = 2,
    /// Sampled negatives.
    Negatives = 3,
    /// Dropout masks and corruption of inputs.
    Dropout = 4,
    /// Diffusion steps and Gaussian noise.
    Noise = 5,
    /// Edge dropout of generated graphs.
    EdgeDropout = 6,
    /// Sub-sampling and shuffling of histories.
    History = 7,
    /// Candidate sets.
    Candidates = 8,
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The stream of `(seed, purpose, parts…)`.
pub fn stream(seed: u64, purpose: Purpose, parts: &[u64]) -> Stream {
    let mut h = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ (purpose as u64);
    for &p in parts {
        h = mix(h.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ p);
    }
    Stream::seed_from_u64(mix(h))
}

/// FNV-1a hash of a name, to give each parameter its own stream.
pub fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Tensor of independent normals `N(0, std²)`.
pub fn normal(rng: &mut Stream, shape: impl Into<Shape>, std: f64, dev: &Device) -> Result<Tensor> {
    let shape = shape.into();
    let v: Vec<f32> = (0..shape.elem_count())
        .map(|_| (Distribution::<f64>::sample(&StandardNormal, rng) * std) as f32)
        .collect();
    Ok(Tensor::from_vec(v, shape, dev)?)
}

/// Tensor of independent uniforms on `[-bound, bound)`.
pub fn uniform(
    rng: &mut Stream,
    shape: impl Into<Shape>,
    bound: f64,
    dev: &Device,
) -> Result<Tensor> {
    let shape = shape.into();
    let v: Vec<f32> = match Uniform::new(-bound, bound) {
        Ok(d) => (0..shape.elem_count())
            .map(|_| d.sample(rng) as f32)
            .collect(),
        Err(_) => vec![0.0; shape.elem_count()],
    };
    Ok(Tensor::from_vec(v, shape, dev)?)
}

/// Xavier/Glorot uniform for a `[fan_out, fan_in]` matrix: bound `sqrt(6 / (fan_in + fan_out))`.
pub fn xavier_uniform(
    rng: &mut Stream,
    fan_out: usize,
    fan_in: usize,
    dev: &Device,
) -> Result<Tensor> {
    let bound = (6.0 / (fan_in + fan_out) as f64).sqrt();
    uniform(rng, (fan_out, fan_in), bound, dev)
}

/// Fisher–Yates shuffle in place.
pub fn shuffle<T>(rng: &mut Stream, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        let j = below(rng, i + 1);
        items.swap(i, j);
    }
}

/// Uniform integer in `[0, n)`; `n` must be positive.
pub fn below(rng: &mut Stream, n: usize) -> usize {
    use rand::Rng;
    // Widening multiply: bias below 2^-40 for every n that fits memory.
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// Uniform in `[0, 1)` with 24 bits.
pub fn unit(rng: &mut Stream) -> f32 {
    use rand::Rng;
    (rng.next_u64() >> 40) as f32 * (1.0 / (1u64 << 24) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn streams_depend_on_every_part() {
        let base = stream(1, Purpose::Init, &[2, 3]).next_u64();
        assert_eq!(base, stream(1, Purpose::Init, &[2, 3]).next_u64());
        for other in [
            stream(2, Purpose::Init, &[2, 3]),
            stream(1, Purpose::Shuffle, &[2, 3]),
            stream(1, Purpose::Init, &[3, 2]),
            stream(1, Purpose::Init, &[2, 3, 0]),
        ] {
            let mut other = other;
            assert_ne!(base, other.next_u64());
        }
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let mut rng = stream(7, Purpose::Negatives, &[]);
        let mut seen = [0usize; 5];
        for _ in 0..5000 {
            seen[below(&mut rng, 5)] += 1;
        }
        assert!(seen.iter().all(|&c| (800..1200).contains(&c)), "{seen:?}");
    }

    #[test]
    fn shuffle_is_a_permutation() {
        let mut v: Vec<u32> = (0..100).collect();
        shuffle(&mut stream(1, Purpose::Shuffle, &[0]), &mut v);
        assert_ne!(v, (0..100).collect::<Vec<_>>());
        v.sort_unstable();
        assert_eq!(v, (0..100).collect::<Vec<_>>());
    }
}
