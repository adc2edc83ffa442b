//! Three families of hyperedges over the channel nodes of all items, without their incidence
//! matrices.
//!
//! Every item is one node per channel. The convolution is the usual one,
//! `D_v^(-1/2) H D_e^(-1) Hᵀ D_v^(-1/2) X`; because of what the hyperedges join, it needs neither the
//! `3n × n` matrix of the item level nor the `3n × m` one of the interest level:
//!
//! | level | hyperedge | computed as |
//! |---|---|---|
//! | item | joins the channels of an item | a mean over channels |
//! | concept | K learnt ones, shared by channels, soft | two dense products with `[n, K]` |
//! | interest | joins all channels of all items of a user | one product with R, one with Rᵀ |
//!
//! The concept level uses the row-stochastic form `H D_e^(-1) Hᵀ X`. A node whose modality is
//! missing is in no hyperedge, and counts are those of the nodes that are there.

use candle_core::Tensor;

use super::graphs::Observed;
use crate::error::Result;
use crate::ops;

/// Sum over channels of `x_c`, each row times its presence.
pub(super) fn present_sum(x: &[Tensor], present: &[Tensor]) -> Result<Tensor> {
    let mut sum = x[0].broadcast_mul(&present[0])?;
    for (x, p) in x.iter().zip(present).skip(1) {
        sum = (sum + x.broadcast_mul(p)?)?;
    }
    Ok(sum)
}

/// Item level: the mean over the channels an item has.
///
/// # Shapes
/// `x` `[B, d]` per channel, `present` `[B, 1]` per channel (0 or 1, the id channel always 1);
/// the result is `[B, d]`.
pub(super) fn item_level(x: &[Tensor], present: &[Tensor]) -> Result<Tensor> {
    let mut count = present[0].clone();
    for p in &present[1..] {
        count = (count + p)?;
    }
    Ok(present_sum(x, present)?.broadcast_div(&count)?)
}

/// The mean over the *other* channels an item has; 0 where there is none.
pub(super) fn leave_one_out(x: &[Tensor], present: &[Tensor], channel: usize) -> Result<Tensor> {
    let others = |t: &[Tensor]| -> Vec<Tensor> {
        let keep = t.iter().enumerate().filter(|(c, _)| *c != channel);
        keep.map(|(_, t)| t.clone()).collect()
    };
    let (x, present) = (others(x), others(present));
    let mut count = present[0].clone();
    for p in &present[1..] {
        count = (count + p)?;
    }
    Ok(present_sum(&x, &present)?.broadcast_div(&count.maximum(1f64)?)?)
}

/// Soft membership of nodes in concepts, rows that sum to one: `softmax(cos(x, P)/τ + noise)`.
///
/// # Shapes
/// `x` `[n, d]`, `prototypes` `[K, d]`, `noise` `[n, K]`; the result is `[n, K]`.
pub(super) fn assign(
    x: &Tensor,
    prototypes: &Tensor,
    temperature: f64,
    noise: Option<&Tensor>,
) -> Result<Tensor> {
    let p = ops::normalize_rows(prototypes)?;
    let mut logits = (ops::normalize_rows(x)?.matmul(&p.t()?)? / temperature)?;
    if let Some(noise) = noise {
        logits = (logits + noise)?;
    }
    Ok(candle_nn::ops::softmax(&logits, 1)?)
}

/// Concept vectors `Σ H x / Σ H` over the nodes of the given channels, `[K, d]`.
pub(super) fn concepts(h: &[Tensor], x: &[Tensor], present: &[Tensor]) -> Result<Tensor> {
    let mut sum: Option<(Tensor, Tensor)> = None;
    for ((h, x), p) in h.iter().zip(x).zip(present) {
        let h = h.broadcast_mul(p)?;
        let (top, bottom) = (h.t()?.matmul(x)?, h.sum(0)?);
        sum = Some(match sum {
            None => (top, bottom),
            Some((t, b)) => ((t + top)?, (b + bottom)?),
        });
    }
    let (top, bottom) =
        sum.ok_or_else(|| crate::Error::config("concepts need at least one channel"))?;
    // A concept without members (every node is missing) stays at zero.
    let bottom = bottom.maximum(1e-12)?.unsqueeze(1)?;
    Ok(top.broadcast_div(&bottom)?)
}

/// Interest level: `Σ_c x_c / √d_i` of each item, of which an interest is the mean over its nodes.
///
/// # Shapes
/// `inverse_root_degree` `[n, 1]`, 0 for items without users.
pub(super) fn interest_sources(
    x: &[Tensor],
    present: &[Tensor],
    inverse_root_degree: &Tensor,
) -> Result<Tensor> {
    Ok(present_sum(x, present)?.broadcast_mul(inverse_root_degree)?)
}

/// What users send back to their items, `(1/√d_i) Σ_{u∋i} q_u`, the same for each channel.
pub(super) fn interest_messages(seen: &Observed, interests: &Tensor) -> Result<Tensor> {
    Ok(seen
        .item_sum
        .apply(interests)?
        .broadcast_mul(&seen.inverse_root_degree)?)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::data::Csr;
    use crate::dprec::config::DprecConfig;
    use crate::dprec::encoder::column;
    use crate::dprec::graphs::{Content, Graphs};
    use crate::oracle::close;
    use crate::rng::{self, Purpose};
    use candle_core::{Device, Var};

    const DEV: Device = Device::Cpu;

    /// The toy of oracles D3 to D6: two items with channels id, v and t.
    pub(in crate::dprec) fn toy() -> Result<Vec<Tensor>> {
        Ok(vec![
            Tensor::new(&[[1f32, 0.], [0., 1.]], &DEV)?,
            Tensor::new(&[[1f32, 1.], [0., 2.]], &DEV)?,
            Tensor::new(&[[2f32, 0.], [1., 1.]], &DEV)?,
        ])
    }

    pub(in crate::dprec) fn all(n: usize, channels: usize) -> Result<Vec<Tensor>> {
        (0..channels).map(|_| column(vec![1.0; n], &DEV)).collect()
    }

    /// The convolution with everything written out, in f64.
    /// `h` is `[nodes][edges]`, `x` `[nodes][width]`.
    fn dense_convolution(
        h: &[Vec<f64>],
        w: &[f64],
        x: &[Vec<f64>],
        symmetric: bool,
    ) -> Vec<Vec<f64>> {
        let (nodes, edges, width) = (h.len(), w.len(), x[0].len());
        let dv: Vec<f64> = h
            .iter()
            .map(|r| r.iter().zip(w).map(|(h, w)| h * w).sum())
            .collect();
        let de: Vec<f64> = (0..edges).map(|e| h.iter().map(|r| r[e]).sum()).collect();
        let inverse = |v: f64, p: f64| if v > 0.0 { v.powf(p) } else { 0.0 };
        let (left, right) = if symmetric { (-0.5, -0.5) } else { (-1.0, 0.0) };
        let mut out = vec![vec![0.0; width]; nodes];
        for a in 0..nodes {
            for b in 0..nodes {
                let link: f64 = (0..edges)
                    .map(|e| h[a][e] * w[e] * inverse(de[e], -1.0) * h[b][e])
                    .sum();
                let k = inverse(dv[a], left)
                    * link
                    * if right == 0.0 {
                        1.0
                    } else {
                        inverse(dv[b], right)
                    };
                for c in 0..width {
                    out[a][c] += k * x[b][c];
                }
            }
        }
        out
    }

    fn near(got: &[Vec<f64>], want: &[[f64; 2]]) {
        for (g, w) in got.iter().zip(want) {
            assert!(
                g.iter().zip(w).all(|(g, w)| (g - w).abs() < 1e-5),
                "{got:?}"
            );
        }
    }

    /// Oracle D1: the written-out convolution that the other tests compare with.
    #[test]
    fn convolution_matches_oracle() {
        let h: Vec<Vec<f64>> = [[1., 0.], [1., 0.], [1., 1.], [0., 1.]]
            .map(Vec::from)
            .into();
        let x: Vec<Vec<f64>> = [[1., 0.], [0., 1.], [1., 1.], [2., 0.]]
            .map(Vec::from)
            .into();
        let same = [0.569_036, 0.569_036];
        let want = [same, same, [1.359_476, 0.652_369], [1.353_553, 0.353_553]];
        near(&dense_convolution(&h, &[1., 1.], &x, true), &want);
        let same = [0.666_667, 0.666_667];
        let want = [same, same, [1.083_333, 0.583_333], [1.5, 0.5]];
        near(&dense_convolution(&h, &[1., 1.], &x, false), &want);
        let same = [0.525_783, 0.525_783];
        let want = [same, same, [1.453_391, 0.636_895], [1.408_248, 0.408_248]];
        near(&dense_convolution(&h, &[1., 2.], &x, true), &want);
    }

    /// Oracle D2: logits [2,0], [1,1], [0,2], [0, ln 3].
    #[test]
    fn soft_incidence_matches_oracle() -> Result<()> {
        let logits = Tensor::new(&[[2f32, 0.], [1., 1.], [0., 2.], [0., 3f32.ln()]], &DEV)?;
        let h = candle_nn::ops::softmax(&logits, 1)?;
        close(
            &h,
            &[
                0.880_797, 0.119_203, 0.5, 0.5, 0.119_203, 0.880_797, 0.25, 0.75,
            ],
        )?;
        let x = Tensor::new(&[[1f32, 0.], [0., 1.], [1., 1.], [2., 0.]], &DEV)?;
        let c = concepts(std::slice::from_ref(&h), &[x], &all(4, 1)?)?;
        close(&c, &[0.857_143, 0.353_830, 1.111_111, 0.613_688])?;
        let want = [
            0.887_417, 0.384_806, 0.984_127, 0.483_759, 1.080_837, 0.582_712, 1.047_619, 0.548_723,
        ];
        close(&h.matmul(&c)?, &want)
    }

    /// Oracle D3, its means.
    #[test]
    fn item_level_matches_oracle() -> Result<()> {
        let (z, p) = (toy()?, all(2, 3)?);
        close(
            &item_level(&z, &p)?,
            &[1.333_333, 0.333_333, 0.333_333, 1.333_333],
        )?;
        close(&leave_one_out(&z, &p, 1)?, &[1.5, 0., 0.5, 1.])?;
        close(&leave_one_out(&z, &p, 2)?, &[1., 0.5, 0., 1.5])
    }

    /// Oracle D4: assignments, concept vectors over all channels, and what nodes receive.
    #[test]
    fn concept_level_matches_oracle() -> Result<()> {
        let (z, p) = (toy()?, all(2, 3)?);
        let prototypes = Tensor::new(&[[1f32, 0.], [0., 1.]], &DEV)?;
        let h = z
            .iter()
            .map(|z| assign(z, &prototypes, 0.5, None))
            .collect::<Result<Vec<_>>>()?;
        let (a, b) = (0.880_797, 0.119_203);
        close(&h[0], &[a, b, b, a])?;
        close(&h[1], &[0.5, 0.5, b, a])?;
        close(&h[2], &[a, b, 0.5, 0.5])?;
        let c = concepts(&h, &z, &p)?;
        close(&c, &[1.214_130, 0.452_536, 0.452_536, 1.214_130])?;
        let (x, y, m) = (1.123_346, 0.543_321, 0.833_333);
        close(&h[0].matmul(&c)?, &[x, y, y, x])?;
        close(&h[1].matmul(&c)?, &[m, m, y, x])?;
        close(&h[2].matmul(&c)?, &[x, y, m, m])?;
        let of = |k: usize| concepts(&h[k..=k], &z[k..=k], &p[k..=k]);
        close(&of(1)?, &[0.807_490, 1.192_510, 0.362_110, 1.637_890])?;
        close(&of(2)?, &[1.637_890, 0.362_110, 1.192_510, 0.807_490])
    }

    fn interest(rows: Csr, items: usize, z: &[Tensor], p: &[Tensor]) -> Result<Tensor> {
        let contents = p[1..].iter().enumerate().map(|(c, p)| {
            let present = p.flatten_all()?.to_vec1::<f32>()?;
            Ok(Content {
                name: c.to_string(),
                is_image: false,
                features: Tensor::ones((items, 1), candle_core::DType::F32, &DEV)?,
                present: present.iter().map(|p| *p > 0.0).collect(),
            })
        });
        let contents = contents.collect::<Result<Vec<_>>>()?;
        let g = Graphs::new(rows, items, &contents, &DprecConfig::default(), &DEV)?;
        let sources = interest_sources(z, p, &g.whole.inverse_root_degree)?;
        let q = g.whole.user_sum.apply(&sources)?;
        interest_messages(&g.whole, &q.broadcast_mul(&g.whole.per_node)?)
    }

    /// Oracle D5: what the interest level sends to items of degree 2 and 1.
    #[test]
    fn interest_level_matches_oracle() -> Result<()> {
        let rows = Csr::from_rows([vec![0u32], vec![0, 1]]);
        let got = interest(rows, 2, &toy()?, &all(2, 3)?)?;
        close(&got, &[1.117_851, 0.721_405, 0.638_071, 0.784_518])
    }

    /// On random inputs with missing nodes, isolated items and a user without items, every level
    /// equals the written-out convolution with its incidence matrix.
    #[test]
    fn levels_equal_the_materialised_hypergraph() -> Result<()> {
        let (n, d, channels) = (5usize, 3usize, 3usize);
        let rows = [vec![0u32, 1, 3], vec![], vec![1, 2], vec![3]];
        let mut r = rng::stream(11, Purpose::Init, &[]);
        let z = (0..channels)
            .map(|_| rng::normal(&mut r, (n, d), 1.0, &DEV))
            .collect::<Result<Vec<_>>>()?;
        let has = [[1f32; 5], [1., 0., 1., 1., 0.], [0., 1., 1., 0., 0.]];
        let p = has.map(|p| column(p.to_vec(), &DEV));
        let p = p.into_iter().collect::<Result<Vec<_>>>()?;
        let nodes: Vec<(usize, usize)> = (0..channels)
            .flat_map(|c| (0..n).map(move |i| (c, i)))
            .filter(|&(c, i)| has[c][i] > 0.0)
            .collect();
        let values = z
            .iter()
            .map(|z| Ok(z.to_vec2::<f32>()?))
            .collect::<Result<Vec<_>>>()?;
        let x: Vec<Vec<f64>> = nodes
            .iter()
            .map(|&(c, i)| values[c][i].iter().map(|v| f64::from(*v)).collect())
            .collect();
        let flag = |b: bool| f64::from(u8::from(b));
        let check = |got: &[Tensor], h: Vec<Vec<f64>>, symmetric: bool| -> Result<()> {
            let want = dense_convolution(&h, &vec![1.0; h[0].len()], &x, symmetric);
            for (k, &(c, i)) in nodes.iter().enumerate() {
                let row = got[c].narrow(0, i, 1)?;
                close(&row, &want[k])?;
            }
            Ok(())
        };
        let item = item_level(&z, &p)?;
        let h = nodes
            .iter()
            .map(|a| (0..n).map(|i| flag(a.1 == i)).collect());
        check(&vec![item; channels], h.collect(), true)?;

        let sent = interest(Csr::from_rows(&rows), n, &z, &p)?;
        let h = nodes.iter().map(|a| {
            rows.iter()
                .map(|r| flag(r.contains(&(a.1 as u32))))
                .collect()
        });
        check(&vec![sent; channels], h.collect(), true)?;

        let prototypes = rng::normal(&mut r, (4, d), 1.0, &DEV)?;
        let soft = z
            .iter()
            .map(|z| assign(z, &prototypes, 0.5, None))
            .collect::<Result<Vec<_>>>()?;
        let c = concepts(&soft, &z, &p)?;
        let got = soft
            .iter()
            .map(|h| Ok(h.matmul(&c)?))
            .collect::<Result<Vec<_>>>()?;
        let dense = soft
            .iter()
            .map(|h| Ok(h.to_vec2::<f32>()?))
            .collect::<Result<Vec<_>>>()?;
        let h = nodes
            .iter()
            .map(|&(c, i)| dense[c][i].iter().map(|v| f64::from(*v)).collect());
        check(&got, h.collect(), false)
    }

    #[test]
    fn every_level_passes_gradients_on() -> Result<()> {
        let z = toy()?
            .iter()
            .map(Var::from_tensor)
            .collect::<candle_core::Result<Vec<_>>>()?;
        let x: Vec<Tensor> = z.iter().map(|v| v.as_tensor().clone()).collect();
        let prototypes = Var::new(&[[1f32, 0.3], [0.2, 1.]], &DEV)?;
        let p = all(2, 3)?;
        let weights = Tensor::new(&[[1f32, 2.], [-1., 0.5]], &DEV)?;
        let h = x
            .iter()
            .map(|z| assign(z, prototypes.as_tensor(), 0.5, None))
            .collect::<Result<Vec<_>>>()?;
        let concept = h[1].matmul(&concepts(&h, &x, &p)?)?;
        let sent = interest(Csr::from_rows([vec![0u32], vec![0, 1]]), 2, &x, &p)?;
        for (name, t) in [
            ("item", item_level(&x, &p)?),
            ("concept", concept),
            ("interest", sent),
        ] {
            let g = (t * &weights)?.sum_all()?.backward()?;
            for v in &z {
                let g = g.get(v.as_tensor()).expect("gradient");
                assert!(g.abs()?.max_all()?.to_scalar::<f32>()? > 0.0, "{name}");
            }
            assert_eq!(g.get(prototypes.as_tensor()).is_some(), name == "concept");
        }
        Ok(())
    }
}
