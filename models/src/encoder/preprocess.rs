//! From a picture of any size to the square that a tower reads.
//!
//! Resampling is Pillow's, which the published preprocessing of every tower here goes through:
//! a separable filter that widens where the picture shrinks, columns before rows, each pass in
//! fixed point with 22 fractional bits and rounded to 8 bits. Results are equal to Pillow's to the
//! last bit. Only the pixels of the square are computed, so that a long thin picture costs no more
//! than another.

use std::path::Path;

use serde::Deserialize;

use super::picture::Picture;
use super::weights::json;
use crate::error::{Error, Result};

/// Longest side that a picture is resized to.
const MAX_RESIZED: usize = 4096;

/// How a picture is fitted, resampled and scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// Side of the square, in pixels.
    pub size: usize,
    /// What is resized to `resized` before the square is cut from the middle.
    pub fit: Fit,
    /// Side after resizing; at least `size`.
    pub resized: usize,
    /// Filter of the resizing.
    pub filter: Filter,
    /// What a channel's value in 0..=255 is multiplied by; mean and deviation follow.
    pub scale: f64,
    /// Subtracted from each channel.
    pub mean: [f64; 3],
    /// Each channel is divided by it.
    pub std: [f64; 3],
}

/// Which sides become [`Preprocess::resized`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The shorter one; the shape is kept.
    Shortest,
    /// Both.
    Stretch,
}

/// A resampling filter, by its number in Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub enum Filter {
    /// Triangle.
    Bilinear,
    /// Keys' cubic with a = -0.5.
    Bicubic,
}

impl TryFrom<u32> for Filter {
    type Error = String;

    fn try_from(code: u32) -> std::result::Result<Self, String> {
        match code {
            2 => Ok(Self::Bilinear),
            3 => Ok(Self::Bicubic),
            other => Err(format!(
                "resample {other} is not known here; 2 (bilinear) and 3 (bicubic) are"
            )),
        }
    }
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Self::Bicubic => 0.0,
        }
    }
}

/// A length in `preprocessor_config.json`, in one of the forms that were ever written.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Size {
    Number(usize),
    Shortest { shortest_edge: usize },
    Both { height: usize, width: usize },
}

/// What of `preprocessor_config.json` matters.
#[derive(Debug, Default, Deserialize)]
struct File {
    do_resize: Option<bool>,
    size: Option<Size>,
    resample: Option<Filter>,
    do_center_crop: Option<bool>,
    crop_size: Option<Size>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
}

impl Preprocess {
    /// What `preprocessor_config.json` says; `self` holds for what it leaves out, or if there is no
    /// such file.
    ///
    /// # Errors
    ///
    /// [`Error::Encoder`] for a step that is not known here, or a square of another side than
    /// `self.size`.
    pub(super) fn read(self, folder: &Path) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        if !path.is_file() {
            return self.check(&path);
        }
        let file: File = json(&path)?;
        let bad = |reason: String| Err(Error::encoder(&path, reason));
        if file.do_resize == Some(false) {
            return bad("do_resize is false, but a tower reads one size only".to_owned());
        }
        let mut it = self.clone();
        match file.size {
            None => {}
            // As a number it has always meant what the model's own default means.
            Some(Size::Number(n)) => it.resized = n,
            Some(Size::Shortest { shortest_edge }) => {
                (it.fit, it.resized) = (Fit::Shortest, shortest_edge);
            }
            Some(Size::Both { height, width }) if height == width => {
                (it.fit, it.resized) = (Fit::Stretch, height);
            }
            Some(Size::Both { height, width }) => {
                return bad(format!(
                    "size {height} x {width} is no square, which towers here read"
                ));
            }
        }
        let square = match (file.do_center_crop, file.crop_size) {
            (Some(false), _) if it.fit == Fit::Shortest => {
                return bad("without a centre crop a picture does not become a square".to_owned());
            }
            (Some(false), _) => it.resized,
            (_, Some(Size::Number(n))) => n,
            (_, Some(Size::Both { height, width })) if height == width => height,
            (_, Some(other)) => return bad(format!("crop_size {other:?} is no square")),
            // Files without a word on cropping belong to models that stretch.
            (Some(true), None) => it.size,
            (None, None) => it.resized.min(it.size),
        };
        if square != self.size {
            return bad(format!(
                "pictures become {square} x {square}, but config.json asks for {0} x {0}",
                self.size
            ));
        }
        it.filter = file.resample.unwrap_or(it.filter);
        it.scale = file.rescale_factor.unwrap_or(it.scale);
        if file.do_rescale == Some(false) {
            it.scale = 1.0;
        }
        it.mean = file.image_mean.unwrap_or(it.mean);
        it.std = file.image_std.unwrap_or(it.std);
        if file.do_normalize == Some(false) {
            (it.mean, it.std) = ([0.0; 3], [1.0; 3]);
        }
        it.check(&path)
    }

    pub(super) fn check(self, path: &Path) -> Result<Self> {
        if self.size == 0 || self.resized < self.size || self.resized > MAX_RESIZED {
            return Err(Error::encoder(
                path,
                format!(
                    "a square of {} cannot be cut from a picture resized to {} (at most {MAX_RESIZED})",
                    self.size, self.resized
                ),
            ));
        }
        let numbers = self.mean.iter().chain(&self.std).chain([&self.scale]);
        if !numbers.into_iter().all(|x| x.is_finite()) || self.std.contains(&0.0) {
            return Err(Error::encoder(path, "mean, std or scale is not usable"));
        }
        Ok(self)
    }

    /// The square's values in the order of the tower's input: `[size, size, 3]`.
    pub(super) fn apply(&self, picture: &Picture) -> Vec<f32> {
        let tables: Vec<[f32; 256]> = (0..3)
            .map(|c| {
                std::array::from_fn(|v| {
                    ((v as f64 * self.scale - self.mean[c]) / self.std[c]) as f32
                })
            })
            .collect();
        self.square(picture)
            .chunks_exact(3)
            .flat_map(|p| [0, 1, 2].map(|c| tables[c][usize::from(p[c])]))
            .collect()
    }

    /// The square as 8-bit values.
    pub(super) fn square(&self, picture: &Picture) -> Vec<u8> {
        let (w, h) = (picture.width(), picture.height());
        let (to_w, to_h) = match self.fit {
            Fit::Stretch => (self.resized, self.resized),
            // The longer side is rounded down, as the published programs do.
            Fit::Shortest if w <= h => (self.resized, self.resized * h / w),
            Fit::Shortest => (self.resized * w / h, self.resized),
        };
        let columns = self.taps(w, to_w);
        let rows = self.taps(h, to_h);
        // Only these rows of the picture are seen.
        let first = rows.iter().map(|t| t.first).min().unwrap_or(0);
        let last = rows.iter().map(|t| t.first + t.weights.len()).max();
        let seen = first..last.unwrap_or(0);
        let mut narrow = Vec::with_capacity(seen.len() * self.size * 3);
        for y in seen {
            let row = &picture.rgb()[y * w * 3..][..w * 3];
            for tap in &columns {
                narrow.extend(tap.weigh(|x| &row[x * 3..][..3]));
            }
        }
        let mut out = Vec::with_capacity(self.size * self.size * 3);
        for tap in &rows {
            for x in 0..self.size {
                out.extend(tap.weigh(|y| &narrow[((y - first) * self.size + x) * 3..][..3]));
            }
        }
        out
    }

    /// Filters of the middle `self.size` of `to` pixels that are made of `from`.
    fn taps(&self, from: usize, to: usize) -> Vec<Tap> {
        let scale = from as f64 / to as f64;
        let wide = scale.max(1.0);
        let support = self.filter.support() * wide;
        let skipped = (to - self.size) / 2;
        (skipped..skipped + self.size)
            .map(|at| {
                let centre = (at as f64 + 0.5) * scale;
                let first = (centre - support + 0.5).max(0.0) as usize;
                let end = ((centre + support + 0.5) as usize).min(from);
                let weights: Vec<f64> = (first..end)
                    .map(|x| self.filter.weight((x as f64 - centre + 0.5) / wide))
                    .collect();
                let sum: f64 = weights.iter().sum();
                let fixed = |w: f64| (w / sum * f64::from(ONE)).round() as i32;
                Tap {
                    first,
                    weights: weights.into_iter().map(fixed).collect(),
                }
            })
            .collect()
    }
}

/// 1 in fixed point.
const ONE: i32 = 1 << 22;

/// The weights of one output pixel.
struct Tap {
    /// Of the input pixels, the first one that counts.
    first: usize,
    weights: Vec<i32>,
}

impl Tap {
    /// The weighted sum of pixels, rounded. It fits `i32`: the weights' sizes add up to less than
    /// 1.5 in fixed point, and 1.5 · 255 · 2²² < 2³¹.
    fn weigh<'a>(&self, pixel: impl Fn(usize) -> &'a [u8]) -> [u8; 3] {
        let mut sum = [ONE / 2; 3];
        for (i, weight) in self.weights.iter().enumerate() {
            for (sum, value) in sum.iter_mut().zip(pixel(self.first + i)) {
                *sum += weight * i32::from(*value);
            }
        }
        sum.map(|s| (s >> 22).clamp(0, 255) as u8)
    }
}
