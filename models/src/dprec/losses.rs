//! Contrastive alignment losses. All of them compare vectors from *before* the hypergraph: what
//! channels receive from it has terms in common, which alone would satisfy a contrast.

use candle_core::Tensor;

use super::hypergraph::{concepts, leave_one_out};
use crate::error::Result;
use crate::ops::{self, pick};

/// Mean over rows of `−log( exp(cos(a_i, b_i)/τ) / Σ_j exp(cos(a_i, b_j)/τ) )`.
pub(super) fn nce(a: &Tensor, b: &Tensor, temperature: f64) -> Result<Tensor> {
    let n = a.dim(0)?;
    let own: Vec<u32> = (0..n as u32).collect();
    let weight = vec![1.0 / n as f32; n];
    ops::info_nce(
        &ops::normalize_rows(a)?,
        &ops::normalize_rows(b)?,
        &own,
        &weight,
        temperature,
    )
}

/// Mean of [`nce`] in both directions.
pub(super) fn symmetric_nce(a: &Tensor, b: &Tensor, temperature: f64) -> Result<Tensor> {
    Ok(((nce(a, b, temperature)? + nce(b, a, temperature)?)? * 0.5)?)
}

/// Mean of scalars; nothing of nothing.
pub(super) fn mean(terms: Vec<Tensor>) -> Result<Option<Tensor>> {
    let n = terms.len();
    let mut terms = terms.into_iter();
    let Some(mut sum) = terms.next() else {
        return Ok(None);
    };
    for t in terms {
        sum = (sum + t)?;
    }
    Ok(Some((sum / n as f64)?))
}

/// Fewest rows that a contrast is made of.
const FEWEST: usize = 2;

/// Item level: each channel against the mean of an item's other channels, over the items that have
/// it and another. `has[c][b]` says whether row b has channel c.
pub(super) fn item_loss(
    z: &[Tensor],
    present: &[Tensor],
    has: &[Vec<bool>],
    temperature: f64,
) -> Result<Option<Tensor>> {
    let mut terms = Vec::new();
    for c in 0..z.len() {
        if z.len() < 2 {
            break;
        }
        let rows: Vec<u32> = (0..has[c].len())
            .filter(|&b| has[c][b] && (0..z.len()).any(|o| o != c && has[o][b]))
            .map(|b| b as u32)
            .collect();
        if rows.len() >= FEWEST {
            let others = pick(&leave_one_out(z, present, c)?, &rows)?;
            terms.push(nce(&pick(&z[c], &rows)?, &others, temperature)?);
        }
    }
    mean(terms)
}

/// Concept level: the concepts as each channel sees them are the same ones, for every pair of
/// channels. All items count.
pub(super) fn concept_loss(
    h: &[Tensor],
    z: &[Tensor],
    present: &[Tensor],
    temperature: f64,
) -> Result<Option<Tensor>> {
    let own = (0..z.len())
        .map(|c| concepts(&h[c..=c], &z[c..=c], &present[c..=c]))
        .collect::<Result<Vec<_>>>()?;
    let mut terms = Vec::new();
    for a in 0..own.len() {
        for b in a + 1..own.len() {
            terms.push(symmetric_nce(&own[a], &own[b], temperature)?);
        }
    }
    mean(terms)
}

/// `−Σ_k sg(a_k) log b_k`, mean over rows: one channel foretells another's assignment.
pub(super) fn swap_loss(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let log = b.maximum(1e-12)?.log()?;
    Ok((a.detach() * log)?.sum(1)?.mean_all()?.neg()?)
}

/// [`swap_loss`] over ordered pairs of channels, each over the rows that have both.
pub(super) fn swap_losses(h: &[Tensor], has: &[Vec<bool>]) -> Result<Option<Tensor>> {
    let mut terms = Vec::new();
    for a in 0..h.len() {
        for b in (0..h.len()).filter(|&b| b != a) {
            let rows: Vec<u32> = (0..has[a].len())
                .filter(|&r| has[a][r] && has[b][r])
                .map(|r| r as u32)
                .collect();
            if !rows.is_empty() {
                terms.push(swap_loss(&pick(&h[a], &rows)?, &pick(&h[b], &rows)?)?);
            }
        }
    }
    mean(terms)
}

/// Mean assignment over the present rows of all channels, `[K]`, and its entropy in nats.
pub(super) fn assignment_entropy(h: &[Tensor], present: &[Tensor]) -> Result<(Tensor, Tensor)> {
    let sum = super::hypergraph::present_sum(h, present)?.sum(0)?;
    let mean = sum.broadcast_div(&sum.sum_all()?.maximum(1e-12)?)?;
    let entropy = (&mean * mean.maximum(1e-12)?.log()?)?.sum_all()?.neg()?;
    Ok((mean, entropy))
}

/// Interest level: what a user's items say in one content channel, against the other channels and
/// against the user's id vector. All `[B, d]`, the same users in the same rows.
pub(super) fn interest_loss(
    interests: &[Tensor],
    ids: &Tensor,
    temperature: f64,
) -> Result<Option<Tensor>> {
    let mut pairs = Vec::new();
    let mut own = Vec::new();
    for (a, q) in interests.iter().enumerate() {
        own.push(nce(q, ids, temperature)?);
        for other in &interests[a + 1..] {
            pairs.push(symmetric_nce(q, other, temperature)?);
        }
    }
    Ok(match (mean(pairs)?, mean(own)?) {
        // ½ (v + t) for two channels: their mean.
        (Some(a), Some(b)) => Some((a + b)?),
        (a, b) => a.or(b),
    })
}

/// `mean softplus(s⁻ − s⁺)`.
pub(super) fn bpr(positive: &Tensor, negative: &Tensor) -> Result<Tensor> {
    Ok(ops::log_sigmoid(&(positive - negative)?)?
        .mean_all()?
        .neg()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dprec::hypergraph::assign;
    use crate::dprec::hypergraph::tests::{all, toy};
    use crate::oracle::close;
    use candle_core::Device;

    const DEV: Device = Device::Cpu;

    /// Oracles D13: InfoNCE one-way, columns, symmetric; BPR.
    #[test]
    fn contrast_and_ranking_match_oracle() -> Result<()> {
        let a = Tensor::new(&[[1f32, 0.], [0., 1.]], &DEV)?;
        let b = Tensor::new(&[[1f32, 1.], [0., 1.]], &DEV)?;
        close(&nce(&a, &b, 0.5)?, &[0.330_085])?;
        close(&nce(&b, &a, 0.5)?, &[0.410_038])?;
        close(&symmetric_nce(&a, &b, 0.5)?, &[0.370_061])?;
        let p = Tensor::new(&[2f32, 0.5], &DEV)?;
        let n = Tensor::new(&[1f32, 1.], &DEV)?;
        close(&bpr(&p, &n)?, &[0.643_669])
    }

    /// Oracle D3.
    #[test]
    fn item_loss_matches_oracle() -> Result<()> {
        let (z, p) = (toy()?, all(2, 3)?);
        close(&nce(&z[1], &leave_one_out(&z, &p, 1)?, 0.2)?, &[0.740_352])?;
        let only = vec![vec![false; 2], vec![true; 2], vec![true; 2]];
        let has = vec![vec![true; 2]; 3];
        let every = item_loss(&z, &p, &has, 0.2)?.expect("loss");
        let mut sum = 0.0;
        for c in 0..3 {
            let one = nce(&z[c], &leave_one_out(&z, &p, c)?, 0.2)?;
            sum += f64::from(one.to_scalar::<f32>()?) / 3.0;
        }
        close(&every, &[sum])?;
        assert!(item_loss(&z, &p, &only, 0.2)?.is_some());
        assert!(item_loss(&z[..1], &p[..1], &has[..1], 0.2)?.is_none());
        Ok(())
    }

    /// Oracle D4: channels v and t.
    #[test]
    fn concept_losses_match_oracle() -> Result<()> {
        let (z, p) = (toy()?, all(2, 3)?);
        let prototypes = Tensor::new(&[[1f32, 0.], [0., 1.]], &DEV)?;
        let h = z
            .iter()
            .map(|z| assign(z, &prototypes, 0.5, None))
            .collect::<Result<Vec<_>>>()?;
        let loss = concept_loss(&h[1..], &z[1..], &p[1..], 0.2)?.expect("loss");
        close(&loss, &[0.759_474])?;
        close(&swap_loss(&h[1], &h[2])?, &[0.910_038])?;
        close(&swap_loss(&h[2], &h[1])?, &[0.910_038])?;
        let has = vec![vec![true; 2]; 2];
        close(&swap_losses(&h[1..], &has)?.expect("loss"), &[0.910_038])?;
        let (mean, entropy) = assignment_entropy(&h[1..], &p[1..])?;
        close(&mean, &[0.5, 0.5])?;
        close(&entropy, &[std::f64::consts::LN_2])
    }

    /// Oracle D5, its contrast.
    #[test]
    fn interest_loss_matches_oracle() -> Result<()> {
        let v = Tensor::new(&[[1f32, 1.], [0.5, 1.5]], &DEV)?;
        let t = Tensor::new(&[[2f32, 0.], [1.5, 0.5]], &DEV)?;
        close(&symmetric_nce(&v, &t, 0.2)?, &[0.823_798])?;
        let id = Tensor::new(&[[1f32, 0.], [0.5, 0.5]], &DEV)?;
        let own =
            |q: &Tensor| -> Result<f64> { Ok(f64::from(nce(q, &id, 0.2)?.to_scalar::<f32>()?)) };
        let want = 0.823_798 + 0.5 * (own(&v)? + own(&t)?);
        close(
            &interest_loss(&[v.clone(), t], &id, 0.2)?.expect("loss"),
            &[want],
        )?;
        let single = interest_loss(std::slice::from_ref(&v), &id, 0.2)?.expect("loss");
        close(&single, &[own(&v)?])?;
        assert!(interest_loss(&[], &id, 0.2)?.is_none());
        Ok(())
    }
}
