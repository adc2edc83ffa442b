//! What each item's vector rests on: one figure per item and modality for the item table.

use tercet_models::data::Dataset;
use tercet_models::student::Student;

use crate::error::Result;
use crate::verify::to_vec;

/// Shares of the modalities in 255ths, row-major `[N, M]`.
///
/// The fusion tower runs again as if every item lacked modality m; the distance by which an
/// item's vector `items` `[N, D]` moves, divided by the sum of the distances over all
/// modalities, is its share. A modality that an item lacks has 0, and so have all of an item
/// that no single modality moves.
///
/// # Errors
/// Data without the student's features.
pub(crate) fn modality_shares(
    student: &Student,
    data: &Dataset,
    items: &candle_core::Tensor,
) -> Result<Vec<u8>> {
    let features = student.features(data)?;
    let (n, m) = (data.num_items(), student.shape.modalities.len());
    let whole = to_vec(items)?;
    let dim = student.shape.dim;
    let mut moved = vec![0f32; n * m];
    for j in 0..m {
        let mut masks = features.present().to_vec();
        masks[j] = masks[j].zeros_like()?;
        let without = to_vec(&student.item_vectors(&features, &masks)?)?;
        let pairs = whole.chunks_exact(dim).zip(without.chunks_exact(dim));
        for (i, (a, b)) in pairs.enumerate() {
            let square: f32 = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum();
            moved[i * m + j] = square.sqrt();
        }
    }
    let mut shares = Vec::with_capacity(n * m);
    for distances in moved.chunks(m.max(1)) {
        let sum: f32 = distances.iter().sum();
        let scale = if sum > 0.0 { 255.0 / sum } else { 0.0 };
        // Casts saturate, and NaN becomes 0.
        shares.extend(distances.iter().map(|d| (d * scale).round() as u8));
    }
    Ok(shares)
}
