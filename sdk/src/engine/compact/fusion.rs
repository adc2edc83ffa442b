//! Item features → item vector.

use std::path::Path;

use super::{Dense, open, refuse};
use crate::bundle::Modality;
use crate::engine::{EngineReport, Input, InputData, Tower, file_name};
use crate::error::Result;

/// The student's fusion tower: `s = b + Σ_m present_m (x̃_m W_m + b_m)`,
/// `v = s[F..] + relu(s[..F]) W_o`, where x̃ is the standardised feature.
pub(in crate::engine) struct CompactFusionTower {
    file: String,
    dim: usize,
    modalities: Vec<Part>,
    /// `[F + D]`
    bias: Vec<f32>,
    /// F values to D.
    out: Dense,
}

struct Part {
    name: String,
    /// Mean and inverse deviation, `[D_m]` each, if features are standardised.
    standard: Option<(Vec<f32>, Vec<f32>)>,
    /// D_m values to F + D.
    dense: Dense,
}

impl CompactFusionTower {
    /// Reads the weights in `path`; `bytes` is the length in the manifest.
    ///
    /// # Errors
    /// The tensor errors of `Bundle::open`, if names, types or shapes are not those of the student.
    pub(in crate::engine) fn load(
        path: &Path,
        bytes: u64,
        modalities: &[Modality],
        dim: usize,
    ) -> Result<Self> {
        let mut file = open(path, bytes)?;
        let out = Dense::take(&mut file, "fusion.out", None, Some(dim), false)?;
        let width = out.inputs.saturating_add(dim);
        let bias = file.take::<f32>("fusion.bias", &[Some(width)])?;
        let parts = modalities.iter().map(|m| {
            let name = format!("fusion.{}", m.name);
            let wide = [Some(m.dim)];
            let mean = format!("{name}.mean");
            let standard = if file.contains(&mean) {
                let mean = file.take::<f32>(&mean, &wide)?.get().to_vec();
                let scale = file.take::<f32>(&format!("{name}.inv_std"), &wide)?;
                Some((mean, scale.get().to_vec()))
            } else {
                None
            };
            Ok(Part {
                name: m.name.clone(),
                standard,
                dense: Dense::take(&mut file, &name, Some(m.dim), Some(width), true)?,
            })
        });
        let modalities = parts.collect::<Result<_>>()?;
        file.finish()?;
        Ok(CompactFusionTower {
            file: file_name(path),
            dim,
            modalities,
            bias: bias.get().to_vec(),
            out,
        })
    }
}

impl Tower for CompactFusionTower {
    fn report(&self) -> EngineReport {
        EngineReport::of("compact")
    }

    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<f32>> {
        let find = |name: &str| {
            let found = inputs.iter().find(|i| i.name == name);
            let input =
                found.ok_or_else(|| refuse(&self.file, format!("input `{name}` is missing")))?;
            match (input.data, input.shape) {
                (InputData::F32(values), &[batch, width])
                    if batch.checked_mul(width) == Some(values.len()) =>
                {
                    Ok((values, batch, width))
                }
                _ => Err(refuse(
                    &self.file,
                    format!("input `{name}` is not an f32 matrix"),
                )),
            }
        };
        let (present, batch, count) = find("present")?;
        if count != self.modalities.len() {
            return Err(refuse(&self.file, "present has the wrong width"));
        }
        let mut features = Vec::with_capacity(count);
        for part in &self.modalities {
            let (values, rows, width) = find(&part.name)?;
            if rows != batch || width != part.dense.inputs {
                return Err(refuse(
                    &self.file,
                    format!("input `{}` has the wrong shape", part.name),
                ));
            }
            features.push(values);
        }
        let (d, hidden) = (self.dim, self.out.inputs);
        let mut vectors = vec![0.0f32; batch * d];
        let mut sum = vec![0.0f32; hidden + d];
        let mut part_sum = vec![0.0f32; hidden + d];
        let mut standard = Vec::new();
        for (row, vector) in vectors.chunks_exact_mut(d).enumerate() {
            sum.copy_from_slice(&self.bias);
            for (m, (part, values)) in self.modalities.iter().zip(&features).enumerate() {
                let switch = present[row * count + m];
                if switch == 0.0 {
                    continue;
                }
                let width = part.dense.inputs;
                standard.clear();
                standard.extend_from_slice(&values[row * width..(row + 1) * width]);
                if let Some((mean, scale)) = &part.standard {
                    for ((x, mean), scale) in standard.iter_mut().zip(mean).zip(scale) {
                        *x = (*x - mean) * scale;
                    }
                }
                part.dense.apply(&standard, &mut part_sum);
                sum.iter_mut()
                    .zip(&part_sum)
                    .for_each(|(s, p)| *s += switch * p);
            }
            let (hidden, direct) = sum.split_at_mut(hidden);
            hidden.iter_mut().for_each(|x| *x = x.max(0.0));
            self.out.apply(hidden, vector);
            vector.iter_mut().zip(direct).for_each(|(v, x)| *v += *x);
        }
        Ok(vectors)
    }
}
