//! The frame of the small binary files a device writes: magic, version, length, payload, checksum.

use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Magic 8, version 4, length 8, CRC-32 4.
const BYTES: usize = 8 + 4 + 8 + 4;

/// Why bytes are not a frame.
pub(crate) enum Damage {
    /// Another version, the one given here.
    Version(u32),
    Broken(String),
}

/// `payload` in its frame; the checksum covers everything before it.
pub(crate) fn wrap(magic: &[u8; 8], version: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + BYTES);
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// Version, 1 to `newest`, and payload of at most `limit` bytes.
pub(crate) fn unwrap<'a>(
    magic: &[u8; 8],
    newest: u32,
    limit: usize,
    bytes: &'a [u8],
) -> Result<(u32, &'a [u8]), Damage> {
    let fail = |reason: &str| Damage::Broken(reason.to_string());
    let rest = bytes.strip_prefix(magic.as_slice()).ok_or_else(|| {
        let magic = String::from_utf8_lossy(magic);
        Damage::Broken(format!("it does not start with {magic}"))
    })?;
    let (version, rest) = rest
        .split_first_chunk::<4>()
        .ok_or_else(|| fail("it is truncated"))?;
    let version = u32::from_le_bytes(*version);
    if version == 0 || version > newest {
        return Err(Damage::Version(version));
    }
    let (length, rest) = rest
        .split_first_chunk::<8>()
        .ok_or_else(|| fail("it is truncated"))?;
    let length = u64::from_le_bytes(*length);
    if length > limit as u64 {
        return Err(fail("its length field exceeds the limit"));
    }
    let (payload, crc) = rest
        .split_last_chunk::<4>()
        .filter(|(payload, _)| payload.len() as u64 == length)
        .ok_or_else(|| fail("its length differs from its length field"))?;
    if crc32fast::hash(&bytes[..bytes.len() - 4]) != u32::from_le_bytes(*crc) {
        return Err(fail("its checksum is wrong"));
    }
    Ok((version, payload))
}

/// Reads a file that holds a frame, and at most one byte more than the longest one: enough for
/// [`unwrap`] to refuse it.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut bytes = Vec::new();
    file.take((limit + BYTES) as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io("read", path, e))?;
    Ok(bytes)
}
