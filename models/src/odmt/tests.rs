//! The whole network: oracles of the item encoder, properties, gradients.

use candle_core::{D, DType, Var};

use super::block::{Block, Shape, Start};
use super::config::{IdInit, IdMask};
use super::imt::{attention_mask, mix};
use super::*;
use crate::data::TokenFeatures;
use crate::eval::metrics::ndcg_at;

const DEV: Device = Device::Cpu;

fn worst(a: &Tensor, b: &Tensor) -> Result<f32> {
    Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()?)
}

/// Identity attention matrices and a feed-forward part that halves positive values.
fn identity_block(k: usize) -> Result<Block> {
    let mut params = Params::default();
    let shape = Shape {
        dim: 4,
        heads: 2,
        dropout: 0.0,
    };
    let block = Block::new(&mut params, "b", shape, Start::Uniform, k as u64, &DEV)?;
    let eye = Tensor::eye(4, DType::F32, &DEV)?;
    params.set("b.query", &eye)?;
    params.set("b.key_value", &Tensor::cat(&[&eye, &eye], 1)?)?;
    params.set("b.out", &eye)?;
    let zeros = Tensor::zeros((4, 12), DType::F32, &DEV)?;
    let wide = Tensor::cat(&[&eye, &zeros], 1)?;
    params.set("b.up.weight", &wide)?;
    params.set("b.up.bias", &Tensor::zeros(16, DType::F32, &DEV)?)?;
    params.set("b.down.weight", &(wide.t()?.contiguous()? * 0.5)?)?;
    params.set("b.down.bias", &Tensor::zeros(4, DType::F32, &DEV)?)?;
    Ok(block)
}

/// Oracle 9.5 of the ODMT specification: two blocks over two text tokens (the second padded), two
/// image tokens and an id.
#[test]
fn item_encoder_matches_oracle() -> Result<()> {
    let blocks = [identity_block(0)?, identity_block(1)?];
    let run = |id_mask: IdMask, padded: [f32; 4], id: [f32; 4]| -> Result<Vec<Vec<f32>>> {
        let x = Tensor::new(
            &[[
                [1f32, 0., 0., -1.],
                padded,
                [0., 1., -1., 0.],
                [0.5, 0.5, -0.5, 0.2],
                id,
            ]],
            &DEV,
        )?;
        let mask = attention_mask(&[2, 2], id_mask, 1, |_, m, t| (m, t) != (0, 1), &DEV)?;
        let classes = Tensor::new(&[0u32, 2, 4], &DEV)?;
        let trimmed = mix(&blocks, &x, &mask, &classes, None)?;
        // The last block for all tokens gives the same in the three that are read out.
        let full = blocks
            .iter()
            .try_fold(x, |x, b| b.forward_masked(&x, &mask, None, None))?;
        assert!(worst(&trimmed, &full.index_select(&classes, 1)?)? < 1e-6);
        Ok(trimmed.squeeze(0)?.to_vec2::<f32>()?)
    };
    let (padded, id) = ([9., 9., -9., 9.], [-1., 0., 1., 0.5]);
    let open = [
        [1.490_562_6, 0.300_627_24, -0.691_066_8, -1.100_123],
        [0.019_167_25, 1.571_674_5, -1.158_794_6, -0.432_047_1],
        [-1.456_501_4, -0.059_812_59, 1.360_410_8, 0.155_903_12],
    ];
    let cut = [
        [1.481_489_8, 0.341_409_24, -0.794_949_3, -1.027_949_8],
        [0.342_905_25, 1.432_921, -1.243_139_5, -0.532_686_67],
        [-1.447_547_5, -0.092_303_64, 1.365_959_5, 0.173_891_63],
    ];
    let other = [
        cut[0],
        cut[1],
        [1.693_780_5, -0.830_834_54, -0.616_515_43, -0.246_430_56],
    ];
    for (id_mask, padded, id, want) in [
        (IdMask::Open, padded, id, open),
        (IdMask::Cut, padded, id, cut),
        (IdMask::Cut, [1., 2., 3., 4.], id, cut),
        (IdMask::Cut, padded, [3., -2., 0., 1.], other),
    ] {
        let got = run(id_mask, padded, id)?;
        for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
            assert!((got - want).abs() < 2e-6, "{id_mask:?}: {got} {want}");
        }
    }
    Ok(())
}

/// Seven items; text of three tokens and pooled images, some of them missing.
fn features() -> Result<Vec<Frozen>> {
    let mut r = rng::stream(9, Purpose::Init, &[]);
    let mut text = vec![true; 21];
    text[5] = false;
    text[6..9].fill(false);
    let mut image = vec![true; 7];
    image[4] = false;
    let mut make =
        |name: &str, tokens: usize, width: usize, present: Vec<bool>| -> Result<Frozen> {
            Ok(Frozen {
                name: name.into(),
                tokens,
                values: rng::normal(&mut r, (7, tokens * width), 1.0, &DEV)?,
                present,
            })
        };
    Ok(vec![make("text", 3, 5, text)?, make("image", 1, 4, image)?])
}

fn small() -> OdmtConfig {
    OdmtConfig {
        dim: 8,
        id_dim: 6,
        window: 4,
        dropout: 0.0,
        ..OdmtConfig::default()
    }
}

fn net(cfg: &OdmtConfig, features: Vec<Frozen>) -> Result<Net> {
    let mut r = rng::stream(3, Purpose::Init, &[]);
    let ids = rng::normal(&mut r, (7, cfg.id_dim), 1.0, &DEV)?;
    Net::new(cfg, &ids, features, 2, &DEV)
}

const WINDOWS: [&[u32]; 3] = [&[0, 2, 4, 1, 2], &[3, 2, 5], &[4, 3]];

fn batch(windows: &[&[u32]]) -> Batch {
    Batch::new(
        windows,
        &log_popularity(&[3.0, 2.0, 5.0, 2.0, 2.0, 1.0, 4.0]),
        true,
    )
}

fn on(branches: usize, weight: f64) -> Distillation {
    Distillation::new(branches, weight, 0.5, false, false)
}

#[test]
fn every_variable_gets_a_gradient() -> Result<()> {
    let cases = [
        (small(), features()?),
        (
            OdmtConfig {
                id_mask: IdMask::Open,
                ..small()
            },
            features()?,
        ),
        (
            OdmtConfig {
                imt: false,
                ..small()
            },
            features()?,
        ),
        (small(), features()?.split_off(1)),
    ];
    for (cfg, features) in cases {
        let net = net(&cfg, features)?;
        let branches = net.branches.len();
        let (loss, _) = net.loss(&batch(&WINDOWS), &on(branches, 0.5), None)?;
        let g = loss.backward()?;
        for (name, v) in net.params.iter() {
            let g = g
                .get(v.as_tensor())
                .unwrap_or_else(|| panic!("{name} has no gradient"));
            assert!(g.abs()?.max_all()?.to_scalar::<f32>()? > 0.0, "{name}");
        }
        // Items that do not occur have none in the table: nothing stands for padding.
        let ids = net
            .params
            .iter()
            .find(|(n, _)| *n == "ids")
            .expect("table")
            .1;
        let rows = g
            .get(ids)
            .expect("gradient")
            .abs()?
            .sum(1)?
            .to_vec1::<f32>()?;
        for (item, g) in rows.iter().enumerate() {
            assert_eq!(*g > 0.0, item != 6, "{item}");
        }
    }
    Ok(())
}

#[test]
fn without_weight_distillation_changes_nothing() -> Result<()> {
    let net = net(&small(), features()?)?;
    let cfg = OdmtConfig {
        alpha: 0.0,
        ..small()
    };
    let off = on(3, cfg.distillation_weight(7));
    let (loss, parts) = net.loss(&batch(&WINDOWS), &off, None)?;
    assert_eq!(parts.distillation, 0.0);
    let g = loss.backward()?;
    // The three cross-entropies by themselves.
    let logits = net.logits(&batch(&WINDOWS), None)?;
    let mut sum = TensorMap::new();
    for k in 0..3 {
        let one = logits.narrow(1, k, 1)?;
        let (loss, _) = online_distillation(&one, &batch(&WINDOWS).candidates, &on(1, 0.0))?;
        add_gradients(&mut sum, gradients(&net.params, &loss.backward()?))?;
    }
    for (name, v) in net.params.iter() {
        let a = g.get(v.as_tensor()).expect("gradient");
        assert!(worst(a, &sum[name])? < 1e-5, "{name}");
    }
    Ok(())
}

#[test]
fn events_see_their_past_only_and_neighbours_change_nothing() -> Result<()> {
    let net = net(&small(), features()?)?;
    let states = |windows: &[&[u32]]| -> Result<Vec<Vec<f32>>> {
        let b = batch(windows);
        let e = net.items.encode(&b.items, None)?;
        Ok(net.users[0]
            .forward(&e[0], &b.events, &b.segments, None)?
            .to_vec2::<f32>()?)
    };
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-5);
    let alone = states(&[&[0, 2, 4, 1]])?;
    let future = states(&[&[0, 2, 5, 1]])?;
    assert!(close(&alone[1], &future[1]) && !close(&alone[2], &future[2]));
    // A longer neighbour would mean more padding on the left.
    let beside = states(&[&[3, 2, 1, 0, 6], &[0, 2, 4, 1]])?;
    for t in 0..3 {
        assert!(close(&alone[t], &beside[4 + t]));
    }
    Ok(())
}

#[test]
fn the_order_of_users_changes_nothing() -> Result<()> {
    let net = net(&small(), features()?)?;
    let loss = |windows: &[&[u32]]| -> Result<Parts> {
        Ok(net.loss(&batch(windows), &on(3, 1.0), None)?.1)
    };
    let (a, b) = (
        loss(&WINDOWS)?,
        loss(&[WINDOWS[2], WINDOWS[0], WINDOWS[1]])?,
    );
    assert!((a.cross_entropy - b.cross_entropy).abs() < 1e-5);
    assert!((a.distillation - b.distillation).abs() < 1e-5);
    Ok(())
}

#[test]
fn an_item_has_one_vector_wherever_it_occurs() -> Result<()> {
    for id_mask in [IdMask::Cut, IdMask::Open] {
        let cfg = OdmtConfig { id_mask, ..small() };
        let net = net(&cfg, features()?)?;
        let slots = net.items.encode(&[4, 2, 4, 1, 2, 2], None)?;
        let once = net.items.encode(&[4, 2, 1], None)?;
        let at = Tensor::new(&[0u32, 1, 0, 2, 1, 1], &DEV)?;
        for (slots, once) in slots.iter().zip(&once) {
            assert!(worst(slots, &once.index_select(&at, 0)?)? < 1e-6);
        }
    }
    Ok(())
}

/// Hidden tokens, whatever their values, reach no vector; under the cut mask neither does the id
/// reach a modality.
#[test]
fn missing_features_and_the_id_stay_hidden() -> Result<()> {
    let encode = |features: Vec<Frozen>, id_mask| -> Result<Vec<Tensor>> {
        let cfg = OdmtConfig { id_mask, ..small() };
        net(&cfg, features)?
            .items
            .encode(&[0, 1, 2, 3, 4, 5, 6], None)
    };
    let mut other = features()?;
    for f in &mut other {
        let width = f.width()?;
        let mut v = f.values.flatten_all()?.to_vec1::<f32>()?;
        for (x, p) in v.chunks_exact_mut(width).zip(&f.present) {
            if !p {
                x.fill(50.0);
            }
        }
        f.values = Tensor::from_vec(v, f.values.shape(), &DEV)?;
    }
    for id_mask in [IdMask::Cut, IdMask::Open] {
        let (a, b) = (
            encode(features()?, id_mask)?,
            encode(other.clone(), id_mask)?,
        );
        for (a, b) in a.iter().zip(&b) {
            assert!(worst(a, b)? < 1e-6);
        }
    }
    let net = net(&small(), features()?)?;
    let before = net.items.encode(&[0, 1, 2, 4], None)?;
    net.params
        .set("ids", &Tensor::ones((7, 6), DType::F32, &DEV)?)?;
    let after = net.items.encode(&[0, 1, 2, 4], None)?;
    assert!(worst(&before[0], &after[0])? > 1e-3);
    assert!(worst(&before[1], &after[1])? < 1e-6);
    assert!(worst(&before[2], &after[2])? < 1e-6);
    Ok(())
}

/// The published form: left padding, an additive mask, every row computed.
struct Padded<'a> {
    params: &'a Params,
    cfg: &'a OdmtConfig,
}

impl Padded<'_> {
    fn get(&self, name: &str) -> Tensor {
        let found = self.params.iter().find(|(n, _)| *n == name);
        found.expect("variable").1.as_tensor().clone()
    }

    fn norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let std = (centred.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
        Ok(centred
            .broadcast_div(&std)?
            .broadcast_mul(&self.get(&format!("{name}.gain")))?
            .broadcast_add(&self.get(&format!("{name}.bias")))?)
    }

    /// Weights of one head `[S, S]`.
    fn attention(&self, q: &Tensor, k: &Tensor, hide: &Tensor) -> Result<Tensor> {
        let scale = (q.dim(1)? as f64).powf(-0.5);
        let scores = ((q.matmul(&k.t()?)? * scale)? + hide)?;
        Ok(candle_nn::ops::softmax(&scores, 1)?)
    }

    /// One sequence of S rows, the first of them padding.
    fn forward(&self, e: &Tensor, hide: &Tensor) -> Result<Tensor> {
        let d = self.cfg.dim;
        let mut x = self.norm("user.id.norm", &(e + self.get("user.id.positions"))?)?;
        for k in 0..self.cfg.user_layers {
            let name = |part: &str| format!("user.id.block.{k}.{part}");
            let q = x.matmul(&self.get(&name("query")))?;
            let kv = x.matmul(&self.get(&name("key_value")))?;
            let w = d / self.cfg.user_heads;
            let heads = (0..self.cfg.user_heads)
                .map(|h| {
                    let part = |t: &Tensor, at: usize| t.narrow(1, at, w)?.contiguous();
                    let (q, key) = (part(&q, h * w)?, part(&kv, h * w)?);
                    let weights = self.attention(&q, &key, hide)?;
                    Ok(weights.matmul(&part(&kv, d + h * w)?)?)
                })
                .collect::<Result<Vec<_>>>()?;
            let mixed = Tensor::cat(&heads, 1)?.matmul(&self.get(&name("out")))?;
            let y = self.norm(&name("norm1"), &(x + mixed)?)?;
            let hidden = y
                .matmul(&self.get(&name("up.weight")))?
                .broadcast_add(&self.get(&name("up.bias")))?
                .relu()?;
            let z = hidden
                .matmul(&self.get(&name("down.weight")))?
                .broadcast_add(&self.get(&name("down.bias")))?;
            x = self.norm(&name("norm2"), &(y + z)?)?;
        }
        Ok(x)
    }
}

/// Query i sees key j if j ≤ i and j is real; otherwise −1e9 is added.
fn user_mask(real: &[bool]) -> Result<Tensor> {
    let s = real.len();
    let hide: Vec<f32> = (0..s * s)
        .map(|at| {
            if at % s <= at / s && real[at % s] {
                0.0
            } else {
                -1e9
            }
        })
        .collect();
    Ok(Tensor::from_vec(hide, (s, s), &DEV)?)
}

/// Oracle 9.6, and that packed sequences give what padded ones do in every real row.
#[test]
fn user_encoder_equals_the_padded_form() -> Result<()> {
    let cfg = small();
    let net = net(&cfg, features()?)?;
    let padded = Padded {
        params: &net.params,
        cfg: &cfg,
    };
    let hide = user_mask(&[false, true, true])?;
    let seen: Vec<Vec<bool>> = hide
        .to_vec2::<f32>()?
        .iter()
        .map(|r| r.iter().map(|x| *x == 0.0).collect())
        .collect();
    assert_eq!(
        seen,
        [
            [false, false, false],
            [false, true, false],
            [false, true, true]
        ]
    );
    let q = Tensor::new(&[[0.3f32, -1.0], [0.5, 2.0], [1.0, 1.0]], &DEV)?;
    for w in &padded.attention(&q, &q, &hide)?.to_vec2::<f32>()?[0] {
        assert_eq!(*w, 1.0 / 3.0);
    }

    let items = net.items.encode(&[0, 1, 2, 3, 4, 5, 6], None)?.remove(0);
    for (events, pads) in [(&[5u32, 1, 3][..], 1), (&[2], 3), (&[0, 4, 4, 6], 0)] {
        let segments = Segments::new([events.len()]);
        let packed = net.users[0].forward(&items, events, &segments, None)?;
        let zeros = Tensor::zeros((pads, cfg.dim), DType::F32, &DEV)?;
        let index = Tensor::from_slice(events, events.len(), &DEV)?;
        let e = items.index_select(&index, 0)?;
        let e = if pads > 0 {
            Tensor::cat(&[zeros, e], 0)?
        } else {
            e
        };
        let real: Vec<bool> = (0..cfg.window).map(|t| t >= pads).collect();
        let full = padded.forward(&e, &user_mask(&real)?)?;
        assert!(worst(&packed, &full.narrow(0, pads, events.len())?)? < 1e-5);
    }
    Ok(())
}

/// Oracle 9.7: one product is the mean of the branches'; the metric's discount.
#[test]
fn scores_and_metric_match_oracle() -> Result<()> {
    let users = Tensor::new(&[[1f32, 2., 0., 1., -1., 1.]], &DEV)?;
    let items = [[[0.5f32, 0.5]], [[2., 0.]], [[1., 3.]]];
    let items = items
        .iter()
        .map(|i| Ok(Tensor::new(i, &DEV)?))
        .collect::<Result<Vec<_>>>()?;
    let score = users.matmul(&side_by_side(&items)?)?.to_vec2::<f32>()?[0][0];
    assert!((f64::from(score) - 1.166_666_666_7).abs() < 1e-6, "{score}");
    let ranked: Vec<u32> = (1..=20).collect();
    for (rank, want) in [
        (1, 1.0),
        (2, 0.630_929_753_6),
        (3, 0.5),
        (10, 0.289_064_826_3),
        (11, 0.0),
    ] {
        assert!((ndcg_at(&ranked, &[rank], 10) - want).abs() < 1e-9);
    }
    Ok(())
}

fn learner(data: &Dataset, mode: Mode) -> Result<Odmt> {
    let cfg = OdmtConfig {
        dim: 16,
        id_dim: 16,
        batch: 32,
        id_init: IdInit::Random,
        ..small()
    };
    Odmt::new(data, cfg, mode, 1, &DEV)
}

fn shop() -> Result<Dataset> {
    crate::data::synthetic::generate(&crate::data::synthetic::SyntheticConfig {
        users: 80,
        items: 100,
        events_per_user: 8,
        seed: 5,
    })
}

#[test]
fn the_ensemble_is_the_mean_of_its_branches_and_training_lowers_the_loss() -> Result<()> {
    let data = shop()?;
    let mut m = learner(&data, Mode::Honest)?;
    let mut losses = Vec::new();
    for epoch in 0..6 {
        losses.push(m.train_epoch(epoch, &mut Monitor::silent())?[0].1);
    }
    assert!(losses[5] < losses[0], "{losses:?}");
    let tensors = m.inference()?;
    let queries = crate::eval::queries(&data, &crate::eval::EvalProtocol::default())?;
    let scores = |score_by: Option<String>| -> Result<Vec<f32>> {
        let cfg = OdmtConfig {
            score_by,
            ..m.cfg.clone()
        };
        let s = Odmt::scorer(&tensors, &cfg, &DEV)?;
        let mut out = vec![0f32; queries.len() * s.num_items()];
        s.score(&queries, &mut out)?;
        Ok(out)
    };
    let all = scores(None)?;
    let parts = m
        .net
        .branches
        .iter()
        .map(|b| scores(Some(b.clone())))
        .collect::<Result<Vec<_>>>()?;
    for (at, x) in all.iter().enumerate() {
        let mean = parts.iter().map(|p| p[at]).sum::<f32>() / parts.len() as f32;
        assert!((x - mean).abs() < 1e-4 * (1.0 + mean.abs()), "{x} {mean}");
    }
    assert!(scores(Some("smell".into())).is_err());
    Ok(())
}

#[test]
fn parity_takes_the_published_preparation() -> Result<()> {
    let data = shop()?;
    let (honest, parity) = (learner(&data, Mode::Honest)?, learner(&data, Mode::Parity)?);
    assert!(honest.steps_per_epoch() > parity.steps_per_epoch());
    assert!(parity.windows.number() <= honest.windows.number());
    let mut bare = data.clone();
    bare.features.clear();
    assert!(learner(&bare, Mode::Honest).is_err_and(|e| e.to_string().contains("sasrec")));
    Ok(())
}

#[test]
fn no_gradient_work_is_done_for_frozen_features() -> Result<()> {
    let mut features = features()?;
    let watched = Var::from_tensor(&features[0].values)?;
    features[0].values = watched.as_tensor().clone();
    let net = net(&small(), features)?;
    let g = net
        .loss(&batch(&WINDOWS), &on(3, 1.0), None)?
        .0
        .backward()?;
    assert!(g.get(watched.as_tensor()).is_none());
    Ok(())
}

#[test]
fn the_cost_of_a_step_is_measured_on_equal_losses() -> Result<()> {
    let mut data = shop()?;
    let n = data.num_items();
    for f in &mut data.features {
        let values = f.values.iter().flat_map(|&x| [x, -x, 0.5 * x]);
        let values: Vec<half::f16> = values.map(half::f16::from_f32).collect();
        f.tokens = Some(TokenFeatures {
            per_item: 3,
            dim: f.values.ncols(),
            values,
            present: vec![true; 3 * n],
        });
    }
    let costs = step_costs(&data, small(), 1, 2, &DEV)?;
    let arrangements: Vec<_> = costs.iter().map(|c| (c.distinct, c.trimmed)).collect();
    let (no, yes) = (false, true);
    assert_eq!(arrangements, [(no, no), (yes, no), (no, yes), (yes, yes)]);
    assert!(costs.iter().all(|c| c.seconds > 0.0 && c.loss > 1.0));
    // Distinct items are fewer than slots, or nothing was measured.
    let windows: Vec<&[u32]> = vec![&[1, 2, 1], &[2, 1]];
    assert_eq!(batch(&windows).items, [1, 2]);
    Ok(())
}
