//! History → user vector.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{Dense, open, refuse};
use crate::engine::{EngineReport, Follower, Input, InputData, Tower, file_name};
use crate::error::{Error, Result};
use crate::kernel;

/// Keeps the mean of a head without events at zero; the same number as in training.
const EPSILON: f32 = 1e-6;

/// The student's user tower.
pub(in crate::engine) struct CompactUserTower(Running);

struct Weights {
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
        let weights = Weights {
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
        };
        Ok(CompactUserTower(Running::start(Arc::new(weights))))
    }
}

/// The sums over a history so far, which one more event changes at a cost that does not depend on
/// how many there were; and the buffers that this takes.
struct Running {
    weights: Arc<Weights>,
    /// Events, or positions of an input that count.
    count: f32,
    /// Per head the weighted sum of an event's hidden values and of its item vector.
    sums: Vec<f32>,
    /// Per head the sum of the weights.
    totals: Vec<f32>,
    /// Of a block of events: their vectors `[BLOCK, D]`, hidden values `[BLOCK, E]`, and gates
    /// `[BLOCK, heads]` before the sigmoid.
    events: Vec<f32>,
    hidden: Vec<f32>,
    gates: Vec<f32>,
    mean: Vec<f32>,
    summary: Vec<f32>,
    mixed: Vec<f32>,
    /// `[D]`
    part: Vec<f32>,
}

/// Events whose hidden values are computed at once: the weights are read once for all of them.
const BLOCK: usize = 24;

impl Running {
    fn start(weights: Arc<Weights>) -> Self {
        let w = &*weights;
        let width = w.hidden.outputs + w.dim;
        Running {
            count: 0.0,
            sums: vec![0.0; w.heads * width],
            totals: vec![0.0; w.heads],
            events: vec![0.0; BLOCK * w.dim],
            hidden: vec![0.0; BLOCK * w.hidden.outputs],
            gates: vec![0.0; BLOCK * w.heads],
            mean: vec![0.0; width],
            summary: vec![0.0; w.value.outputs + 1],
            mixed: vec![0.0; w.mix.outputs],
            part: vec![0.0; w.dim],
            weights,
        }
    }

    fn reset(&mut self) {
        self.count = 0.0;
        self.sums.fill(0.0);
        self.totals.fill(0.0);
    }

    /// One more position without an event: what there is becomes older.
    fn age(&mut self) {
        if self.count == 0.0 {
            return;
        }
        let width = self.mean.len();
        for (head, &decay) in self.weights.decays.iter().enumerate() {
            if decay != 1.0 {
                self.totals[head] *= decay;
                let sum = &mut self.sums[head * width..(head + 1) * width];
                sum.iter_mut().for_each(|s| *s *= decay);
            }
        }
    }

    /// Puts an event at place `slot` of the block.
    fn place(&mut self, slot: usize, item: &[f32], behavior: i64) -> Result<()> {
        let w = &*self.weights;
        let d = w.dim;
        let kind = usize::try_from(behavior)
            .ok()
            .and_then(|b| w.behaviors.get(b.checked_mul(d)?..)?.get(..d))
            .ok_or_else(|| refuse(&w.file, format!("behavior id {behavior} is not known")))?;
        let event = &mut self.events[slot * d..(slot + 1) * d];
        event.copy_from_slice(item);
        event.iter_mut().zip(kind).for_each(|(x, k)| *x += k);
        Ok(())
    }

    /// Hidden values and gates of the first `n` events of the block.
    fn look_at(&mut self, n: usize) {
        let w = &*self.weights;
        let events = &self.events[..n * w.dim];
        w.gate.apply(events, &mut self.gates[..n * w.heads]);
        let hidden = &mut self.hidden[..n * w.hidden.outputs];
        w.hidden.apply_relu(events, hidden);
    }

    /// Adds the events at `slots`, looked at before, one after the other, each `real` times.
    fn count_in(&mut self, slots: Range<usize>, real: &[f32]) {
        self.count = real.iter().fold(self.count, |count, real| count + real);
        for head in 0..self.weights.heads {
            let keep = self.weights.decays[head];
            self.fade(head, slots.clone(), keep, |k| real[k]);
        }
    }

    /// Takes out the event at `slot`, looked at before, which `age` others followed.
    fn count_out(&mut self, slot: usize, age: usize) {
        self.count -= 1.0;
        for head in 0..self.weights.heads {
            let decay = self.weights.decays[head];
            let left = if age > 0 && decay != 1.0 {
                libm::powf(decay, age as f32)
            } else {
                1.0
            };
            self.fade(head, slot..slot + 1, 1.0, |_| -left);
        }
    }

    /// What a head's sums hold is kept by a factor, and an event of weight `real` times its gate
    /// added, for the events at `slots` in turn.
    fn fade(&mut self, head: usize, slots: Range<usize>, keep: f32, real: impl Fn(usize) -> f32) {
        let w = &*self.weights;
        let (d, e, width) = (w.dim, w.hidden.outputs, self.mean.len());
        let mut weights = [0.0f32; BLOCK];
        let weights = &mut weights[..slots.len()];
        for (k, (weight, slot)) in weights.iter_mut().zip(slots.clone()).enumerate() {
            let gate = self.gates[slot * w.heads + head];
            *weight = real(k) / (1.0 + libm::expf(-gate));
            self.totals[head] = self.totals[head] * keep + *weight;
        }
        let (added, passed) = self.sums[head * width..(head + 1) * width].split_at_mut(e);
        let hidden = &self.hidden[slots.start * e..slots.end * e];
        let direct = &self.events[slots.start * d..slots.end * d];
        let kernel = kernel::active();
        kernel.fade(added, keep, weights, hidden);
        kernel.fade(passed, keep, weights, direct);
    }

    /// Writes the user vector.
    fn read(&mut self, user: &mut [f32]) {
        let w = &*self.weights;
        let (d, hidden, width) = (w.dim, w.hidden.outputs, self.mean.len());
        // The value matrix is linear: one product per head after the sums instead of one per event.
        user.fill(0.0);
        for head in 0..w.heads {
            let scale = 1.0 / (self.totals[head] + EPSILON);
            let sum = &self.sums[head * width..(head + 1) * width];
            for (m, s) in self.mean.iter_mut().zip(sum) {
                *m = s * scale;
            }
            let (added, passed) = self.mean.split_at(hidden);
            let range = head * d..(head + 1) * d;
            let mean = &mut self.summary[range.clone()];
            w.value.apply_part(added, range.clone(), mean);
            let direct = w.direct[range].iter().zip(user.iter_mut());
            for ((m, p), (a, u)) in mean.iter_mut().zip(passed).zip(direct) {
                *m += p;
                *u += a * *m;
            }
        }
        if let Some(last) = self.summary.last_mut() {
            *last = libm::logf(1.0 + self.count) / 4.0;
        }
        w.mix.apply_relu(&self.summary, &mut self.mixed);
        for (layer, input) in [(&w.out, &self.mixed), (&w.skip, &self.summary)] {
            layer.apply(input, &mut self.part);
            user.iter_mut().zip(&self.part).for_each(|(u, x)| *u += x);
        }
    }
}

impl Follower for Running {
    fn add(&mut self, item: &[f32], behavior: i64) -> Result<()> {
        self.place(0, item, behavior)?;
        self.look_at(1);
        self.count_in(0..1, &[1.0]);
        Ok(())
    }

    fn remove_oldest(&mut self, item: &[f32], behavior: i64) -> Result<()> {
        let age = (self.count as usize).saturating_sub(1);
        self.place(0, item, behavior)?;
        self.look_at(1);
        self.count_out(0, age);
        Ok(())
    }

    fn clear(&mut self) {
        self.reset();
    }

    fn vector(&mut self, user: &mut [f32]) -> Result<()> {
        self.read(user);
        Ok(())
    }
}

impl Tower for CompactUserTower {
    fn report(&self) -> EngineReport {
        EngineReport::of("compact")
    }

    fn follower(&self) -> Option<Box<dyn Follower>> {
        Some(Box::new(Running::start(self.0.weights.clone())))
    }

    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<f32>> {
        let running = &mut self.0;
        let w = running.weights.clone();
        let find = |name: &str| {
            let found = inputs.iter().find(|i| i.name == name);
            found.ok_or_else(|| refuse(&w.file, format!("input `{name}` is missing")))
        };
        let (items, behaviors, mask) = (find("items")?, find("behaviors")?, find("mask")?);
        let (InputData::F32(x), InputData::I64(kinds), InputData::F32(real)) =
            (items.data, behaviors.data, mask.data)
        else {
            return Err(refuse(&w.file, "items and mask must be f32, behaviors i64"));
        };
        let &[batch, window, dim] = items.shape else {
            return Err(refuse(&w.file, "items must be [B, L, D]"));
        };
        let events = batch.checked_mul(window);
        let fits = dim == w.dim
            && window > 0
            && events == Some(kinds.len())
            && events == Some(real.len())
            && events.and_then(|e| e.checked_mul(dim)) == Some(x.len());
        if !fits {
            return Err(refuse(
                &w.file,
                "shapes of items, behaviors and mask do not fit",
            ));
        }
        let mut out = vec![0.0f32; batch * dim];
        let rows = out
            .chunks_exact_mut(dim)
            .zip(x.chunks_exact(window * dim))
            .zip(kinds.chunks_exact(window))
            .zip(real.chunks_exact(window));
        for (((user, x), kinds), real) in rows {
            running.reset();
            let blocks = x.chunks(BLOCK * dim).zip(kinds.chunks(BLOCK));
            for ((x, kinds), real) in blocks.zip(real.chunks(BLOCK)) {
                let mut reals = [0.0f32; BLOCK];
                let mut n = 0;
                for ((item, &behavior), &real) in x.chunks_exact(dim).zip(kinds).zip(real) {
                    if real != 0.0 {
                        running.place(n, item, behavior)?;
                        reals[n] = real;
                        n += 1;
                    }
                }
                running.look_at(n);
                let mut done = 0;
                for positions in real.split_inclusive(|&real| real == 0.0) {
                    let here = positions.iter().filter(|&&real| real != 0.0).count();
                    running.count_in(done..done + here, &reals[done..done + here]);
                    done += here;
                    // A position with mask 0 holds no event, but the others are older for it.
                    if positions.last() == Some(&0.0) {
                        running.age();
                    }
                }
            }
            running.read(user);
        }
        Ok(out)
    }
}
