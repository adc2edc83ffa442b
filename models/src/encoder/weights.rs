//! Tensors of a model folder, by name and checked shape.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Longest configuration file, in bytes.
const MAX_CONFIG: u64 = 64 << 20;

/// The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.
pub(crate) struct Weights {
    path: PathBuf,
    tensors: HashMap<String, Tensor>,
    /// Put before every name, where the file has it.
    prefix: String,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Weights {
    pub(crate) fn open(folder: &Path, dev: &Device) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        let files: Vec<PathBuf> = if single.is_file() {
            vec![single.clone()]
        } else if index.is_file() {
            let shards: BTreeSet<String> =
                json::<Index>(&index)?.weight_map.into_values().collect();
            if let Some(bad) = shards.iter().find(|s| s.contains(['/', '\\'])) {
                return Err(Error::encoder(
                    &index,
                    format!("shard {bad:?} is not a plain file name"),
                ));
            }
            shards.iter().map(|s| folder.join(s)).collect()
        } else {
            return Err(Error::encoder(
                folder,
                "there is neither model.safetensors nor model.safetensors.index.json; other formats \
                 must be converted first",
            ));
        };
        let mut tensors = HashMap::new();
        for file in files {
            // Positions are stored as integers by some exporters; they are not weights.
            let part = candle_core::safetensors::load(&file, dev).map_err(|e| {
                Error::encoder(&file, format!("not a usable safetensors file ({e})"))
            })?;
            tensors.extend(part);
        }
        Ok(Self::new(single, tensors))
    }

    pub(crate) fn new(path: PathBuf, tensors: HashMap<String, Tensor>) -> Self {
        Self {
            path,
            tensors,
            prefix: String::new(),
        }
    }

    /// Chooses the first prefix under which `name` exists: exporters differ in the outermost module.
    pub(crate) fn choose_prefix(&mut self, prefixes: &[&str], name: &str) {
        if let Some(p) = prefixes
            .iter()
            .find(|p| self.tensors.contains_key(&format!("{p}{name}")))
        {
            self.prefix = (*p).to_owned();
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&format!("{}{name}", self.prefix))
    }

    /// A tensor as `f32`.
    ///
    /// # Errors
    ///
    /// [`Error::Encoder`] naming the tensor, if it is missing, of another shape or of integers.
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let name = format!("{}{name}", self.prefix);
        let tensor = self.tensors.get(&name).ok_or_else(|| {
            Error::encoder(
                &self.path,
                format!("tensor {name:?} of shape {shape:?} is missing; config.json and the weights must be of one model"),
            )
        })?;
        if tensor.dims() != shape {
            return Err(Error::encoder(
                &self.path,
                format!(
                    "tensor {name:?} has shape {:?}, config.json asks for {shape:?}",
                    tensor.dims()
                ),
            ));
        }
        match tensor.dtype() {
            DType::F32 | DType::F16 | DType::BF16 | DType::F64 => {
                Ok(tensor.to_dtype(DType::F32)?.contiguous()?)
            }
            other => Err(Error::encoder(
                &self.path,
                format!("tensor {name:?} is {other:?}; floating-point weights are needed"),
            )),
        }
    }
}

/// Reads a JSON file of a model folder.
pub(crate) fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let length = std::fs::metadata(path)
        .map_err(|e| Error::io(path, e))?
        .len();
    if length > MAX_CONFIG {
        return Err(Error::encoder(path, "unreasonably long"));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::encoder(path, e.to_string()))
}
