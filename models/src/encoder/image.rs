//! Pictures to features: preprocessing and tower.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::efficientnet::{EfficientNet, LiteConfig};
use super::picture::{Picture, Unreadable};
use super::preprocess::Preprocess;
use super::vit::{Vit, VitConfig};
use super::weights::{Weights, json};
use super::{Hidden, Output};
use crate::error::{Error, Result};

/// What can be read, for refusals.
const KNOWN: &str = "model_type clip, clip_vision_model and vit, and architecture \
                     tf_efficientnet_lite0 to tf_efficientnet_lite4";

/// timm writes `architecture` where others write `model_type`.
#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    model_type: String,
    #[serde(default)]
    architecture: String,
    /// Classes of the exporter; for refusals.
    #[serde(default)]
    architectures: Vec<String>,
}

enum Tower {
    EfficientNet(EfficientNet),
    Vit(Vit),
}

/// A tower for pictures with its preprocessing.
pub struct ImageEncoder {
    tower: Tower,
    preprocess: Preprocess,
    device: Device,
}

/// A picture as a tower reads it.
#[derive(Debug, Clone)]
pub struct Pixels(Vec<f32>);

impl ImageEncoder {
    /// Opens a model folder; see the [module](super) for its files.
    ///
    /// # Errors
    ///
    /// [`Error::Encoder`] or [`Error::Io`] for a file that is missing or malformed, an unknown
    /// model, preprocessing that is not known here, or a tensor that is missing or of another shape
    /// than `config.json` says.
    pub fn open(folder: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join("config.json");
        let kind: Kind = json(&path)?;
        let lite = LiteConfig::named(&kind.architecture);
        let (tower, preprocess) = match (kind.model_type.as_str(), lite) {
            ("clip" | "clip_vision_model" | "vit", _) => {
                let config = VitConfig::read(&path)?;
                let preprocess = config.preprocess().read(folder)?;
                let tower = Vit::open(config, Weights::open(folder, device)?, &path)?;
                (Tower::Vit(tower), preprocess)
            }
            ("", Some(config)) => {
                let preprocess = config.preprocess(&path)?.read(folder)?;
                let tower = EfficientNet::open(&config, &Weights::open(folder, device)?)?;
                (Tower::EfficientNet(tower), preprocess)
            }
            _ => {
                let mut names = vec![kind.model_type, kind.architecture];
                names.extend(kind.architectures);
                names.retain(|n| !n.is_empty());
                let names = names.join(", ");
                return Err(Error::encoder(
                    &path,
                    format!("{names:?} is no image encoder known here; {KNOWN} are"),
                ));
            }
        };
        Ok(Self {
            tower,
            preprocess,
            device: device.clone(),
        })
    }

    /// D.
    pub fn dim(&self) -> usize {
        match &self.tower {
            Tower::EfficientNet(t) => t.dim(),
            Tower::Vit(t) => t.dim(),
        }
    }

    /// How pictures become the tower's input.
    pub fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }

    /// Reads and fits a file.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] tells why it is no picture.
    pub fn prepare(&self, file: &Path) -> std::result::Result<Pixels, Unreadable> {
        Ok(self.fit(&Picture::open(file)?))
    }

    /// Fits a picture.
    pub fn fit(&self, picture: &Picture) -> Pixels {
        Pixels(self.preprocess.apply(picture))
    }

    /// Features of a batch.
    ///
    /// # Shapes
    ///
    /// `[B, D]`, or `[B, n, D]` with [`Output::Tokens`].
    ///
    /// # Errors
    ///
    /// [`Error::Candle`] if the device refuses.
    pub fn encode(&self, pictures: &[Pixels], output: Output) -> Result<Tensor> {
        let size = self.preprocess.size;
        let values: Vec<f32> = pictures.iter().flat_map(|p| &p.0).copied().collect();
        let x = Tensor::from_vec(values, (pictures.len(), size, size, 3), &self.device)?;
        match output {
            Output::Pooled => match &self.tower {
                Tower::EfficientNet(t) => t.pooled(&x),
                Tower::Vit(t) => t.pooled(&x),
            },
            Output::Tokens(n) => {
                let states = match &self.tower {
                    Tower::EfficientNet(t) => t.tokens(&x)?,
                    Tower::Vit(t) => t.tokens(&x)?,
                };
                let (b, t, _) = states.dims3()?;
                let mask = Tensor::ones((b, t, 1), states.dtype(), &self.device)?;
                Hidden { states, mask }.tokens(n)
            }
        }
    }
}
