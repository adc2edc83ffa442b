//! What a language model costs as TMF asks it: tokens a second, candidates that share their prompt
//! against candidates that each bring it along, and a step of low-rank training.
//!
//! `RAYON_NUM_THREADS=1 cargo run --example llm_cost -- MODEL_FOLDER [PROMPT_TOKENS CANDIDATES ANSWER_TOKENS]`

use std::ops::Range;
use std::time::Instant;

use candle_core::{D, Device, Tensor};
use tercet_models::attention::Segments;
use tercet_models::error::{Error, Result};
use tercet_models::llm::{Decoder, Llm, LoraConfig, Past};
use tercet_models::ops::softmax_cross_entropy;
use tercet_models::params::{Adam, Params};
use tercet_models::rng::{self, Purpose};
use tercet_models::usage::peak_rss_mb;

const SEED: u64 = 1;

/// Largest difference of two log-likelihoods that counts as none.
const CLOSE: f64 = 1e-3;

/// `Σ log p` of the tokens of an answer: `states[0]` comes before its first, and so on.
fn likelihood(decoder: &Decoder, states: &Tensor, answer: &[u32]) -> Result<f64> {
    let logs = candle_nn::ops::log_softmax(&decoder.logits(states)?, D::Minus1)?;
    let tokens = Tensor::from_slice(answer, (answer.len(), 1), logs.device())?;
    let picked = logs.gather(&tokens, 1)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(picked.into_iter().map(f64::from).sum())
}

/// The prompt once, the answers as its continuations.
fn shared(decoder: &Decoder, prompt: &[u32], answers: &[Vec<u32>]) -> Result<Vec<f64>> {
    let (hidden, kv) = decoder.forward(
        &decoder.embed(prompt)?,
        &Segments::new([prompt.len()]),
        None,
        None,
    )?;
    let last = hidden.narrow(0, prompt.len() - 1, 1)?;
    let inputs: Vec<&[u32]> = answers.iter().map(|a| &a[..a.len() - 1]).collect();
    let ranges: Vec<Range<usize>> = vec![0..prompt.len(); answers.len()];
    let past = Past {
        kv: &kv,
        ranges: &ranges,
    };
    let segments = Segments::new(inputs.iter().map(|i| i.len()));
    let embeds = decoder.embed(&inputs.concat())?;
    let (hidden, _) = decoder.forward(&embeds, &segments, Some(past), None)?;
    let mut start = 0;
    answers
        .iter()
        .map(|answer| {
            let n = answer.len() - 1;
            let states = Tensor::cat(&[&last, &hidden.narrow(0, start, n)?], 0)?;
            start += n;
            likelihood(decoder, &states, answer)
        })
        .collect()
}

/// One answer with a prompt of its own.
fn alone(decoder: &Decoder, prompt: &[u32], answer: &[u32]) -> Result<f64> {
    let text = [prompt, &answer[..answer.len() - 1]].concat();
    let (hidden, _) = decoder.forward(
        &decoder.embed(&text)?,
        &Segments::new([text.len()]),
        None,
        None,
    )?;
    let states = hidden.narrow(0, prompt.len() - 1, answer.len())?;
    likelihood(decoder, &states, answer)
}

/// Seconds of a step on one prompt and its answer: forward, backward and update of rank-8 branches.
fn training_step(llm: &mut Llm, prompt: &[u32], answer: &[u32]) -> Result<(f64, usize)> {
    let mut params = Params::default();
    llm.decoder
        .add_lora(&mut params, "lora.", &LoraConfig::default(), SEED)?;
    let mut adam = Adam::new(&params, 2e-4, 0.0)?;
    let weights = params.iter().map(|(_, v)| v.elem_count()).sum();
    let text = [prompt, &answer[..answer.len() - 1]].concat();
    let start = Instant::now();
    let embeds = llm.decoder.embed(&text)?;
    let segments = Segments::new([text.len()]);
    let mut noise = rng::stream(SEED, Purpose::Dropout, &[]);
    let (hidden, _) = llm
        .decoder
        .forward(&embeds, &segments, None, Some(&mut noise))?;
    let states = hidden.narrow(0, prompt.len() - 1, answer.len())?;
    let targets = answer.iter().map(|&t| vec![(t, 1.0)]).collect();
    let none = vec![Vec::new(); answer.len()];
    let loss = softmax_cross_entropy(&llm.decoder.logits(&states)?, targets, none)?;
    adam.step(&loss.backward()?)?;
    Ok((start.elapsed().as_secs_f64(), weights))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("give the folder of a language model")?;
    let sizes = args
        .map(|a| a.parse())
        .collect::<std::result::Result<Vec<usize>, _>>()?;
    let size = |at: usize, usual| sizes.get(at).copied().unwrap_or(usual).max(2);
    let (length, candidates, words) = (size(0, 256), size(1, 20), size(2, 12));
    let mut llm = Llm::open(&folder, &Device::Cpu)?;
    let decoder = &llm.decoder;
    let mut r = rng::stream(SEED, Purpose::Candidates, &[]);
    let vocabulary = decoder.config().vocab_size;
    let mut draw = |n: usize| -> Vec<u32> {
        let token = |_| rng::below(&mut r, vocabulary) as u32;
        (0..n).map(token).collect()
    };
    let prompt = draw(length);
    let answers: Vec<Vec<u32>> = (0..candidates).map(|_| draw(words)).collect();
    println!("a prompt of {length} tokens, {candidates} candidates of {words}");

    let start = Instant::now();
    decoder.forward(
        &decoder.embed(&prompt)?,
        &Segments::new([length]),
        None,
        None,
    )?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "prompt: {seconds:.2} s, {:.0} tokens a second",
        length as f64 / seconds
    );

    let start = Instant::now();
    let together = shared(decoder, &prompt, &answers)?;
    let shared_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let apart = answers
        .iter()
        .map(|answer| alone(decoder, &prompt, answer))
        .collect::<Result<Vec<_>>>()?;
    let apart_seconds = start.elapsed().as_secs_f64();
    let differ = together.iter().zip(&apart).map(|(a, b)| (a - b).abs());
    let most = differ.fold(0.0, f64::max);
    if most > CLOSE * words as f64 {
        return Err(Error::config(format!("likelihoods differ by {most}")).into());
    }
    println!(
        "candidates: {shared_seconds:.2} s with a shared prompt, {apart_seconds:.2} s each with its own: 1/{:.1} (log-likelihoods within {most:.1e})",
        apart_seconds / shared_seconds
    );
    let scored = peak_rss_mb();
    let (seconds, weights) = training_step(&mut llm, &prompt, &answers[0])?;
    println!("a training step on one of them, {weights} weights: {seconds:.2} s");
    if let (Some(scored), Some(trained)) = (scored, peak_rss_mb()) {
        println!("peak memory {scored:.0} MB scoring, {trained:.0} MB training");
    }
    Ok(())
}
