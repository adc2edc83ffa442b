//! What a query adds to the user's own score: popularity, freshness, and seeded exploration.
//!
//! Scores of different users, bundles and teachers have different scales, so weights are in
//! units of σ, the standard deviation of this user's scores over the table: a weight of 1 lets
//! the most popular (or the freshest) item gain one σ over the least popular (or an old) one.
//!
//! ```text
//! s′ᵢ = sᵢ + σ · (w_p · √(pᵢ / p_max) + Σ w_f · 2^(−ageᵢ / half-life))
//! ```
//!
//! The root keeps a few bestsellers from taking all of the range. An item without a time, or
//! with one that is not a number, gets nothing for freshness; one from the future counts as new.

use crate::error::{Error, Result};
use crate::id::Row;
use crate::table::{Attribute, ItemTable};
use crate::topk::Scored;

/// Largest magnitude of a weight.
const MAX_WEIGHT: f32 = 100.0;

/// Rows that σ is taken over, evenly spaced.
pub(crate) const SAMPLE: usize = 1024;

/// Freshness of one attribute column, as declared in a query.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Freshness {
    pub(crate) attribute: String,
    pub(crate) now: f64,
    pub(crate) half_life: f64,
    pub(crate) weight: f32,
}

/// Checks a weight in units of σ.
pub(crate) fn check_weight(what: &str, weight: f32) -> Result<()> {
    // NaN is in no range.
    if (-MAX_WEIGHT..=MAX_WEIGHT).contains(&weight) {
        return Ok(());
    }
    Err(Error::argument(format!(
        "the weight of {what} is {weight}, accepted are numbers from -{MAX_WEIGHT} to {MAX_WEIGHT}"
    )))
}

/// The terms of a query, resolved against a table and scaled by σ.
pub(crate) struct Prior<'a> {
    popularity: Option<(&'a [f32], f32)>,
    fresh: Vec<Fresh<'a>>,
}

struct Fresh<'a> {
    column: &'a Attribute,
    /// σ · weight · decay per dictionary code.
    gains: Vec<f32>,
    /// Of several values of an item, the newest counts.
    largest: bool,
}

impl<'a> Prior<'a> {
    /// Nothing if the query declares no term.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for numbers out of range and for popularity that the table
    /// does not have, [`Error::UnknownAttribute`], [`Error::CorruptTensor`].
    pub(crate) fn new(
        table: &'a ItemTable,
        popularity: f32,
        freshness: &[Freshness],
    ) -> Result<Option<Self>> {
        check_weight("popularity", popularity)?;
        let mut prior = Prior {
            popularity: None,
            fresh: Vec::new(),
        };
        if popularity != 0.0 {
            let column = table.popularity().ok_or_else(|| {
                Error::argument("the query weighs popularity, but the table has none")
            })?;
            prior.popularity = Some((column, popularity));
        }
        for f in freshness {
            check_weight("freshness", f.weight)?;
            if !f.now.is_finite() || !f.half_life.is_finite() || f.half_life <= 0.0 {
                return Err(Error::argument(
                    "freshness needs a finite time and a half-life above 0",
                ));
            }
            let column = table.column(&f.attribute)?;
            let gains = (0..column.num_values())
                .map(|code| {
                    let time = crate::filter::number(column.raw(code)?);
                    Ok(time.map_or(0.0, |t| {
                        let age = (f.now - t).max(0.0);
                        f.weight * libm::exp2(-age / f.half_life) as f32
                    }))
                })
                .collect::<Result<_>>()?;
            prior.fresh.push(Fresh {
                column,
                gains,
                largest: f.weight >= 0.0,
            });
        }
        let empty = prior.popularity.is_none() && prior.fresh.is_empty();
        Ok((!empty).then_some(prior))
    }

    /// Scales the terms by σ of a sample of scores.
    pub(crate) fn scale(&mut self, sample: &[f32]) {
        let sigma = deviation(sample);
        if let Some((column, weight)) = &mut self.popularity {
            // An O(N) pass, as the scan behind it is.
            let max = column.iter().fold(0.0f32, |m, &p| m.max(p));
            *weight *= sigma / if max > 0.0 { max.sqrt() } else { 1.0 };
        }
        for f in &mut self.fresh {
            f.gains.iter_mut().for_each(|g| *g *= sigma);
        }
    }

    /// Adds the terms of the rows from `first` to their scores.
    pub(crate) fn add(&self, first: usize, scores: &mut [f32]) {
        if let Some((column, weight)) = self.popularity
            && let Some(column) = column.get(first..first + scores.len())
        {
            for (s, p) in scores.iter_mut().zip(column) {
                // A negative share is a damaged file's; NaN loses everywhere.
                *s += weight * p.max(0.0).sqrt();
            }
        }
        for f in &self.fresh {
            for (i, s) in scores.iter_mut().enumerate() {
                // A damaged column costs the item its freshness, not the answer.
                let codes = f.column.codes(first + i).unwrap_or_default();
                let gains = codes.iter().filter_map(|&c| f.gains.get(c as usize));
                let gain = if f.largest {
                    gains.fold(0.0f32, |a, &g| a.max(g))
                } else {
                    gains.fold(0.0f32, |a, &g| a.min(g))
                };
                *s += gain;
            }
        }
    }

    /// No item gains more than this.
    pub(crate) fn max_gain(&self) -> f32 {
        let popularity = self.popularity.map_or(0.0, |(column, weight)| {
            if weight <= 0.0 {
                return 0.0;
            }
            let max = column.iter().fold(0.0f32, |m, &p| m.max(p));
            weight * max.sqrt()
        });
        let fresh = self
            .fresh
            .iter()
            .map(|f| f.gains.iter().fold(0.0f32, |a, &g| a.max(g)));
        // Slack for the rounding of up to 1 + terms additions.
        (popularity + fresh.sum::<f32>()) * (1.0 + 1e-5)
    }
}

/// Standard deviation of the finite values; 1 if that is 0 or there are none, so that weights
/// still order items whose scores are all equal.
pub(crate) fn deviation(sample: &[f32]) -> f32 {
    let finite = || {
        sample
            .iter()
            .filter(|s| s.is_finite())
            .map(|&s| f64::from(s))
    };
    let n = finite().count().max(1) as f64;
    let mean = finite().sum::<f64>() / n;
    let variance = finite().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
    let sigma = variance.sqrt() as f32;
    if sigma > 0.0 && sigma.is_finite() {
        sigma
    } else {
        1.0
    }
}

/// Rows for [`Prior::scale`]: evenly spaced, all of a small table.
pub(crate) fn sample_rows(items: usize) -> impl Iterator<Item = Row> {
    let n = items.min(SAMPLE);
    (0..n).map(move |i| (i * items / n.max(1)) as Row)
}

/// Exploration as declared in a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Explore {
    pub(crate) temperature: f32,
    pub(crate) seed: u64,
}

impl Explore {
    pub(crate) fn check(self) -> Result<Self> {
        if (0.0..=MAX_WEIGHT).contains(&self.temperature) {
            return Ok(self);
        }
        Err(Error::argument(format!(
            "the temperature of exploration is {}, accepted are numbers from 0 to {MAX_WEIGHT}",
            self.temperature
        )))
    }

    /// Scores with noise: sorting by them orders `best` as if drawn one by one without
    /// replacement with probabilities proportional to exp(score / (temperature · σ)), σ being
    /// the deviation over `best`.
    ///
    /// Adding independent Gumbel noise to the exponents and sorting draws just so. The noise of
    /// an item depends on the seed and its key alone, so the same seed gives the same order, and
    /// an item that joins or leaves does not disturb the others.
    pub(crate) fn values(self, table: &ItemTable, best: &[Scored]) -> Result<Vec<f64>> {
        let scores: Vec<f32> = best.iter().map(|s| s.score).collect();
        let scale = f64::from(self.temperature) * f64::from(deviation(&scores));
        let values = best.iter().map(|s| {
            let score = f64::from(s.score);
            if scale == 0.0 {
                return Ok(score);
            }
            Ok(score + scale * gumbel(self.seed, table.key(s.row)?.as_bytes()))
        });
        values.collect()
    }
}

/// Standard Gumbel noise of a key: −ln(−ln u), u uniform in 0..1.
fn gumbel(seed: u64, key: &[u8]) -> f64 {
    // FNV-1a over the key, then the finalizer of SplitMix64: stable over versions and machines.
    let hash = key.iter().fold(0xcbf2_9ce4_8422_2325u64 ^ seed, |h, &b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut z = hash.wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    // 53 bits, never 0 and never 1.
    let u = ((z >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -libm::log(-libm::log(u))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gumbel_noise_has_the_mean_and_variance_of_its_distribution() {
        // Mean γ = 0.5772, variance π²/6 = 1.6449; the standard error of 20,000 draws is 0.009
        // and (kurtosis 5.4) 0.024.
        let draws: Vec<f64> = (0..20_000u32)
            .map(|i| gumbel(7, &i.to_le_bytes()))
            .collect();
        let n = draws.len() as f64;
        let mean = draws.iter().sum::<f64>() / n;
        let variance = draws.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / n;
        assert!((mean - 0.5772).abs() < 0.04, "{mean}");
        assert!((variance - 1.6449).abs() < 0.1, "{variance}");
        assert_ne!(gumbel(1, b"a"), gumbel(2, b"a"));
        assert_eq!(gumbel(1, b"a"), gumbel(1, b"a"));
    }

    #[test]
    fn deviation_of_what() {
        assert_eq!(deviation(&[1.0, 3.0]), 1.0);
        assert_eq!(deviation(&[]), 1.0);
        assert_eq!(deviation(&[2.0, 2.0, f32::NAN]), 1.0);
    }
}
