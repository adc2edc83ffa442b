//! History → user vector.

use std::path::Path;

use super::{Dense, open, refuse};
use crate::engine::{Input, InputData, Tower, file_name};
use crate::error::{Error, Result};

/// Keeps the mean of a head without events at zero; the same number as in training.
const EPSILON: f32 = 1e-6;

/// The student's user tower.
pub(in crate::engine) struct CompactUserTower {
    file: String,
    dim: usize,
    heads: usize,
    /// `[behaviors, D]`
    behaviors: Vec<f32>,
    /// What a head's sums are multiplied with when one more event arrives.
    decays: Vec<f32>,
    hidden: Dense,
    gate: Dense,
    value: Dense,
    /// `[heads, D]`
    direct: Vec<f32>,
    skip: Dense,
    mix: Dense,
    out: Dense,
}

impl CompactUserTower {
    /// Reads the weights in `path`; `dim` is D and `bytes` the length in the manifest.
    ///
    /// # Errors
    /// The tensor errors of `Bundle::open`, if names, types or shapes are not those of the student.
    pub(in crate::engine) fn load(path: &Path, bytes: u64, dim: usize) -> Result<Self> {
        let mut file = open(path, bytes)?;
        let decays = file.take::<f32>("user.decays", &[None])?.get().to_vec();
        let heads = decays.len();
        let behaviors = file.take::<f32>("user.behaviors", &[None, Some(dim)])?;
        let d = Some(dim);
        let hidden = Dense::take(&mut file, "user.hidden", d, None, true)?;
        let gate = Dense::take(&mut file, "user.gate", d, Some(heads), true)?;
        let width = hidden.outputs;
        let means = heads.checked_mul(dim);
        let value = Dense::take(&mut file, "user.value", Some(width), means, false)?;
        let direct = file.take::<f32>("user.direct", &[Some(heads), d])?;
        let summary = Some(value.outputs.saturating_add(1));
        let skip = Dense::take(&mut file, "user.skip", summary, d, false)?;
        let mix = Dense::take(&mut file, "user.mix", summary, None, true)?;
        let out = Dense::take(&mut file, "user.out", Some(mix.outputs), d, true)?;
        file.finish()?;
        if heads == 0 {
            return Err(Error::Shape {
                path: path.to_path_buf(),
                tensor: "user.decays".into(),
                expected: "[one or more]".into(),
                got: vec![0],
            });
        }
        Ok(CompactUserTower {
            file: file_name(path),
            dim,
            heads,
            behaviors: behaviors.get().to_vec(),
            decays,
            hidden,
            gate,
            value,
            direct: direct.get().to_vec(),
            skip,
            mix,
            out,
        })
    }

    /// One history: events oldest first, positions with mask 0 are skipped but age the rest.
    fn encode(
        &self,
        items: &[f32],
        behaviors: &[i64],
        mask: &[f32],
        scratch: &mut Scratch,
        user: &mut [f32],
    ) -> Result<()> {
        let d = self.dim;
        let width = self.hidden.outputs + d;
        let Scratch {
            event,
            features,
            gates,
            sums,
            totals,
            summary,
            mixed,
        } = scratch;
        sums.fill(0.0);
        totals.fill(0.0);
        let mut count = 0.0f32;
        for ((item, &behavior), &real) in items.chunks_exact(d).zip(behaviors).zip(mask) {
            if count > 0.0 {
                for (head, &decay) in self.decays.iter().enumerate() {
                    if decay != 1.0 {
                        totals[head] *= decay;
                        let sum = &mut sums[head * width..(head + 1) * width];
                        sum.iter_mut().for_each(|s| *s *= decay);
                    }
                }
            }
            if real == 0.0 {
                continue;
            }
            count += real;
            let kind = usize::try_from(behavior)
                .ok()
                .and_then(|b| self.behaviors.get(b.checked_mul(d)?..)?.get(..d))
                .ok_or_else(|| {
                    refuse(&self.file, format!("behavior id {behavior} is not known"))
                })?;
            event.copy_from_slice(item);
            event.iter_mut().zip(kind).for_each(|(x, k)| *x += k);
            let (hidden, direct) = features.split_at_mut(self.hidden.outputs);
            self.hidden.apply(event, hidden);
            hidden.iter_mut().for_each(|x| *x = x.max(0.0));
            direct.copy_from_slice(event);
            self.gate.apply(event, gates);
            for (head, gate) in gates.iter().enumerate() {
                let weight = real / (1.0 + libm::expf(-gate));
                totals[head] += weight;
                let sum = &mut sums[head * width..(head + 1) * width];
                sum.iter_mut()
                    .zip(features.iter())
                    .for_each(|(s, f)| *s += weight * f);
            }
        }
        // The value matrix is linear: one product per head after the sums instead of one per event.
        user.fill(0.0);
        for head in 0..self.heads {
            let scale = 1.0 / (totals[head] + EPSILON);
            let sum = &mut sums[head * width..(head + 1) * width];
            sum.iter_mut().for_each(|s| *s *= scale);
            let (added, passed) = sum.split_at(self.hidden.outputs);
            let range = head * d..(head + 1) * d;
            let mean = &mut summary[range.clone()];
            self.value.apply_part(added, range.clone(), mean);
            let direct = self.direct[range].iter().zip(user.iter_mut());
            for ((m, p), (a, u)) in mean.iter_mut().zip(passed).zip(direct) {
                *m += p;
                *u += a * *m;
            }
        }
        if let Some(last) = summary.last_mut() {
            *last = libm::logf(1.0 + count) / 4.0;
        }
        self.mix.apply(summary, mixed);
        mixed.iter_mut().for_each(|x| *x = x.max(0.0));
        for layer in [(&self.out, &*mixed), (&self.skip, &*summary)] {
            layer.0.apply(layer.1, event);
            user.iter_mut().zip(event.iter()).for_each(|(u, x)| *u += x);
        }
        Ok(())
    }
}

/// Buffers of one run.
struct Scratch {
    event: Vec<f32>,
    features: Vec<f32>,
    gates: Vec<f32>,
    sums: Vec<f32>,
    totals: Vec<f32>,
    summary: Vec<f32>,
    mixed: Vec<f32>,
}

impl Tower for CompactUserTower {
    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<f32>> {
        let find = |name: &str| {
            let found = inputs.iter().find(|i| i.name == name);
            found.ok_or_else(|| refuse(&self.file, format!("input `{name}` is missing")))
        };
        let (items, behaviors, mask) = (find("items")?, find("behaviors")?, find("mask")?);
        let (InputData::F32(x), InputData::I64(kinds), InputData::F32(real)) =
            (items.data, behaviors.data, mask.data)
        else {
            return Err(refuse(
                &self.file,
                "items and mask must be f32, behaviors i64",
            ));
        };
        let &[batch, window, dim] = items.shape else {
            return Err(refuse(&self.file, "items must be [B, L, D]"));
        };
        let events = batch.checked_mul(window);
        let fits = dim == self.dim
            && window > 0
            && events == Some(kinds.len())
            && events == Some(real.len())
            && events.and_then(|e| e.checked_mul(dim)) == Some(x.len());
        if !fits {
            return Err(refuse(
                &self.file,
                "shapes of items, behaviors and mask do not fit",
            ));
        }
        let width = self.hidden.outputs + dim;
        let mut scratch = Scratch {
            event: vec![0.0; dim],
            features: vec![0.0; width],
            gates: vec![0.0; self.heads],
            sums: vec![0.0; self.heads * width],
            totals: vec![0.0; self.heads],
            summary: vec![0.0; self.value.outputs + 1],
            mixed: vec![0.0; self.mix.outputs],
        };
        let mut out = vec![0.0f32; batch * dim];
        let rows = out
            .chunks_exact_mut(dim)
            .zip(x.chunks_exact(window * dim))
            .zip(kinds.chunks_exact(window))
            .zip(real.chunks_exact(window));
        for (((user, x), kinds), real) in rows {
            self.encode(x, kinds, real, &mut scratch, user)?;
        }
        Ok(out)
    }
}
