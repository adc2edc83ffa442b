//! What the id table starts from.

use candle_core::{DType, Device, Tensor};

use super::block::xavier_normal;
use super::config::{IdInit, OdmtConfig};
use super::imt::Frozen;
use crate::error::{Error, Result};
use crate::rng::{self, Purpose};
use crate::spectrum::orthonormal;

/// Passes of subspace iteration; the directions only start a table that is trained.
const PASSES: usize = 6;

/// Root-mean-square of an entry that starts from principal components. Class tokens of the size
/// of a standardised feature would outlive many epochs of training.
const COMPONENT_RMS: f64 = 0.3;

/// The start of the id table, `[N, id_dim]`.
///
/// Class tokens as wide as the table are taken as they are, and averaged over the modalities an
/// item has, as the published program does. Otherwise their leading principal components are.
///
/// # Errors
/// A modality that the data set does not have, or fewer feature columns than the table has.
pub(super) fn id_table(
    cfg: &OdmtConfig,
    items: usize,
    features: &[Frozen],
    kinds: &[String],
    seed: u64,
    dev: &Device,
) -> Result<Tensor> {
    let wanted = match cfg.id_init {
        IdInit::Random => return xavier_normal("ids", items, cfg.id_dim, seed, dev),
        IdInit::Mean => None,
        IdInit::Image => Some("image"),
        IdInit::Text => Some("text"),
    };
    let chosen: Vec<&Frozen> = features
        .iter()
        .zip(kinds)
        .filter(|(_, kind)| wanted.is_none_or(|w| w == kind.as_str()))
        .map(|(f, _)| f)
        .collect();
    if chosen.is_empty() {
        return Err(Error::config(format!(
            "id_init = {:?} needs such features; the data set has [{}]",
            cfg.id_init,
            kinds.join(", ")
        )));
    }
    let classes = chosen
        .iter()
        .map(|f| Ok((class_tokens(f)?, class_presence(f)?)))
        .collect::<Result<Vec<_>>>()?;
    let table = if classes.iter().all(|(x, _)| x.dims()[1] == cfg.id_dim) {
        let mut sum = Tensor::zeros((items, cfg.id_dim), DType::F32, &Device::Cpu)?;
        let mut count = Tensor::zeros((items, 1), DType::F32, &Device::Cpu)?;
        for (x, has) in &classes {
            sum = (sum + x)?;
            count = (count + has)?;
        }
        sum.broadcast_div(&count.maximum(1f64)?)?
    } else {
        let parts = classes
            .iter()
            .map(|(x, has)| centred(x, has))
            .collect::<Result<Vec<_>>>()?;
        components(&Tensor::cat(&parts, 1)?, cfg.id_dim, seed)?
    };
    Ok(table.to_device(dev)?)
}

/// `[N, width]`, zero where missing.
fn class_tokens(f: &Frozen) -> Result<Tensor> {
    Ok(f.values
        .narrow(1, 0, f.width()?)?
        .to_dtype(DType::F32)?
        .contiguous()?)
}

/// `[N, 1]`, 1 where the item has the class token.
fn class_presence(f: &Frozen) -> Result<Tensor> {
    let has: Vec<f32> = f
        .present
        .chunks_exact(f.tokens)
        .map(|t| f32::from(u8::from(t[0])))
        .collect();
    Ok(Tensor::from_vec(
        has,
        (f.present.len() / f.tokens, 1),
        &Device::Cpu,
    )?)
}

/// Rows less their mean, brought to one mean square; missing rows are zero.
fn centred(x: &Tensor, has: &Tensor) -> Result<Tensor> {
    let count = f64::from(has.sum_all()?.to_scalar::<f32>()?).max(1.0);
    let mean = (x.sum_keepdim(0)? / count)?;
    let x = x.broadcast_sub(&mean)?.broadcast_mul(has)?;
    let square = f64::from(x.sqr()?.sum_all()?.to_scalar::<f32>()?) / count;
    Ok((x / square.sqrt().max(1e-12))?)
}

/// Coordinates of the rows along the `dim` leading right singular directions of `x`.
fn components(x: &Tensor, dim: usize, seed: u64) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    if dim > width || dim > rows {
        return Err(Error::config(format!(
            "id_dim = {dim} is more than the {rows} x {width} features can start; lower id_dim, or set id_init=random"
        )));
    }
    let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash("ids")]);
    let mut basis = rng::normal(&mut r, (width, dim), 1.0, &Device::Cpu)?;
    let xt = x.t()?.contiguous()?;
    for _ in 0..PASSES {
        basis = orthonormal(&xt.matmul(&x.matmul(&basis)?)?)?;
    }
    let y = x.matmul(&basis)?;
    let rms = f64::from(y.sqr()?.mean_all()?.to_scalar::<f32>()?).sqrt();
    Ok((y * (COMPONENT_RMS / rms.max(1e-12)))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frozen(name: &str, rows: &[[f32; 3]], present: &[bool]) -> Result<Frozen> {
        let values: Vec<f32> = rows.iter().flatten().copied().collect();
        Ok(Frozen {
            name: name.into(),
            tokens: 1,
            values: Tensor::from_vec(values, (rows.len(), 3), &Device::Cpu)?,
            present: present.to_vec(),
        })
    }

    fn table(id_init: IdInit, id_dim: usize) -> Result<Tensor> {
        let text = [[1f32, 2., 3.], [0., 0., 0.], [-1., 0., 1.], [2., 2., 0.]];
        let image = [[3f32, 0., 1.], [5., 6., 7.], [1., 0., -1.], [0., 1., 0.]];
        let features = [
            frozen("text_a", &text, &[true, false, true, true])?,
            frozen("image_b", &image, &[true; 4])?,
        ];
        let kinds = ["text".to_string(), "image".to_string()];
        let cfg = OdmtConfig {
            id_init,
            id_dim,
            ..OdmtConfig::default()
        };
        id_table(&cfg, 4, &features, &kinds, 1, &Device::Cpu)
    }

    #[test]
    fn published_modes_take_class_tokens() -> Result<()> {
        let mean = table(IdInit::Mean, 3)?.to_vec2::<f32>()?;
        assert_eq!(mean[0], [2.0, 1.0, 2.0]);
        // Without text the image stands alone.
        assert_eq!(mean[1], [5.0, 6.0, 7.0]);
        assert_eq!(
            table(IdInit::Image, 3)?.to_vec2::<f32>()?[2],
            [1.0, 0.0, -1.0]
        );
        assert_eq!(
            table(IdInit::Text, 3)?.to_vec2::<f32>()?[0],
            [1.0, 2.0, 3.0]
        );
        let noise = table(IdInit::Random, 3)?;
        let square = noise.sqr()?.mean_all()?.to_scalar::<f32>()?;
        // 12 draws of variance 2/(4 + 3).
        assert!((0.05..1.0).contains(&square), "{square}");
        Ok(())
    }

    #[test]
    fn other_widths_take_principal_components() -> Result<()> {
        let t = table(IdInit::Mean, 2)?;
        assert_eq!(t.dims(), [4, 2]);
        let rms = t.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt();
        assert!((f64::from(rms) - COMPONENT_RMS).abs() < 1e-5);
        // Components are uncorrelated, up to what the iteration has left.
        let gram = t.t()?.matmul(&t)?.to_vec2::<f32>()?;
        assert!(gram[0][1].abs() < 0.02 * gram[0][0], "{gram:?}");
        assert!(table(IdInit::Mean, 7).is_err());
        Ok(())
    }
}
