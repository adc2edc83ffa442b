//! 4 bytes a value: the reference scheme. Encoding is the identity, the error is 0.

use crate::kernel;

/// Inner product of `query` and a stored row of the same length, with the active kernel.
///
/// # Panics
/// If the lengths differ.
pub fn score(query: &[f32], row: &[f32]) -> f32 {
    let mut out = [0.0];
    kernel::active().dot_f32(query, row, &mut out);
    out[0]
}
