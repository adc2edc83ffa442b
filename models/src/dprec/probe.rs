//! What the parts of the model are for, measured: whether an item's modalities meet, and whether
//! concepts are the groups that are there.

use candle_core::Tensor;

use crate::error::Result;
use crate::ops::{self, pick};
use crate::rng::{self, Purpose};

/// Mean cosine of an item's two modalities, less that of two items drawn at random.
///
/// # Shapes
/// `a`, `b` `[B, d]`, the same items in the same rows.
pub(super) fn modality_margin(a: &Tensor, b: &Tensor, seed: u64) -> Result<f64> {
    let (a, b) = (ops::normalize_rows(a)?, ops::normalize_rows(b)?);
    let mut order: Vec<u32> = (0..a.dim(0)? as u32).collect();
    rng::shuffle(
        &mut rng::stream(seed, Purpose::Candidates, &[rng::name_hash("margin")]),
        &mut order,
    );
    let other = pick(&b, &order)?;
    let margin = (a * (b - other)?)?.sum(1)?.mean_all()?;
    Ok(f64::from(margin.to_scalar::<f32>()?))
}

/// Column of the largest value of each row, the first of equal ones.
pub(super) fn argmax_rows(x: &Tensor) -> Result<Vec<u32>> {
    let rows = x.to_vec2::<f32>()?;
    Ok(rows
        .iter()
        .map(|row| {
            let mut best = 0;
            for (c, v) in row.iter().enumerate() {
                if *v > row[best] {
                    best = c;
                }
            }
            best as u32
        })
        .collect())
}

/// Normalised mutual information of two labellings, `2 I(A; B) / (H(A) + H(B))`; 0 if both are
/// constant.
pub(super) fn normalized_mutual_information(a: &[u32], b: &[u32]) -> f64 {
    let count = |v: &mut dyn Iterator<Item = (u32, u32)>| {
        let mut m = std::collections::BTreeMap::new();
        v.for_each(|k| *m.entry(k).or_insert(0usize) += 1);
        m
    };
    let n = a.len().max(1) as f64;
    let entropy = |m: &std::collections::BTreeMap<(u32, u32), usize>| -> f64 {
        m.values().map(|&c| c as f64 / n).map(|p| -p * p.ln()).sum()
    };
    let both = entropy(&count(&mut a.iter().copied().zip(b.iter().copied())));
    let one = entropy(&count(&mut a.iter().map(|&x| (x, 0))));
    let two = entropy(&count(&mut b.iter().map(|&x| (x, 0))));
    if one + two <= 0.0 {
        return 0.0;
    }
    2.0 * (one + two - both) / (one + two)
}

/// Clusters of unit rows by Lloyd's algorithm under the cosine, from distant starts (the first row
/// by the seed, each next one the row least like those before).
///
/// # Shapes
/// `x` `[B, d]`; one label below `k` a row.
pub(super) fn clusters(x: &Tensor, k: usize, seed: u64) -> Result<Vec<u32>> {
    const ROUNDS: usize = 20;
    let x = ops::normalize_rows(&x.detach())?;
    let n = x.dim(0)?;
    let k = k.min(n);
    if k == 0 {
        return Ok(Vec::new());
    }
    let mut r = rng::stream(seed, Purpose::Candidates, &[rng::name_hash("clusters")]);
    let mut chosen = vec![rng::below(&mut r, n) as u32];
    while chosen.len() < k {
        let like = x.matmul(&pick(&x, &chosen)?.t()?)?.max(1)?;
        let next = argmax_rows(&like.neg()?.unsqueeze(0)?)?;
        chosen.extend(next);
    }
    let mut centres = pick(&x, &chosen)?;
    let mut labels = Vec::new();
    for _ in 0..ROUNDS {
        labels = argmax_rows(&x.matmul(&centres.t()?)?)?;
        let at = crate::ops::index_tensor(&labels, x.device())?;
        // An emptied cluster keeps a zero centre and gets no more members.
        centres = ops::normalize_rows(&centres.zeros_like()?.index_add(&at, &x, 0)?)?;
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn mutual_information_by_hand() {
        assert!((normalized_mutual_information(&[0, 0, 1, 1], &[5, 5, 2, 2]) - 1.0).abs() < 1e-12);
        assert!(normalized_mutual_information(&[0, 0, 1, 1], &[0, 1, 0, 1]).abs() < 1e-12);
        // H(A) = ln 2, H(B) = −¾ ln ¾ − ¼ ln ¼ = 0.562335, H(A, B) = 1.039721: I = 0.215761.
        let got = normalized_mutual_information(&[0, 0, 1, 1], &[0, 0, 0, 1]);
        assert!(
            (got - 2.0 * 0.215_761_7 / 1.255_482_3).abs() < 1e-6,
            "{got}"
        );
        assert_eq!(normalized_mutual_information(&[1, 1], &[2, 2]), 0.0);
    }

    #[test]
    fn margin_and_clusters_see_planted_groups() -> Result<()> {
        let mut r = rng::stream(1, Purpose::Init, &[]);
        let centres = rng::normal(&mut r, (4, 8), 1.0, &Device::Cpu)?;
        let truth: Vec<u32> = (0..80).map(|i| i % 4).collect();
        let noisy = |r: &mut rng::Stream| -> Result<Tensor> {
            let base = pick(&centres, &truth)?;
            Ok((base + rng::normal(r, (80, 8), 0.1, &Device::Cpu)?)?)
        };
        let (a, b) = (noisy(&mut r)?, noisy(&mut r)?);
        assert!(modality_margin(&a, &b, 1)? > 0.5);
        let unrelated = rng::normal(&mut r, (80, 8), 1.0, &Device::Cpu)?;
        assert!(modality_margin(&a, &unrelated, 1)?.abs() < 0.2);
        let found = clusters(&a, 4, 1)?;
        assert!(normalized_mutual_information(&found, &truth) > 0.95);
        assert_eq!(clusters(&a, 100, 1)?.len(), 80);
        Ok(())
    }
}
