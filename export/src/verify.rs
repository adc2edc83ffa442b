//! Reopening a bundle and comparing it with the student it was made from.

use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use tercet::{Bundle, EngineKind, Row, Scheme};
use tercet_models::data::{Dataset, HistoryEvent, Split};
use tercet_models::eval::{EvalQuery, Scorer};
use tercet_models::student::{GRAPH, Student};

use crate::error::{Error, Result};
use crate::onnx::Weights;
use crate::scorer::BundleScorer;

/// Items and histories compared with the student.
const SAMPLES: usize = 128;

/// Length of compared rankings.
const TOP: usize = 20;

/// How far two sets of vectors lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distance {
    /// Vectors compared.
    pub vectors: usize,
    /// Largest difference of a value.
    pub max_abs: f32,
    /// Largest value of the reference.
    pub magnitude: f32,
    /// Mean cosine.
    pub mean_cosine: f32,
    /// Least cosine.
    pub min_cosine: f32,
}

impl Distance {
    /// The distance of `got` from `want`, both row-major with rows of `dim` values. Two zero rows
    /// have cosine 1.
    pub fn between(got: &[f32], want: &[f32], dim: usize) -> Self {
        let mut out = Self {
            vectors: 0,
            max_abs: 0.0,
            magnitude: 0.0,
            mean_cosine: 1.0,
            min_cosine: 1.0,
        };
        let mut sum = 0f64;
        for (a, b) in got
            .chunks_exact(dim.max(1))
            .zip(want.chunks_exact(dim.max(1)))
        {
            let (mut ab, mut aa, mut bb) = (0f64, 0f64, 0f64);
            for (&x, &y) in a.iter().zip(b) {
                // `max` would pass over a NaN.
                let gap = (x - y).abs();
                out.max_abs = if gap.is_nan() {
                    f32::INFINITY
                } else {
                    out.max_abs.max(gap)
                };
                out.magnitude = out.magnitude.max(y.abs());
                ab += f64::from(x) * f64::from(y);
                aa += f64::from(x) * f64::from(x);
                bb += f64::from(y) * f64::from(y);
            }
            let cosine = match (aa > 0.0, bb > 0.0) {
                (true, true) => ab / (aa * bb).sqrt(),
                (false, false) => 1.0,
                _ => 0.0,
            };
            sum += cosine;
            out.min_cosine = out.min_cosine.min(cosine as f32);
            out.vectors += 1;
        }
        if out.vectors > 0 {
            out.mean_cosine = (sum / out.vectors as f64) as f32;
        }
        out
    }
}

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifyReport {
    /// Files whose SHA-256 is that of the manifest: all of them, or [`verify`] fails.
    pub files: usize,
    /// Found and expected items of the probe, if the bundle has one.
    pub probe: Option<(usize, usize)>,
    /// Comparison with the student, if one was given.
    pub parity: Option<Parity>,
}

/// A bundle against the student in full precision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parity {
    /// Rows of the item table.
    pub table: Distance,
    /// User vectors, from the bundle's tower over the bundle's table.
    pub users: Distance,
    /// User vectors of the exported graph against those computed straight from the weights.
    pub engines: Distance,
    /// Vectors of the fusion tower for items as they are, and again as if they were new.
    pub items: Distance,
    /// These of the exported graph against those computed straight from the weights.
    pub item_engines: Distance,
    /// Mean share of the student's best 20 items among those of the bundle.
    pub top_overlap: f64,
    /// Mean share of the best 20 by the finalists' formula that a scan returns: what the first
    /// pass over 8-bit codes loses.
    pub scan_overlap: f64,
}

/// What a bundle may lose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Largest difference of a value, relative to the largest value where that exceeds 1.
    pub max_abs: f32,
    /// Least mean cosine.
    pub mean_cosine: f32,
    /// Least cosine of any vector.
    pub min_cosine: f32,
}

impl Bounds {
    /// The bounds of a number format: f32 differs by 1e-4 at most (the order of additions), f16
    /// keeps a cosine of 0.9999 on average and 0.999 at worst, int8 of 0.998 and 0.98: item vectors of
    /// real students, sums of a thousand content features each, had 0.9989.
    pub fn of(form: Weights) -> Self {
        match form {
            Weights::F32 => Self {
                max_abs: 1e-4,
                mean_cosine: 0.999_99,
                min_cosine: 0.9999,
            },
            Weights::F16 => Self {
                max_abs: f32::INFINITY,
                mean_cosine: 0.9999,
                min_cosine: 0.999,
            },
            Weights::Int8 => Self {
                max_abs: f32::INFINITY,
                mean_cosine: 0.998,
                min_cosine: 0.98,
            },
        }
    }

    /// The bounds of a table: as for towers, and for int4 a cosine of 0.98 on average and 0.9
    /// at worst. (Values of a normal distribution in steps of a 7.5th of the largest of 32 come
    /// to 0.997.)
    pub fn of_table(scheme: Scheme) -> Self {
        match scheme {
            Scheme::F32 => Self::of(Weights::F32),
            Scheme::F16 => Self::of(Weights::F16),
            Scheme::Int4 => Self {
                max_abs: f32::INFINITY,
                mean_cosine: 0.98,
                min_cosine: 0.9,
            },
            _ => Self::of(Weights::Int8),
        }
    }

    /// The wider of both in each respect.
    fn or(self, other: Self) -> Self {
        Self {
            max_abs: self.max_abs.max(other.max_abs),
            mean_cosine: self.mean_cosine.min(other.mean_cosine),
            min_cosine: self.min_cosine.min(other.min_cosine),
        }
    }

    /// # Errors
    /// [`Error::Parity`], naming `what` and the number that is out of bounds.
    pub fn check(&self, what: &str, d: &Distance) -> Result<()> {
        let fail = |name: &str, got: f32, bound: f32| {
            Err(Error::Parity {
                reason: format!("{name} of {what} is {got}, the bound is {bound}"),
            })
        };
        let allowed = self.max_abs * d.magnitude.max(1.0);
        if d.max_abs > allowed {
            return fail("largest difference", d.max_abs, allowed);
        }
        if d.mean_cosine.is_nan() || d.mean_cosine < self.mean_cosine {
            return fail("mean cosine", d.mean_cosine, self.mean_cosine);
        }
        if d.min_cosine.is_nan() || d.min_cosine < self.min_cosine {
            return fail("least cosine", d.min_cosine, self.min_cosine);
        }
        Ok(())
    }
}

/// Least [`Parity::top_overlap`] of a bundle in f32 and of any other one. Students with many
/// near-ties lose places without losing quality, so the second is a tripwire for gross faults only.
const MIN_OVERLAP: (f64, f64) = (0.95, 0.5);

/// Hashes every file, checks every row and runs the probe; with a student also compares vectors
/// and rankings.
///
/// # Errors
/// [`Error::Runtime`] for a damaged file, [`Error::Parity`] for a failed probe.
pub fn verify(bundle: &Bundle, student: Option<(&Student, &Dataset)>) -> Result<VerifyReport> {
    bundle.verify()?;
    let probe = bundle.run_probe()?;
    if let Some(p) = probe.filter(|p| !p.passed) {
        return Err(Error::Parity {
            reason: format!(
                "the probe found {} of {} expected items",
                p.found, p.expected
            ),
        });
    }
    let parity = match student {
        Some((student, data)) => Some(parity(
            bundle,
            &BundleScorer::new(bundle, data)?,
            student,
            data,
        )?),
        None => None,
    };
    Ok(VerifyReport {
        files: bundle.manifest().files.len(),
        probe: probe.map(|p| (p.found, p.expected)),
        parity,
    })
}

/// Compares a bundle with its student: all rows of the table, up to 128 items through the fusion
/// tower and up to 128 histories through the user tower.
///
/// # Errors
/// A student of other data, or an engine that fails.
pub fn parity(
    bundle: &Bundle,
    scorer: &BundleScorer,
    student: &Student,
    data: &Dataset,
) -> Result<Parity> {
    let dim = student.shape.dim;
    if bundle.manifest().dim != dim || bundle.manifest().window != student.shape.window {
        return Err(Error::Mismatch {
            reason: format!(
                "the bundle has dim {} and window {}, the student {dim} and {}",
                bundle.manifest().dim,
                bundle.manifest().window,
                student.shape.window
            ),
        });
    }
    let reference = student.scorer(data)?;
    let vectors = to_vec(&reference.items)?;
    let table = bundle.table();
    let mut decoded = vec![0f32; vectors.len()];
    for (key, out) in data.items.keys().zip(decoded.chunks_exact_mut(dim)) {
        let row = table.find(key)?.ok_or_else(|| Error::Mismatch {
            reason: format!("the bundle lacks item {key:?} of the data"),
        })?;
        table.decode(row, out)?;
    }

    let histories = sample_histories(data, student.shape.window, Split::Test);
    let views: Vec<&[HistoryEvent]> = histories.iter().map(Vec::as_slice).collect();
    let want = to_vec(&reference.user_vectors(&views)?)?;
    let got = scorer.user_vectors(&views)?;
    let events: Vec<Vec<(Row, i64)>> = views.iter().map(|h| scorer.events(h)).collect();
    let mut graph = bundle.load_user_tower_with(EngineKind::Tract)?;
    let graph = graph.encode(table, &events)?;

    let (top_overlap, scan_overlap) = overlaps(bundle, scorer, &reference, data, &histories, &got)?;
    let (items, item_engines) = fusion(bundle, student, data)?;
    Ok(Parity {
        table: Distance::between(&decoded, &vectors, dim),
        users: Distance::between(&got, &want, dim),
        engines: Distance::between(&graph, &got, dim),
        items,
        item_engines,
        top_overlap,
        scan_overlap,
    })
}

/// Compares the numbers of a report with the bounds of the bundle's formats.
///
/// # Errors
/// [`Error::Parity`] for the first bound that is broken.
pub fn check(parity: &Parity, table: Scheme, towers: Weights) -> Result<()> {
    let stored = Bounds::of_table(table);
    // User vectors suffer from both.
    let users = stored.or(Bounds::of(towers));
    stored.check("item vectors in the table", &parity.table)?;
    Bounds::of(towers).check("item vectors of the fusion tower", &parity.items)?;
    users.check("user vectors", &parity.users)?;
    // The same numbers in another order of summation: rounding alone, whatever the form.
    Bounds::of(Weights::F32).check("user vectors of the graph", &parity.engines)?;
    Bounds::of(Weights::F32).check("item vectors of the graph", &parity.item_engines)?;
    let least = if table == Scheme::F32 && towers == Weights::F32 {
        MIN_OVERLAP.0
    } else {
        MIN_OVERLAP.1
    };
    if parity.top_overlap < least {
        return Err(Error::Parity {
            reason: format!(
                "the best {TOP} items agree to {:.3}, the bound is {least}",
                parity.top_overlap
            ),
        });
    }
    Ok(())
}

/// Up to [`SAMPLES`] evenly spaced users' histories, among them an empty one and one of one event.
pub(crate) fn sample_histories(
    data: &Dataset,
    window: usize,
    split: Split,
) -> Vec<Vec<HistoryEvent>> {
    let users = data.num_users();
    let step = users.div_ceil(SAMPLES).max(1);
    let mut out: Vec<Vec<HistoryEvent>> = (0..users)
        .step_by(step)
        .map(|u| data.history(u as u32, split))
        .map(|mut h| h.split_off(h.len().saturating_sub(window)))
        .collect();
    if let Some(short) = out.first().and_then(|h| h.last()).copied() {
        out.push(vec![short]);
    }
    out.push(Vec::new());
    out
}

/// The student's best items against the bundle's, and the bundle's exact ones against its scan's.
fn overlaps(
    bundle: &Bundle,
    scorer: &BundleScorer,
    reference: &dyn Scorer,
    data: &Dataset,
    histories: &[Vec<HistoryEvent>],
    users: &[f32],
) -> Result<(f64, f64)> {
    let n = data.num_items();
    let k = TOP.min(n);
    let table = bundle.table();
    let (mut top, mut scan) = (0.0, 0.0);
    let mut scores = vec![0f32; n];
    for (history, user) in histories.iter().zip(users.chunks_exact(table.dim())) {
        let query = EvalQuery {
            user: 0,
            history: history.clone(),
            mask: vec![],
            targets: vec![],
        };
        let query = std::slice::from_ref(&query);
        reference.score(query, &mut scores)?;
        let want = best(&scores, k);
        scorer.score(query, &mut scores)?;
        let got = best(&scores, k);
        let scanned: Vec<&str> = table
            .top_k(user, k, &[])?
            .iter()
            .map(|s| table.key(s.row))
            .collect::<tercet::Result<_>>()?;
        top += got.iter().filter(|i| want.contains(i)).count() as f64 / k as f64;
        scan += got
            .iter()
            .filter(|i| scanned.contains(&data.items.key(**i)))
            .count() as f64
            / k as f64;
    }
    let count = histories.len().max(1) as f64;
    Ok((top / count, scan / count))
}

fn best(scores: &[f32], k: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..scores.len() as u32).collect();
    let order = |a: &u32, b: &u32| {
        scores[*b as usize]
            .total_cmp(&scores[*a as usize])
            .then(a.cmp(b))
    };
    ids.sort_unstable_by(order);
    ids.truncate(k);
    ids
}

/// The fusion tower against the student, and its graph against its weights: items as they are, and
/// without co-behaviour.
fn fusion(bundle: &Bundle, student: &Student, data: &Dataset) -> Result<(Distance, Distance)> {
    let dim = student.shape.dim;
    let modalities = &student.shape.modalities;
    let n = data.num_items();
    let items: Vec<usize> = (0..n).step_by(n.div_ceil(SAMPLES).max(1)).collect();
    let mut features: Vec<Vec<f32>> = Vec::new();
    let mut present = vec![0f32; items.len() * modalities.len()];
    let graph = to_vec(&student.graph)?;
    let graph_present = to_vec(&student.graph_present)?;
    for (m, spec) in modalities.iter().enumerate() {
        let mut values = Vec::with_capacity(items.len() * spec.dim);
        for (at, &i) in items.iter().enumerate() {
            let has = if spec.name == GRAPH {
                values.extend_from_slice(&graph[i * spec.dim..(i + 1) * spec.dim]);
                graph_present[i] > 0.0
            } else {
                let f = data.modality(&spec.name).ok_or_else(|| Error::Mismatch {
                    reason: format!("the data has no features `{}`", spec.name),
                })?;
                values.extend(f.values.row(i).iter().copied());
                f.present[i]
            };
            present[at * modalities.len() + m] = f32::from(u8::from(has));
        }
        features.push(values);
    }
    let views: Vec<&[f32]> = features.iter().map(Vec::as_slice).collect();
    let mut tower = bundle.load_fusion_tower()?;
    let mut graph = bundle.load_fusion_tower_with(EngineKind::Tract)?;
    let inputs = student.features(data)?;
    let (mut got, mut drawn, mut want) = (Vec::new(), Vec::new(), Vec::new());
    for cold in [false, true] {
        let mut masks: Vec<Tensor> = inputs.present().to_vec();
        let mut flags = present.clone();
        if let Some(g) = student.shape.graph_index().filter(|_| cold) {
            masks[g] = masks[g].zeros_like()?;
            flags
                .iter_mut()
                .skip(g)
                .step_by(modalities.len())
                .for_each(|p| *p = 0.0);
        }
        got.extend(tower.encode(items.len(), &views, &flags)?);
        drawn.extend(graph.encode(items.len(), &views, &flags)?);
        let all = to_vec(&student.item_vectors(&inputs, &masks)?)?;
        items
            .iter()
            .for_each(|&i| want.extend_from_slice(&all[i * dim..(i + 1) * dim]));
    }
    Ok((
        Distance::between(&got, &want, dim),
        Distance::between(&drawn, &got, dim),
    ))
}

/// Values of a tensor of any rank and device.
pub(crate) fn to_vec(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.detach()
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_by_hand() {
        // cos((1,0), (0,1)) = 0, cos((2,0), (4,0)) = 1, two zero rows count as 1.
        let d = Distance::between(&[1., 0., 2., 0., 0., 0.], &[0., 1., 4., 0., 0., 0.], 2);
        assert_eq!((d.vectors, d.max_abs, d.magnitude), (3, 2.0, 4.0));
        assert!((d.mean_cosine - 2.0 / 3.0).abs() < 1e-6);
        assert_eq!(d.min_cosine, 0.0);
        assert!(Bounds::of(Weights::Int8).check("x", &d).is_err());
        let same = Distance::between(&[1., 2.], &[1., 2.], 2);
        assert!(Bounds::of(Weights::F32).check("x", &same).is_ok());
        let nan = Distance::between(&[f32::NAN, 2.], &[1., 2.], 2);
        assert!(Bounds::of(Weights::Int8).check("x", &nan).is_err());
    }
}
