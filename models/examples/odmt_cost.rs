//! What the exact rearrangements of ODMT's item encoder save on a data set: each distinct item of a
//! micro-batch once, and in the last block only the tokens that are read.
//!
//! `RAYON_NUM_THREADS=1 cargo run --example odmt_cost -- DATA [MODALITY]...`

use tercet_models::data::{Dataset, LoadOptions};
use tercet_models::odmt::{OdmtConfig, step_costs};
use tercet_models::usage::peak_rss_mb;

/// Micro-batches of each arrangement.
const STEPS: usize = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("give the folder of a data set")?;
    let mut data = Dataset::open(&folder, &LoadOptions::default())?;
    let chosen: Vec<String> = args.collect();
    data.features
        .retain(|f| chosen.is_empty() || chosen.contains(&f.name));
    for f in &data.features {
        let tokens = f.tokens.as_ref().map_or(1, |t| t.per_item);
        println!("{}: {tokens} tokens of {}", f.name, f.values.ncols());
    }
    let dev = candle_core::Device::Cpu;
    let costs = step_costs(&data, OdmtConfig::default(), 1, STEPS, &dev)?;
    let plain = costs[0].seconds;
    for c in &costs {
        println!(
            "{:<22} {:<22} {:>8.1} ms a step, {:.2} of the plain one",
            if c.distinct {
                "distinct items once"
            } else {
                "every slot"
            },
            if c.trimmed {
                "last block trimmed"
            } else {
                "last block whole"
            },
            c.seconds * 1e3,
            c.seconds / plain
        );
    }
    if let Some(mb) = peak_rss_mb() {
        println!("peak memory {mb:.0} MB");
    }
    Ok(())
}
