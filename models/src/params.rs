//! Named trainable parameters and the optimizer that updates them.

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Device, InplaceOp2, InplaceOp3, Layout, Tensor, Var};

use crate::error::{Error, Result};
use crate::simd;

/// Tensors by name, as a checkpoint stores them.
pub type TensorMap = HashMap<String, Tensor>;

/// The trainable variables of a model, by name.
#[derive(Debug, Clone, Default)]
pub struct Params {
    vars: BTreeMap<String, Var>,
}

impl Params {
    /// Registers `value` as a variable and returns the tensor to compute with.
    ///
    /// # Errors
    /// Fails when the name is taken.
    pub fn add(&mut self, name: impl Into<String>, value: &Tensor) -> Result<Tensor> {
        let name = name.into();
        let var = Var::from_tensor(value)?;
        let tensor = var.as_tensor().clone();
        if self.vars.insert(name.clone(), var).is_some() {
            return Err(Error::Config {
                reason: format!("parameter `{name}` is registered twice"),
            });
        }
        Ok(tensor)
    }

    /// Gives a variable another value.
    ///
    /// # Errors
    /// An unknown name or another shape.
    pub fn set(&self, name: &str, value: &Tensor) -> Result<()> {
        let var = self
            .vars
            .get(name)
            .ok_or_else(|| Error::config(format!("there is no parameter `{name}`")))?;
        Ok(var.set(&value.detach())?)
    }

    /// Variables in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(n, v)| (n.as_str(), v))
    }

    /// Number of scalars.
    pub fn count(&self) -> usize {
        self.vars.values().map(|v| v.as_tensor().elem_count()).sum()
    }

    /// All values, for a checkpoint, with `prefix` before each name. They share the variables'
    /// storage: write them out before the next update.
    pub fn export(&self, prefix: &str, out: &mut TensorMap) -> Result<()> {
        for (name, var) in self.iter() {
            out.insert(format!("{prefix}{name}"), var.as_tensor().detach());
        }
        Ok(())
    }

    /// Sets every variable from a checkpoint written by [`Params::export`].
    ///
    /// # Errors
    /// Names the tensor that is missing or has another shape.
    pub fn import(&self, prefix: &str, from: &TensorMap) -> Result<()> {
        for (name, var) in self.iter() {
            set_from(var, &format!("{prefix}{name}"), from)?;
        }
        Ok(())
    }
}

fn set_from(var: &Var, key: &str, from: &TensorMap) -> Result<()> {
    let value = from.get(key).ok_or_else(|| Error::Config {
        reason: format!("tensor `{key}` is missing from the checkpoint; was it written by another model or configuration?"),
    })?;
    if value.shape() != var.as_tensor().shape() {
        return Err(Error::Config {
            reason: format!(
                "tensor `{key}` has shape {:?} in the checkpoint, this configuration needs {:?}",
                value.dims(),
                var.as_tensor().dims()
            ),
        });
    }
    // A copy: a map from `export` may still share the variable's own storage.
    var.set(&value.to_device(var.as_tensor().device())?.copy()?)?;
    Ok(())
}

/// Adam (Kingma & Ba, 2015), β = (0.9, 0.999), ε = 1e-8, optionally with decoupled weight decay.
///
/// The moments are plain tensors, so that a checkpoint can carry them and a resumed run
/// continues exactly.
#[derive(Debug)]
pub struct Adam {
    lr: f64,
    weight_decay: f64,
    step: u64,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    m: Tensor,
    v: Tensor,
}

impl Adam {
    /// An optimizer over all variables of `params`.
    pub fn new(params: &Params, lr: f64, weight_decay: f64) -> Result<Self> {
        let slots = params
            .iter()
            .map(|(name, var)| {
                Ok(Slot {
                    name: name.to_string(),
                    var: var.clone(),
                    m: var.as_tensor().zeros_like()?.detach(),
                    v: var.as_tensor().zeros_like()?.detach(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            lr,
            weight_decay,
            step: 0,
            slots,
        })
    }

    /// Sets the learning rate, for schedules.
    pub fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    /// One update of every variable that has a gradient.
    pub fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.update(|slot| grads.get(slot.var.as_tensor()).map(Tensor::detach))
    }

    /// One update from gradients by parameter name.
    pub fn step_named(&mut self, mut grads: TensorMap) -> Result<()> {
        self.update(|slot| grads.remove(&slot.name))
    }

    fn update(&mut self, mut gradient: impl FnMut(&Slot) -> Option<Tensor>) -> Result<()> {
        self.step += 1;
        let c1 = 1.0 - 0.9f64.powf(self.step as f64);
        let c2 = 1.0 - 0.999f64.powf(self.step as f64);
        for slot in &self.slots {
            let Some(g) = gradient(slot) else {
                continue;
            };
            let p = slot.var.as_tensor();
            if p.device().is_cpu() {
                let g = g.contiguous()?;
                slot.m.inplace_op2(
                    &g,
                    &Ema {
                        beta: 0.9,
                        square: false,
                    },
                )?;
                slot.v.inplace_op2(
                    &g,
                    &Ema {
                        beta: 0.999,
                        square: true,
                    },
                )?;
                let update = AdamUpdate {
                    scale: (self.lr / c1) as f32,
                    inv_c2: (1.0 / c2) as f32,
                    decay: (1.0 - self.lr * self.weight_decay) as f32,
                };
                p.inplace_op3(&slot.m, &slot.v, &update)?;
            } else {
                let m = ((&slot.m * 0.9)? + (&g * 0.1)?)?;
                let v = ((&slot.v * 0.999)? + (g.sqr()? * 0.001)?)?;
                slot.m.slice_set(&m, 0, 0)?;
                slot.v.slice_set(&v, 0, 0)?;
                let denom = ((v / c2)?.sqrt()? + 1e-8)?;
                let next = ((p * (1.0 - self.lr * self.weight_decay))?
                    - (m * (self.lr / c1))?.div(&denom)?)?;
                slot.var.set(&next.detach())?;
            }
        }
        Ok(())
    }

    /// Moments and step count, for a checkpoint.
    pub fn export(&self, prefix: &str, out: &mut TensorMap) -> Result<()> {
        for s in &self.slots {
            out.insert(format!("{prefix}{}.m", s.name), s.m.clone());
            out.insert(format!("{prefix}{}.v", s.name), s.v.clone());
        }
        out.insert(
            format!("{prefix}step"),
            Tensor::from_vec(vec![self.step as i64], 1, &Device::Cpu)?,
        );
        Ok(())
    }

    /// Restores what [`Adam::export`] wrote.
    pub fn import(&mut self, prefix: &str, from: &TensorMap) -> Result<()> {
        let find = |key: String| {
            from.get(&key).ok_or_else(|| Error::Config {
                reason: format!("tensor `{key}` is missing from the checkpoint"),
            })
        };
        for s in &mut self.slots {
            let dev = s.var.as_tensor().device();
            s.m = find(format!("{prefix}{}.m", s.name))?
                .to_device(dev)?
                .copy()?;
            s.v = find(format!("{prefix}{}.v", s.name))?
                .to_device(dev)?
                .copy()?;
        }
        let step = find(format!("{prefix}step"))?.to_vec1::<i64>()?;
        self.step = step.first().copied().unwrap_or(0).max(0) as u64;
        Ok(())
    }
}

/// The gradients of `params` in a store, by name; variables without one are left out.
pub fn gradients(params: &Params, store: &GradStore) -> TensorMap {
    params
        .iter()
        .filter_map(|(name, var)| {
            let g = store.get(var.as_tensor())?;
            Some((name.to_string(), g.detach()))
        })
        .collect()
}

/// Adds one part's gradients to the sum over the parts of a step.
pub fn add_gradients(sum: &mut TensorMap, part: TensorMap) -> Result<()> {
    for (name, g) in part {
        let total = match sum.remove(&name) {
            Some(s) => (s + g)?,
            None => g,
        };
        sum.insert(name, total);
    }
    Ok(())
}

/// Multiplies all gradients with `scale`, then with `most / (norm + 1e-6)` if that is below one,
/// where `norm` is the root of the sum of all their squares. Returns the norm before clipping.
pub fn clip_gradients(grads: &mut TensorMap, scale: f64, most: f64) -> Result<f64> {
    let mut names: Vec<&String> = grads.keys().collect();
    // A fixed order of summation, so that runs repeat.
    names.sort();
    let mut sum = 0.0;
    for name in names {
        sum += f64::from(grads[name].sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    let norm = sum.sqrt() * scale;
    let factor = scale * (most / (norm + 1e-6)).min(1.0);
    if factor != 1.0 {
        for g in grads.values_mut() {
            *g = (&*g * factor)?;
        }
    }
    Ok(norm)
}

/// State of a model with one set of variables and one optimizer, for a checkpoint.
pub fn training_state(params: &Params, adam: &Adam) -> Result<TensorMap> {
    let mut out = TensorMap::new();
    params.export("model.", &mut out)?;
    adam.export("adam.", &mut out)?;
    Ok(out)
}

/// Restores what [`training_state`] gave.
pub fn restore_training(params: &Params, adam: &mut Adam, from: &TensorMap) -> Result<()> {
    params.import("model.", from)?;
    adam.import("adam.", from)
}

fn f32_mut<'a>(s: &'a mut CpuStorage, l: &Layout) -> candle_core::Result<&'a mut [f32]> {
    let (a, b) = l
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::Msg("parameter is not contiguous".into()))?;
    match s {
        CpuStorage::F32(v) => Ok(&mut v[a..b]),
        _ => Err(candle_core::Error::Msg("parameters must be f32".into())),
    }
}

struct Ema {
    beta: f64,
    square: bool,
}

impl InplaceOp2 for Ema {
    fn name(&self) -> &'static str {
        "ema"
    }

    fn cpu_fwd(
        &self,
        dst: &mut CpuStorage,
        dst_l: &Layout,
        src: &CpuStorage,
        src_l: &Layout,
    ) -> candle_core::Result<()> {
        let g = simd::f32_slice(src, src_l)?;
        let m = f32_mut(dst, dst_l)?;
        let (b, c) = (self.beta as f32, (1.0 - self.beta) as f32);
        simd::dispatch(|| {
            if self.square {
                m.iter_mut()
                    .zip(g)
                    .for_each(|(m, g)| *m = b * *m + c * g * g);
            } else {
                m.iter_mut().zip(g).for_each(|(m, g)| *m = b * *m + c * g);
            }
        });
        Ok(())
    }
}

struct AdamUpdate {
    scale: f32,
    inv_c2: f32,
    decay: f32,
}

impl InplaceOp3 for AdamUpdate {
    fn name(&self) -> &'static str {
        "adam-update"
    }

    fn cpu_fwd(
        &self,
        dst: &mut CpuStorage,
        dst_l: &Layout,
        m: &CpuStorage,
        m_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> candle_core::Result<()> {
        let (m, v) = (simd::f32_slice(m, m_l)?, simd::f32_slice(v, v_l)?);
        let p = f32_mut(dst, dst_l)?;
        let (scale, inv_c2, decay) = (self.scale, self.inv_c2, self.decay);
        simd::dispatch(|| {
            p.iter_mut().zip(m).zip(v).for_each(|((p, m), v)| {
                *p = decay * *p - scale * m / ((v * inv_c2).sqrt() + 1e-8);
            });
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Oracle: lr 1e-3, gradients [.1, -2] then [.3, -1].
    #[test]
    fn adam_matches_oracle() -> Result<()> {
        let dev = Device::Cpu;
        let mut params = Params::default();
        let p = params.add("p", &Tensor::zeros(2, candle_core::DType::F32, &dev)?)?;
        let mut adam = Adam::new(&params, 1e-3, 0.0)?;
        let mut last = vec![0f32; 2];
        for (g, want) in [
            ([0.1f32, -2.0], [-0.001f64, 0.001]),
            ([0.3, -1.0], [-0.000_917_781_1, 0.000_932_179_6]),
        ] {
            // d(sum(p * g)) / dp = g
            let loss = (&p * &Tensor::new(&g, &dev)?)?.sum_all()?;
            adam.step(&loss.backward()?)?;
            let now = p.to_vec1::<f32>()?;
            for i in 0..2 {
                let update = f64::from(now[i] - last[i]);
                assert!((update - want[i]).abs() < 2e-9, "{update} {}", want[i]);
            }
            last = now;
        }
        Ok(())
    }

    /// Oracle 9.8 of the ODMT specification.
    #[test]
    fn decay_and_clipping_match_oracle() -> Result<()> {
        let dev = Device::Cpu;
        let mut params = Params::default();
        let p = params.add("p", &Tensor::new(&[1f32, -2.0], &dev)?)?;
        let mut adam = Adam::new(&params, 1e-4, 0.1)?;
        let loss = (&p * &Tensor::new(&[0.1f32, -0.3], &dev)?)?.sum_all()?;
        adam.step(&loss.backward()?)?;
        let now = p.to_vec1::<f32>()?;
        assert!((now[0] - 0.999_89).abs() < 1e-6 && (now[1] + 1.999_88).abs() < 1e-6);

        let mut grads = TensorMap::new();
        for g in [[4f32, 10.0], [8.0, 6.0]] {
            let part = TensorMap::from([("p".to_string(), Tensor::new(&g, &dev)?)]);
            add_gradients(&mut grads, part)?;
        }
        // The mean of two parts is [6, 8], of norm 10.
        assert!((clip_gradients(&mut grads, 0.5, 5.0)? - 10.0).abs() < 1e-6);
        let g = grads["p"].to_vec1::<f32>()?;
        assert!(
            (g[0] - 3.0).abs() < 1e-6 && (g[1] - 4.0).abs() < 1e-6,
            "{g:?}"
        );
        clip_gradients(&mut grads, 1.0, 5.1)?;
        assert_eq!(grads["p"].to_vec1::<f32>()?, g);
        Ok(())
    }

    #[test]
    fn checkpoint_of_another_shape_is_refused() -> Result<()> {
        let dev = Device::Cpu;
        let mut params = Params::default();
        params.add("w", &Tensor::zeros((2, 3), candle_core::DType::F32, &dev)?)?;
        let mut map = TensorMap::new();
        map.insert(
            "w".into(),
            Tensor::zeros((3, 2), candle_core::DType::F32, &dev)?,
        );
        let err = params.import("", &map).unwrap_err().to_string();
        assert!(err.contains('w') && err.contains("[3, 2]"), "{err}");
        Ok(())
    }
}
