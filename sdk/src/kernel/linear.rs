//! The layers of a network on any vector unit.
//!
//! The vector unit is given by what is in scope where a macro is called: `Floats`, `LANES` lanes of f32,
//! with `zero`, `splat`, `fused(sum, x, w)`, `times`, `plus`, `positive`, `floats_at` and `store`. Sums
//! that have names stay in registers whatever the compiler's mood.

/// As many vectors of sums as there are names, from `first` on, over all rows.
macro_rules! faded {
    ($sums:ident, $keep:ident, $weights:ident, $xs:ident, $first:ident;
     $($i:literal $a:ident),*) => {{
        let width = $sums.len();
        // SAFETY: the caller keeps first + LANES · (i + 1) ≤ width, here and below.
        $(let mut $a = unsafe { floats_at($sums.as_ptr().add($first + LANES * $i)) };)*
        for (r, &weight) in $weights.iter().enumerate() {
            let w = splat(weight);
            let next = |sum: Floats, i: usize| {
                // SAFETY: and r < weights.len().
                let x = unsafe { floats_at($xs.as_ptr().add(r * width + $first + LANES * i)) };
                fused(times(w, x), sum, $keep)
            };
            $($a = next($a, $i);)*
        }
        // SAFETY: as above.
        $(unsafe { store($sums.as_mut_ptr().add($first + LANES * $i), $a) };)*
    }};
}

/// Sums of a fading past, whose sums stay in registers from row to row.
macro_rules! fade {
    ($features:literal) => {
        /// For each row in turn: `sums · keep + weight · row`.
        ///
        /// # Safety
        /// The CPU has the features; `xs.len() == weights.len() * sums.len()`.
        #[target_feature(enable = $features)]
        pub(in crate::kernel) unsafe fn fade(
            sums: &mut [f32],
            keep: f32,
            weights: &[f32],
            xs: &[f32],
        ) {
            let (width, k) = (sums.len(), splat(keep));
            let mut first = 0;
            while width - first >= 8 * LANES {
                faded!(sums, k, weights, xs, first; 0 a, 1 b, 2 c, 3 d, 4 e, 5 f, 6 g, 7 h);
                first += 8 * LANES;
            }
            while width - first >= 4 * LANES {
                faded!(sums, k, weights, xs, first; 0 a, 1 b, 2 c, 3 d);
                first += 4 * LANES;
            }
            scalar::fade_from(first, sums, keep, weights, xs);
        }
    };
}

/// As many vectors of outputs of row `r` as there are names, from `o` on.
macro_rules! row {
    ($r:ident, $o:ident, $inputs:ident, $load:ident, $input:ident, $finish:ident;
     $($k:literal $a:ident),*) => {{
        $(let mut $a = zero();)*
        for i in 0..$inputs {
            let x = $input($r, i);
            $($a = fused($a, x, $load(i, $o + LANES * $k));)*
        }
        let sums = [$($a),*];
        $finish($o, [$r, sums.len()], &sums);
    }};
}

/// A layer with lanes for outputs, so that no sum crosses lanes and no order of additions has to be
/// kept but that of the inputs. `$load` reads and widens `LANES` weights, in units of `$unit`.
macro_rules! linear {
    ($(#[$attribute:meta])* $name:ident, $weight:ty, $features:literal, $load:ident, $unit:expr) => {
        $(#[$attribute])*
        ///
        /// # Safety
        /// The CPU has the features; `xs.len() / inputs == out.len() / outputs`, without remainders
        /// and not zero.
        #[target_feature(enable = $features)]
        pub(in crate::kernel) unsafe fn $name(
            xs: &[f32],
            layer: Layer<'_, $weight>,
            out: &mut [f32],
        ) {
            let Layer { weights, inputs, stride, outputs, scales, bias, relu } = layer;
            let batch = out.len() / outputs;
            let (wide, many) = (outputs / (2 * LANES) * (2 * LANES), batch / 6 * 6);
            // SAFETY: i < inputs and o + LANES ≤ outputs, so this ends within the columns.
            let load = |i: usize, o: usize| unsafe { $load(weights.as_ptr().add(i * stride + o)) };
            // SAFETY: r < batch and i < inputs.
            let input = |r: usize, i: usize| unsafe { splat(*xs.as_ptr().add(r * inputs + i)) };
            let to = out.as_mut_ptr();
            let finish = |o: usize, [r, n]: [usize; 2], sums: &[Floats]| {
                for (k, &sum) in sums.iter().enumerate() {
                    let (row, at) = (r + k / n, o + LANES * (k % n));
                    let mut y = if $unit == 1.0 { sum } else { times(sum, splat($unit)) };
                    if !scales.is_empty() {
                        // SAFETY: at + LANES ≤ outputs, the number of scales.
                        y = times(y, unsafe { floats_at(scales.as_ptr().add(at)) });
                    }
                    if !bias.is_empty() {
                        // SAFETY: likewise.
                        y = plus(y, unsafe { floats_at(bias.as_ptr().add(at)) });
                    }
                    if relu {
                        y = positive(y);
                    }
                    // SAFETY: row < batch and at + LANES ≤ outputs.
                    unsafe { store(to.add(row * outputs + at), y) };
                }
            };
            for r in (0..many).step_by(6) {
                for o in (0..wide).step_by(2 * LANES) {
                    let (mut a0, mut a1, mut b0, mut b1) = (zero(), zero(), zero(), zero());
                    let (mut c0, mut c1, mut d0, mut d1) = (zero(), zero(), zero(), zero());
                    let (mut e0, mut e1, mut f0, mut f1) = (zero(), zero(), zero(), zero());
                    for i in 0..inputs {
                        let (w0, w1) = (load(i, o), load(i, o + LANES));
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
                let mut o = 0;
                while wide - o >= 8 * LANES {
                    row!(r, o, inputs, load, input, finish; 0 a, 1 b, 2 c, 3 d, 4 e, 5 f, 6 g, 7 h);
                    o += 8 * LANES;
                }
                while wide - o >= 4 * LANES {
                    row!(r, o, inputs, load, input, finish; 0 a, 1 b, 2 c, 3 d);
                    o += 4 * LANES;
                }
                while o < wide {
                    row!(r, o, inputs, load, input, finish; 0 a, 1 b);
                    o += 2 * LANES;
                }
            }
            scalar::$name(xs, layer, wide..outputs, out);
        }
    };
}
