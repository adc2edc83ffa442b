//! Pictures from files: JPEG, PNG and WebP (the first frame) to 8-bit sRGB values.
//!
//! A file is turned the way its EXIF orientation asks, grey becomes three equal channels, 16-bit
//! channels are rounded to 8, and what is transparent lies on white, as in a shop; a colour
//! profile is ignored. Files come from anywhere: their length, their sides and their decoded size
//! are bounded before anything is allocated for them.

use std::io::{Cursor, Read};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

/// Longest file, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// Longest side, in pixels.
const MAX_SIDE: u32 = 16_384;

/// Most bytes of a decoded picture: 64 megapixels of RGBA.
const MAX_DECODED: u64 = 256 << 20;

/// Why a file gives no picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// The operating system refused.
    #[error("cannot be read ({0})")]
    Io(#[from] std::io::Error),
    /// Beyond what is read.
    #[error("the file is longer than {MAX_BYTES} bytes")]
    Long,
    /// Not one of the formats.
    #[error("neither JPEG nor PNG nor WebP")]
    Format,
    /// Beyond what is decoded, whatever the file's length.
    #[error(
        "{width} x {height} pixels are too many: sides up to {MAX_SIDE} and {MAX_DECODED} bytes decoded are read"
    )]
    Large {
        /// As the file declares.
        width: u32,
        /// As the file declares.
        height: u32,
    },
    /// The format's rules are broken, or the file ends too early.
    #[error("damaged ({0})")]
    Damaged(String),
}

/// A picture in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] tells why it is none.
    pub fn open(path: &Path) -> Result<Self, Unreadable> {
        Self::decode(&bytes(path)?)
    }

    /// Decodes the bytes of a file; the format is told by its first ones, not by a name.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] tells why they are no picture.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut limits = Limits::no_limits();
        limits.max_image_width = Some(MAX_SIDE);
        limits.max_image_height = Some(MAX_SIDE);
        limits.max_alloc = Some(MAX_DECODED);
        let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
        let format = reader.format().ok_or(Unreadable::Format)?;
        // Sides are compared below, where they can be told.
        reader.no_limits();
        let mut decoder = reader.into_decoder().map_err(refusal)?;
        let (width, height) = decoder.dimensions();
        if width > MAX_SIDE || height > MAX_SIDE || decoder.total_bytes() > MAX_DECODED {
            return Err(Unreadable::Large { width, height });
        }
        if width == 0 || height == 0 {
            return Err(Unreadable::Damaged("no pixels".to_owned()));
        }
        decoder.set_limits(limits).map_err(refusal)?;
        // The decoder of JPEG fills in what a cut file lacks.
        if format == ImageFormat::Jpeg && !jpeg_ends(bytes) {
            return Err(Unreadable::Damaged("the end is missing".to_owned()));
        }
        let orientation = decoder.orientation().map_err(refusal)?;
        let mut picture = DynamicImage::from_decoder(decoder).map_err(refusal)?;
        picture.apply_orientation(orientation);
        Ok(Self::from(picture))
    }

    /// A picture of given values: rows of pixels of red, green, blue.
    ///
    /// # Panics
    ///
    /// If the number of values is not 3 `width` `height`, or zero.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Self {
        assert!(width > 0 && height > 0 && rgb.len() == 3 * width * height);
        Self { width, height, rgb }
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Rows of pixels of red, green, blue.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
}

impl From<DynamicImage> for Picture {
    fn from(picture: DynamicImage) -> Self {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let rgb = if picture.color().has_alpha() {
            let over_white = |p: &image::Rgba<u8>| {
                let [r, g, b, alpha] = p.0.map(u32::from);
                [r, g, b].map(|c| ((c * alpha + 255 * (255 - alpha) + 127) / 255) as u8)
            };
            picture.into_rgba8().pixels().flat_map(over_white).collect()
        } else {
            picture.into_rgb8().into_raw()
        };
        Self::new(width, height, rgb)
    }
}

/// The bytes of a file that is not too long.
pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>, Unreadable> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Unreadable::Long);
    }
    Ok(bytes)
}

/// Whether a JPEG's segments and scans go on to its end marker.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[first, marker]) = bytes.get(at..at + 2) {
        match (first, marker) {
            (0xff, 0xd9) => return true,
            // Fill, stuffed and restart bytes, and what stands between markers.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, 0xff) | (0..=0xfe, _) => at += 1,
            // A segment, whose length counts itself.
            (0xff, _) => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => at += 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
        }
    }
    false
}

fn refusal(error: ImageError) -> Unreadable {
    match error {
        ImageError::IoError(e) => Unreadable::Damaged(e.to_string()),
        ImageError::Unsupported(_) => Unreadable::Format,
        other => Unreadable::Damaged(other.to_string()),
    }
}
