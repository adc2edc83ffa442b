//! Item features → item vector.

use candle_core::{Device, Tensor};

use super::{GRAPH, Student, StudentShape};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::ops;
use crate::params::Params;
use crate::rng::{self, Purpose};

/// One affine map per modality, switched by presence, into a hidden part and a direct part; a
/// second layer adds what the modalities say together:
///
/// `s = b + Σ_m present_m (x_m W_m + b_m)`, `v = s[H..] + relu(s[..H]) W_o`.
///
/// An absent modality contributes nothing, so any subset is a valid input.
#[derive(Debug)]
pub struct FusionTower {
    hidden: usize,
    modality: Vec<(Tensor, Tensor)>,
    bias: Tensor,
    out: Tensor,
}

/// Content features of all items: standardised matrices and who has them.
#[derive(Debug)]
pub struct ItemFeatures {
    /// Per modality `[N, D_m]`, zero where missing; `None` for the learnt one.
    content: Vec<Option<Tensor>>,
    /// Per modality `[N, 1]`, 1 where the item has it.
    present: Vec<Tensor>,
}

impl ItemFeatures {
    pub(super) fn new(student: &Student, data: &Dataset) -> Result<Self> {
        let dev = student.device();
        let mut content = Vec::new();
        let mut present = Vec::new();
        for (m, s) in student
            .shape
            .modalities
            .iter()
            .zip(&student.standardization)
        {
            let Some((mean, inv_std)) = s else {
                content.push(None);
                present.push(student.graph_present.unsqueeze(1)?);
                continue;
            };
            let f = data
                .modality(&m.name)
                .filter(|f| f.dim() == m.dim)
                .ok_or_else(|| {
                    Error::config(format!(
                        "the student needs features `{}` of width {}, the data set has none such",
                        m.name, m.dim
                    ))
                })?;
            let has: Vec<f32> = f.present.iter().map(|p| f32::from(u8::from(*p))).collect();
            let has = Tensor::from_vec(has, (f.present.len(), 1), dev)?;
            let x = Tensor::from_iter(f.values.iter().copied(), dev)?.reshape(f.values.dim())?;
            let x = x
                .broadcast_sub(mean)?
                .broadcast_mul(inv_std)?
                .broadcast_mul(&has)?;
            content.push(Some(x.detach()));
            present.push(has);
        }
        Ok(Self { content, present })
    }

    /// Which items have which modality: per modality `[N, 1]`, 0 or 1.
    pub fn present(&self) -> &[Tensor] {
        &self.present
    }

    /// The standardised input of a modality `[N, D_m]`; `None` for the learnt one.
    pub fn content(&self, modality: usize) -> Option<&Tensor> {
        self.content.get(modality).and_then(Option::as_ref)
    }
}

/// Gain of untrained weights beside the learnt features: content starts with a small say and earns
/// more.
const QUIET: f64 = 0.02;

impl FusionTower {
    pub(super) fn new(
        shape: &StudentShape,
        params: &mut Params,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let (h, d) = (shape.fusion_hidden, shape.dim);
        let zeros = |n: usize| Tensor::zeros(n, candle_core::DType::F32, dev);
        let mut modality = Vec::new();
        for m in &shape.modalities {
            let name = format!("fusion.{}", m.name);
            let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash(&name)]);
            let hidden = rng::xavier_uniform(&mut r, m.dim, h, dev)?;
            // The learnt features start as the item vector itself where the widths agree.
            let direct = if m.name == GRAPH && m.dim == d {
                Tensor::eye(d, candle_core::DType::F32, dev)?
            } else {
                (rng::xavier_uniform(&mut r, m.dim, d, dev)? * QUIET)?
            };
            let w = Tensor::cat(&[&hidden, &direct], 1)?;
            modality.push((
                params.add(format!("{name}.weight"), &w)?,
                params.add(format!("{name}.bias"), &zeros(h + d)?)?,
            ));
        }
        let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash("fusion.out")]);
        let out = (rng::xavier_uniform(&mut r, h, d, dev)? * QUIET)?;
        Ok(Self {
            hidden: h,
            modality,
            bias: params.add("fusion.bias", &zeros(h + d)?)?,
            out: params.add("fusion.out.weight", &out)?,
        })
    }

    fn finish(&self, s: &Tensor) -> Result<Tensor> {
        let s = s.broadcast_add(&self.bias)?;
        let width = s.dim(1)?;
        let hidden = s.narrow(1, 0, self.hidden)?.relu()?;
        let direct = s.narrow(1, self.hidden, width - self.hidden)?;
        Ok((direct + hidden.contiguous()?.matmul(&self.out)?)?)
    }

    pub(super) fn forward_all(
        &self,
        features: &ItemFeatures,
        graph: &Tensor,
        present: &[Tensor],
    ) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for (k, ((w, b), p)) in self.modality.iter().zip(present).enumerate() {
            let y = match &features.content[k] {
                Some(x) => ops::input_linear(x, w)?,
                None => graph.matmul(w)?,
            };
            let part = y.broadcast_add(b)?.broadcast_mul(p)?;
            sum = Some(match sum {
                Some(s) => (s + part)?,
                None => part,
            });
        }
        self.finish(&sum.ok_or_else(|| Error::config("a student needs at least one modality"))?)
    }

    /// Item vectors `[B, D]` from **standardised** inputs `[B, D_m]` and presence `[B, M]`: the form
    /// that is exported.
    pub fn forward(&self, inputs: &[Tensor], present: &Tensor) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for (k, ((w, b), x)) in self.modality.iter().zip(inputs).enumerate() {
            let y = x.matmul(w)?.broadcast_add(b)?;
            let part = y.broadcast_mul(&present.narrow(1, k, 1)?)?;
            sum = Some(match sum {
                Some(s) => (s + part)?,
                None => part,
            });
        }
        self.finish(&sum.ok_or_else(|| Error::config("a student needs at least one modality"))?)
    }
}
