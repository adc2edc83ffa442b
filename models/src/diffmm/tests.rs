use super::*;
use crate::graph::SparseMatrix;

fn toy(cfg: DiffMmConfig) -> Result<DiffMm> {
    toy_in_order(cfg, [0, 1, 2])
}

/// The same users in another order.
fn toy_in_order(cfg: DiffMmConfig, order: [usize; 3]) -> Result<DiffMm> {
    let dev = Device::Cpu;
    let rows = [&[0u32, 1][..], &[1, 2], &[3]];
    let rows = Csr::from_rows(order.map(|u| rows[u]));
    let f1 = Tensor::new(&[[3f32, 4.], [1., 0.], [0., 2.], [-1., -1.]], &dev)?;
    let f2 = Tensor::new(&[[0f32, 1.], [2., 2.], [-3., 0.], [1., -1.]], &dev)?;
    let cfg = DiffMmConfig {
        dim: 2,
        hidden: 8,
        keep_rate: 1.0,
        ..cfg
    };
    let features = vec![("image".into(), true, f1), ("text".into(), false, f2)];
    let mut m = DiffMm::build(rows, 4, features, cfg, 1, &dev)?;
    let mut map = TensorMap::new();
    m.params.export("", &mut map)?;
    let p = [[1f32, 0.], [0., 1.], [1., 1.]];
    let p = Tensor::new(&order.map(|u| p[u]), &dev)?;
    let q = Tensor::new(&[[1f32, 2.], [0., -1.], [0.5, 0.5], [-1., 0.]], &dev)?;
    map.insert("user_ids".into(), p);
    map.insert("item_ids".into(), q);
    // The oracle gives the features "already projected": identity projections.
    for name in ["image", "text"] {
        let w = Tensor::new(&[[1f32, 0.], [0., 1.]], &dev)?;
        map.insert(format!("project.{name}.weight"), w);
        map.insert(
            format!("project.{name}.bias"),
            Tensor::zeros(2, candle_core::DType::F32, &dev)?,
        );
    }
    m.params.import("", &map)?;
    for (k, chosen) in [[0u32, 1, 3], [1, 1, 2]].iter().enumerate() {
        let chosen = order.map(|u| chosen[u]);
        let edges = chosen.iter().enumerate().map(|(u, &i)| (u as u32, i));
        m.generated[k] = Propagation::new(normalized_bipartite(3, 4, edges, true)?);
    }
    Ok(m)
}

fn close(t: &Tensor, want: &[f64]) -> Result<()> {
    let got = t.flatten_all()?.to_vec1::<f32>()?;
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!(
            (f64::from(*g) - w).abs() < 2e-6 * w.abs().max(1.0),
            "{got:?} {want:?}"
        );
    }
    Ok(())
}

/// Oracle 10.4: two modalities, generated top-1 items, no edge dropout, uniform fusion.
#[test]
fn branches_match_oracle() -> Result<()> {
    let m = toy(DiffMmConfig::default())?;
    let v = m.views(true)?;
    close(
        &v.main,
        &[
            3.4045130226,
            2.854612871,
            0.9811474974,
            2.1666306547,
            0.9055206873,
            1.0156210923,
            3.2842047045,
            3.797966938,
            2.3014206228,
            1.5600922546,
            0.424047285,
            2.755226529,
            0.63054849,
            1.0137922644,
        ],
    )?;
    close(
        &v.modality[0],
        &[
            1.5599319657,
            0.8632993162,
            0.8333333333,
            1.2415816238,
            0.2928932188,
            0.2928932188,
            1.5265986324,
            0.7632993162,
            1.1,
            0.9666666667,
            0.2041241452,
            1.7041241452,
            0.2928932188,
            0.2928932188,
        ],
    )?;
    close(
        &v.modality[1],
        &[
            1.2662170297,
            1.0077986535,
            0.5995503631,
            1.470341175,
            0.3535533906,
            0.3964466094,
            0.3219752754,
            1.6178511302,
            1.2177174909,
            1.2177174909,
            0.1178511302,
            1.0719752754,
            1.0606601718,
            -0.8106601718,
        ],
    )?;
    let users = v.main.narrow(0, 0, 3)?;
    let items = v.main.narrow(0, 3, 4)?;
    close(
        &users.matmul(&items.t()?)?,
        &[
            22.0228429902,
            12.288675911,
            9.308779616,
            5.0406949922,
            11.4510808202,
            5.6381767876,
            6.3856111907,
            2.8151744706,
            6.8312106313,
            3.6684465839,
            3.1822497658,
            1.600603509,
        ],
    )
}

const ANCHORS: [u32; 4] = [0, 1, 2, 0];
const POSITIVES: [u32; 4] = [0, 2, 3, 1];
const NEGATIVES: [u32; 4] = [2, 3, 0, 3];

#[test]
fn losses_match_oracle() -> Result<()> {
    for (contrast, want) in [
        (Contrast::Modality, 1.0077369401 + 1.5169913616),
        (
            Contrast::Main,
            1.0503895023 + 1.2407417070 + 1.0230293014 + 1.5739834777,
        ),
    ] {
        let m = toy(DiffMmConfig {
            contrast,
            ..Default::default()
        })?;
        let v = m.views(true)?;
        let cl = m.contrast(&v, &ANCHORS, &POSITIVES)?.expect("contrast");
        close(&cl, &[want])?;
        let bpr = bpr_loss(&v.main, 3, &ANCHORS, &POSITIVES, &NEGATIVES, 1024)?;
        close(&(bpr * 1024.0)?, &[5.2644123089])?;
        let (total, _) = m.ranking_loss(&ANCHORS, &POSITIVES, &NEGATIVES)?;
        close(&total, &[0.0051410276 + 1e-4 * 11.5 + 1e-2 * want])?;
    }
    Ok(())
}

#[test]
fn fusion_rearrangement_equals_per_modality_form() -> Result<()> {
    let m = toy(DiffMmConfig::default())?;
    // The published form: two products per modality, then fused.
    let mut fused: Option<Tensor> = None;
    for (k, modality) in m.modalities.iter().enumerate() {
        let f = ops::normalize_rows(&modality.project()?)?;
        let s1 = m.observed.apply(&Tensor::cat(&[&m.user_ids, &f], 0)?)?;
        let s2 = m
            .observed
            .apply(&Tensor::cat(&[&s1.narrow(0, 0, 3)?, &m.item_ids], 0)?)?;
        let nodes = Tensor::cat(&[&m.user_ids, &m.item_ids], 0)?;
        let z = ((s1 + s2)? + (m.generated[k].apply(&nodes)? * 0.2)?)?;
        let z = (z * 0.5)?;
        fused = Some(match fused {
            Some(f) => (f + z)?,
            None => z,
        });
    }
    let m0 = fused.expect("modalities");
    let want = ((&m0 + m.observed.apply(&m0)?)? + (ops::normalize_rows(&m0)? * 0.5)?)?;
    close(
        &m.views(false)?.main,
        &want
            .flatten_all()?
            .to_vec1::<f32>()?
            .iter()
            .map(|v| f64::from(*v))
            .collect::<Vec<_>>(),
    )
}

#[test]
fn every_variable_gets_a_gradient_in_every_variant() -> Result<()> {
    for contrast in [Contrast::Main, Contrast::Modality] {
        for projection in [
            ProjectionKind::Affine,
            ProjectionKind::Leaky,
            ProjectionKind::Mixed,
        ] {
            let m = toy(DiffMmConfig {
                contrast,
                ..Default::default()
            })?;
            // Random projections: the oracle's identity would leave some entries without effect.
            let dev = Device::Cpu;
            let features = ["image", "text"]
                .iter()
                .zip(&m.modalities)
                .map(|(name, x)| (name.to_string(), *name == "image", x.features.clone()))
                .collect();
            let cfg = DiffMmConfig {
                projection,
                ..m.cfg.clone()
            };
            let mut fresh = DiffMm::build(m.rows.clone(), 4, features, cfg, 3, &dev)?;
            fresh.generated = m.generated.clone();
            let (loss, _) = fresh.ranking_loss(&ANCHORS, &POSITIVES, &NEGATIVES)?;
            let grads = loss.backward()?;
            for (name, v) in fresh.params.iter() {
                let g = grads
                    .get(v.as_tensor())
                    .unwrap_or_else(|| panic!("{name} has no gradient"));
                let size = g.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(size > 0.0, "{name} {contrast:?} {projection:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn edge_dropout_changes_the_generated_graph_only() -> Result<()> {
    let mut a = toy(DiffMmConfig::default())?;
    a.cfg.keep_rate = 0.5;
    let before: SparseMatrix = a.observed.matrix().clone();
    let mut none = Monitor::silent();
    a.rebuild(0, &mut none)?;
    let first = a.generated[0].matrix().clone();
    a.rebuild(1, &mut none)?;
    assert_ne!(first, *a.generated[0].matrix());
    assert_eq!(before, *a.observed.matrix());
    a.cfg.keep_rate = 1.0;
    a.rebuild(1, &mut none)?;
    let off_diagonal = a.generated[0]
        .matrix()
        .entries()
        .filter(|e| e.0 != e.1)
        .count();
    assert_eq!(off_diagonal, 2 * 3, "one edge a user, both directions");
    Ok(())
}

#[test]
fn without_generated_graph_and_contrast_the_denoiser_has_no_influence() -> Result<()> {
    let cfg = DiffMmConfig {
        generated_weight: 0.0,
        ssl_reg: 0.0,
        ..Default::default()
    };
    let a = toy(cfg.clone())?;
    let mut b = toy(cfg)?;
    b.generated.reverse();
    close(
        &a.views(false)?.main,
        &b.views(false)?
            .main
            .flatten_all()?
            .to_vec1::<f32>()?
            .iter()
            .map(|v| f64::from(*v))
            .collect::<Vec<_>>(),
    )
}

/// Oracle 10.9.
#[test]
fn scores_do_not_depend_on_the_order_of_users() -> Result<()> {
    let order = [2, 0, 1];
    let scores = |m: DiffMm| -> Result<Vec<Vec<f32>>> {
        let h = m.views(false)?.main;
        Ok(h.narrow(0, 0, 3)?
            .matmul(&h.narrow(0, 3, 4)?.t()?)?
            .to_vec2()?)
    };
    let straight = scores(toy(DiffMmConfig::default())?)?;
    let permuted = scores(toy_in_order(DiffMmConfig::default(), order)?)?;
    for (row, &user) in permuted.iter().zip(&order) {
        for (a, b) in row.iter().zip(&straight[user]) {
            assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{a} {b}");
        }
    }
    Ok(())
}
