//! Co-behaviour as a modality: item vectors of a graph of behaviours, learnt before everything else and
//! then frozen.
//!
//! That embeddings of an item-behaviour graph are an input is published; their encoder,
//! [`BehaviorGraph`], is inferred from what the paper builds on.
//!
//! A graph of all training rows knows what tuning asks for: in it an item of few events stands where its
//! buyers stand, and who learns from those very buyers learns to trust that. So tuning sees users through
//! graphs that have not met them ([`TmfConfig::graph_folds`], ours), turned into the space of the whole one,
//! which is what counts afterwards.

use candle_core::{DType, Device, Tensor};

use super::config::TmfConfig;
use super::examples::Fold;
use crate::baseline::behavior_graph::{BehaviorGraph, BehaviorGraphConfig};
use crate::data::{Dataset, Split};
use crate::error::Result;
use crate::eval::{EvalProtocol, evaluate};
use crate::factors::Factors;
use crate::ops::pick;
use crate::train::{Monitor, factors};

/// Epochs between two looks at validation rows, and looks without improvement before the end.
const LOOK_EVERY: usize = 5;
const PATIENCE: usize = 2;

/// Events above which an item stands where it stands whoever is left out: folds have it as the whole graph does,
/// and not as one that differs in everything by chance.
const MANY: u32 = 20;

/// Steps towards the nearest rotation. Each multiplies what is far from it by 1.5: 60 bring there what is
/// 1e-9 of the largest direction.
const ROTATION_STEPS: usize = 60;

/// What co-behaviour says about items.
#[derive(Debug, Clone)]
pub(super) struct CoBehavior {
    /// `[N, d]`, zero for items without any; columns of the whole graph's are standardised.
    pub(super) vectors: Tensor,
    /// Items that have any.
    pub(super) present: Vec<bool>,
}

/// What stage 0 gives.
pub(super) struct Encoded {
    pub(super) whole: CoBehavior,
    /// Without the users of a fold each.
    pub(super) folds: Vec<CoBehavior>,
    /// recall@20 of the whole encoder's own scores on validation rows.
    pub(super) recall: Option<f64>,
}

/// Learns co-behaviour from training rows alone; the epoch is chosen on validation rows.
///
/// # Errors
/// [`crate::Error::Interrupted`] when the monitor asks to stop.
pub(super) fn encode(
    data: &Dataset,
    cfg: &TmfConfig,
    seed: u64,
    dev: &Device,
    monitor: &Monitor<'_>,
) -> Result<Encoded> {
    let events = events(data, |_| true);
    let present: Vec<bool> = events.iter().map(|n| *n > 0).collect();
    if !present.contains(&true) {
        let vectors = Tensor::zeros((data.num_items(), cfg.graph_dim), DType::F32, dev)?;
        return Ok(Encoded {
            whole: CoBehavior { vectors, present },
            folds: Vec::new(),
            recall: None,
        });
    }
    let of_graph = BehaviorGraphConfig {
        dim: cfg.graph_dim,
        layers: cfg.graph_layers,
        lr: cfg.graph_lr,
        batch: cfg.graph_batch,
        reg: cfg.graph_reg,
        behavior_weights: cfg.behavior_weights.clone(),
        transitions: cfg.transitions,
    };
    let graph = BehaviorGraph::new(data, of_graph.clone(), seed, dev)?;
    let best = learnt(graph, cfg.graph_epochs, data, monitor)?;
    let whole = centred(&best.vectors, &present)?;
    let deviation = deviation(&whole, &present)?;
    let few: Vec<bool> = events.iter().map(|n| *n <= MANY).collect();
    let without = |fold: Fold| -> Result<CoBehavior> {
        let knows = |user| !fold.holds(user);
        let known: Vec<bool> = self::events(data, knows).iter().map(|n| *n > 0).collect();
        if !known.contains(&true) {
            return Ok(CoBehavior {
                vectors: whole.zeros_like()?,
                present: known,
            });
        }
        let mut graph = BehaviorGraph::of_users(data, of_graph.clone(), knows, seed, dev)?;
        for epoch in 0..best.epochs {
            graph.learn(epoch as u64, || monitor.check())?;
        }
        let common = whole.broadcast_mul(&column(&known, dev)?)?;
        let own = turned(&centred(&graph.vectors()?.1, &known)?, &common)?;
        let changes = column(&few, dev)?;
        let own = own.broadcast_mul(&changes)?;
        let own = (own + whole.broadcast_mul(&(1.0 - changes)?)?)?;
        let vectors = own.broadcast_div(&deviation)?;
        let present = known.iter().zip(&few).map(|(k, f)| *k || !f).collect();
        Ok(CoBehavior { vectors, present })
    };
    let of = cfg.graph_folds;
    let numbers = if of < 2 { 0..0 } else { 0..of };
    let folds = numbers.map(|number| without(Fold { number, of }));
    let folds = folds.collect::<Result<Vec<_>>>()?;
    let vectors = whole.broadcast_div(&deviation)?;
    Ok(Encoded {
        whole: CoBehavior { vectors, present },
        folds,
        recall: best.recall,
    })
}

/// A graph after as many epochs as validation rows chose.
struct Learnt {
    vectors: Tensor,
    epochs: usize,
    recall: Option<f64>,
}

fn learnt(
    mut graph: BehaviorGraph,
    epochs: usize,
    data: &Dataset,
    monitor: &Monitor<'_>,
) -> Result<Learnt> {
    let mut best = Learnt {
        vectors: graph.vectors()?.1,
        epochs: 0,
        recall: None,
    };
    let mut waited = 0;
    for epoch in 1..=epochs {
        graph.learn(epoch as u64 - 1, || monitor.check())?;
        if epoch % LOOK_EVERY != 0 && epoch != epochs {
            continue;
        }
        let (users, vectors) = graph.vectors()?;
        let scores = Factors::new(&factors(&users, &vectors)?)?;
        let report = evaluate(&scores, data, &EvalProtocol::valid())?;
        let recall = report.metric("recall@20").unwrap_or(0.0);
        if best.recall.is_none_or(|b| recall > b) {
            best = Learnt {
                vectors,
                epochs: epoch,
                recall: Some(recall),
            };
            waited = 0;
        } else {
            waited += 1;
        }
        if waited >= PATIENCE {
            break;
        }
    }
    Ok(best)
}

/// Training rows of each item by some users.
fn events(data: &Dataset, knows: impl Fn(u32) -> bool) -> Vec<u32> {
    let mut count = vec![0; data.num_items()];
    let rows = data.rows(&[Split::Train], None);
    for user in (0..rows.rows() as u32).filter(|&u| knows(u)) {
        for &item in rows.row(user) {
            count[item as usize] += 1;
        }
    }
    count
}

/// 1 for items that are there, `[N, 1]`.
fn column(present: &[bool], dev: &Device) -> Result<Tensor> {
    let has: Vec<f32> = present.iter().map(|p| f32::from(u8::from(*p))).collect();
    Ok(Tensor::from_vec(has, (present.len(), 1), dev)?)
}

/// Columns of mean zero over the items that are there; zero rows for the others.
fn centred(vectors: &Tensor, present: &[bool]) -> Result<Tensor> {
    let dev = vectors.device();
    let ids: Vec<u32> = (0u32..)
        .zip(present)
        .filter(|p| *p.1)
        .map(|p| p.0)
        .collect();
    let known = pick(vectors, &ids)?;
    let y = vectors.broadcast_sub(&known.mean_keepdim(0)?)?;
    Ok(y.broadcast_mul(&column(present, dev)?)?)
}

/// Root mean square of each column over the items that are there, `[1, d]`.
fn deviation(centred: &Tensor, present: &[bool]) -> Result<Tensor> {
    let n = present.iter().filter(|p| **p).count().max(1);
    Ok(((centred.sqr()?.sum_keepdim(0)? / n as f64)?.sqrt()? + 1e-6)?)
}

/// Rows turned and stretched as a whole so that they lie nearest to others (orthogonal Procrustes,
/// Schönemann 1966), `[N, d]` both. The rotation is the orthogonal factor of `AᵀB`, by Newton's iteration
/// without inverses (Björck and Bowie 1971). Rows of zeros count for nothing.
fn turned(rows: &Tensor, onto: &Tensor) -> Result<Tensor> {
    let both = rows.t()?.matmul(onto)?;
    let size = |t: &Tensor| -> Result<f64> {
        Ok(f64::from(t.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt())
    };
    let (norm, length) = (size(&both)?, size(rows)?);
    if norm == 0.0 || length == 0.0 {
        return Ok(rows.clone());
    }
    let mut turn = (both / norm)?;
    for _ in 0..ROTATION_STEPS {
        let cubed = turn.matmul(&turn.t()?.matmul(&turn)?)?;
        turn = ((turn * 1.5)? - (cubed * 0.5)?)?;
    }
    Ok((rows.matmul(&turn)? * (size(onto)? / length))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::synthetic::{SyntheticConfig, generate};
    use crate::rng::{self, Purpose};

    const DEV: Device = Device::Cpu;

    /// A rotation and a stretch are undone; a mirror too, and rows that only the other side has do not matter.
    #[test]
    fn turning_undoes_rotations() -> Result<()> {
        let mut r = rng::stream(3, Purpose::Init, &[]);
        let rows = rng::normal(&mut r, (30, 3), 1.0, &DEV)?;
        let (s, c) = 0.8f32.sin_cos();
        for last in [1f32, -1.0] {
            let turn = Tensor::new(&[[c, s, 0.], [-s, c, 0.], [0., 0., last]], &DEV)?;
            let onto = (rows.matmul(&turn)? * 2.5)?;
            let miss = (turned(&rows, &onto)? - &onto)?.abs()?.max_all()?;
            assert!(miss.to_scalar::<f32>()? < 1e-3, "{miss}");
        }
        let nothing = rows.zeros_like()?;
        let same = (turned(&rows, &nothing)? - &rows)?.abs()?.max_all()?;
        assert_eq!(same.to_scalar::<f32>()?, 0.0);
        Ok(())
    }

    fn shop(users: usize) -> Result<Dataset> {
        generate(&SyntheticConfig {
            users,
            items: 100,
            events_per_user: 8,
            seed: 4,
        })
    }

    /// A fold's graph is as if its users had never been and lies in the space of the whole, from which it has the
    /// items of many events.
    #[test]
    fn folds_have_not_met_their_users() -> Result<()> {
        let cfg = TmfConfig {
            graph_dim: 8,
            graph_epochs: 5,
            graph_folds: 3,
            ..TmfConfig::default()
        };
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
        let (mut many, mut alone) = (0, 0);
        for data in [shop(100)?, shop(400)?] {
            let co = encode(&data, &cfg, 1, &DEV, &Monitor::silent())?;
            assert_eq!(co.folds.len(), 3);
            let rows = data.rows(&[Split::Train], None);
            let whole = co.whole.vectors.to_vec2::<f32>()?;
            for (number, fold) in co.folds.iter().enumerate() {
                let own = fold.vectors.to_vec2::<f32>()?;
                let (mut cosine, mut few) = (0.0, 0.0);
                for item in 0..data.num_items() {
                    let has = |u: &usize| rows.row(*u as u32).contains(&(item as u32));
                    let users: Vec<usize> = (0..rows.rows()).filter(has).collect();
                    let (a, b) = (&own[item], &whole[item]);
                    if users.len() > MANY as usize {
                        assert!(a == b && fold.present[item]);
                        many += 1;
                        continue;
                    }
                    let known = users.iter().any(|u| u % 3 != number);
                    assert_eq!(fold.present[item], known);
                    if known {
                        assert_ne!(a, b);
                        cosine += dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-6);
                        few += 1.0;
                    } else if !users.is_empty() {
                        alone += 1;
                    }
                }
                assert!(cosine / few > 0.5, "{}", cosine / few);
            }
        }
        assert!(many > 0 && alone > 0, "{many} {alone}");
        let one = TmfConfig {
            graph_folds: 1,
            ..cfg
        };
        let co = encode(&shop(100)?, &one, 1, &DEV, &Monitor::silent())?;
        assert!(co.folds.is_empty());
        Ok(())
    }
}
