//! Text towers with random weights.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::super::{Output, Pooling, TextEncoder};
use super::write;
use crate::error::Result;
use crate::rng::{self, Purpose};

const WORDS: [&str; 8] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "hat", "##s",
];

/// Writes a BERT of width 8 with two heads and two layers.
pub(crate) fn write_bert(dir: &Path) -> Result<()> {
    let (d, ffn, positions) = (8, 12, 10);
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        (
            "embeddings.word_embeddings.weight".into(),
            vec![WORDS.len(), d],
        ),
        (
            "embeddings.position_embeddings.weight".into(),
            vec![positions, d],
        ),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, d]),
    ];
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for i in 0..2 {
        let p = format!("encoder.layer.{i}");
        for (name, from, to) in [
            ("attention.self.query", d, d),
            ("attention.self.key", d, d),
            ("attention.self.value", d, d),
            ("attention.output.dense", d, d),
            ("intermediate.dense", d, ffn),
            ("output.dense", ffn, d),
        ] {
            shapes.push((format!("{p}.{name}.weight"), vec![to, from]));
            shapes.push((format!("{p}.{name}.bias"), vec![to]));
        }
        norms.push(format!("{p}.attention.output.LayerNorm"));
        norms.push(format!("{p}.output.LayerNorm"));
    }
    for norm in norms {
        shapes.push((format!("{norm}.weight"), vec![d]));
        shapes.push((format!("{norm}.bias"), vec![d]));
    }
    let dev = Device::Cpu;
    let mut r = rng::stream(5, Purpose::Init, &[]);
    let mut tensors = HashMap::new();
    for (name, shape) in shapes {
        tensors.insert(name, rng::normal(&mut r, shape, 0.5, &dev)?);
    }
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors"))?;
    let config = json!({
        "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": d,
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": ffn,
        "max_position_embeddings": positions, "type_vocab_size": 2, "hidden_act": "gelu",
    });
    write(dir, "config.json", &config);
    write_tokenizer(dir, &WORDS);
    Ok(())
}

fn write_tokenizer(dir: &Path, words: &[&str]) {
    let vocab: HashMap<&str, usize> = words.iter().enumerate().map(|(i, w)| (*w, i)).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": { "type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": true, "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] },
        "decoder": null,
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab },
    });
    write(dir, "tokenizer.json", &tokenizer);
}

fn refusal(dir: &Path) -> String {
    match TextEncoder::open(dir, &Device::Cpu) {
        Ok(_) => String::new(),
        Err(e) => e.to_string(),
    }
}

fn largest(t: &Tensor) -> Result<f32> {
    Ok(t.abs()?.max_all()?.to_scalar::<f32>()?)
}

#[test]
fn padding_does_not_change_a_text() -> Result<()> {
    let dir = tempfile::tempdir().expect("temporary folder");
    write_bert(dir.path())?;
    let e = TextEncoder::open(dir.path(), &Device::Cpu)?;
    assert_eq!((e.dim(), e.max_tokens()), (8, 10));
    let texts = [
        "Red hats",
        "",
        "帽子 blue red blue red hat hat hat hat hat hat",
    ];
    let together = e.encode(&texts, Output::Tokens(12))?;
    assert_eq!(together.dims(), [3, 12, 8]);
    for (i, text) in texts.iter().enumerate() {
        let alone = e.encode(&[text], Output::Tokens(12))?;
        assert!(
            largest(&(alone - together.narrow(0, i, 1)?)?)? < 1e-5,
            "{text}"
        );
    }
    // [CLS] red hat ##s [SEP], then nothing; the last text fills all ten positions.
    assert!(largest(&together.narrow(0, 0, 1)?.narrow(1, 4, 1)?)? > 0.0);
    assert_eq!(largest(&together.narrow(0, 0, 1)?.narrow(1, 5, 7)?)?, 0.0);
    assert!(largest(&together.narrow(0, 2, 1)?.narrow(1, 9, 1)?)? > 0.0);
    Ok(())
}

#[test]
fn pooled_is_the_unit_mean_of_the_tokens() -> Result<()> {
    let dir = tempfile::tempdir().expect("temporary folder");
    write_bert(dir.path())?;
    let e = TextEncoder::open(dir.path(), &Device::Cpu)?;
    let pooled = e.encode(&["red hats", "blue"], Output::Pooled)?;
    let mean = e.encode(&["red hats"], Output::Tokens(5))?.mean(1)?;
    let unit = mean.broadcast_div(&mean.sqr()?.sum_all()?.sqrt()?)?;
    assert!(largest(&(pooled.narrow(0, 0, 1)? - unit)?)? < 1e-5);
    assert_eq!(pooled.dims(), [2, 8]);
    Ok(())
}

#[test]
fn limits_are_checked() -> Result<()> {
    let dir = tempfile::tempdir().expect("temporary folder");
    write_bert(dir.path())?;
    let mut e = TextEncoder::open(dir.path(), &Device::Cpu)?;
    assert!(e.set_max_tokens(11).is_err() && e.set_max_tokens(2).is_err());
    e.set_max_tokens(3)?;
    let one = e.encode(&["red"], Output::Pooled)?;
    assert_eq!(e.texts_cut(), 0);
    let cut = e.encode(&["red hats blue"], Output::Pooled)?;
    assert_eq!(e.texts_cut(), 1);
    assert!(largest(&(one - cut)?)? < 1e-6);
    Ok(())
}

#[test]
fn what_does_not_fit_together_is_named() -> Result<()> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path();
    assert!(refusal(path).contains("config.json"));
    write_bert(path)?;

    let weights = path.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu)?;
    let name = "encoder.layer.1.output.dense.weight";
    let good = tensors.insert(
        name.into(),
        Tensor::zeros((8, 11), DType::F32, &Device::Cpu)?,
    );
    candle_core::safetensors::save(&tensors, &weights)?;
    let text = refusal(path);
    assert!(
        text.contains(name) && text.contains("[8, 11]") && text.contains("[8, 12]"),
        "{text}"
    );
    tensors.remove(name);
    candle_core::safetensors::save(&tensors, &weights)?;
    assert!(refusal(path).contains("missing"));
    tensors.extend(good.map(|t| (name.to_owned(), t)));
    candle_core::safetensors::save(&tensors, &weights)?;
    assert_eq!(refusal(path), "");

    let more: Vec<&str> = WORDS.into_iter().chain(["coat"]).collect();
    write_tokenizer(path, &more);
    assert!(refusal(path).contains("id 8"), "{}", refusal(path));
    std::fs::remove_file(path.join("tokenizer.json")).expect("it was written");
    assert!(refusal(path).contains("tokenizer.json"));
    std::fs::write(&weights, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}").expect("writable");
    write_tokenizer(path, &WORDS);
    assert!(refusal(path).contains("model.safetensors"));
    write(path, "config.json", &json!({ "model_type": "t5" }));
    assert!(refusal(path).contains("t5"));
    Ok(())
}

/// A language model as a tower: what follows a text does not matter, and the last state is that of
/// its last token alone.
#[test]
fn a_language_model_gives_mean_and_last_states() -> Result<()> {
    let dir = tempfile::tempdir().expect("temporary folder");
    crate::llm::tests::write_llama(dir.path(), 64)?;
    let mut e = TextEncoder::open(dir.path(), &Device::Cpu)?;
    assert_eq!((e.dim(), e.max_tokens()), (12, 64));
    let texts = ["a small hat", "", "a large blue hat and a red one"];
    let states = e.encode(&texts, Output::Tokens(20))?;
    let mean = e.encode(&texts, Output::Pooled)?;
    e.set_pooling(Pooling::Last);
    let last = e.encode(&texts, Output::Pooled)?;
    for (i, text) in texts.iter().enumerate() {
        let alone = e.encode(&[text], Output::Tokens(20))?;
        let own = states.narrow(0, i, 1)?;
        assert!(largest(&(&alone - &own)?)? < 1e-5, "{text}");
        let own = own.squeeze(0)?.to_vec2::<f32>()?;
        let tokens = own.iter().filter(|r| r.iter().any(|x| *x != 0.0)).count();
        let sum = |c: usize| own.iter().map(|r| r[c]).sum::<f32>();
        for (pooled, want) in [
            (&mean, (0..12).map(sum).collect::<Vec<f32>>()),
            (&last, own[tokens.max(1) - 1].clone()),
        ] {
            let length = want.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
            let got = pooled.narrow(0, i, 1)?.flatten_all()?.to_vec1::<f32>()?;
            for (g, w) in got.iter().zip(&want) {
                assert!((g - w / length).abs() < 1e-5, "{text}");
            }
        }
    }
    Ok(())
}
