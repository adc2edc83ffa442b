//! How many billion f32 operations a second candle's matrix product does on one thread, in the shapes
//! of DiffMM's denoiser on TikTok: what a training's cost is to be compared with.
//!
//! `RAYON_NUM_THREADS=1 cargo run --example matmul_rate [ROWS INNER COLUMNS]`

use std::time::Instant;

use tercet_models::rng::{self, Purpose};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given: Vec<usize> = std::env::args()
        .skip(1)
        .map(|a| a.parse())
        .collect::<Result<_, _>>()?;
    let shapes = match given[..] {
        [] => vec![
            ("x W: users × items × hidden", [1024, 6710, 1000]),
            ("h W: users × hidden × items", [1024, 1000, 6710]),
            ("xᵀ d: items × users × hidden", [6710, 1024, 1000]),
        ],
        [rows, inner, columns] => vec![("given", [rows, inner, columns])],
        _ => return Err("give three sizes: ROWS INNER COLUMNS".into()),
    };
    let mut r = rng::stream(1, Purpose::Init, &[]);
    for (name, [rows, inner, columns]) in shapes {
        let a = rng::normal(&mut r, (rows, inner), 1.0, &candle_core::Device::Cpu)?;
        let b = rng::normal(&mut r, (inner, columns), 1.0, &candle_core::Device::Cpu)?;
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            let product = a.matmul(&b)?;
            best = best.min(start.elapsed().as_secs_f64());
            // One entry is computed again, so that what is timed is a product.
            let row = a.get(0)?.to_vec1::<f32>()?;
            let column = b.narrow(1, 0, 1)?.flatten_all()?.to_vec1::<f32>()?;
            let want: f32 = row.iter().zip(&column).map(|(x, y)| x * y).sum();
            let got = product.get(0)?.get(0)?.to_scalar::<f32>()?;
            if (got - want).abs() > 1e-3 * (inner as f32).sqrt() {
                return Err(format!("{name}: {got} is not {want}").into());
            }
        }
        let operations = 2.0 * (rows * inner * columns) as f64;
        println!(
            "{name:<30} {rows} × {inner} × {columns}: {:.1} GFLOP/s",
            operations / best / 1e9
        );
    }
    Ok(())
}
