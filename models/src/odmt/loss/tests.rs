use super::*;
use crate::odmt::batch::{Batch, log_popularity};
use candle_core::Var;

const OFF: f64 = 0.0;

fn one_pair(tau: f64, detach: bool, weight: f64) -> Distillation {
    Distillation {
        weight,
        tau,
        detach,
        pairs: vec![Pair {
            student: 0,
            teacher: 1,
        }],
    }
}

fn plain(rows: usize, columns: usize) -> Candidates {
    Candidates {
        correction: vec![0.0; columns],
        copies: vec![1.0; columns],
        targets: vec![0; rows],
        group: vec![0; rows],
        closed: vec![Vec::new()],
    }
}

/// `[R, branches, U]` from one matrix `[R, U]` a branch.
fn logits<const R: usize, const U: usize>(branches: &[[[f32; U]; R]]) -> Result<Var> {
    let parts = branches
        .iter()
        .map(|b| Ok(Tensor::new(b, &Device::Cpu)?))
        .collect::<Result<Vec<_>>>()?;
    Ok(Var::from_tensor(&Tensor::stack(&parts, 1)?)?)
}

fn flat(t: &Tensor) -> Result<Vec<f64>> {
    let v = t.flatten_all()?.to_vec1::<f32>()?;
    Ok(v.into_iter().map(f64::from).collect())
}

fn gradient(x: &Var, c: &Candidates, d: &Distillation) -> Result<Vec<f64>> {
    let g = online_distillation(x.as_tensor(), c, d)?.0.backward()?;
    flat(g.get(x.as_tensor()).expect("gradient"))
}

const STUDENT: [[f32; 3]; 2] = [[1., 0., -1.], [0.5, 0.5, 2.]];
const TEACHER: [[f32; 3]; 2] = [[2., 0., 0.], [0., 1., 3.]];

/// Oracle 9.2 of the ODMT specification.
#[test]
fn distillation_matches_oracle() -> Result<()> {
    let c = plain(2, 3);
    for (tau, kd, divergence, entropy) in [
        (1.0, 0.665_207_967_4, 0.070_288_318_1, 0.594_919_649_3),
        (0.5, 0.050_622_186_9, 0.015_091_624_2, 0.035_530_562_8),
        (0.3, 0.003_102_384_8, 0.001_765_388_4, 0.001_336_996_4),
    ] {
        let value = |student| -> Result<f64> {
            let x = logits(&[student, TEACHER])?;
            let d = one_pair(tau, false, 1.0);
            Ok(online_distillation(x.as_tensor(), &c, &d)?.1.distillation)
        };
        // Against itself a teacher leaves its entropy.
        let (got, own) = (value(STUDENT)?, value(TEACHER)?);
        assert!((got - kd).abs() < 1e-6, "{tau}: {got}");
        assert!((own - entropy).abs() < 1e-6, "{tau}: {own}");
        assert!((got - own - divergence).abs() < 1e-6, "{tau}");
    }
    Ok(())
}

/// Oracle 9.2: gradients at τ = 0.5, with the teacher attached and detached.
#[test]
fn distillation_gradients_match_oracle() -> Result<()> {
    let c = plain(2, 3);
    let x = logits(&[STUDENT, TEACHER])?;
    let alone = gradient(&x, &c, &one_pair(0.5, false, OFF))?;
    let student = [
        -0.024_462_46,
        0.024_910_5,
        -0.000_448_05,
        0.010_712_56,
        0.006_833_99,
        -0.017_546_55,
    ];
    let teacher = [
        -0.025_566_11,
        0.008_365_95,
        0.017_200_16,
        0.001_784_09,
        0.013_182_77,
        -0.014_966_87,
    ];
    for detach in [false, true] {
        let both = gradient(&x, &c, &one_pair(0.5, detach, 1.0))?;
        for row in 0..2 {
            for j in 0..3 {
                let at = |branch: usize| row * 6 + branch * 3 + j;
                let own = both[at(0)] - alone[at(0)];
                assert!((own - student[row * 3 + j]).abs() < 1e-6, "{own}");
                let back = both[at(1)] - alone[at(1)];
                let want = if detach { 0.0 } else { teacher[row * 3 + j] };
                assert!((back - want).abs() < 1e-6, "{back} {want}");
            }
        }
    }
    Ok(())
}

/// Oracle 9.2: three branches, one row.
#[test]
fn three_branches_match_oracle() -> Result<()> {
    let x = logits(&[[[2f32, 0., -1.]], [[1., 1., 0.]], [[0., 2., 1.]]])?;
    let c = plain(1, 3);
    for (tau, weight, kd, total) in [
        (0.3, 0.286_504_8, 0.977_110_286_2, 3.719_393_572_1),
        (0.5, 1.0, 1.775_970_514_3, 3.439_446_788_1 + 1.775_970_514_3),
        (1.0, 1.0, 4.521_781_196_3, 3.439_446_788_1 + 4.521_781_196_3),
    ] {
        let d = Distillation::new(3, weight, tau, false, false);
        let (loss, parts) = online_distillation(x.as_tensor(), &c, &d)?;
        assert!((parts.cross_entropy - 3.439_446_788_1).abs() < 2e-6);
        assert!((parts.distillation - kd).abs() < 2e-6, "{tau} {parts:?}");
        assert!((f64::from(loss.to_scalar::<f32>()?) - total).abs() < 3e-6);
    }
    // The opposite directions are added by name.
    let d = Distillation::new(3, 1.0, 1.0, false, true);
    assert_eq!(d.pairs.len(), 6);
    assert!(d.pairs.contains(&Pair {
        student: 3,
        teacher: 0
    }));
    Ok(())
}

/// Oracle 9.3: masks, labels and popularity correction of two users.
#[test]
fn candidates_match_oracle() -> Result<()> {
    let mut counts = vec![0.0; 10];
    for (item, n) in [(2, 1.0), (3, 1.0), (5, 2.0), (7, 2.0), (9, 1.0)] {
        counts[item] = n;
    }
    let windows = [&[5u32, 7, 9][..], &[2, 7, 5, 3]];
    let batch = Batch::new(&windows, &log_popularity(&counts), true);
    assert_eq!(batch.items, [5, 7, 9, 2, 3]);
    let c = &batch.candidates;
    let next: Vec<u32> = c.targets.iter().map(|&t| batch.items[t as usize]).collect();
    assert_eq!(next, [7, 9, 7, 5, 3]);
    for (got, want) in c.correction.iter().zip([
        1.252_763_f32,
        1.252_763,
        1.945_910_1,
        1.945_910_1,
        1.945_910_1,
    ]) {
        assert!((got - want).abs() < 1e-6);
    }
    let open = [&[2u32, 3, 7][..], &[2, 3, 9], &[7, 9], &[5, 9], &[3, 9]];
    let mut weights = Vec::new();
    for (row, open) in open.iter().enumerate() {
        c.weights(row, &mut weights);
        for (w, item) in weights.iter().zip(&batch.items) {
            assert_eq!(*w, f32::from(u8::from(open.contains(item))), "{row} {item}");
        }
    }
    let items = Tensor::new(
        &[[1f32, 0.], [0., 1.], [1., 1.], [0.5, 0.], [-1., 0.5]],
        &Device::Cpu,
    )?;
    let users = Tensor::new(
        &[[1f32, 1.], [0.5, -0.5], [1., 0.], [0., 2.], [0.3, 0.3]],
        &Device::Cpu,
    )?;
    let raw = users.matmul(&items.t()?)?;
    let off = Distillation::new(1, OFF, 1.0, false, false);
    let (_, parts) = online_distillation(&raw.unsqueeze(1)?, c, &off)?;
    assert!((parts.cross_entropy - 1.549_896_624_1).abs() < 1e-6);
    let rows = [
        0.978_071_07,
        1.013_922_57,
        1.861_994_80,
        2.758_623_68,
        1.136_871_01,
    ];
    for (row, want) in rows.iter().enumerate() {
        let one = Candidates {
            targets: vec![c.targets[row]],
            group: vec![c.group[row]],
            ..c.clone()
        };
        let raw = raw.narrow(0, row, 1)?.unsqueeze(1)?;
        let (_, parts) = online_distillation(&raw, &one, &off)?;
        assert!((parts.cross_entropy - want).abs() < 1e-6, "{row} {parts:?}");
    }
    // Without the mask, own items compete too; copies of the target do not.
    let batch = Batch::new(&windows, &log_popularity(&counts), false);
    batch.candidates.weights(0, &mut weights);
    assert_eq!(weights, [2.0, 1.0, 1.0, 1.0, 1.0]);
    Ok(())
}

/// Copies as weights equal copies as columns, in value and in gradient.
#[test]
fn copies_equal_slots() -> Result<()> {
    let dev = Device::Cpu;
    let mut r = crate::rng::stream(5, crate::rng::Purpose::Init, &[]);
    let x = Var::from_tensor(&crate::rng::normal(&mut r, (4, 3, 5), 2.0, &dev)?)?;
    let correction = vec![1.0, 2.5, 0.5, 3.0, 1.5];
    let short = Candidates {
        correction: correction.clone(),
        copies: vec![3.0, 1.0, 2.0, 1.0, 2.0],
        targets: vec![0, 1, 4, 3],
        group: vec![0, 0, 1, 1],
        closed: vec![vec![0, 1], vec![3, 4]],
    };
    // Slots of columns 0 to 4; the target is one slot, its other copies are closed.
    let slots = [0u32, 0, 0, 1, 2, 2, 3, 4, 4];
    let long = Candidates {
        correction: slots.iter().map(|&s| correction[s as usize]).collect(),
        copies: vec![1.0; 9],
        targets: vec![1, 3, 7, 6],
        group: vec![0, 0, 1, 1],
        closed: vec![vec![0, 1, 2, 3], vec![6, 7, 8]],
    };
    let index = Tensor::from_slice(&slots, 9, &dev)?;
    let wide = x.as_tensor().index_select(&index, 2)?;
    for (detach, symmetric) in [(false, false), (true, false), (false, true)] {
        let d = Distillation::new(3, 0.7, 0.4, detach, symmetric);
        let (a, _) = online_distillation(x.as_tensor(), &short, &d)?;
        let (b, _) = online_distillation(&wide, &long, &d)?;
        let close = (a.to_scalar::<f32>()? - b.to_scalar::<f32>()?).abs();
        assert!(close < 1e-5, "{close}");
        let (ga, gb) = (a.backward()?, b.backward()?);
        let (ga, gb) = (ga.get(&x).expect("gradient"), gb.get(&x).expect("gradient"));
        let worst = (ga - gb)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(worst < 1e-5, "{worst}");
    }
    Ok(())
}

/// The one pass equals differentiable operations, gradients included.
#[test]
fn value_and_gradient_equal_plain_composition() -> Result<()> {
    let dev = Device::Cpu;
    let mut r = crate::rng::stream(6, crate::rng::Purpose::Init, &[]);
    let x = Var::from_tensor(&crate::rng::normal(&mut r, (3, 3, 6), 1.5, &dev)?)?;
    let c = Candidates {
        correction: vec![0.3, 1.0, 0.0, 2.0, 0.7, 0.1],
        copies: vec![1.0; 6],
        targets: vec![2, 5, 0],
        group: vec![0, 1, 1],
        closed: vec![vec![1], vec![0, 4]],
    };
    let (tau, weight) = (0.6, 0.8);
    let d = Distillation::new(3, weight, tau, false, false);
    let hide = [
        [0f32, 1., 0., 0., 0., 0.],
        [1., 0., 0., 0., 1., 0.],
        [0., 0., 0., 0., 1., 0.],
    ];
    let hide = (Tensor::new(&hide, &dev)? * -1e4)?.unsqueeze(1)?;
    let correction = Tensor::from_slice(&c.correction, (1, 1, 6), &dev)?;
    let open = x
        .as_tensor()
        .broadcast_add(&correction)?
        .broadcast_add(&hide)?;
    let branch = |k: usize| open.narrow(1, k, 1)?.squeeze(1);
    let sets = [branch(0)?, branch(1)?, branch(2)?, open.mean(1)?];
    let log_softmax = |t: &Tensor, tau: f64| candle_nn::ops::log_softmax(&(t / tau)?, 1);
    let at = Tensor::new(&[[2u32], [5], [0]], &dev)?;
    let mut slow = Tensor::zeros((), candle_core::DType::F32, &dev)?;
    for set in &sets[..3] {
        slow = (slow - log_softmax(set, 1.0)?.gather(&at, 1)?.mean_all()?)?;
    }
    for pair in &d.pairs {
        let p = candle_nn::ops::softmax(&(&sets[pair.teacher] / tau)?, 1)?;
        let kd = (p * log_softmax(&sets[pair.student], tau)?)?
            .sum(1)?
            .mean_all()?;
        slow = (slow - (kd * (weight * tau * tau))?)?;
    }
    let (fast, _) = online_distillation(x.as_tensor(), &c, &d)?;
    let gap = (fast.to_scalar::<f32>()? - slow.to_scalar::<f32>()?).abs();
    assert!(gap < 1e-5, "{gap}");
    let (gf, gs) = ((fast * 2.0)?.backward()?, (slow * 2.0)?.backward()?);
    let (gf, gs) = (gf.get(&x).expect("gradient"), gs.get(&x).expect("gradient"));
    let worst = (gf - gs)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(worst < 1e-5, "{worst}");
    Ok(())
}

#[test]
fn candidates_that_do_not_fit_are_refused() -> Result<()> {
    let x = logits(&[STUDENT, TEACHER])?;
    let d = one_pair(1.0, false, 1.0);
    let mut c = plain(2, 3);
    c.targets[1] = 3;
    assert!(online_distillation(x.as_tensor(), &c, &d).is_err());
    assert!(online_distillation(x.as_tensor(), &plain(1, 3), &d).is_err());
    Ok(())
}
