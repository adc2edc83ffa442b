//! What tests compare with figures that were computed independently.

use candle_core::Tensor;

use crate::error::Result;

/// Asserts that the elements, in order, are within 1e-5 of the oracle's.
pub(crate) fn close(got: &Tensor, want: &[f64]) -> Result<()> {
    let got = got.flatten_all()?.to_vec1::<f32>()?;
    assert_eq!(got.len(), want.len(), "{got:?}");
    for (g, w) in got.iter().zip(want) {
        assert!((f64::from(*g) - w).abs() < 1e-5, "{got:?} {want:?}");
    }
    Ok(())
}
