//! Every kernel that runs here gives the bits of the scalar one, which is held to f64.

use super::*;

/// A small generator, so that tests need no seed from outside.
struct Lcg(u64);

impl Lcg {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }
    fn code(&mut self) -> i8 {
        ((self.next() % 255) as i32 - 127) as i8
    }
    fn float(&mut self) -> f32 {
        (self.next() as f32 / 2f32.powi(30)) - 1.0
    }
}

/// What runs here, and what can be checked here without its instructions.
fn tested() -> Vec<Kernel> {
    #[allow(unused_mut)]
    let mut kernels = available();
    #[cfg(target_arch = "x86_64")]
    if x86_64::is_available() {
        kernels.push(Kernel {
            name: "vnni on avx2",
            dot_i8: x86_64::vnni::emulated::with_avx2::dot_i8,
            dot_u4: x86_64::vnni::emulated::with_avx2::dot_u4,
            group: x86_64::vnni::emulated::with_avx2::GROUP,
            linear_coded: x86_64::vnni::emulated::with_avx2::linear_coded,
            many_i8: x86_64::vnni::emulated::with_avx2::many_i8,
            ..SCALAR
        });
    }
    kernels
}

fn codes(rng: &mut Lcg, n: usize, kind: usize) -> Vec<i8> {
    (0..n)
        .map(|i| match kind {
            0 => 127,
            1 => -127,
            2 => {
                if i % 2 == 0 {
                    127
                } else {
                    -127
                }
            }
            3 => 0,
            _ => rng.code(),
        })
        .collect()
}

#[test]
fn int8_equals_scalar_at_every_length_and_start() {
    let mut rng = Lcg(1);
    for kernel in tested() {
        for dim in 0..=130 {
            for rows in [0, 1, 3, 7, 8, 9, 17] {
                for kind in 0..5 {
                    let start = (dim + rows) % 7;
                    let query = codes(&mut rng, start + dim, (kind + dim) % 5);
                    let table = codes(&mut rng, start + dim * rows, kind);
                    let (query, table) = (&query[start..], &table[start..]);
                    let mut got = vec![-1; rows];
                    let mut want = vec![-2; rows];
                    kernel.dot_i8(query, table, &mut got);
                    SCALAR.dot_i8(query, table, &mut want);
                    assert_eq!(got, want, "{} dim {dim} rows {rows}", kernel.name());
                }
            }
        }
    }
}

#[test]
fn int8_at_the_largest_dim() {
    let (a, b) = (vec![127i8; 1 << 16], vec![-127i8; 1 << 16]);
    for kernel in tested() {
        let mut out = [0];
        kernel.dot_i8(&a, &b, &mut out);
        assert_eq!(out[0], -((127 * 127) << 16), "{}", kernel.name());
    }
}

#[test]
fn four_bits_equal_scalar_at_every_even_length_and_start() {
    let mut rng = Lcg(4);
    for kernel in tested() {
        for dim in (0..=130).step_by(2).chain([192, 256]) {
            for rows in [0, 1, 7, 8, 9, 17] {
                for kind in 0..5 {
                    let start = (dim + rows) % 7;
                    let query = codes(&mut rng, start + dim, (kind + dim) % 5);
                    let table: Vec<u8> = (0..start + dim / 2 * rows)
                        .map(|_| match kind {
                            0 => 0xff,
                            1 => 0,
                            2 => 0x0f,
                            _ => rng.next() as u8,
                        })
                        .collect();
                    let factors: Vec<u8> = (0..rows * groups(dim))
                        .map(|_| if kind == 0 { 255 } else { rng.next() as u8 })
                        .collect();
                    let (query, table) = (&query[start..], &table[start..]);
                    let mut got = vec![-1; rows];
                    let mut want = vec![-2; rows];
                    kernel.dot_u4(query, table, &mut got);
                    SCALAR.dot_u4(query, table, &mut want);
                    assert_eq!(got, want, "{} u4 dim {dim} rows {rows}", kernel.name());
                    kernel.dot_i4(query, table, &factors, &mut got);
                    SCALAR.dot_i4(query, table, &factors, &mut want);
                    assert_eq!(got, want, "{} i4 dim {dim} rows {rows}", kernel.name());
                }
            }
        }
    }
}

#[test]
fn four_bits_by_hand() {
    // Two blocks: 64 values in 32 bytes, then 6 in 3. Value 1 is the low half of byte 1,
    // value 33 its high half; values 64 and 67 share byte 32.
    let mut query = [0i8; 70];
    (query[1], query[33], query[64], query[67]) = (1, 10, 100, -1);
    let mut row = [0u8; 35];
    (row[1], row[32]) = (0x52, 0x43);
    let mut out = [0];
    SCALAR.dot_u4(&query, &row, &mut out);
    assert_eq!(out[0], 2 + 50 + 300 - 4);
    // Less 8 each, times 1, 2, 3, 4 by group.
    SCALAR.dot_i4(&query, &row, &[1, 2, 3, 4], &mut out);
    assert_eq!(out[0], -6 + 2 * -30 + 3 * -500 + 4 * 4);
}

#[test]
fn four_bits_at_the_largest_dim() {
    let query = vec![127i8; 1024];
    for kernel in tested() {
        let mut out = vec![0; 8];
        kernel.dot_i4(&query, &vec![0xff; 8 * 512], &[255; 8 * 32], &mut out);
        assert_eq!(out, [1024 * 7 * 127 * 255; 8], "{}", kernel.name());
        kernel.dot_i4(&query, &vec![0; 8 * 512], &[255; 8 * 32], &mut out);
        assert_eq!(out, [-1024 * 8 * 127 * 255; 8], "{}", kernel.name());
    }
}

#[test]
fn many_equal_scalar() {
    let mut rng = Lcg(5);
    for kernel in tested() {
        for dim in (1..=130).chain([256, 1024, 1028]) {
            for (queries, rows) in [(1, 1), (2, 16), (3, 17), (4, 33), (7, 48), (0, 3), (3, 0)] {
                let kind = (dim + queries) % 5;
                let limit = |v: i8| v.clamp(-63, 63);
                let q: Vec<i8> = codes(&mut rng, dim * queries, 4 - kind)
                    .into_iter()
                    .map(limit)
                    .collect();
                let start = dim % 3;
                let table = codes(&mut rng, start + dim * rows, kind);
                let mut got = vec![-1; queries * rows];
                let mut want = vec![-2; queries * rows];
                kernel.many_i8(&q, dim, &table[start..], &mut got);
                SCALAR.many_i8(&q, dim, &table[start..], &mut want);
                assert_eq!(got, want, "{} dim {dim} {queries} × {rows}", kernel.name());
            }
        }
    }
}

/// Any order of summation of n products is within n·ε·Σ|x·y| of the exact value, so two of
/// them are within twice that.
fn bound(query: &[f32], row: &[f32]) -> f64 {
    let sum: f64 = query
        .iter()
        .zip(row)
        .map(|(a, b)| f64::from(a * b).abs())
        .sum();
    (query.len() + 1) as f64 * f64::from(f32::EPSILON) * sum
}

#[test]
fn f32_and_f16_are_equal_and_within_the_derived_bound() {
    let mut rng = Lcg(2);
    for kernel in tested() {
        for dim in 0..=130 {
            for rows in [0, 1, 2, 5] {
                let start = dim % 5;
                let query: Vec<f32> = (0..start + dim).map(|_| rng.float()).collect();
                let table: Vec<f32> = (0..start + dim * rows)
                    .map(|_| half::f16::from_f32(rng.float() * 100.0).to_f32())
                    .collect();
                let halves: Vec<u16> = table
                    .iter()
                    .map(|&x| half::f16::from_f32(x).to_bits())
                    .collect();
                let (query, table, halves) = (&query[start..], &table[start..], &halves[start..]);
                let mut wide = vec![f32::NAN; rows];
                let mut narrow = vec![f32::NAN; rows];
                kernel.dot_f32(query, table, &mut wide);
                kernel.dot_f16(query, halves, &mut narrow);
                let mut oracle = vec![f32::NAN; rows];
                SCALAR.dot_f32(query, table, &mut oracle);
                for got in [&wide, &narrow] {
                    let same = got
                        .iter()
                        .zip(&oracle)
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{} dim {dim}: {got:?} {oracle:?}", kernel.name());
                }
                for r in 0..rows {
                    let row = &table[r * dim..(r + 1) * dim];
                    let exact: f64 = query
                        .iter()
                        .zip(row)
                        .map(|(a, b)| f64::from(*a) * f64::from(*b))
                        .sum();
                    for got in [wide[r], narrow[r]] {
                        let error = (f64::from(got) - exact).abs();
                        assert!(
                            error <= bound(query, row),
                            "{} dim {dim}: {got} {exact}",
                            kernel.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn linear_equals_scalar_and_is_within_the_derived_bound() {
    let mut rng = Lcg(7);
    let shapes = [
        (1, 0..1),
        (16, 0..16),
        (17, 0..17),
        (80, 0..80),
        (200, 3..153),
        (9, 9..9),
    ];
    for kernel in tested() {
        for inputs in [0, 1, 2, 63, 64, 129] {
            for (stride, range) in shapes.clone() {
                for batch in [0, 1, 5, 6, 13] {
                    let (first, outputs) = (range.start, range.len());
                    let mut floats =
                        |n: usize| -> Vec<f32> { (0..n).map(|_| rng.float()).collect() };
                    let (xs, scales) = (floats(batch * inputs), floats(stride));
                    let bias = if batch == 1 {
                        Vec::new()
                    } else {
                        floats(stride)
                    };
                    let codes = codes(&mut rng, inputs * stride, inputs % 5);
                    let wide: Vec<f32> = codes.iter().map(|&c| f32::from(c)).collect();
                    let (shape, relu) = ((inputs, stride), batch == 5);
                    let more = (&scales[..], &bias[..]);
                    let of_codes = Layer::new(&codes, shape, range.clone(), more, relu);
                    let of_floats = Layer::new(&wide, shape, range.clone(), more, relu);
                    let plain = Layer::new(&wide, shape, range.clone(), (&[], &[]), false);
                    let [mut got, mut same, mut want, mut sums] =
                        std::array::from_fn(|_| vec![f32::NAN; batch * outputs]);
                    kernel.linear_i8(&xs, of_codes, &mut got);
                    kernel.linear_f32(&xs, of_floats, &mut same);
                    kernel.linear_f32(&xs, plain, &mut sums);
                    SCALAR.linear_i8(&xs, of_codes, &mut want);
                    let name = kernel.name();
                    assert_eq!(bits(&got), bits(&want), "{name} {inputs} {outputs} {batch}");
                    assert_eq!(
                        bits(&same),
                        bits(&want),
                        "{name} {inputs} {outputs} {batch}"
                    );
                    for (k, sum) in sums.iter().enumerate() {
                        let (x, o) = (&xs[k / outputs * inputs..][..inputs], first + k % outputs);
                        let column: Vec<f32> = (0..inputs).map(|i| wide[i * stride + o]).collect();
                        let products = x.iter().zip(&column);
                        let exact: f64 = products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        let error = (f64::from(*sum) - exact).abs();
                        assert!(error <= bound(x, &column), "{name}: {sum} {exact}");
                        let bias = bias.get(o).copied().unwrap_or(0.0);
                        let y = sum * scales[o] + bias;
                        assert_eq!(got[k], if relu { y.max(0.0) } else { y }, "{name}");
                    }
                }
            }
        }
    }
}

#[test]
fn layers_of_codes_equal_scalar_and_are_exact_sums() {
    let mut rng = Lcg(8);
    for kernel in tested() {
        for (inputs, outputs) in [(4, 16), (64, 48), (132, 16), (256, 32)] {
            for batch in [0, 1, 2, 3, 4, 5, 6, 13] {
                let xs = codes(&mut rng, batch * inputs, batch % 5);
                let matrix = codes(&mut rng, inputs * outputs, 4 - inputs / 64 % 2);
                let mut floats = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.float()).collect() };
                let (scales, steps) = (floats(outputs), floats(batch));
                let start = floats(batch * outputs);
                let run = |kernel: Kernel| {
                    let panels = kernel.panels(&matrix, (inputs, outputs)).unwrap();
                    let mut out = start.clone();
                    kernel.linear_coded(&xs, &steps, &panels, &scales, &mut out);
                    out
                };
                let got = run(kernel);
                let name = kernel.name();
                assert_eq!(
                    bits(&got),
                    bits(&run(SCALAR)),
                    "{name} {inputs} {outputs} {batch}"
                );
                for (k, start) in start.iter().enumerate() {
                    let (r, o) = (k / outputs, k % outputs);
                    let product = |i: usize| {
                        i32::from(xs[r * inputs + i]) * i32::from(matrix[i * outputs + o])
                    };
                    let sum: i32 = (0..inputs).map(product).sum();
                    let y = sum as f32 * scales[o] * steps[r] + start;
                    assert_eq!(got[k], y.max(0.0), "{name}");
                }
            }
        }
        for shape in [(0, 16), (16, 0), (6, 16), (16, 24), (260, 16)] {
            let matrix = vec![0; shape.0 * shape.1];
            assert!(kernel.panels(&matrix, shape).is_none(), "{shape:?}");
        }
    }
}

#[test]
fn fade_equals_plain_loops() {
    let mut rng = Lcg(8);
    for kernel in tested() {
        for len in (0..40).chain([64, 81, 320]) {
            for rows in [0, 1, 3] {
                let mut floats = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.float()).collect() };
                let (mut got, weights, xs) = (floats(len), floats(rows), floats(rows * len));
                let mut want = got.clone();
                kernel.fade(&mut got, 0.75, &weights, &xs);
                for (r, w) in weights.iter().enumerate() {
                    for (sum, x) in want.iter_mut().zip(&xs[r * len..]) {
                        *sum = sum.mul_add(0.75, w * x);
                    }
                }
                assert_eq!(bits(&got), bits(&want), "{} {len}", kernel.name());
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
#[should_panic(expected = "inputs")]
fn layers_of_wrong_shapes_are_our_own_bug() {
    let layer = Layer::new(&[1; 6], (3, 2), 0..2, (&[], &[]), false);
    SCALAR.linear_i8(&[1.0; 5], layer, &mut [0.0; 4]);
}

#[test]
fn f16_specials_are_widened_exactly() {
    for kernel in tested() {
        for bits in [0u16, 1, 0x03ff, 0x0400, 0x3c00, 0x7bff, 0x8001, 0xfbff] {
            for dim in [1, 8, 9] {
                let mut query = vec![0.0f32; dim];
                query[dim - 1] = 1.0;
                let row = vec![bits; dim];
                let mut out = [0.0];
                kernel.dot_f16(&query, &row, &mut out);
                assert_eq!(
                    out[0],
                    half::f16::from_bits(bits).to_f32(),
                    "{}",
                    kernel.name()
                );
            }
        }
    }
}

#[test]
fn above_equals_plain_comparisons() {
    let mut rng = Lcg(3);
    for kernel in tested() {
        for len in 0..=64 {
            let mut scores: Vec<f32> = (0..len).map(|_| rng.float()).collect();
            if len > 9 {
                scores[1] = f32::NAN;
                scores[5] = f32::INFINITY;
                scores[9] = f32::NEG_INFINITY;
            }
            for t in [-2.0, -0.0, 0.3, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let want = (0..len).fold(0, |m, i| m | u64::from(scores[i] > t) << i);
                assert_eq!(kernel.above(&scores, t), want, "{} {len}", kernel.name());
                let sums: Vec<i32> = (0..len)
                    .map(|i| i as i32 * 1_000_003 - 20_000_000)
                    .collect();
                let scaled = |i: usize| u64::from(sums[i] as f32 * scores[i] > t) << i;
                let want = (0..len).fold(0, |m, i| m | scaled(i));
                assert_eq!(
                    kernel.above_scaled(&sums, &scores, t),
                    want,
                    "{} {len}",
                    kernel.name()
                );
            }
        }
    }
}

#[test]
fn equal_equals_plain_comparisons() {
    let mut rng = Lcg(6);
    for kernel in available() {
        for len in 0..=64 {
            for limit in [1, 3, 4, u32::MAX] {
                for kind in 0..3 {
                    let codes: Vec<u32> = (0..len)
                        .map(|_| match (kind, rng.next() % 5) {
                            (1, 4) => u32::MAX,
                            (2, 4) => u32::MAX - 1,
                            (_, code) => code.min(3),
                        })
                        .collect();
                    let wanted = rng.next() % 4;
                    let mask = (0..len).fold(0, |m, i| m | u64::from(codes[i] == wanted) << i);
                    let stray = codes.iter().any(|&c| c >= limit && c != u32::MAX);
                    let got = kernel.equal(&codes, wanted, limit);
                    assert_eq!(got, (mask, stray), "{} {codes:?}", kernel.name());
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "rows × dim")]
fn wrong_shapes_are_our_own_bug() {
    SCALAR.dot_i8(&[1, 2], &[1, 2, 3], &mut [0]);
}

#[test]
fn names() {
    assert_eq!(by_name("scalar").unwrap().name(), "scalar");
    assert!(matches!(by_name("avx1024"), Err(Error::Kernel { .. })));
    assert!(available().iter().any(|k| k.name() == active().name()));
}

/// Else the tests above would compare `scalar` with itself.
#[test]
#[cfg(target_arch = "aarch64")]
fn neon_is_among_the_kernels() {
    let names: Vec<&str> = available().iter().map(Kernel::name).collect();
    let mut wanted = vec!["neon", "scalar"];
    if std::arch::is_aarch64_feature_detected!("dotprod") {
        wanted.insert(0, "neon-dotprod");
    }
    if std::arch::is_aarch64_feature_detected!("i8mm") {
        wanted.insert(0, "neon-i8mm");
    }
    assert_eq!(names, wanted);
}
