//! History → user vector.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{Coded, Dense, open, refuse};
use crate::engine::{EngineReport, Follower, Input, InputData, ItemVector, Tower, file_name};
use crate::error::{Error, Result};
use crate::kernel;

/// c where a bundle names none: keeps the mean of a head without events at zero.
const LEAST_PRIOR: f32 = 1e-6;

/// The student's user tower.
pub(in crate::engine) struct CompactUserTower(Arc<Weights>);

struct Weights {
    file: String,
    dim: usize,
    heads: usize,
    /// `[behaviors, D]`
    behaviors: Vec<f32>,
    /// `[behaviors, E]`: hidden values of a behavior without an item, before they are cut at zero.
    starts: Vec<f32>,
    /// What a head's sums are multiplied with when one more event arrives.
    decays: Vec<f32>,
    /// What is added to the sum of a head's weights before the mean is taken.
    prior: Vec<f32>,
    hidden: Dense,
    /// The same for items that come as codes.
    coded: Option<Coded>,
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
        let prior = if file.contains("user.prior") {
            file.take::<f32>("user.prior", &[Some(heads)])?
                .get()
                .to_vec()
        } else {
            vec![LEAST_PRIOR; heads]
        };
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
        let behaviors = behaviors.get().to_vec();
        let mut starts = vec![0.0; behaviors.len() / dim * hidden.outputs];
        hidden.apply(&behaviors, &mut starts);
        let weights = Weights {
            file: file_name(path),
            dim,
            heads,
            behaviors,
            starts,
            decays,
            prior,
            coded: hidden.coded(),
            hidden,
            gate,
            value,
            direct: direct.get().to_vec(),
            skip,
            mix,
            out,
        };
        Ok(CompactUserTower(Arc::new(weights)))
    }
}

/// The sums over a history so far, which one more event changes at a cost that does not depend on
/// how many there were; and the buffers that this takes.
struct Running {
    weights: Arc<Weights>,
    /// Events in the sums.
    count: f32,
    /// Per head the weighted sum of an event's hidden values and of its item vector.
    sums: Vec<f32>,
    /// Per head the sum of the weights.
    totals: Vec<f32>,
    /// Events of the block below that are not in the sums yet.
    waiting: usize,
    /// Of a block of events: what happens to each, their vectors `[BLOCK, D]`, hidden values
    /// `[BLOCK, E]`, and gates `[BLOCK, heads]` before the sigmoid.
    changes: [Change; BLOCK],
    events: Vec<f32>,
    hidden: Vec<f32>,
    gates: Vec<f32>,
    /// Codes `[BLOCK, D]` of the items that came as such, and what a code is worth; the hidden
    /// values of these events are those of the behavior so far.
    codes: Vec<i8>,
    steps: [Option<f32>; BLOCK],
    mean: Vec<f32>,
    summary: Vec<f32>,
    mixed: Vec<f32>,
    /// `[D]`
    part: Vec<f32>,
}

/// Events whose hidden values are computed at once: the weights are read once for all of them.
const BLOCK: usize = 24;

/// What happens to an event of a block.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    Comes,
    /// It is the oldest, and is taken out.
    Leaves,
}

impl Running {
    fn start(weights: Arc<Weights>) -> Self {
        let w = &*weights;
        let width = w.hidden.outputs + w.dim;
        Running {
            count: 0.0,
            waiting: 0,
            changes: [Change::Comes; BLOCK],
            sums: vec![0.0; w.heads * width],
            totals: vec![0.0; w.heads],
            events: vec![0.0; BLOCK * w.dim],
            hidden: vec![0.0; BLOCK * w.hidden.outputs],
            gates: vec![0.0; BLOCK * w.heads],
            codes: vec![0; BLOCK * w.dim],
            steps: [None; BLOCK],
            mean: vec![0.0; width],
            summary: vec![0.0; w.value.outputs + 1],
            mixed: vec![0.0; w.mix.outputs],
            part: vec![0.0; w.dim],
            weights,
        }
    }

    fn reset(&mut self) {
        self.waiting = 0;
        self.count = 0.0;
        self.sums.fill(0.0);
        self.totals.fill(0.0);
    }

    /// One more position without an event: what there is becomes older.
    fn age(&mut self) {
        self.take_in();
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

    /// One more event that comes or leaves.
    fn push(&mut self, item: ItemVector<'_>, behavior: i64, change: Change) -> Result<()> {
        self.place(item, behavior)?;
        self.changes[self.waiting] = change;
        self.waiting += 1;
        if self.waiting == BLOCK {
            self.take_in();
        }
        Ok(())
    }

    /// Puts an event at the next place of the block.
    fn place(&mut self, item: ItemVector<'_>, behavior: i64) -> Result<()> {
        let w = &*self.weights;
        let (d, e, slot) = (w.dim, w.hidden.outputs, self.waiting);
        let known = usize::try_from(behavior).ok();
        let known = known.filter(|&b| b < w.behaviors.len() / d);
        let kind =
            known.ok_or_else(|| refuse(&w.file, format!("behavior id {behavior} is not known")))?;
        if item.dim() != d {
            return Err(refuse(
                &w.file,
                format!("an item vector has {} values", item.dim()),
            ));
        }
        let event = &mut self.events[slot * d..(slot + 1) * d];
        item.decode(event);
        let known = &w.behaviors[kind * d..(kind + 1) * d];
        event.iter_mut().zip(known).for_each(|(x, k)| *x += k);
        self.steps[slot] = match item {
            ItemVector::Int8 { codes, scale } if w.coded.is_some() => {
                self.codes[slot * d..(slot + 1) * d].copy_from_slice(codes);
                let start = &w.starts[kind * e..(kind + 1) * e];
                self.hidden[slot * e..(slot + 1) * e].copy_from_slice(start);
                Some(scale)
            }
            _ => None,
        };
        Ok(())
    }

    /// Hidden values and gates of the first `n` events of the block.
    fn look_at(&mut self, n: usize) {
        let w = &*self.weights;
        let (d, e) = (w.dim, w.hidden.outputs);
        w.gate
            .apply(&self.events[..n * d], &mut self.gates[..n * w.heads]);
        let mut first = 0;
        for alike in self.steps[..n].chunk_by(|a, b| a.is_some() == b.is_some()) {
            let range = first..first + alike.len();
            let hidden = &mut self.hidden[range.start * e..range.end * e];
            let inputs = range.start * d..range.end * d;
            let mut steps = [0.0; BLOCK];
            for (to, step) in steps.iter_mut().zip(alike.iter().flatten()) {
                *to = *step;
            }
            match &w.coded {
                Some(coded) if alike[0].is_some() => {
                    coded.add_relu(&self.codes[inputs], &steps[..alike.len()], hidden);
                }
                _ => w.hidden.apply_relu(&self.events[inputs], hidden),
            }
            first = range.end;
        }
    }

    /// Makes the waiting changes, one after the other.
    fn take_in(&mut self) {
        let n = std::mem::take(&mut self.waiting);
        if n == 0 {
            return;
        }
        self.look_at(n);
        let changes = self.changes;
        let mut first = 0;
        // Each removal is a run of its own.
        for run in changes[..n].chunk_by(|a, b| (a, b) == (&Change::Comes, &Change::Comes)) {
            if run[0] == Change::Leaves {
                self.take_out(first);
            } else {
                self.count += run.len() as f32;
                for head in 0..self.weights.heads {
                    let keep = self.weights.decays[head];
                    self.fade(head, first..first + run.len(), keep, 1.0);
                }
            }
            first += run.len();
        }
    }

    /// Takes out the oldest event, which is at place `slot` of the block.
    fn take_out(&mut self, slot: usize) {
        self.count -= 1.0;
        for head in 0..self.weights.heads {
            let decay = self.weights.decays[head];
            // The others have made it older.
            let left = if self.count > 0.0 && decay != 1.0 {
                libm::powf(decay, self.count)
            } else {
                1.0
            };
            self.fade(head, slot..slot + 1, 1.0, -left);
        }
    }

    /// What a head's sums hold is kept by a factor, and an event of weight `real` times its gate
    /// added, for the events at `slots` in turn.
    fn fade(&mut self, head: usize, slots: Range<usize>, keep: f32, real: f32) {
        let w = &*self.weights;
        let (d, e, width) = (w.dim, w.hidden.outputs, self.mean.len());
        let mut weights = [0.0f32; BLOCK];
        let weights = &mut weights[..slots.len()];
        for (weight, slot) in weights.iter_mut().zip(slots.clone()) {
            let gate = self.gates[slot * w.heads + head];
            *weight = real / (1.0 + libm::expf(-gate));
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
        self.take_in();
        let w = &*self.weights;
        let (d, hidden, width) = (w.dim, w.hidden.outputs, self.mean.len());
        // The value matrix is linear: one product per head after the sums instead of one per event.
        user.fill(0.0);
        for head in 0..w.heads {
            let scale = 1.0 / (self.totals[head] + w.prior[head]);
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
    fn add(&mut self, item: ItemVector<'_>, behavior: i64) -> Result<()> {
        self.push(item, behavior, Change::Comes)
    }

    fn remove_oldest(&mut self, item: ItemVector<'_>, behavior: i64) -> Result<()> {
        self.push(item, behavior, Change::Leaves)
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
        Some(Box::new(Running::start(self.0.clone())))
    }

    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<f32>> {
        let w = &*self.0;
        let mut running = Running::start(self.0.clone());
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
            for ((item, &behavior), &real) in x.chunks_exact(dim).zip(kinds).zip(real) {
                if real == 1.0 {
                    running.push(ItemVector::F32(item), behavior, Change::Comes)?;
                } else if real == 0.0 {
                    // No event, but the others are older for it.
                    running.age();
                } else {
                    return Err(refuse(&w.file, format!("{real} in mask, expected 0 or 1")));
                }
            }
            running.read(user);
        }
        Ok(out)
    }
}
