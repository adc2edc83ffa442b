//! Weights in a GGUF file, dequantised to f32, under the names of a model folder.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use serde_json::json;

use super::config::LlmConfig;
use crate::error::{Error, Result};

/// An open file.
pub(super) struct Gguf {
    path: PathBuf,
    file: BufReader<File>,
    content: Content,
    architecture: String,
    device: Device,
}

impl Gguf {
    pub(super) fn open(path: &Path, device: &Device) -> Result<Self> {
        let mut file = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
        let content = Content::read(&mut file)
            .map_err(|e| Error::encoder(path, format!("not a usable GGUF file ({e})")))?;
        let mut gguf = Self {
            path: path.to_path_buf(),
            file,
            content,
            architecture: String::new(),
            device: device.clone(),
        };
        gguf.architecture = match gguf.content.metadata.get("general.architecture") {
            Some(Value::String(s)) => s.clone(),
            _ => return Err(gguf.bad("general.architecture is missing")),
        };
        Ok(gguf)
    }

    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::encoder(&self.path, reason)
    }

    fn number(&self, key: &str) -> Option<f64> {
        match self.content.metadata.get(key)? {
            Value::U8(x) => Some(f64::from(*x)),
            Value::U16(x) => Some(f64::from(*x)),
            Value::U32(x) => Some(f64::from(*x)),
            Value::I32(x) => Some(f64::from(*x)),
            Value::U64(x) => Some(*x as f64),
            Value::I64(x) => Some(*x as f64),
            Value::F32(x) => Some(f64::from(*x)),
            Value::F64(x) => Some(*x),
            _ => None,
        }
    }

    /// The configuration that the metadata describes.
    pub(super) fn config(&self) -> Result<LlmConfig> {
        let key = |name: &str| format!("{}.{name}", self.architecture);
        let get = |name: &str| {
            self.number(&key(name))
                .ok_or_else(|| self.bad(format!("{} is missing", key(name))))
        };
        let rows = self
            .content
            .tensor_infos
            .get("token_embd.weight")
            .and_then(|t| t.shape.dims().first().copied())
            .ok_or_else(|| self.bad("tensor token_embd.weight is missing"))?;
        let heads = get("attention.head_count")?;
        let mut config = json!({
            "model_type": self.architecture,
            "vocab_size": rows,
            "hidden_size": get("embedding_length")? as u64,
            "intermediate_size": get("feed_forward_length")? as u64,
            "num_hidden_layers": get("block_count")? as u64,
            "num_attention_heads": heads as u64,
            "num_key_value_heads":
                self.number(&key("attention.head_count_kv")).unwrap_or(heads) as u64,
            "max_position_embeddings": get("context_length")? as u64,
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon")?,
            "rope_theta": self.number(&key("rope.freq_base")).unwrap_or(10_000.0),
            "tie_word_embeddings": !self.content.tensor_infos.contains_key("output.weight"),
            "attention_bias": self.architecture == "llama"
                && self.content.tensor_infos.contains_key("blk.0.attn_q.bias"),
        });
        if let Some(size) = self.number(&key("attention.key_length")) {
            config["head_dim"] = json!(size as u64);
        }
        if let Some(end) = self.number("tokenizer.ggml.eos_token_id") {
            config["eos_token_id"] = json!(end as u64);
        }
        serde_json::from_value(config).map_err(|e| self.bad(e.to_string()))
    }

    /// A tensor by its name in a model folder.
    ///
    /// Files of architecture `llama` hold the rows of queries and keys in the order of interleaved
    /// rotation (pairs of neighbours); they are put back into halves.
    pub(super) fn tensor(
        &mut self,
        name: &str,
        shape: &[usize],
        config: &LlmConfig,
    ) -> Result<Tensor> {
        let stored =
            stored_name(name).ok_or_else(|| self.bad(format!("no tensor for {name:?}")))?;
        let tensor = self
            .content
            .tensor(&mut self.file, &stored, &self.device)
            .and_then(|t| t.dequantize(&self.device))
            .map_err(|e| self.bad(format!("tensor {stored:?} cannot be read ({e})")))?;
        if tensor.dims() != shape {
            return Err(self.bad(format!(
                "tensor {stored:?} has shape {:?}, {shape:?} is needed",
                tensor.dims()
            )));
        }
        let heads = match name {
            n if n.contains("q_proj.") => config.num_attention_heads,
            n if n.contains("k_proj.") => config.key_heads(),
            _ => return Ok(tensor),
        };
        if self.architecture != "llama" {
            return Ok(tensor);
        }
        in_halves(&tensor, heads)
    }
}

/// Rows `(head, pair, side)` as `(head, side, pair)`.
fn in_halves(t: &Tensor, heads: usize) -> Result<Tensor> {
    let rows = t.dim(0)?;
    let columns = t.elem_count() / rows;
    let pairs = t.reshape((heads, rows / heads / 2, 2, columns))?;
    Ok(pairs.transpose(1, 2)?.contiguous()?.reshape(t.shape())?)
}

pub(super) fn stored_name(name: &str) -> Option<String> {
    Some(match name {
        "model.embed_tokens.weight" => "token_embd.weight".to_owned(),
        "model.norm.weight" => "output_norm.weight".to_owned(),
        "lm_head.weight" => "output.weight".to_owned(),
        _ => {
            let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
            let (part, kind) = part.rsplit_once('.')?;
            let part = match part {
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "self_attn.q_norm" => "attn_q_norm",
                "self_attn.k_norm" => "attn_k_norm",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" => "ffn_up",
                "mlp.down_proj" => "ffn_down",
                "input_layernorm" => "attn_norm",
                "post_attention_layernorm" => "ffn_norm",
                _ => return None,
            };
            format!("blk.{layer}.{part}.{kind}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_rows_are_translated() -> Result<()> {
        let name = |n: &str| stored_name(n).unwrap_or_default();
        assert_eq!(
            name("model.layers.11.mlp.down_proj.weight"),
            "blk.11.ffn_down.weight"
        );
        assert_eq!(
            name("model.layers.0.input_layernorm.weight"),
            "blk.0.attn_norm.weight"
        );
        assert!(stored_name("model.layers.0.unknown.weight").is_none());
        // Two heads of four rows: neighbours 0,1 and 2,3 become halves 0,2 and 1,3.
        let t = Tensor::arange(0f32, 8.0, &Device::Cpu)?.reshape((8, 1))?;
        let want = [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
        assert_eq!(in_halves(&t, 2)?.flatten_all()?.to_vec1::<f32>()?, want);
        Ok(())
    }
}
