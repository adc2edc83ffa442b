//! The layers of a network on any vector unit.

/// Sums of a fading past, 64 values at a time, whose sums stay in registers from row to row; see
/// [`linear`] for what is in scope.
macro_rules! fade {
    ($features:literal) => {
        /// For each row in turn: `sums · keep + weight · row`.
        ///
        /// # Safety
        /// The CPU has the features; `xs.len() == weights.len() * sums.len()`.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn fade(sums: &mut [f32], keep: f32, weights: &[f32], xs: &[f32]) {
            let (width, k) = (sums.len(), splat(keep));
            let wide = width / 64 * 64;
            for at in (0..wide).step_by(64) {
                // SAFETY: at + 8 i + 8 ≤ wide for i below 8, in this and in the closures below.
                let sum = |i: usize| unsafe { eight_f32(sums.as_ptr().add(at + 8 * i)) };
                let (mut a, mut b, mut c, mut d) = (sum(0), sum(1), sum(2), sum(3));
                let (mut e, mut f, mut g, mut h) = (sum(4), sum(5), sum(6), sum(7));
                for (r, &weight) in weights.iter().enumerate() {
                    let w = splat(weight);
                    let next = |sum: Eight, i: usize| {
                        // SAFETY: and r < weights.len().
                        let x = unsafe { eight_f32(xs.as_ptr().add(r * width + at + 8 * i)) };
                        plus(times(sum, k), times(w, x))
                    };
                    (a, b, c, d) = (next(a, 0), next(b, 1), next(c, 2), next(d, 3));
                    (e, f, g, h) = (next(e, 4), next(f, 5), next(g, 6), next(h, 7));
                }
                for (i, sum) in [a, b, c, d, e, f, g, h].into_iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { store(sums.as_mut_ptr().add(at + 8 * i), sum) };
                }
            }
            scalar::fade_from(wide, sums, keep, weights, xs);
        }
    };
}

/// A layer with lanes for outputs, so that no sum crosses lanes and no order of additions has to be
/// kept but that of the inputs.
///
/// The vector unit is given by what is in scope: `Eight`, eight lanes of f32, with `zero`, `splat`,
/// `fused(sum, x, w)`, `times`, `plus`, `positive`, `eight_f32` and `store`, and `$load`, which reads
/// and widens eight weights, in units of `$unit`.
macro_rules! linear {
    ($(#[$attribute:meta])* $name:ident, $weight:ty, $features:literal, $load:ident, $unit:expr) => {
        $(#[$attribute])*
        ///
        /// # Safety
        /// The CPU has the features; `xs.len() / inputs == out.len() / outputs`, without remainders
        /// and not zero.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(xs: &[f32], layer: Layer<'_, $weight>, out: &mut [f32]) {
            let Layer { weights, inputs, stride, outputs, scales, bias, relu } = layer;
            let batch = out.len() / outputs;
            let (wide, many) = (outputs / 16 * 16, batch / 6 * 6);
            // SAFETY: i < inputs and o + 8 ≤ outputs, so this ends within the columns.
            let load = |i: usize, o: usize| unsafe { $load(weights.as_ptr().add(i * stride + o)) };
            // SAFETY: r < batch and i < inputs.
            let input = |r: usize, i: usize| unsafe { splat(*xs.as_ptr().add(r * inputs + i)) };
            let to = out.as_mut_ptr();
            let finish = |o: usize, [r, n]: [usize; 2], sums: &[Eight]| {
                for (k, &sum) in sums.iter().enumerate() {
                    let (row, at) = (r + k / n, o + 8 * (k % n));
                    let mut y = if $unit == 1.0 { sum } else { times(sum, splat($unit)) };
                    if !scales.is_empty() {
                        // SAFETY: at + 8 ≤ outputs, the number of scales.
                        y = times(y, unsafe { eight_f32(scales.as_ptr().add(at)) });
                    }
                    if !bias.is_empty() {
                        // SAFETY: likewise.
                        y = plus(y, unsafe { eight_f32(bias.as_ptr().add(at)) });
                    }
                    if relu {
                        y = positive(y);
                    }
                    // SAFETY: row < batch and at + 8 ≤ outputs.
                    unsafe { store(to.add(row * outputs + at), y) };
                }
            };
            // Sums that have names stay in registers whatever the compiler's mood.
            for r in (0..many).step_by(6) {
                for o in (0..wide).step_by(16) {
                    let (mut a0, mut a1, mut b0, mut b1) = (zero(), zero(), zero(), zero());
                    let (mut c0, mut c1, mut d0, mut d1) = (zero(), zero(), zero(), zero());
                    let (mut e0, mut e1, mut f0, mut f1) = (zero(), zero(), zero(), zero());
                    for i in 0..inputs {
                        let (w0, w1) = (load(i, o), load(i, o + 8));
                        let x = input(r, i);
                        (a0, a1) = (fused(a0, x, w0), fused(a1, x, w1));
                        let x = input(r + 1, i);
                        (b0, b1) = (fused(b0, x, w0), fused(b1, x, w1));
                        let x = input(r + 2, i);
                        (c0, c1) = (fused(c0, x, w0), fused(c1, x, w1));
                        let x = input(r + 3, i);
                        (d0, d1) = (fused(d0, x, w0), fused(d1, x, w1));
                        let x = input(r + 4, i);
                        (e0, e1) = (fused(e0, x, w0), fused(e1, x, w1));
                        let x = input(r + 5, i);
                        (f0, f1) = (fused(f0, x, w0), fused(f1, x, w1));
                    }
                    finish(o, [r, 2], &[a0, a1, b0, b1, c0, c1, d0, d1, e0, e1, f0, f1]);
                }
            }
            for r in many..batch {
                let blocks = wide / 64 * 64;
                for o in (0..blocks).step_by(64) {
                    let (mut a, mut b, mut c, mut d) = (zero(), zero(), zero(), zero());
                    let (mut e, mut f, mut g, mut h) = (zero(), zero(), zero(), zero());
                    for i in 0..inputs {
                        let x = input(r, i);
                        a = fused(a, x, load(i, o));
                        b = fused(b, x, load(i, o + 8));
                        c = fused(c, x, load(i, o + 16));
                        d = fused(d, x, load(i, o + 24));
                        e = fused(e, x, load(i, o + 32));
                        f = fused(f, x, load(i, o + 40));
                        g = fused(g, x, load(i, o + 48));
                        h = fused(h, x, load(i, o + 56));
                    }
                    finish(o, [r, 8], &[a, b, c, d, e, f, g, h]);
                }
                for o in (blocks..wide).step_by(16) {
                    let (mut a, mut b) = (zero(), zero());
                    for i in 0..inputs {
                        let x = input(r, i);
                        (a, b) = (fused(a, x, load(i, o)), fused(b, x, load(i, o + 8)));
                    }
                    finish(o, [r, 2], &[a, b]);
                }
            }
            scalar::$name(xs, layer, wide..outputs, out);
        }
    };
}
