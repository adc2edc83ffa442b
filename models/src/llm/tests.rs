//! Tiny random decoders against plain loops in f64, and a real one where it is at hand.

use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::*;
use crate::params::{Params, TensorMap};
use crate::rng::{self, Purpose};

const TEXTS: [&str; 4] = [
    "a small red hat",
    "a large blue hat",
    "red and blue hats, small and large",
    "Häuser für Hüte",
];

/// A shape with three heads of queries on one of keys, in which no two sizes are equal.
fn shape(model_type: &str, vocab_size: usize) -> LlmConfig {
    let config = json!({
        "model_type": model_type, "vocab_size": vocab_size, "hidden_size": 12,
        "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3,
        "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": model_type != "qwen2", "eos_token_id": 0,
        "rope_scaling": { "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32 },
    });
    serde_json::from_value(config).expect("a configuration")
}

/// Random tensors of all names that a decoder of `config` asks for.
fn weights(config: &LlmConfig) -> Result<TensorMap> {
    let mut made = TensorMap::new();
    let mut source = |name: &str, dims: &[usize]| {
        let mut r = rng::stream(8, Purpose::Init, &[rng::name_hash(name)]);
        let t = rng::normal(&mut r, dims, 0.4, &Device::Cpu)?;
        made.insert(name.to_owned(), t.clone());
        Ok(t)
    };
    Decoder::new(
        config.clone(),
        Path::new("test"),
        &mut source,
        Some(DType::F32),
    )?;
    Ok(made)
}

fn decoder(config: &LlmConfig, tensors: &TensorMap) -> Result<Decoder> {
    decoder_in(config, tensors, DType::F32)
}

fn decoder_in(config: &LlmConfig, tensors: &TensorMap, held: DType) -> Result<Decoder> {
    let mut source = |name: &str, _: &[usize]| Ok(tensors[name].clone());
    Decoder::new(config.clone(), Path::new("test"), &mut source, Some(held))
}

/// Writes a model folder with a tokenizer of its own.
pub(crate) fn write_llama(dir: &Path, context: usize) -> Result<LlmConfig> {
    let words = Words::train(TEXTS.into_iter(), 280)?;
    let mut config = shape("llama", 280);
    config.max_position_embeddings = context;
    let put = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).expect("writable");
    put("tokenizer.json", &words.to_json()?);
    put(
        "config.json",
        &serde_json::to_vec(&config).expect("a configuration"),
    );
    let tensors = weights(&config)?;
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors"))?;
    Ok(config)
}

type Rows = Vec<Vec<f64>>;

fn rows(t: &Tensor) -> Rows {
    let t = if t.rank() == 1 {
        t.unsqueeze(0).expect("a row")
    } else {
        t.clone()
    };
    let rows = t.to_vec2::<f32>().expect("floats");
    rows.into_iter()
        .map(|r| r.into_iter().map(f64::from).collect())
        .collect()
}

fn dense(x: &[f64], w: &Rows, bias: Option<&Rows>) -> Vec<f64> {
    let dot = |w: &Vec<f64>| w.iter().zip(x).map(|(a, b)| a * b).sum::<f64>();
    let shift = |i: usize| bias.map_or(0.0, |b| b[0][i]);
    w.iter()
        .enumerate()
        .map(|(i, w)| dot(w) + shift(i))
        .collect()
}

fn norm(x: &[f64], gain: &Rows) -> Vec<f64> {
    let root = (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + 1e-5).sqrt();
    x.iter().zip(&gain[0]).map(|(v, g)| v / root * g).collect()
}

/// The definition, one number after the other: logits of every position of one sequence.
fn by_loops(config: &LlmConfig, tensors: &TensorMap, ids: &[u32]) -> Rows {
    let t = |name: &str| rows(&tensors[name]);
    let has = |name: &str| tensors.get(name).map(rows);
    let size = config.head_size();
    let turn = |x: &mut [f64], at: usize| {
        for head in x.chunks_mut(size) {
            for (i, f) in config.frequencies().iter().enumerate() {
                let (a, b, angle) = (head[i], head[i + size / 2], at as f64 * f);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + size / 2] = a * angle.sin() + b * angle.cos();
            }
        }
    };
    let table = t("model.embed_tokens.weight");
    let mut xs: Rows = ids.iter().map(|&i| table[i as usize].clone()).collect();
    for layer in 0..config.num_hidden_layers {
        let p = |part: &str| format!("model.layers.{layer}.{part}");
        let apply = |x: &[f64], name: &str| {
            let bias = has(&p(&format!("{name}.bias")));
            dense(x, &t(&p(&format!("{name}.weight"))), bias.as_ref())
        };
        let heads = |x: Vec<f64>, gain: &str| match has(&p(gain)) {
            Some(g) => x.chunks(size).flat_map(|h| norm(h, &g)).collect(),
            None => x,
        };
        let (mut q, mut k, mut v) = (Rows::new(), Rows::new(), Rows::new());
        for (at, x) in xs.iter().enumerate() {
            let y = norm(x, &t(&p("input_layernorm.weight")));
            let mut query = heads(apply(&y, "self_attn.q_proj"), "self_attn.q_norm.weight");
            let mut key = heads(apply(&y, "self_attn.k_proj"), "self_attn.k_norm.weight");
            turn(&mut query, at);
            turn(&mut key, at);
            q.push(query);
            k.push(key);
            v.push(apply(&y, "self_attn.v_proj"));
        }
        for at in 0..xs.len() {
            let mut mixed = vec![0.0; q[at].len()];
            for head in 0..config.num_attention_heads {
                let (from, group) = (
                    head * size,
                    head * config.key_heads() / config.num_attention_heads * size,
                );
                let weight = |j: usize| {
                    let dot = (0..size).map(|c| q[at][from + c] * k[j][group + c]);
                    (dot.sum::<f64>() / (size as f64).sqrt()).exp()
                };
                let total: f64 = (0..=at).map(weight).sum();
                for (j, value) in v.iter().enumerate().take(at + 1) {
                    for c in 0..size {
                        mixed[from + c] += weight(j) / total * value[group + c];
                    }
                }
            }
            let y = apply(&mixed, "self_attn.o_proj");
            xs[at].iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
        for x in &mut xs {
            let y = norm(x, &t(&p("post_attention_layernorm.weight")));
            let gate = apply(&y, "mlp.gate_proj");
            let up = apply(&y, "mlp.up_proj");
            let inner: Vec<f64> = gate
                .iter()
                .zip(up)
                .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
                .collect();
            let y = apply(&inner, "mlp.down_proj");
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
    }
    let head = has("lm_head.weight").unwrap_or(table);
    let gain = t("model.norm.weight");
    xs.iter()
        .map(|x| dense(&norm(x, &gain), &head, None))
        .collect()
}

fn worst(a: &Tensor, b: &Tensor) -> Result<f32> {
    Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()?)
}

#[test]
fn logits_equal_plain_loops() -> Result<()> {
    for model_type in ["llama", "qwen2", "qwen3"] {
        let config = shape(model_type, 9);
        let tensors = weights(&config)?;
        let net = decoder(&config, &tensors)?;
        let ids = [[3u32, 1, 4, 1, 5, 8].as_slice(), &[2, 7]];
        let packed = ids.concat();
        let segments = Segments::new(ids.map(<[u32]>::len));
        let (hidden, _) = net.forward(&net.embed(&packed)?, &segments, None, None)?;
        let got = rows(&net.logits(&hidden)?);
        let want = ids.iter().flat_map(|s| by_loops(&config, &tensors, s));
        for (g, w) in got.iter().zip(want) {
            for (g, w) in g.iter().zip(w) {
                assert!((g - w).abs() < 1e-4, "{model_type}: {g} {w}");
            }
        }
    }
    Ok(())
}

#[test]
fn every_variable_gets_a_gradient() -> Result<()> {
    let dev = Device::Cpu;
    let mut params = Params::default();
    let small = LlmConfig::small(11, 64, 2, 32);
    let mut trained = Decoder::random(small, &mut params, "llm.", 1, &dev)?;
    trained.add_lora(&mut params, "lora.", &LoraConfig::default(), 1)?;
    let config = shape("qwen3", 11);
    let mut frozen = decoder(&config, &weights(&config)?)?;
    let mut updates = Params::default();
    frozen.add_lora(&mut updates, "lora.", &LoraConfig::default(), 1)?;
    for (net, params) in [(&trained, &params), (&frozen, &updates)] {
        // With B = 0 nothing would reach A.
        for (name, var) in params.iter().filter(|(n, _)| n.ends_with(".b")) {
            let mut r = rng::stream(2, Purpose::Init, &[rng::name_hash(name)]);
            params.set(name, &rng::normal(&mut r, var.dims(), 0.3, &dev)?)?;
        }
        let mut noise = rng::stream(3, Purpose::Dropout, &[]);
        let segments = Segments::new([4, 3]);
        let embeds = net.embed(&[1, 2, 3, 4, 5, 6, 7])?;
        let soft = candle_core::Var::from_tensor(&embeds)?;
        let x = (embeds + soft.as_tensor())?;
        let (hidden, _) = net.forward(&x, &segments, None, Some(&mut noise))?;
        let logits = net.logits(&hidden.narrow(0, 1, 3)?)?;
        let targets = vec![vec![(1, 1.0)], vec![(2, 1.0)], vec![(3, 1.0)]];
        let loss = crate::ops::softmax_cross_entropy(&logits, targets, vec![Vec::new(); 3])?;
        let grads = loss.backward()?;
        for (name, var) in params.iter() {
            let g = grads
                .get(var.as_tensor())
                .unwrap_or_else(|| panic!("{name} has no gradient"));
            assert!(g.abs()?.max_all()?.to_scalar::<f32>()? > 0.0, "{name}");
        }
        assert!(grads.get(&soft).is_some());
    }
    Ok(())
}

/// Oracle T13: an update with B = 0 changes nothing, and merging keeps what it does.
#[test]
fn low_rank_updates_start_at_the_base_and_merge() -> Result<()> {
    let dev = Device::Cpu;
    let config = shape("llama", 9);
    let tensors = weights(&config)?;
    let base = decoder(&config, &tensors)?;
    let mut params = Params::default();
    let mut adapted = base.clone();
    adapted.add_lora(&mut params, "lora.", &LoraConfig::default(), 5)?;
    let states = |net: &Decoder| -> Result<Tensor> {
        let x = net.embed(&[1, 5, 2])?;
        Ok(net.forward(&x, &Segments::new([3]), None, None)?.0)
    };
    assert_eq!(rows(&states(&base)?), rows(&states(&adapted)?));
    for (name, var) in params.iter() {
        let mut r = rng::stream(6, Purpose::Init, &[rng::name_hash(name)]);
        params.set(name, &rng::normal(&mut r, var.dims(), 0.1, &dev)?)?;
    }
    assert!(worst(&states(&base)?, &states(&adapted)?)? > 1e-2);
    let merged = decoder(&config, &adapted.merged()?)?;
    assert!(worst(&states(&merged)?, &states(&adapted)?)? < 1e-4);
    Ok(())
}

/// Matrices held in bf16, as on a GPU: states, and gradients of the updates, stay near those of f32.
#[test]
fn half_precision_stays_near() -> Result<()> {
    for kind in ["llama", "qwen2"] {
        let config = shape(kind, 9);
        let tensors = weights(&config)?;
        let pass = |held: DType| -> Result<(Rows, Rows)> {
            let mut net = decoder_in(&config, &tensors, held)?;
            let mut params = Params::default();
            net.add_lora(&mut params, "lora.", &LoraConfig::default(), 5)?;
            let x = net.embed(&[1, 5, 2])?;
            let (hidden, _) = net.forward(&x, &Segments::new([3]), None, None)?;
            let logits = net.logits(&hidden)?;
            let targets = vec![vec![(1, 1.0)], vec![(2, 1.0)], vec![(3, 1.0)]];
            let loss = crate::ops::softmax_cross_entropy(&logits, targets, vec![Vec::new(); 3])?;
            let grads = loss.backward()?;
            let name = "lora.layers.0.self_attn.v_proj.b";
            let b = params.iter().find(|p| p.0 == name).expect("an update").1;
            let grad = grads.get(b.as_tensor()).expect("a gradient");
            assert_eq!(
                net.merged()?["model.embed_tokens.weight"].dtype(),
                DType::F32
            );
            Ok((rows(&logits), rows(grad)))
        };
        let (exact, half) = (pass(DType::F32)?, pass(DType::BF16)?);
        for (a, b) in [(exact.0, half.0), (exact.1, half.1)] {
            let size = a.iter().flatten().map(|x| x * x).sum::<f64>().sqrt();
            let pairs = a.iter().flatten().zip(b.iter().flatten());
            let off = pairs.map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
            assert!(off > 0.0 && off < 0.05 * size, "{kind}: {off} of {size}");
        }
    }
    Ok(())
}

/// Oracle T13: continuing a prefix equals computing it anew.
#[test]
fn several_continuations_of_one_prefix_equal_whole_sequences() -> Result<()> {
    let config = shape("llama", 9);
    let net = decoder(&config, &weights(&config)?)?;
    let prefixes = [[1u32, 2, 3].as_slice(), &[4, 5, 6, 7]];
    let packed = prefixes.concat();
    let (_, kv) = net.forward(&net.embed(&packed)?, &Segments::new([3, 4]), None, None)?;
    let next = [[8u32, 1].as_slice(), &[2], &[3, 3, 5]];
    let ranges = [3..7, 0..3, 3..7];
    let segments = Segments::new(next.map(<[u32]>::len));
    let past = Past {
        kv: &kv,
        ranges: &ranges,
    };
    let (got, _) = net.forward(&net.embed(&next.concat())?, &segments, Some(past), None)?;
    let mut at = 0;
    for (next, range) in next.iter().zip(ranges) {
        let whole = [&packed[range.clone()], next].concat();
        let segments = Segments::new([whole.len()]);
        let (want, _) = net.forward(&net.embed(&whole)?, &segments, None, None)?;
        let want = want.narrow(0, range.len(), next.len())?;
        assert!(worst(&got.narrow(0, at, next.len())?, &want)? < 1e-5);
        at += next.len();
    }
    let long = vec![1u32; 65];
    let refused = net.forward(&net.embed(&long)?, &Segments::new([65]), None, None);
    assert!(refused.is_err_and(|e| e.to_string().contains("context of 64")));
    Ok(())
}

#[test]
fn folders_of_either_format_give_the_same_model() -> Result<()> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let dev = Device::Cpu;
    let config = write_llama(dir.path(), 64)?;
    let llm = Llm::open(dir.path(), &dev)?;
    let prompt = llm.words.encode("a small blue hat")?;
    assert_eq!(llm.words.decode(&prompt)?, "a small blue hat");
    let want = llm.greedy(&prompt, 5)?;

    // The same as GGUF: queries and keys go back to neighbouring pairs.
    let tensors = weights(&config)?;
    let mut stored = Vec::new();
    for (name, t) in &tensors {
        let name = gguf::stored_name(name).expect("a name");
        let heads = match name.as_str() {
            n if n.contains("attn_q.") => config.num_attention_heads,
            n if n.contains("attn_k.") => config.key_heads(),
            _ => 0,
        };
        let t = if heads > 0 {
            let (out, fan_in) = t.dims2()?;
            let pairs = t.reshape((heads, 2, out / heads / 2, fan_in))?;
            pairs
                .transpose(1, 2)?
                .contiguous()?
                .reshape((out, fan_in))?
        } else {
            t.clone()
        };
        stored.push((name, QTensor::quantize(&t, GgmlDType::F32)?));
    }
    let value = gguf_file::Value::U32;
    let metadata = [
        (
            "general.architecture",
            gguf_file::Value::String("llama".into()),
        ),
        ("llama.context_length", value(64)),
        ("llama.embedding_length", value(12)),
        ("llama.feed_forward_length", value(20)),
        ("llama.block_count", value(2)),
        ("llama.attention.head_count", value(3)),
        ("llama.attention.head_count_kv", value(1)),
        (
            "llama.attention.layer_norm_rms_epsilon",
            gguf_file::Value::F32(1e-5),
        ),
        ("tokenizer.ggml.eos_token_id", value(0)),
    ];
    let named: Vec<(&str, &gguf_file::Value)> = metadata.iter().map(|(k, v)| (*k, v)).collect();
    let tensors: Vec<(&str, &QTensor)> = stored.iter().map(|(n, t)| (n.as_str(), t)).collect();
    std::fs::remove_file(dir.path().join("model.safetensors")).expect("written");
    let path = dir.path().join("tiny.gguf");
    let mut file = std::fs::File::create(&path).expect("writable");
    gguf_file::write(&mut file, &named, &tensors)?;
    drop(file);
    // The scaling of the rotation is not among the metadata read here, so config.json stays.
    let again = Llm::open(dir.path(), &dev)?;
    assert_eq!(again.greedy(&prompt, 5)?, want);

    std::fs::remove_file(dir.path().join("config.json")).expect("written");
    let config = Llm::open(dir.path(), &dev)?.decoder.config().clone();
    assert_eq!(config.vocab_size, 280);
    assert!(config.rope_scaling.is_none() && config.tie_word_embeddings);
    Ok(())
}

#[test]
fn unusable_folders_are_refused_by_name() -> Result<()> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let refusal = || match Llm::open(dir.path(), &Device::Cpu) {
        Ok(_) => String::new(),
        Err(e) => e.to_string(),
    };
    let config = write_llama(dir.path(), 64)?;
    let mut tensors = weights(&config)?;
    tensors.remove("model.layers.1.mlp.up_proj.weight");
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors"))?;
    assert!(refusal().contains("model.layers.1.mlp.up_proj.weight"));
    let put =
        |text: String| std::fs::write(dir.path().join("config.json"), text).expect("writable");
    let mut value = serde_json::to_value(&config).expect("a configuration");
    value["num_key_value_heads"] = json!(2);
    put(value.to_string());
    assert!(refusal().contains("3 heads of queries"), "{}", refusal());
    value["model_type"] = json!("mamba");
    put(value.to_string());
    assert!(refusal().contains("mamba"));
    write_llama(dir.path(), 64)?;
    std::fs::remove_file(dir.path().join("tokenizer.json")).expect("writable");
    assert!(refusal().contains("tokenizer.json"), "{}", refusal());
    Ok(())
}

#[test]
fn a_trained_tokenizer_encodes_any_text_and_repeats() -> Result<()> {
    let words = Words::train(TEXTS.into_iter(), 280)?;
    assert!(words.len() <= 280);
    let again = Words::train(TEXTS.into_iter(), 280)?;
    assert_eq!(words.to_json()?, again.to_json()?);
    let read = Words::from_json(&words.to_json()?, 280)?;
    for text in ["a small hat", "帽子 \"x\"\n", ""] {
        let ids = read.encode(text)?;
        assert_eq!(read.decode(&ids)?, text);
    }
    assert!(read.encode("a small hat")?.len() < 8);
    assert!(Words::from_json(&words.to_json()?, 200).is_err());
    Ok(())
}

/// Loader, order of rows, rotation and tokenizer at once, on the folder that
/// `fetch_encoders.py smollm2` writes.
#[test]
fn a_real_model_answers() -> Result<()> {
    let Some(folder) = std::env::var_os("TERCET_SMOLLM2_DIR") else {
        println!("skipped: TERCET_SMOLLM2_DIR names no folder with the converted SmolLM2-135M");
        return Ok(());
    };
    let llm = Llm::open(folder, &Device::Cpu)?;
    let (before, after) = llm.words.frame();
    let prompt = format!("{before}What is the capital of France?{after}");
    let prompt = llm.words.encode(&prompt)?;
    assert_eq!(prompt.len(), 16);
    let answer = llm.words.decode(&llm.greedy(&prompt, 16)?)?;
    assert_eq!(answer, "The capital of France is Paris.");
    Ok(())
}
