//! A layer whose weights and inputs are both int8: sums of integers, exact in any order.

/// Most inputs of such a layer.
pub(super) const CODED_INPUTS: usize = 256;

/// The weights of a layer in the order in which a kernel reads them: sixteen outputs at a time, and
/// of each of them a group of neighbouring inputs at a time.
pub struct Panels {
    pub(super) values: Vec<i8>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Inputs of a group: as many as the kernel multiplies and adds in a lane.
    pub(super) group: usize,
}

impl Panels {
    /// The weights `[inputs, outputs]` for a kernel with such groups; nothing if the shape has none
    /// on some kernel, so that every CPU computes the same way.
    pub(super) fn new(
        weights: &[i8],
        (inputs, outputs): (usize, usize),
        group: usize,
    ) -> Option<Self> {
        let fits = inputs <= CODED_INPUTS && inputs.is_multiple_of(4) && outputs.is_multiple_of(16);
        if !fits
            || inputs == 0
            || outputs == 0
            || inputs.checked_mul(outputs) != Some(weights.len())
        {
            return None;
        }
        let mut values = Vec::with_capacity(weights.len());
        for first in (0..outputs).step_by(16) {
            for rows in weights.chunks_exact(group * outputs) {
                for o in first..first + 16 {
                    values.extend(rows.iter().skip(o).step_by(outputs));
                }
            }
        }
        Some(Panels {
            values,
            inputs,
            outputs,
            group,
        })
    }
}

/// The sums of some rows for sixteen outputs. Sums that have names stay in registers whatever the
/// compiler's mood.
macro_rules! strip {
    ($groups:ident, $starts:ident, $load:ident, $input:ident, $finish:ident;
     $($k:literal $a:ident $b:ident),*) => {{
        $(let (mut $a, mut $b) = ($starts[$k], $starts[$k]);)*
        for g in 0..$groups {
            let [w0, w1] = $load(g);
            $(
                let x = $input($k, g);
                ($a, $b) = (products($a, w0, x), products($b, w1, x));
            )*
        }
        $($finish($k, [$a, $b]);)*
    }};
}

/// See [`Kernel::linear_coded`](super::Kernel::linear_coded). Lanes are outputs; a lane takes the
/// products of a group of inputs at once.
///
/// The vector unit is given by what is in scope: for floats what `linear.rs` lists, and for integers
/// `Sums`, `LANES` of i32, with `start` (what the sums for some inputs begin with), `floats`, `weights`
/// (of `GROUP` inputs for `LANES` outputs), `group` (the inputs, `Code` each, for all lanes) and
/// `products`.
macro_rules! coded {
    ($name:ident, $features:literal) => {
        /// A layer with int8 weights and inputs.
        ///
        /// # Safety
        /// The CPU has the features; the panels have groups of `GROUP`; their outputs are a multiple
        /// of 2 · `LANES`;
        /// `xs.len() / inputs == out.len() / outputs == steps.len()` without remainders, and
        /// `scales.len() == outputs`.
        #[target_feature(enable = $features)]
        pub(in crate::kernel) unsafe fn $name(
            xs: &[i8],
            steps: &[f32],
            panels: &Panels,
            scales: &[f32],
            out: &mut [f32],
        ) {
            let (inputs, outputs) = (panels.inputs, panels.outputs);
            let groups = inputs / GROUP;
            let mut wide = [[0 as Code; CODED_INPUTS]; 6];
            let blocks = xs.chunks(6 * inputs).zip(steps.chunks(6));
            for ((xs, steps), out) in blocks.zip(out.chunks_mut(6 * outputs)) {
                let mut starts = [start(&[]); 6];
                let rows = wide.iter_mut().zip(&mut starts).zip(xs.chunks_exact(inputs));
                for ((wide, from), xs) in rows {
                    wide.iter_mut().zip(xs).for_each(|(to, &x)| *to = Code::from(x));
                    *from = start(xs);
                }
                let from = wide.as_ptr().cast::<Code>();
                // SAFETY: k < 6 and (g + 1) · GROUP ≤ inputs ≤ CODED_INPUTS.
                let input = |k: usize, g: usize| unsafe { group(from.add(k * CODED_INPUTS + g * GROUP)) };
                for o in (0..outputs).step_by(2 * LANES) {
                    // The second half is in the same panel or is the next one.
                    let next = if LANES < 16 { LANES * GROUP } else { LANES * inputs };
                    // SAFETY: o + 2 · LANES ≤ outputs and g < groups, so this ends within the
                    // panels' inputs · outputs values.
                    let load = |g: usize| unsafe {
                        let at = panels.values.as_ptr().add(o * inputs + 16 * GROUP * g);
                        [weights(at), weights(at.add(next))]
                    };
                    let to = out.as_mut_ptr();
                    let finish = |k: usize, sums: [Sums; 2]| {
                        for (half, sums) in sums.into_iter().enumerate() {
                            let at = o + LANES * half;
                            // SAFETY: k is a row of `steps` and of `out`, and at + LANES ≤ outputs, the
                            // number of scales.
                            unsafe {
                                let to = to.add(k * outputs + at);
                                let y = times(floats(sums), floats_at(scales.as_ptr().add(at)));
                                let y = plus(times(y, splat(steps[k])), floats_at(to));
                                store(to, positive(y));
                            }
                        }
                    };
                    match steps.len() {
                        1 => strip!(groups, starts, load, input, finish; 0 a b),
                        2 => strip!(groups, starts, load, input, finish; 0 a b, 1 c d),
                        3 => strip!(groups, starts, load, input, finish; 0 a b, 1 c d, 2 e f),
                        4 => strip!(groups, starts, load, input, finish; 0 a b, 1 c d, 2 e f, 3 g h),
                        5 => strip!(groups, starts, load, input, finish;
                            0 a b, 1 c d, 2 e f, 3 g h, 4 j k),
                        _ => strip!(groups, starts, load, input, finish;
                            0 a b, 1 c d, 2 e f, 3 g h, 4 j k, 5 l m),
                    }
                }
            }
        }
    };
}
