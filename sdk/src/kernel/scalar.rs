//! Plain loops: run everywhere, and the oracle of the other kernels.

pub(super) fn dot_i8(query: &[i8], rows: &[i8], out: &mut [i32]) {
    for (r, o) in out.iter_mut().enumerate() {
        let row = &rows[r * query.len()..(r + 1) * query.len()];
        // At most 65536 products of at most 127 · 128: below 2³¹.
        *o = query
            .iter()
            .zip(row)
            .map(|(&a, &b)| i32::from(a) * i32::from(b))
            .sum();
    }
}

pub(super) fn dot_f32(query: &[f32], rows: &[f32], out: &mut [f32]) {
    for (r, o) in out.iter_mut().enumerate() {
        let row = &rows[r * query.len()..(r + 1) * query.len()];
        *o = query.iter().zip(row).map(|(a, b)| a * b).sum();
    }
}

pub(super) fn dot_f16(query: &[f32], rows: &[u16], out: &mut [f32]) {
    for (r, o) in out.iter_mut().enumerate() {
        let row = &rows[r * query.len()..(r + 1) * query.len()];
        *o = query
            .iter()
            .zip(row)
            .map(|(a, &b)| a * half::f16::from_bits(b).to_f32())
            .sum();
    }
}
