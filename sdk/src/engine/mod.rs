//! Running towers: one trait, one file per engine.

#[cfg(feature = "compact")]
mod compact;
#[cfg(feature = "ort")]
mod ort;
#[cfg(feature = "tract")]
mod tract;

use std::collections::VecDeque;
use std::path::Path;

use crate::bundle::Manifest;
use crate::error::{Error, Result, check_len};
use crate::id::Row;
use crate::quant;
use crate::table::ItemTable;

#[cfg(feature = "ort")]
pub use self::ort::{OnnxRuntime, OnnxRuntimeOptions, Provider};

/// One named input of a tower.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Name of the graph input.
    pub name: &'a str,
    /// Row-major shape; its product is the number of values.
    pub shape: &'a [usize],
    /// The values.
    pub data: InputData<'a>,
}

/// Values of an [`Input`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum InputData<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 64-bit integers.
    I64(&'a [i64]),
}

/// A network with named inputs and one f32 output `[B, D]`.
pub trait Tower: Send {
    /// Runs the network; the result is the output in row-major order.
    ///
    /// # Errors
    /// [`Error::Engine`] if names, types or shapes do not fit the graph, or the engine fails.
    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<f32>>;

    /// What runs it.
    fn report(&self) -> EngineReport {
        EngineReport::of("host")
    }

    /// What follows one history event by event, if the engine of a user tower can: then an event
    /// costs the same however long the history is.
    fn follower(&self) -> Option<Box<dyn Follower>> {
        None
    }
}

/// What runs a tower, and on what.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineReport {
    /// `compact`, `tract`, `onnxruntime`, or `host` for a [`Tower`] of the app's own.
    pub engine: &'static str,
    /// Version of a library that is not part of this crate.
    pub version: Option<String>,
    /// Execution provider: `CPU`, `CUDA`, …
    pub provider: String,
    /// Providers that were asked for and could not be used, each with the reason.
    pub refused: Vec<(String, String)>,
}

impl EngineReport {
    fn of(engine: &'static str) -> Self {
        EngineReport {
            engine,
            version: None,
            provider: "CPU".to_string(),
            refused: Vec::new(),
        }
    }
}

/// An item vector `[D]`.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum ItemVector<'a> {
    /// Its values.
    F32(&'a [f32]),
    /// Codes, each to be multiplied by `scale`.
    Int8 {
        /// `[D]`
        codes: &'a [i8],
        /// Of one code.
        scale: f32,
    },
}

impl ItemVector<'_> {
    /// D.
    pub fn dim(&self) -> usize {
        match self {
            ItemVector::F32(values) => values.len(),
            ItemVector::Int8 { codes, .. } => codes.len(),
        }
    }

    /// Writes the values into `out` `[D]`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn decode(&self, out: &mut [f32]) {
        match *self {
            ItemVector::F32(values) => out.copy_from_slice(values),
            ItemVector::Int8 { codes, scale } => quant::int8::decode(codes, scale, out),
        }
    }
}

/// A user tower in the middle of a history.
pub trait Follower: Send {
    /// One more event: item vector and behavior id.
    ///
    /// # Errors
    /// [`Error::Engine`] for an unknown behavior; the state is unchanged then.
    fn add(&mut self, item: ItemVector<'_>, behavior: i64) -> Result<()>;

    /// Takes the oldest event out again; the caller says which it was.
    ///
    /// # Errors
    /// As [`Follower::add`].
    fn remove_oldest(&mut self, item: ItemVector<'_>, behavior: i64) -> Result<()>;

    /// Back to no events.
    fn clear(&mut self);

    /// Writes the user vector `[D]`.
    ///
    /// # Errors
    /// [`Error::Engine`].
    fn vector(&mut self, user: &mut [f32]) -> Result<()>;
}

/// What runs a tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineKind {
    /// The shapes of the student, straight from its weights (feature `compact`).
    Compact,
    /// Any ONNX graph, by tract (feature `tract`).
    Tract,
}

/// Which tower of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TowerKind {
    /// History → user vector.
    User,
    /// Features → item vector.
    Fusion,
}

impl TowerKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            TowerKind::User => "user",
            TowerKind::Fusion => "fusion",
        }
    }

    #[cfg(any(feature = "tract", feature = "ort"))]
    fn output(self) -> &'static str {
        match self {
            TowerKind::User => "user_vector",
            TowerKind::Fusion => "item_vector",
        }
    }
}

/// Loads the weights of a student's tower, a file of `bytes` bytes.
#[cfg(feature = "compact")]
pub(crate) fn load_compact(
    kind: TowerKind,
    path: &Path,
    bytes: u64,
    manifest: &Manifest,
) -> Result<Box<dyn Tower>> {
    use compact::{CompactFusionTower, CompactUserTower};
    let dim = manifest.dim;
    Ok(match kind {
        TowerKind::User => Box::new(CompactUserTower::load(path, bytes, dim)?),
        TowerKind::Fusion => Box::new(CompactFusionTower::load(
            path,
            bytes,
            &manifest.modalities,
            dim,
        )?),
    })
}

/// This build has no compact engine.
#[cfg(not(feature = "compact"))]
pub(crate) fn load_compact(
    _kind: TowerKind,
    path: &Path,
    _bytes: u64,
    _manifest: &Manifest,
) -> Result<Box<dyn Tower>> {
    Err(Error::EngineUnavailable {
        file: file_name(path),
    })
}

/// Loads the ONNX graph of a tower with the engine of this build.
#[cfg(feature = "tract")]
pub(crate) fn load(kind: TowerKind, path: &Path) -> Result<Box<dyn Tower>> {
    Ok(Box::new(tract::TractTower::load(path, kind.output())?))
}

/// No engine in this build.
#[cfg(not(feature = "tract"))]
pub(crate) fn load(_kind: TowerKind, path: &Path) -> Result<Box<dyn Tower>> {
    Err(Error::EngineUnavailable {
        file: file_name(path),
    })
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Most histories or items per run.
const BATCH: usize = 32;

/// Most f32 values per input of one run (16 MiB).
const BATCH_VALUES: usize = 1 << 22;

/// Turns histories into user vectors.
pub struct UserTower {
    tower: Box<dyn Tower>,
    file: String,
    dim: usize,
    window: usize,
    behaviors: usize,
    followed: Option<Followed>,
    /// Goes through whole histories, where the engine can follow one.
    whole: Option<Box<dyn Follower>>,
    /// Room for an item vector.
    item: Vec<f32>,
}

/// A follower and the events that it has seen, oldest first.
struct Followed {
    follower: Box<dyn Follower>,
    events: VecDeque<(Row, i64)>,
    /// Events taken out since it began anew: each leaves a rounding error behind.
    removed: usize,
}

/// After so many removals a follower begins anew. An error of one part in 2²⁴ each keeps the sums
/// good to 10⁻⁵.
const MAX_REMOVED: usize = 64;

impl UserTower {
    pub(crate) fn new(tower: Box<dyn Tower>, manifest: &Manifest, file: &str) -> Self {
        UserTower {
            followed: tower.follower().map(|follower| Followed {
                follower,
                events: VecDeque::new(),
                removed: 0,
            }),
            whole: tower.follower(),
            item: vec![0.0; manifest.dim],
            tower,
            file: file.to_string(),
            dim: manifest.dim,
            window: manifest.window,
            behaviors: manifest.behaviors.len(),
        }
    }

    /// What runs this tower.
    pub fn engine(&self) -> EngineReport {
        self.tower.report()
    }

    /// L: events of a history that are looked at, the latest ones.
    pub fn window(&self) -> usize {
        self.window
    }

    /// The user vector `[D]` of one history that is asked for again and again while it grows, as
    /// for [`UserTower::encode`]. If the engine can follow a history, a further event costs the
    /// same however many there were; the result differs from that of `encode` by rounding at most,
    /// and not at all until events fall out of the window.
    ///
    /// The vectors of the rows must be those of earlier calls: after a change of the table, call
    /// [`UserTower::forget`].
    ///
    /// # Errors
    /// As [`UserTower::encode`].
    pub fn follow(&mut self, table: &ItemTable, history: &[(Row, i64)]) -> Result<Vec<f32>> {
        let Some(followed) = &mut self.followed else {
            return self.encode(table, &[history]);
        };
        check_len("item vector", self.dim, table.dim())?;
        let recent = &history[history.len().saturating_sub(self.window)..];
        let room = &mut self.item;
        let done = followed.bring_to(recent, |(row, behavior), then| {
            check_behavior(behavior, self.behaviors)?;
            then(table.item(row, room)?)
        });
        if let Err(e) = done {
            followed.clear();
            return Err(e);
        }
        let mut user = vec![0.0; self.dim];
        followed.follower.vector(&mut user)?;
        check_output(&self.file, &user, self.dim)?;
        Ok(user)
    }

    /// Forgets what [`UserTower::follow`] has followed.
    pub fn forget(&mut self) {
        if let Some(followed) = &mut self.followed {
            followed.clear();
        }
    }

    /// User vectors of many histories, in batches of up to 32.
    ///
    /// A history is a list of (row, behavior id), oldest first; of a long one the last L events
    /// count, an empty one gives the tower's prior.
    ///
    /// # Shapes
    /// The result is row-major `[histories.len(), D]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for rows or behaviors out of range, [`Error::Engine`].
    pub fn encode<H: AsRef<[(Row, i64)]>>(
        &mut self,
        table: &ItemTable,
        histories: &[H],
    ) -> Result<Vec<f32>> {
        if table.dim() != self.dim {
            return Err(Error::Length {
                what: "item vector".into(),
                expected: self.dim,
                got: table.dim(),
            });
        }
        let (l, d) = (self.window, self.dim);
        if let Some(whole) = &mut self.whole {
            let mut out = vec![0.0; histories.len() * d];
            for (history, user) in histories.iter().zip(out.chunks_exact_mut(d)) {
                let history = history.as_ref();
                whole.clear();
                for &(row, behavior) in &history[history.len().saturating_sub(l)..] {
                    check_behavior(behavior, self.behaviors)?;
                    whole.add(table.item(row, &mut self.item)?, behavior)?;
                }
                whole.vector(user)?;
            }
            check_output(&self.file, &out, out.len())?;
            return Ok(out);
        }
        let batch = batch_size(histories.len(), l * d);
        let mut out = Vec::new();
        for part in histories.chunks(batch) {
            // A last, shorter batch is filled up with empty histories: the plan for this
            // batch size exists already.
            let mut items = vec![0.0f32; batch * l * d];
            let mut behaviors = vec![0i64; batch * l];
            let mut mask = vec![0.0f32; batch * l];
            for (b, history) in part.iter().enumerate() {
                let history = history.as_ref();
                let recent = &history[history.len().saturating_sub(l)..];
                let pad = l - recent.len();
                for (i, &(row, behavior)) in recent.iter().enumerate() {
                    let at = b * l + pad + i;
                    check_behavior(behavior, self.behaviors)?;
                    table.decode(row, &mut items[at * d..(at + 1) * d])?;
                    behaviors[at] = behavior;
                    mask[at] = 1.0;
                }
            }
            let result = self.tower.run(&[
                Input {
                    name: "items",
                    shape: &[batch, l, d],
                    data: InputData::F32(&items),
                },
                Input {
                    name: "behaviors",
                    shape: &[batch, l],
                    data: InputData::I64(&behaviors),
                },
                Input {
                    name: "mask",
                    shape: &[batch, l],
                    data: InputData::F32(&mask),
                },
            ])?;
            check_output(&self.file, &result, batch * d)?;
            out.extend_from_slice(&result[..part.len() * d]);
        }
        Ok(out)
    }
}

impl Followed {
    fn clear(&mut self) {
        self.follower.clear();
        self.events.clear();
        self.removed = 0;
    }

    /// Takes out what is no longer wanted at the front and adds what is new at the back.
    fn bring_to(
        &mut self,
        wanted: &[(Row, i64)],
        mut look_up: impl FnMut((Row, i64), &mut dyn FnMut(ItemVector<'_>) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let follower = &mut self.follower;
        // Events of equal rows may fit at several places; the longest common run is one of them.
        let first = (0..=self.events.len()).find(|&first| {
            let kept = self.events.range(first..);
            kept.len() <= wanted.len() && kept.eq(wanted.iter().take(self.events.len() - first))
        });
        let first = first.unwrap_or(self.events.len());
        let kept = self.events.len() - first;
        if kept == 0 || first > kept || self.removed + first > MAX_REMOVED {
            follower.clear();
            self.events.clear();
            self.removed = 0;
        } else {
            for event in self.events.drain(..first) {
                look_up(event, &mut |item| follower.remove_oldest(item, event.1))?;
                self.removed += 1;
            }
        }
        for &event in &wanted[self.events.len()..] {
            look_up(event, &mut |item| follower.add(item, event.1))?;
            self.events.push_back(event);
        }
        Ok(())
    }
}

fn check_behavior(behavior: i64, known: usize) -> Result<()> {
    if usize::try_from(behavior).is_ok_and(|x| x < known) {
        return Ok(());
    }
    Err(Error::argument(format!(
        "behavior id {behavior} is beyond the vocabulary of {known}"
    )))
}

/// Turns an item's features into an item vector.
pub struct FusionTower {
    tower: Box<dyn Tower>,
    file: String,
    dim: usize,
    modalities: Vec<(String, usize)>,
}

impl FusionTower {
    pub(crate) fn new(tower: Box<dyn Tower>, manifest: &Manifest, file: &str) -> Self {
        FusionTower {
            tower,
            file: file.to_string(),
            dim: manifest.dim,
            modalities: manifest
                .modalities
                .iter()
                .map(|m| (m.name.clone(), m.dim))
                .collect(),
        }
    }

    /// What runs this tower.
    pub fn engine(&self) -> EngineReport {
        self.tower.report()
    }

    /// Names and dims of the inputs, in the order `encode` takes them.
    pub fn modalities(&self) -> &[(String, usize)] {
        &self.modalities
    }

    /// Item vectors of `items` items, in batches of up to 32.
    ///
    /// # Shapes
    /// `features` has one row-major `[items, D_m]` slice per modality in the manifest's order,
    /// `present` is `[items, M]` with 1 where an item has the modality (features of absent ones
    /// should be 0). The result is row-major `[items, D]`.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NonFinite`], [`Error::Engine`].
    pub fn encode(
        &mut self,
        items: usize,
        features: &[&[f32]],
        present: &[f32],
    ) -> Result<Vec<f32>> {
        let m = self.modalities.len();
        check_len("features (one slice per modality)", m, features.len())?;
        check_len("present", items.saturating_mul(m), present.len())?;
        for ((name, dim), values) in self.modalities.iter().zip(features) {
            check_len(name, items.saturating_mul(*dim), values.len())?;
            if let Some(i) = values.iter().position(|x| !x.is_finite()) {
                return Err(Error::NonFinite {
                    what: name.clone(),
                    row: i / dim,
                });
            }
        }
        if present.iter().any(|&p| p != 0.0 && p != 1.0) {
            return Err(Error::argument("present holds a value other than 0 and 1"));
        }
        let widest = self.modalities.iter().map(|(_, d)| *d).max().unwrap_or(1);
        let batch = batch_size(items, widest);
        let mut out = Vec::new();
        let mut first = 0;
        while first < items {
            let n = batch.min(items - first);
            let padded = |values: &[f32], width: usize| {
                let mut part = vec![0.0f32; batch * width];
                part[..n * width].copy_from_slice(&values[first * width..(first + n) * width]);
                part
            };
            let parts: Vec<(Vec<f32>, [usize; 2])> = self
                .modalities
                .iter()
                .zip(features)
                .map(|((_, dim), values)| (padded(values, *dim), [batch, *dim]))
                .collect();
            let flags = padded(present, m);
            let mut inputs: Vec<Input<'_>> = self
                .modalities
                .iter()
                .zip(&parts)
                .map(|((name, _), (values, shape))| Input {
                    name,
                    shape,
                    data: InputData::F32(values),
                })
                .collect();
            let shape = [batch, m];
            inputs.push(Input {
                name: "present",
                shape: &shape,
                data: InputData::F32(&flags),
            });
            let result = self.tower.run(&inputs)?;
            check_output(&self.file, &result, batch * self.dim)?;
            out.extend_from_slice(&result[..n * self.dim]);
            first += n;
        }
        Ok(out)
    }
}

fn batch_size(wanted: usize, values_each: usize) -> usize {
    wanted
        .min(BATCH)
        .min(BATCH_VALUES / values_each.max(1))
        .max(1)
}

fn check_output(file: &str, values: &[f32], expected: usize) -> Result<()> {
    let reason = if values.len() != expected {
        format!(
            "the output has {} values, expected {expected}",
            values.len()
        )
    } else if values.iter().any(|x| !x.is_finite()) {
        "the output holds a value that is not finite".to_string()
    } else {
        return Ok(());
    };
    Err(Error::Engine {
        file: file.to_string(),
        reason,
    })
}
