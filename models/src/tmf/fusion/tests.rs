use super::*;
use crate::ops;
use crate::oracle::close;

const DEV: Device = Device::Cpu;

fn two() -> TmfConfig {
    TmfConfig {
        dim: 2,
        heads: 1,
        ..TmfConfig::default()
    }
}

/// An attention with weights of the specification, `y = x Wᵀ` by rows; W_O = I.
fn attention(key: [[f32; 2]; 2], value: [[f32; 2]; 2]) -> Result<MultiHead> {
    let mut p = Params::default();
    let a = MultiHead::new(&mut p, "a", &two(), 1, &DEV)?;
    let eye = [[1f32, 0.0], [0.0, 1.0]];
    for (part, w) in [("query", eye), ("key", key), ("value", value), ("out", eye)] {
        let w = Tensor::new(&w, &DEV)?.t()?.contiguous()?;
        p.set(&format!("a.{part}.weight"), &w)?;
    }
    Ok(a)
}

/// Oracle T1.
#[test]
fn cross_attention_matches_oracle() -> Result<()> {
    let a = attention([[1.0, 1.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 1.0]])?;
    let q = Tensor::new(&[[[1f32, 0.0]]], &DEV)?;
    let kv = Tensor::new(&[[[1f32, 0.0], [0.0, 1.0], [1.0, 1.0]]], &DEV)?;
    let hide = Tensor::zeros((1, 1, 1, 3), DType::F32, &DEV)?;
    close(&a.forward(&q, &kv, &hide)?, &[1.503_490, 0.751_745])
}

/// Oracle T2.
#[test]
fn self_attention_matches_oracle() -> Result<()> {
    let eye = [[1.0, 0.0], [0.0, 1.0]];
    let a = attention(eye, eye)?;
    let x = Tensor::new(&[[[1f32, 0.0], [0.0, 1.0], [1.0, 1.0]]], &DEV)?;
    let hide = Tensor::zeros((1, 1, 1, 3), DType::F32, &DEV)?;
    let y = (a.forward(&x, &x, &hide)? + &x)?;
    let want = [
        1.802_224, 0.598_888, 0.598_888, 1.802_224, 1.751_745, 1.751_745,
    ];
    close(&y, &want)?;
    close(&y.mean(1)?, &[1.384_286, 1.384_286])
}

/// Oracle T3: LayerNorm of [1, 2, 3, 4].
#[test]
fn layer_norm_matches_oracle() -> Result<()> {
    let mut p = Params::default();
    let ln = LayerNorm::new(&mut p, "ln", 4, &DEV)?;
    let y = ln.forward(&Tensor::new(&[[1f32, 2.0, 3.0, 4.0]], &DEV)?)?;
    close(&y, &[-1.341_635, -0.447_212, 0.447_212, 1.341_635])
}

/// Oracle T5: contrast of [1,0],[0,1] with [1,1],[0,1] at temperature 0.5, in both directions.
#[test]
fn alignment_matches_oracle() -> Result<()> {
    let a = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &DEV)?;
    let b = Tensor::new(&[[1f32, 1.0], [0.0, 1.0]], &DEV)?;
    let (a, b) = (ops::normalize_rows(&a)?, ops::normalize_rows(&b)?);
    let rows = ops::info_nce(&a, &b, &[0, 1], &[0.5, 0.5], 0.5)?;
    close(&rows, &[0.330_085])?;
    let columns = ops::info_nce(&b, &a, &[0, 1], &[0.5, 0.5], 0.5)?;
    close(&columns, &[0.410_038])?;
    close(&((rows + columns)? * 0.5)?, &[0.370_061])
}

/// Three items: everything there; only the second modality; nothing.
fn inputs(shift: f32, by_token: bool) -> Result<Vec<Modality>> {
    let mut r = rng::stream(4, Purpose::Init, &[]);
    let mut make = |name: &str, d: usize, present: [bool; 3], tokens| -> Result<Modality> {
        Ok(Modality {
            name: name.to_owned(),
            values: rng::normal(&mut r, (3, d), 1.0, &DEV)?,
            present: present.to_vec(),
            tokens,
        })
    };
    let tokens = by_token.then(|| {
        let tokens = TokenFeatures {
            per_item: 2,
            dim: 5,
            values: (0..30)
                .map(|x| half::f16::from_f32(x as f32 * 0.1))
                .collect(),
            present: vec![true, true, false, false, false, false],
        };
        let norm = tokens.standardize();
        (tokens, norm)
    });
    let mut out = vec![
        make("image", 5, [true, false, false], tokens)?,
        make("text", 4, [true, true, false], None)?,
        make(GRAPH, 3, [true, false, false], None)?,
    ];
    // What is missing must not matter.
    let mask = Tensor::new(&[[0f32], [shift], [shift]], &DEV)?;
    out[0].values = out[0].values.broadcast_add(&mask)?;
    Ok(out)
}

fn module(cfg: &TmfConfig) -> Result<(Params, Fusion)> {
    let mut p = Params::default();
    let f = Fusion::new(&mut p, &inputs(0.0, false)?, 3, cfg, 7, &DEV)?;
    Ok((p, f))
}

fn small(cross: Cross, scope: Scope) -> TmfConfig {
    TmfConfig {
        dim: 8,
        heads: 2,
        window: 4,
        sequence_window: 4,
        cross,
        scope,
        ..TmfConfig::default()
    }
}

fn worst(a: &Tensor, b: &Tensor) -> Result<f32> {
    Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()?)
}

/// Oracle T13: an item's vector does not depend on its batch, nor on values of modalities it lacks.
#[test]
fn items_are_on_their_own_and_missing_values_do_not_matter() -> Result<()> {
    for (cross, by_token) in [
        (Cross::Others, false),
        (Cross::Tokens, true),
        (Cross::Off, false),
    ] {
        let cfg = small(cross, Scope::Item);
        let (_, f) = module(&cfg)?;
        let vectors = |ids: &[u32], shift: f32| -> Result<Tensor> {
            let inputs = inputs(shift, by_token)?;
            let c = f.crossed(&inputs, ids, None)?;
            Ok(f.fused(&c, None)?.pooled)
        };
        let all = vectors(&[0, 1, 2], 0.0)?;
        for i in 0..3u32 {
            let own = all.narrow(0, i as usize, 1)?;
            assert!(worst(&vectors(&[i], 0.0)?, &own)? < 1e-6);
        }
        assert!(worst(&vectors(&[0, 1, 2], 9.0)?, &all)? < 1e-6);
        assert!(worst(&all.narrow(0, 0, 1)?, &all.narrow(0, 1, 1)?)? > 1e-2);
    }
    Ok(())
}

#[test]
fn every_variable_gets_a_gradient() -> Result<()> {
    for scope in [Scope::Item, Scope::Sequence] {
        let (p, f) = module(&small(Cross::Others, scope))?;
        let inputs = inputs(0.0, false)?;
        let mut noise = rng::stream(2, Purpose::Dropout, &[]);
        let c = f.crossed(&inputs, &[0, 1, 2], Some(&mut noise))?;
        let fused = match scope {
            Scope::Sequence => {
                let events = [vec![(0, 1), (1, 2)], vec![(2, 0), (0, 1), (0, 2)]];
                f.fused_sequences(&c, &events, Some(&mut noise))?
            }
            _ => f.fused(&c, Some(&mut noise))?,
        };
        let mut r = rng::stream(3, Purpose::Noise, &[]);
        let w = rng::normal(&mut r, fused.pooled.shape(), 1.0, &DEV)?;
        let grads = (fused.pooled * w)?.sum_all()?.backward()?;
        for (name, var) in p.iter() {
            assert!(grads.get(var.as_tensor()).is_some(), "{name}");
        }
    }
    Ok(())
}

/// In a sequence an event's vector depends on the others; alone and without place or behaviour it is
/// the item's own.
#[test]
fn sequences_mix_their_events() -> Result<()> {
    let (p, f) = module(&small(Cross::Others, Scope::Sequence))?;
    let inputs = inputs(0.0, false)?;
    let c = f.crossed(&inputs, &[0, 1], None)?;
    let one = f.fused_sequences(&c, &[vec![(0, 1)]], None)?.pooled;
    let events = [vec![(0, 1)], vec![(1, 1), (0, 1)]];
    let both = f.fused_sequences(&c, &events, None)?.pooled;
    assert!(worst(&one, &both.narrow(0, 0, 1)?)? < 1e-6);
    assert!(worst(&one, &both.narrow(0, 2, 1)?)? > 1e-4);
    for name in ["fusion.positions", "fusion.behaviors"] {
        let var = p.iter().find(|(n, _)| *n == name).expect("a table").1;
        p.set(name, &var.zeros_like()?)?;
    }
    let alone = f.fused(&f.crossed(&inputs, &[0], None)?, None)?.pooled;
    let one = f.fused_sequences(&c, &[vec![(0, 1)]], None)?.pooled;
    assert!(worst(&one, &alone)? < 1e-6);
    Ok(())
}
