//! The network: packed rows in, hidden states and logits out.

use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::config::LlmConfig;
use super::linear::{LoraConfig, Projection, product};
use super::ops::{Rotation, rms_norm};
use crate::attention::{Heads, Segments, continued_attention, grouped_attention};
use crate::error::{Error, Result};
use crate::ops::index_tensor;
use crate::params::{Params, TensorMap};
use crate::rng::{self, Purpose, Stream};

/// Rows of the embedding table widened at once.
const ROWS_AT_ONCE: usize = 4096;

/// Keys and values of the rows of a pass, layer by layer, each `[R, heads.key · W]`.
#[derive(Debug, Clone)]
pub struct Kv(Vec<(Tensor, Tensor)>);

impl Kv {
    /// Number of rows.
    pub fn rows(&self) -> Result<usize> {
        Ok(self.0.first().map_or(Ok(0), |(k, _)| k.dim(0))?)
    }

    /// The rows of `range` alone.
    pub fn narrow(&self, range: Range<usize>) -> Result<Self> {
        let part = |t: &Tensor| t.narrow(0, range.start, range.len());
        let layers = self.0.iter().map(|(k, v)| Ok((part(k)?, part(v)?)));
        Ok(Self(layers.collect::<Result<_>>()?))
    }

    /// These rows, then those of `next`.
    pub fn then(&self, next: &Self) -> Result<Self> {
        let join = |a: &Tensor, b: &Tensor| Tensor::cat(&[a, b], 0);
        let layers = self.0.iter().zip(&next.0);
        let layers = layers.map(|((k, v), (l, w))| Ok((join(k, l)?, join(v, w)?)));
        Ok(Self(layers.collect::<Result<_>>()?))
    }
}

/// What sequences continue: for each of them a range of the rows of an earlier pass. Several may
/// continue the same rows, as the candidates of one prompt do; nothing is copied.
#[derive(Debug, Clone, Copy)]
pub struct Past<'a> {
    /// Keys and values of the earlier pass.
    pub kv: &'a Kv,
    /// The rows that each sequence sees.
    pub ranges: &'a [Range<usize>],
}

#[derive(Debug, Clone)]
struct Layer {
    attention_norm: Tensor,
    query: Projection,
    key: Projection,
    value: Projection,
    out: Projection,
    /// Gains over the columns of a head, of queries and of keys.
    head_norms: Option<(Tensor, Tensor)>,
    norm: Tensor,
    gate: Projection,
    up: Projection,
    down: Projection,
}

impl Layer {
    fn projections(&self) -> [(&'static str, &Projection); 7] {
        [
            ("self_attn.q_proj", &self.query),
            ("self_attn.k_proj", &self.key),
            ("self_attn.v_proj", &self.value),
            ("self_attn.o_proj", &self.out),
            ("mlp.gate_proj", &self.gate),
            ("mlp.up_proj", &self.up),
            ("mlp.down_proj", &self.down),
        ]
    }

    fn projections_mut(&mut self) -> [(&'static str, &mut Projection); 7] {
        [
            ("self_attn.q_proj", &mut self.query),
            ("self_attn.k_proj", &mut self.key),
            ("self_attn.v_proj", &mut self.value),
            ("self_attn.o_proj", &mut self.out),
            ("mlp.gate_proj", &mut self.gate),
            ("mlp.up_proj", &mut self.up),
            ("mlp.down_proj", &mut self.down),
        ]
    }
}

/// Gives the tensor of a name (as model hubs name it) and shape.
pub type Source<'a> = dyn FnMut(&str, &[usize]) -> Result<Tensor> + 'a;

/// A decoder of the Llama family.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: LlmConfig,
    table: Tensor,
    head: Option<Tensor>,
    layers: Vec<Layer>,
    norm: Tensor,
    frozen: bool,
    frequencies: Vec<f64>,
}

impl Decoder {
    /// A decoder of the tensors that `source` gives. `frozen` is the type in which matrices are held that get
    /// no gradient; with `None` all weights are trained.
    ///
    /// # Errors
    /// What `source` reports; `path` names the configuration in errors about it.
    pub fn new(
        config: LlmConfig,
        path: &Path,
        source: &mut Source<'_>,
        frozen: Option<DType>,
    ) -> Result<Self> {
        config.check(path)?;
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let size = config.head_size();
        let (wide, narrow) = (config.num_attention_heads * size, config.key_heads() * size);
        let (qkv_bias, out_bias) = config.biases();
        let held = |matrix: Tensor| -> Result<Tensor> {
            Ok(match frozen {
                Some(kind) => matrix.to_dtype(kind)?,
                None => matrix,
            })
        };
        let layers = (0..config.num_hidden_layers)
            .map(|i| {
                let p = |part: &str| format!("model.layers.{i}.{part}");
                let mut dense = |part: &str, from: usize, to: usize, bias: bool| {
                    let name = p(part);
                    let weight = held(source(&format!("{name}.weight"), &[to, from])?)?;
                    let bias = match bias {
                        true => Some(source(&format!("{name}.bias"), &[to])?),
                        false => None,
                    };
                    Result::Ok(Projection::new(weight, bias, frozen.is_some()))
                };
                Ok(Layer {
                    query: dense("self_attn.q_proj", d, wide, qkv_bias)?,
                    key: dense("self_attn.k_proj", d, narrow, qkv_bias)?,
                    value: dense("self_attn.v_proj", d, narrow, qkv_bias)?,
                    out: dense("self_attn.o_proj", wide, d, out_bias)?,
                    gate: dense("mlp.gate_proj", d, inner, false)?,
                    up: dense("mlp.up_proj", d, inner, false)?,
                    down: dense("mlp.down_proj", inner, d, false)?,
                    attention_norm: source(&p("input_layernorm.weight"), &[d])?,
                    norm: source(&p("post_attention_layernorm.weight"), &[d])?,
                    head_norms: match config.head_norms() {
                        true => Some((
                            source(&p("self_attn.q_norm.weight"), &[size])?,
                            source(&p("self_attn.k_norm.weight"), &[size])?,
                        )),
                        false => None,
                    },
                })
            })
            .collect::<Result<_>>()?;
        let head = match config.tie_word_embeddings {
            true => None,
            false => Some(held(source("lm_head.weight", &[config.vocab_size, d])?)?),
        };
        Ok(Self {
            table: held(source(
                "model.embed_tokens.weight",
                &[config.vocab_size, d],
            )?)?,
            norm: source("model.norm.weight", &[d])?,
            frequencies: config.frequencies(),
            head,
            layers,
            frozen: frozen.is_some(),
            config,
        })
    }

    /// A decoder with random weights, registered in `params` to be trained: matrices normal with deviation
    /// `1/√D`, those that write to the residual stream less by `√(2·layers)`, gains one. The usual fixed
    /// 0.02 is that of a width of 2,500.
    ///
    /// # Errors
    /// A configuration out of range.
    pub fn random(
        config: LlmConfig,
        params: &mut Params,
        prefix: &str,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let usual = 1.0 / (config.hidden_size as f64).sqrt();
        let quiet = usual / (2.0 * config.num_hidden_layers as f64).sqrt();
        let mut source = |name: &str, shape: &[usize]| {
            let value = if name.ends_with("norm.weight") {
                Tensor::ones(shape, DType::F32, dev)?
            } else if name.ends_with(".bias") {
                Tensor::zeros(shape, DType::F32, dev)?
            } else {
                let writes = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
                let std = if writes { quiet } else { usual };
                let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash(name)]);
                rng::normal(&mut r, shape, std, dev)?
            };
            params.add(format!("{prefix}{name}"), &value)
        };
        Self::new(config, Path::new("configuration"), &mut source, None)
    }

    /// Its configuration.
    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// Root mean square of the embedding table.
    pub fn word_size(&self) -> Result<f64> {
        let (rows, width) = self.table.dims2()?;
        let mut sum = 0.0;
        for first in (0..rows).step_by(ROWS_AT_ONCE) {
            let part = self
                .table
                .narrow(0, first, ROWS_AT_ONCE.min(rows - first))?;
            let squares = part.to_dtype(DType::F32)?.sqr()?.sum_all()?;
            sum += f64::from(squares.to_scalar::<f32>()?);
        }
        Ok((sum / (rows * width) as f64).sqrt())
    }

    /// Adds low-rank updates to all projections, registered in `params`; they start at zero.
    ///
    /// # Errors
    /// A rank of zero, or parameters of the same names.
    pub fn add_lora(
        &mut self,
        params: &mut Params,
        prefix: &str,
        cfg: &LoraConfig,
        seed: u64,
    ) -> Result<()> {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            for (name, projection) in layer.projections_mut() {
                let name = format!("{prefix}layers.{i}.{name}");
                projection.add_lora(params, &name, cfg, seed)?;
            }
        }
        Ok(())
    }

    /// All weights in f32 by their names in a model folder, low-rank updates added in.
    pub fn merged(&self) -> Result<TensorMap> {
        let mut out = TensorMap::new();
        let mut put = |name: String, t: &Tensor| {
            out.insert(name, t.detach());
        };
        put(
            "model.embed_tokens.weight".into(),
            &self.table.to_dtype(DType::F32)?,
        );
        put("model.norm.weight".into(), &self.norm);
        if let Some(head) = &self.head {
            put("lm_head.weight".into(), &head.to_dtype(DType::F32)?);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let p = |part: &str| format!("model.layers.{i}.{part}");
            put(p("input_layernorm.weight"), &layer.attention_norm);
            put(p("post_attention_layernorm.weight"), &layer.norm);
            if let Some((q, k)) = &layer.head_norms {
                put(p("self_attn.q_norm.weight"), q);
                put(p("self_attn.k_norm.weight"), k);
            }
            for (name, projection) in layer.projections() {
                put(p(&format!("{name}.weight")), &projection.merged()?);
                if let Some(bias) = projection.bias() {
                    put(p(&format!("{name}.bias")), bias);
                }
            }
        }
        Ok(out)
    }

    /// Rows of the embedding table, `[n, D]`, in f32.
    ///
    /// # Errors
    /// An id beyond the table.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let rows = index_tensor(ids, self.table.device())?;
        Ok(self.table.index_select(&rows, 0)?.to_dtype(DType::F32)?)
    }

    /// Last hidden states, after the final norm, and the keys and values of these rows.
    ///
    /// Sequences are packed without padding. Positions count from 0 in each, or from the end of what
    /// it continues. Dropout of low-rank branches where `noise` is given; a pass with a past has no
    /// backward.
    ///
    /// # Shapes
    /// `embeds` `[R, D]` with R rows of `segments`; the result is `[R, D]`.
    ///
    /// # Errors
    /// Rows that do not fit `segments`, or a sequence longer than the context.
    pub fn forward(
        &self,
        embeds: &Tensor,
        segments: &Segments,
        past: Option<Past<'_>>,
        mut noise: Option<&mut Stream>,
    ) -> Result<(Tensor, Kv)> {
        let first = |at: usize| past.and_then(|p| p.ranges.get(at)).map_or(0, Range::len);
        let positions: Vec<usize> = segments
            .lengths()
            .iter()
            .enumerate()
            .flat_map(|(at, &n)| (0..n).map(move |t| (at, t)))
            .map(|(at, t)| first(at) + t)
            .collect();
        let longest = positions.iter().max().map_or(0, |p| p + 1);
        if longest > self.config.max_position_embeddings {
            return Err(Error::config(format!(
                "a sequence of {longest} tokens does not fit the context of {}; shorten histories, titles or the shelf",
                self.config.max_position_embeddings
            )));
        }
        let turn = Rotation::new(&self.frequencies, &positions);
        let heads = Heads {
            query: self.config.num_attention_heads,
            key: self.config.key_heads(),
        };
        let epsilon = self.config.rms_norm_eps;
        let mut x = embeds.clone();
        let mut kv = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            let y = rms_norm(&x, &layer.attention_norm, epsilon)?;
            let mut q = layer.query.forward(&y, noise.as_deref_mut())?;
            let mut k = layer.key.forward(&y, noise.as_deref_mut())?;
            let v = layer.value.forward(&y, noise.as_deref_mut())?;
            if let Some((gain_q, gain_k)) = &layer.head_norms {
                q = rms_norm(&q, gain_q, epsilon)?;
                k = rms_norm(&k, gain_k, epsilon)?;
            }
            let (q, k) = (turn.apply(&q)?, turn.apply(&k)?);
            let mixed = match past {
                Some(p) => {
                    let (pk, pv) = &p.kv.0[i];
                    let past = (pk, pv, p.ranges);
                    continued_attention((&q, &k, &v), past, segments, heads)?
                }
                None => grouped_attention((&q, &k, &v), segments, heads, 0.0, None)?,
            };
            kv.push((k.detach(), v.detach()));
            x = (x + layer.out.forward(&mixed, noise.as_deref_mut())?)?;
            let y = rms_norm(&x, &layer.norm, epsilon)?;
            let gate = candle_nn::ops::silu(&layer.gate.forward(&y, noise.as_deref_mut())?)?;
            let y = (gate * layer.up.forward(&y, noise.as_deref_mut())?)?;
            x = (x + layer.down.forward(&y, noise.as_deref_mut())?)?;
        }
        Ok((rms_norm(&x, &self.norm, epsilon)?, Kv(kv)))
    }

    /// Scores of all tokens. The head is a large part of a small model: give it only the rows whose
    /// next token matters.
    ///
    /// # Shapes
    /// `hidden` `[n, D]`; the result is `[n, V]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let head = self.head.as_ref().unwrap_or(&self.table);
        product(&hidden.contiguous()?, head, self.frozen)
    }
}
