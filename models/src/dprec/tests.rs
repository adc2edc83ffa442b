use super::*;
use crate::dprec::config::{Align, Loss, UserGraph};
use crate::oracle::close;
use candle_core::Var;

const DEV: Device = Device::Cpu;

/// Six items, of which item 5 has no user, in the given order; item 2 lacks its picture.
fn toy_in_order(cfg: DprecConfig, order: [u32; 6]) -> Result<Dprec> {
    let rows = [vec![0u32, 1, 3], vec![1, 2], vec![0, 4], vec![2, 3, 4]];
    let place = |i: u32| order.iter().position(|&o| o == i).unwrap_or(0) as u32;
    let rows = Csr::from_rows(rows.map(|r| {
        let mut r: Vec<u32> = r.into_iter().map(place).collect();
        r.sort_unstable();
        r
    }));
    let image = [
        [0.6f32, 0.8, 0.],
        [1., 0., 0.],
        [0., 0., 0.],
        [0., 0.6, 0.8],
        [0., 0., 1.],
        [0.8, 0., 0.6],
    ];
    let text = [
        [1f32, 0.],
        [0.8, 0.6],
        [0., 1.],
        [-0.6, 0.8],
        [-1., 0.],
        [0.6, -0.8],
    ];
    let image: Vec<Vec<f32>> = order.iter().map(|&o| image[o as usize].to_vec()).collect();
    let text: Vec<Vec<f32>> = order.iter().map(|&o| text[o as usize].to_vec()).collect();
    let content = vec![
        Content {
            name: "image".into(),
            is_image: true,
            features: Tensor::new(image, &DEV)?,
            present: order.iter().map(|&o| o != 2).collect(),
        },
        Content {
            name: "text".into(),
            is_image: false,
            features: Tensor::new(text, &DEV)?,
            present: vec![true; 6],
        },
    ];
    let cfg = DprecConfig {
        dim: 4,
        concepts: 3,
        neighbors: 2,
        user_neighbors: 1,
        keep_rate: 1.0,
        ..cfg
    };
    let mut model = Dprec::build(rows, 6, content, cfg, 3, &DEV)?;
    model.graphs.thin(1.0, 1, 0);
    Ok(model)
}

fn toy(cfg: DprecConfig) -> Result<Dprec> {
    toy_in_order(cfg, [0, 1, 2, 3, 4, 5])
}

const TRIPLES: [(u32, u32, u32); 5] = [(0, 1, 4), (1, 2, 0), (2, 4, 5), (3, 2, 1), (0, 3, 2)];

fn variants() -> Vec<(&'static str, DprecConfig)> {
    let d = DprecConfig {
        // Weights that no loss can hide behind.
        lambda_item: 0.1,
        lambda_concept: 0.1,
        lambda_interest: 0.1,
        lambda_perspective: 0.1,
        ..DprecConfig::default()
    };
    let with = |f: fn(&mut DprecConfig)| {
        let mut c = d.clone();
        f(&mut c);
        c
    };
    vec![
        ("A0", d.clone()),
        ("A2", with(|c| c.perspective = Perspective::Memory)),
        ("A3", with(|c| c.perspective = Perspective::Expansion)),
        ("A4", with(|c| c.align = Align::Product)),
        ("A5", with(|c| c.level_item = false)),
        ("A6", with(|c| c.level_concept = false)),
        ("A7", with(|c| c.level_interest = false)),
        ("A8", with(|c| c.align = Align::Pairwise)),
        ("A9", with(|c| c.perspective = Perspective::Average)),
        ("A11", with(|c| c.align = Align::None)),
        ("bank", with(|c| c.memory_bank = 4)),
        ("bpr", with(|c| c.loss = Loss::Bpr)),
        ("content users", with(|c| c.user_graph = UserGraph::Content)),
        ("jaccard users", with(|c| c.user_graph = UserGraph::Jaccard)),
        (
            "one level",
            with(|c| (c.level_item, c.level_concept) = (false, false)),
        ),
    ]
}

#[test]
fn every_variable_gets_a_gradient_in_every_variant() -> Result<()> {
    for (name, cfg) in variants() {
        let m = toy(cfg)?;
        let batch = Batch::new(&TRIPLES);
        let noise = m.noise(0, 0)?;
        let (loss, _) = m.objective(&batch, noise.as_deref(), 1.0)?;
        let grads = loss.backward()?;
        for (key, v) in m.params.iter() {
            let g = grads
                .get(v.as_tensor())
                .unwrap_or_else(|| panic!("{name}: {key} has no gradient"));
            let size = g.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(size > 0.0 && size.is_finite(), "{name}: {key} {size}");
        }
    }
    Ok(())
}

#[test]
fn gradients_equal_finite_differences() -> Result<()> {
    let (_, cfg) = variants().remove(0);
    let m = toy(cfg)?;
    let batch = Batch::new(&TRIPLES);
    let noise = m.noise(0, 0)?;
    // The swap loss stops the gradient of its target on purpose: compare without concepts' loss.
    let loss = |m: &Dprec| -> Result<Tensor> { Ok(m.objective(&batch, noise.as_deref(), 0.0)?.0) };
    let grads = loss(&m)?.backward()?;
    for (key, var) in m.params.iter() {
        let value = var.as_tensor().copy()?;
        let flat = value.flatten_all()?.to_vec1::<f32>()?;
        let g = match grads.get(var.as_tensor()) {
            Some(g) => g.flatten_all()?.to_vec1::<f32>()?,
            None => vec![0.0; flat.len()],
        };
        let at = flat.len() / 2;
        let shifted = |by: f32| -> Result<f64> {
            let mut v = flat.clone();
            v[at] += by;
            var.set(&Tensor::from_vec(v, value.shape(), &DEV)?)?;
            scalar(&loss(&m)?)
        };
        let fd = (shifted(2e-3)? - shifted(-2e-3)?) / 4e-3;
        var.set(&value)?;
        assert!(
            (f64::from(g[at]) - fd).abs() < 2e-3 + 0.05 * fd.abs(),
            "{key}: {} {fd}",
            g[at]
        );
    }
    Ok(())
}

/// Oracle D15: the order of items is of no importance.
#[test]
fn permuting_items_permutes_outputs() -> Result<()> {
    let order = [3u32, 0, 5, 1, 4, 2];
    for (name, cfg) in variants() {
        let a = toy(cfg.clone())?;
        let b = toy_in_order(cfg, order)?;
        let index: Vec<u32> = order.to_vec();
        for (key, v) in a.params.iter() {
            let value = v.as_tensor().copy()?;
            let value = if key == "item_ids" {
                pick(&value, &index)?
            } else {
                value
            };
            b.params.set(key, &value)?;
        }
        let (x, y) = (a.finish()?, b.finish()?);
        let numbers = |t: Tensor| -> Result<Vec<f64>> {
            Ok(t.flatten_all()?
                .to_vec1::<f32>()?
                .iter()
                .map(|v| f64::from(*v))
                .collect())
        };
        close(&y.items, &numbers(pick(&x.items, &index)?)?)
            .and(close(&y.users, &numbers(x.users)?))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    Ok(())
}

/// Oracle D15: nobody remembers an isolated item, so its memory is a share of its own input and
/// the gate takes none of it.
#[test]
fn an_isolated_item_is_its_own_memory() -> Result<()> {
    let m = toy(DprecConfig::default())?;
    let views = m.encoder.views(&m.graphs, &m.graphs.whole)?;
    let memory = views.memory.as_ref().expect("memory");
    let memory = pick(memory, &[4 + 5])?;
    // Its id has learnt nothing and is not there.
    close(&memory.narrow(1, 0, 4)?, &[0.0; 4])?;
    let text = &m.encoder.content(&m.encoder.item_ids)?[1];
    let own = (pick(text, &[5])? / 3.0)?;
    let want: Vec<f64> = own
        .flatten_all()?
        .to_vec1::<f32>()?
        .iter()
        .map(|v| f64::from(*v))
        .collect();
    assert!(want.iter().any(|v| v.abs() > 1e-4));
    close(&memory.narrow(1, 8, 4)?, &want)?;
    let z = m.item_vectors(&views, &m.graphs.whole)?;
    let expansion = pick(views.items.as_ref().expect("expansion"), &[5])?;
    let z = Tensor::cat(
        &z.iter()
            .map(|z| pick(z, &[5]))
            .collect::<Result<Vec<_>>>()?,
        1,
    )?;
    let want: Vec<f64> = expansion
        .flatten_all()?
        .to_vec1::<f32>()?
        .iter()
        .map(|v| f64::from(*v))
        .collect();
    close(&z, &want)
}

/// Oracle D15: with silent levels the outputs are the gated encoder's.
#[test]
fn silent_levels_change_nothing() -> Result<()> {
    let m = toy(DprecConfig {
        message_scale: 0.0,
        ..DprecConfig::default()
    })?;
    let views = m.encoder.views(&m.graphs, &m.graphs.whole)?;
    let z = m.item_vectors(&views, &m.graphs.whole)?;
    let want = ops::normalize_rows(&m.alignment.fuse(&z, &m.present)?)?;
    let want: Vec<f64> = want
        .flatten_all()?
        .to_vec1::<f32>()?
        .iter()
        .map(|v| f64::from(*v))
        .collect();
    close(&m.finish()?.items, &want)
}

/// Oracle D15: the interest of a user does not know the item it is scored against, nor does the item
/// hear from that user.
#[test]
fn interests_leave_the_scored_item_out() -> Result<()> {
    let m = toy(DprecConfig::default())?;
    let z = m.item_vectors(
        &m.encoder.views(&m.graphs, &m.graphs.whole)?,
        &m.graphs.whole,
    )?;
    let interests = |seen: &Observed, z: &[Tensor]| -> Result<Vec<Vec<f32>>> {
        let edges = m.alignment.hyperedges(seen, z, &m.present, None)?;
        Ok(edges.interests.expect("interests").to_vec2()?)
    };
    let hidden = m.graphs.without([(0, 1)].into_iter())?;
    let before = interests(&hidden, &z)?;
    assert_ne!(before[0], interests(&m.graphs.whole, &z)?[0]);
    // Whatever item 1 is, the interest scored against it stays.
    let mut other = z.clone();
    let mask = Tensor::new(&[[0f32], [1.], [0.], [0.], [0.], [0.]], &DEV)?;
    for z in &mut other {
        *z = z.broadcast_add(&(&mask * 5.0)?)?;
    }
    let after = interests(&hidden, &other)?;
    for (a, b) in before[0].iter().zip(&after[0]) {
        assert!((a - b).abs() < 1e-5);
    }
    assert_ne!(before[1], after[1], "user 1 still has item 1");
    // Item 1 has users 0 and 1: without the first it hears the second alone.
    let edges = m.alignment.hyperedges(&hidden, &z, &m.present, None)?;
    let q = edges.interests.as_ref().expect("interests");
    let heard = pick(&hypergraph::interest_messages(&hidden, q)?, &[1])?;
    close(
        &heard,
        &pick(q, &[1])?
            .flatten_all()?
            .to_vec1::<f32>()?
            .iter()
            .map(|v| f64::from(*v))
            .collect::<Vec<_>>(),
    )
}

/// Oracle D6, and an absent channel.
#[test]
fn attention_matches_oracle() -> Result<()> {
    let scores = [
        Tensor::new(&[[0f32], [0.]], &DEV)?,
        Tensor::new(&[[3f32.ln()], [3f32.ln()]], &DEV)?,
    ];
    let here = column(vec![1.0, 1.0], &DEV)?;
    let shares = alignment::attend(&scores, &[here.clone(), here.clone()])?;
    close(&shares[0], &[0.25, 0.25])?;
    let z = hypergraph::tests::toy()?;
    let sum = (z[1].broadcast_mul(&shares[0])? + z[2].broadcast_mul(&shares[1])?)?;
    close(&sum, &[1.75, 0.25, 0.75, 1.25])?;
    let shares = alignment::attend(
        &scores,
        &[column(vec![1.0, 0.0], &DEV)?, column(vec![0.0, 0.0], &DEV)?],
    )?;
    close(&shares[0], &[1.0, 0.0])?;
    close(&shares[1], &[0.0, 0.0])
}

/// Oracles D9 (gate), D10 (memory bank) and D12 (product).
#[test]
fn gate_bank_and_product_match_oracles() -> Result<()> {
    let one = |v: [f32; 2]| Tensor::new(&[v], &DEV);
    let (l, m, y) = (one([0., 1.])?, one([1., 0.])?, one([0., 1.])?);
    close(&encoder::gated(&l, &m, &y, None)?, &[0.5, 0.268_941])?;
    let shut = column(vec![0.0], &DEV)?;
    close(&encoder::gated(&l, &m, &y, Some(&shut))?, &[0.0, 1.0])?;
    let bank = Tensor::new(&[[1f32, 0.], [0., 1.], [-1., 0.]], &DEV)?;
    close(&encoder::read_bank(&m, &bank)?, &[0.435_946, 0.283_995])?;
    let gate = candle_nn::ops::sigmoid(&one([0., 3f32.ln()])?)?;
    close(&(one([1., 2.])? * gate)?, &[0.5, 1.5])
}

/// Oracle D8 (LightGCN over the view relation of oracle T4).
#[test]
fn memory_layers_match_oracle() -> Result<()> {
    let rows = Csr::from_rows([vec![0u32, 1], vec![1, 2]]);
    let cfg = DprecConfig {
        dim: 2,
        memory_layers: 1,
        perspective: Perspective::Memory,
        align: Align::None,
        loss: Loss::Bpr,
        ..DprecConfig::default()
    };
    let m = Dprec::build(rows, 3, Vec::new(), cfg, 1, &DEV)?;
    m.params
        .set("user_ids", &Tensor::new(&[[1f32, 0.], [0., 1.]], &DEV)?)?;
    m.params.set(
        "item_ids",
        &Tensor::new(&[[1f32, 1.], [2., 0.], [0., 2.]], &DEV)?,
    )?;
    let f = m.finish()?;
    close(&f.users, &[1.353_553, 0.353_553, 0.5, 1.207_107])?;
    close(&f.items, &[0.853_553, 0.5, 1.25, 0.25, 0.0, 1.353_553])
}

/// By hand: cosines of 1 and 0 at temperature 0.3, `ln(1 + e^(-1/0.3))`; an item that the user has in
/// another training row is no negative.
#[test]
fn softmax_compares_with_items_the_user_does_not_have() -> Result<()> {
    let ranking = |rows: Csr| -> Result<f64> {
        let cfg = DprecConfig {
            dim: 2,
            ..DprecConfig::default()
        };
        let m = Dprec::build(rows, 3, Vec::new(), cfg, 1, &DEV)?;
        let batch = Batch::new(&[(0, 0, 1)]);
        let user = Tensor::new(&[[2f32, 0.]], &DEV)?;
        let items = Tensor::new(&[[0.5f32, 0.], [0., 3.]], &DEV)?;
        scalar(&m.ranking(&user, &items, &batch)?)
    };
    let open = ranking(Csr::from_rows([vec![0u32], vec![1]]))?;
    assert!((open - 0.035_052).abs() < 1e-5, "{open}");
    let known = ranking(Csr::from_rows([vec![0u32, 1], vec![2]]))?;
    assert!(known.abs() < 1e-6, "{known}");
    Ok(())
}

/// By hand: two pairs ranked together meet three items each, in parts of one only their own two.
#[test]
fn large_batches_are_ranked_in_parts() -> Result<()> {
    let ranking = |ranking_rows: usize| -> Result<f64> {
        let cfg = DprecConfig {
            dim: 2,
            ranking_rows,
            ..DprecConfig::default()
        };
        let rows = Csr::from_rows([vec![0u32], vec![2]]);
        let m = Dprec::build(rows, 3, Vec::new(), cfg, 1, &DEV)?;
        let batch = Batch::new(&[(0, 0, 1), (1, 2, 0)]);
        let users = Tensor::new(&[[1f32, 0.], [0., 1.]], &DEV)?;
        let items = Tensor::new(&[[1f32, 0.], [0., 1.], [0., 1.]], &DEV)?;
        scalar(&m.ranking(&users, &items, &batch)?)
    };
    let far = (-1f64 / 0.3).exp();
    let together = ((1.0 + 2.0 * far).ln() + (2.0 + far).ln()) / 2.0;
    assert!((ranking(2)? - together).abs() < 1e-5);
    assert!((ranking(1)? - (1.0 + far).ln()).abs() < 1e-5);
    Ok(())
}

/// No features, one modality, three, features nobody has, no edges, one user: every shape trains and
/// scores without a NaN.
#[test]
fn odd_data_trains() -> Result<()> {
    let features = |n: usize, present: bool| -> Result<Content> {
        let mut r = rng::stream(n as u64, Purpose::Init, &[]);
        let x = crate::ops::normalize_rows(&rng::normal(&mut r, (5, 3), 1.0, &DEV)?)?;
        Ok(Content {
            name: format!("m{n}"),
            is_image: n == 0,
            features: if present { x } else { x.zeros_like()? },
            present: vec![present; 5],
        })
    };
    let some = || Csr::from_rows([vec![0u32, 1], vec![1, 2], vec![0]]);
    let cases = [
        ("no features", some(), vec![]),
        ("one modality", some(), vec![features(0, true)?]),
        (
            "three",
            some(),
            vec![features(0, true)?, features(1, true)?, features(2, true)?],
        ),
        (
            "all missing",
            some(),
            vec![features(0, false)?, features(1, true)?],
        ),
        ("nothing there", some(), vec![features(0, false)?]),
        (
            "no edges",
            Csr::from_rows([[0u32; 0], []]),
            vec![features(0, true)?],
        ),
        (
            "single user",
            Csr::from_rows([vec![1u32, 3]]),
            vec![features(0, true)?, features(1, true)?],
        ),
        (
            "everything seen",
            Csr::from_rows([vec![0u32, 1, 2, 3, 4]]),
            vec![features(0, true)?],
        ),
    ];
    for (name, rows, content) in cases {
        for (variant, cfg) in variants() {
            let cfg = DprecConfig {
                dim: 4,
                concepts: 3,
                batch: 4,
                keep_rate: 0.7,
                ..cfg
            };
            let mut m = Dprec::build(rows.clone(), 5, content.clone(), cfg, 1, &DEV)?;
            for epoch in 0..2 {
                let losses = m.train_epoch(epoch, &mut Monitor::silent())?;
                assert!(
                    losses.iter().all(|l| l.1.is_finite()),
                    "{name} {variant}: {losses:?}"
                );
            }
            for t in m.inference()?.values() {
                let v = t.flatten_all()?.to_vec1::<f32>()?;
                assert!(v.iter().all(|x| x.is_finite()), "{name} {variant}");
            }
        }
    }
    Ok(())
}

#[test]
fn noise_and_thinning_are_for_training_only() -> Result<()> {
    let mut m = toy(DprecConfig::default())?;
    m.cfg.keep_rate = 0.5;
    let before = m.finish()?.items.to_vec2::<f32>()?;
    m.graphs.thin(0.5, 1, 0);
    assert_eq!(before, m.finish()?.items.to_vec2::<f32>()?);
    let (a, b) = (
        m.noise(0, 0)?.expect("noise"),
        m.noise(0, 1)?.expect("noise"),
    );
    assert_ne!(a[0].to_vec2::<f32>()?, b[0].to_vec2::<f32>()?);
    assert_eq!(
        a[0].to_vec2::<f32>()?,
        m.noise(0, 0)?.expect("noise")[0].to_vec2::<f32>()?
    );
    // Standard Gumbel noise has mean 0.5772 and variance π²/6.
    m.graphs.items = 4000;
    let v = m.noise(1, 0)?.expect("noise")[0]
        .flatten_all()?
        .to_vec1::<f32>()?;
    let mean = v.iter().sum::<f32>() / v.len() as f32 / 0.5;
    assert!((mean - 0.5772).abs() < 0.05, "{mean}");
    Ok(())
}

#[test]
fn a_product_with_frozen_features_keeps_no_gradient_of_them() -> Result<()> {
    let features = Var::new(&[[1f32, 0.], [0., 1.]], &DEV)?;
    let content = Content {
        name: "text".into(),
        is_image: false,
        features: features.as_tensor().clone(),
        present: vec![true; 2],
    };
    let rows = Csr::from_rows([vec![0u32], vec![0, 1], vec![1]]);
    let cfg = DprecConfig {
        dim: 4,
        concepts: 2,
        ..DprecConfig::default()
    };
    let m = Dprec::build(rows, 2, vec![content], cfg, 1, &DEV)?;
    let batch = Batch::new(&[(0, 0, 1), (2, 1, 0)]);
    let (loss, _) = m.objective(&batch, None, 1.0)?;
    let grads = loss.backward()?;
    assert!(grads.get(features.as_tensor()).is_none());
    Ok(())
}
