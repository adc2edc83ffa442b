//! Preprocessing and towers for pictures against `oracle.py` beside this file, whose head has the
//! formulas of weights and pictures.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::super::conv::Depthwise;
use super::super::efficientnet::{EfficientNet, LiteConfig, Stage};
use super::super::picture::Picture;
use super::super::preprocess::{Filter, Fit, Preprocess};
use super::super::weights::Weights;
use super::super::{ImageEncoder, Output};
use super::write;
use crate::error::Result;
use crate::rng::{self, Purpose};

/// f32 against f64 through two blocks of values near 1.
const TOLERANCE: f64 = 2e-5;

fn picture(width: usize, height: usize) -> Picture {
    let value = |x: usize, y: usize, c: usize| (37 * x + 91 * y + 53 * c + 11 * x * y) % 256;
    let rgb = (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| value(x, y, c) as u8)))
        .collect();
    Picture::new(width, height, rgb)
}

fn tensor(name: &str, shape: &[usize]) -> Result<Tensor> {
    let sum: u32 = name.bytes().map(u32::from).sum();
    let n: usize = shape.iter().product();
    let wave = |k: usize| 0.4 * (0.61 * k as f64 + 0.17 * f64::from(sum)).sin();
    let value = |k: usize| match shape {
        [_] if name.ends_with("running_var") => 0.5 + wave(k).abs(),
        [_] if name.ends_with("weight") => 1.0 + wave(k),
        _ => wave(k),
    };
    let values: Vec<f32> = (0..n).map(|k| value(k) as f32).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn tensors(shapes: Vec<(String, Vec<usize>)>) -> Result<HashMap<String, Tensor>> {
    shapes
        .into_iter()
        .map(|(name, shape)| Ok((name.clone(), tensor(&name, &shape)?)))
        .collect()
}

fn values(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?)
}

fn close(got: &Tensor, want: &[f64]) -> Result<()> {
    let got = values(got)?;
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() < TOLERANCE, "{got:?}, {want:?}");
    }
    Ok(())
}

fn preprocess(fit: Fit, resized: usize, size: usize, filter: Filter) -> Preprocess {
    Preprocess {
        size,
        fit,
        resized,
        filter,
        scale: 1.0 / 255.0,
        mean: [0.5; 3],
        std: [0.5; 3],
    }
}

#[test]
fn resampling_is_pillows() {
    let down = preprocess(Fit::Shortest, 5, 3, Filter::Bicubic);
    assert_eq!(
        down.square(&picture(13, 9)),
        [
            130, 115, 104, 121, 125, 125, 148, 154, 166, 105, 133, 128, 131, 137, 122, 157, 121,
            102, 119, 157, 124, 146, 119, 163, 128, 140, 108
        ]
    );
    let up = preprocess(Fit::Shortest, 6, 3, Filter::Bicubic);
    assert_eq!(
        up.square(&picture(3, 4)),
        [
            72, 128, 201, 95, 163, 235, 126, 194, 198, 130, 170, 181, 160, 164, 219, 172, 176, 185,
            192, 197, 72, 232, 98, 104, 200, 66, 125
        ]
    );
    let stretched = preprocess(Fit::Stretch, 3, 3, Filter::Bilinear);
    assert_eq!(
        stretched.square(&picture(11, 6)),
        [
            111, 135, 149, 130, 133, 130, 96, 111, 135, 130, 133, 114, 128, 125, 120, 132, 133,
            133, 117, 145, 125, 124, 128, 132, 126, 128, 109
        ]
    );
    let large = preprocess(Fit::Shortest, 64, 56, Filter::Bicubic).square(&picture(301, 211));
    let sum = large.iter().zip(1u64..).map(|(v, i)| u64::from(*v) * i);
    assert_eq!(sum.sum::<u64>() % 1_000_003, 567_072);
    // A thin picture: only what the square shows is computed.
    let thin = preprocess(Fit::Shortest, 256, 224, Filter::Bicubic);
    assert_eq!(thin.square(&picture(16_000, 1)).len(), 224 * 224 * 3);
}

#[test]
fn preprocessing_reads_what_exporters_write() -> Result<()> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let default = preprocess(Fit::Shortest, 8, 8, Filter::Bicubic);
    assert_eq!(default.clone().read(dir.path())?, default);
    let read = |value: Value| {
        write(dir.path(), "preprocessor_config.json", &value);
        default.clone().read(dir.path())
    };
    let clip = read(json!({
        "size": { "shortest_edge": 9 }, "crop_size": { "height": 8, "width": 8 },
        "do_center_crop": true, "do_resize": true, "resample": 3, "rescale_factor": 0.5,
        "image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0], "do_convert_rgb": true,
    }))?;
    assert_eq!((clip.resized, clip.mean[1], clip.scale), (9, 0.2, 0.5));
    let old = read(json!({ "size": 8, "crop_size": 8, "do_center_crop": true, "resample": 3 }))?;
    assert_eq!(old, default);
    let vit = read(json!({ "size": { "height": 8, "width": 8 }, "resample": 2 }))?;
    assert_eq!((vit.fit, vit.filter), (Fit::Stretch, Filter::Bilinear));
    for (value, word) in [
        (json!({ "resample": 1 }), "resample 1"),
        (json!({ "size": { "height": 8, "width": 9 } }), "8 x 9"),
        (json!({ "crop_size": 7 }), "7 x 7"),
        (json!({ "size": 4, "crop_size": 8 }), "4"),
        (json!({ "do_resize": false }), "do_resize"),
        (json!({ "do_center_crop": false }), "crop"),
        (json!({ "image_std": [1.0, 0.0, 1.0] }), "std"),
        (json!({ "size": 100_000 }), "100000"),
        (json!("size"), "preprocessor_config.json"),
    ] {
        let text = read(value).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains(word), "{text}");
    }
    Ok(())
}

/// Names and shapes of a ViT's tensors: width 8, two heads and blocks, 8 x 8 pixels in patches of 4.
fn vit_shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("embeddings.cls_token".into(), vec![1, 1, 8]),
        ("embeddings.position_embeddings".into(), vec![1, 5, 8]),
        (
            "embeddings.patch_embeddings.projection.weight".into(),
            vec![8, 3, 4, 4],
        ),
        (
            "embeddings.patch_embeddings.projection.bias".into(),
            vec![8],
        ),
    ];
    pairs(&mut shapes, "layernorm", &[8]);
    for i in 0..2 {
        for (part, shape) in [
            ("attention.attention.query", &[8, 8][..]),
            ("attention.attention.key", &[8, 8]),
            ("attention.attention.value", &[8, 8]),
            ("attention.output.dense", &[8, 8]),
            ("intermediate.dense", &[12, 8]),
            ("output.dense", &[8, 12]),
            ("layernorm_before", &[8]),
            ("layernorm_after", &[8]),
        ] {
            pairs(&mut shapes, &format!("encoder.layer.{i}.{part}"), shape);
        }
    }
    shapes
}

fn clip_shapes() -> Vec<(String, Vec<usize>)> {
    let p = "vision_model";
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        (format!("{p}.embeddings.class_embedding"), vec![8]),
        (
            format!("{p}.embeddings.position_embedding.weight"),
            vec![5, 8],
        ),
        (
            format!("{p}.embeddings.patch_embedding.weight"),
            vec![8, 3, 4, 4],
        ),
    ];
    pairs(&mut shapes, &format!("{p}.pre_layrnorm"), &[8]);
    pairs(&mut shapes, &format!("{p}.post_layernorm"), &[8]);
    for i in 0..2 {
        for (part, shape) in [
            ("self_attn.q_proj", &[8, 8][..]),
            ("self_attn.k_proj", &[8, 8]),
            ("self_attn.v_proj", &[8, 8]),
            ("self_attn.out_proj", &[8, 8]),
            ("mlp.fc1", &[12, 8]),
            ("mlp.fc2", &[8, 12]),
            ("layer_norm1", &[8]),
            ("layer_norm2", &[8]),
        ] {
            pairs(
                &mut shapes,
                &format!("{p}.encoder.layers.{i}.{part}"),
                shape,
            );
        }
    }
    shapes
}

fn pairs(shapes: &mut Vec<(String, Vec<usize>)>, name: &str, shape: &[usize]) {
    shapes.push((format!("{name}.weight"), shape.to_vec()));
    shapes.push((format!("{name}.bias"), vec![shape[0]]));
}

fn shape() -> Value {
    json!({
        "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
    })
}

fn config(model_type: &str) -> Value {
    let mut config = shape();
    config["model_type"] = json!(model_type);
    config
}

/// The tensors of [`write_vit`].
fn vit_tensors() -> Result<HashMap<String, Tensor>> {
    tensors(vit_shapes())
}

/// Writes a ViT of width 8 that reads 8 x 8 pixels.
pub(crate) fn write_vit(dir: &Path) -> Result<()> {
    candle_core::safetensors::save(&vit_tensors()?, dir.join("model.safetensors"))?;
    write(dir, "config.json", &config("vit"));
    Ok(())
}

fn refusal(dir: &Path) -> String {
    match ImageEncoder::open(dir, &Device::Cpu) {
        Ok(_) => String::new(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn vit_matches_oracle() -> Result<()> {
    let dir = tempfile::tempdir().expect("temporary folder");
    write_vit(dir.path())?;
    let e = ImageEncoder::open(dir.path(), &Device::Cpu)?;
    let pixels = [e.fit(&picture(8, 8))];
    assert_eq!(e.dim(), 8);
    close(
        &e.encode(&pixels, Output::Pooled)?,
        &[
            1.404178717,
            0.707684559,
            0.359707042,
            0.583114918,
            0.688958284,
            -0.102626413,
            -1.893565046,
            -2.577321298,
        ],
    )?;
    let tokens = e.encode(&pixels, Output::Tokens(7))?;
    assert_eq!(tokens.dims(), [1, 7, 8]);
    close(
        &tokens.narrow(1, 4, 1)?,
        &[
            0.962634656,
            1.044223962,
            0.328033636,
            0.424899155,
            0.931033770,
            -0.352843582,
            -2.310438192,
            -1.750724715,
        ],
    )?;
    close(&tokens.narrow(1, 5, 2)?, &[0.0; 16])?;
    let first = e.encode(&pixels, Output::Tokens(1))?;
    close(&first, &values(&e.encode(&pixels, Output::Pooled)?)?)
}

/// Alone, as the part of the whole model, and with another outermost module.
#[test]
fn clip_matches_oracle() -> Result<()> {
    let want = [
        -1.509772864,
        0.034225767,
        1.405357879,
        0.960085453,
        -0.290899368,
        -1.024921279,
        -0.292875575,
        1.061065458,
    ];
    let whole = json!({ "model_type": "clip", "text_config": {}, "vision_config": shape() });
    for (config, cut) in [
        (config("clip_vision_model"), ""),
        (whole, ""),
        (config("clip_vision_model"), "vision_model."),
    ] {
        let dir = tempfile::tempdir().expect("temporary folder");
        let named: HashMap<String, Tensor> = tensors(clip_shapes())?
            .into_iter()
            .map(|(name, t)| (name.strip_prefix(cut).unwrap_or(&name).to_owned(), t))
            .collect();
        candle_core::safetensors::save(&named, dir.path().join("model.safetensors"))?;
        write(dir.path(), "config.json", &config);
        let e = ImageEncoder::open(dir.path(), &Device::Cpu)?;
        let pixels = [e.fit(&picture(8, 8)), e.fit(&picture(20, 9))];
        close(&e.encode(&pixels, Output::Pooled)?.narrow(0, 0, 1)?, &want)?;
        let tokens = e.encode(&pixels, Output::Tokens(5))?;
        close(
            &tokens.narrow(0, 0, 1)?.narrow(1, 4, 1)?,
            &[
                -1.189945537,
                -2.240129340,
                3.519386912,
                2.713861234,
                -0.852344772,
                -1.724774101,
                -2.461747356,
                -1.699023232,
            ],
        )?;
    }
    Ok(())
}

/// Names and shapes of an EfficientNet's tensors in timm's layout.
fn lite_shapes(config: &LiteConfig) -> Vec<(String, Vec<usize>)> {
    let mut shapes = Vec::new();
    let mut part = |conv: &str, norm: &str, shape: [usize; 4]| {
        shapes.push((format!("{conv}.weight"), shape.to_vec()));
        for value in ["weight", "bias", "running_mean", "running_var"] {
            shapes.push((format!("{norm}.{value}"), vec![shape[0]]));
        }
    };
    part("conv_stem", "bn1", [config.stem, 3, 3, 3]);
    let mut from = config.stem;
    for (at, stage) in config.stages.iter().enumerate() {
        let (k, to) = (stage.kernel, stage.channels);
        for i in 0..stage.repeats {
            let b = format!("blocks.{at}.{i}");
            let name = |p: &str| format!("{b}.{p}");
            let inner = from * stage.expand;
            if stage.expand == 1 {
                part(&name("conv_dw"), &name("bn1"), [inner, 1, k, k]);
                part(&name("conv_pw"), &name("bn2"), [to, inner, 1, 1]);
            } else {
                part(&name("conv_pw"), &name("bn1"), [inner, from, 1, 1]);
                part(&name("conv_dw"), &name("bn2"), [inner, 1, k, k]);
                part(&name("conv_pwl"), &name("bn3"), [to, inner, 1, 1]);
            }
            from = to;
        }
    }
    part("conv_head", "bn2", [config.head, from, 1, 1]);
    shapes
}

#[test]
fn efficientnet_matches_oracle() -> Result<()> {
    let stage = |repeats, kernel, stride, expand, channels| Stage {
        repeats,
        kernel,
        stride,
        expand,
        channels,
    };
    for (side, pooled, last) in [
        (
            10,
            [2.990364305, 0.0, 0.0, 0.0, 3.956501936, 2.237044901],
            [2.806928242, 0.0, 0.0, 0.0, 3.931460444, 1.605514600],
        ),
        (
            11,
            [2.950994865, 0.0, 0.0, 0.0, 3.887756159, 2.187935903],
            [2.818107183, 0.0, 0.0, 0.0, 3.941604897, 1.632246749],
        ),
    ] {
        let config = LiteConfig {
            size: side,
            stem: 4,
            head: 6,
            stages: vec![stage(1, 3, 1, 1, 4), stage(2, 5, 2, 2, 8)],
        };
        let weights = Weights::new("tiny".into(), tensors(lite_shapes(&config))?);
        let net = EfficientNet::open(&config, &weights)?;
        let values: Vec<f32> = picture(side, side)
            .rgb()
            .iter()
            .map(|v| (f32::from(*v) - 127.0) / 128.0)
            .collect();
        let x = Tensor::from_vec(values, (1, side, side, 3), &Device::Cpu)?;
        close(&net.pooled(&x)?, &pooled)?;
        let tokens = net.tokens(&x)?;
        // 10 and 11 become 5 and 6, then 3 and 3.
        assert_eq!(tokens.dims(), [1, 10, 6]);
        close(&tokens.narrow(1, 0, 1)?, &pooled)?;
        close(&tokens.narrow(1, 9, 1)?, &last)?;
    }
    Ok(())
}

/// Parameters with the classifier of 1,000 classes, in the millions that are published.
#[test]
fn versions_have_their_published_sizes() {
    for (version, size, millions) in [
        (0, 224, 4.65),
        (1, 240, 5.42),
        (2, 260, 6.09),
        (3, 280, 8.20),
        (4, 300, 13.01),
    ] {
        let config = LiteConfig::named(&format!("tf_efficientnet_lite{version}"));
        let config = config.expect("a version");
        let trained = |(name, _): &(String, Vec<usize>)| !name.contains("running");
        let count: usize = lite_shapes(&config)
            .into_iter()
            .filter(trained)
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        let count = (count + 1280 * 1000 + 1000) as f64 / 1e6;
        assert!((count - millions).abs() < 0.005, "{version}: {count}");
        assert_eq!(config.size, size);
    }
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("config.json");
    let read = |value: Value| {
        write(dir.path(), "config.json", &value);
        LiteConfig::named("tf_efficientnet_lite1").map(|c| c.preprocess(&path))
    };
    let published = read(json!({})).expect("a version").expect("readable");
    assert_eq!((published.size, published.resized), (240, 272));
    assert_eq!(published.fit, Fit::Shortest);
    let whole = json!({ "pretrained_cfg": { "crop_mode": "squash", "crop_pct": 1.0,
        "input_size": [3, 200, 200], "mean": [0.5, 0.5, 0.5] } });
    let whole = read(whole).expect("a version").expect("readable");
    assert_eq!(
        (whole.size, whole.resized, whole.fit),
        (200, 200, Fit::Stretch)
    );
    assert_eq!(whole.mean, [0.5; 3]);
    for name in [
        "tf_efficientnet_lite5",
        "efficientnet_lite0",
        "tf_efficientnet_lite00",
        "",
    ] {
        assert!(LiteConfig::named(name).is_none(), "{name}");
    }
}

/// The loop for the CPU against candle's convolution in groups, which other devices take.
#[test]
fn depthwise_is_a_convolution_in_groups() -> Result<()> {
    let dev = Device::Cpu;
    let mut r = rng::stream(3, Purpose::Init, &[]);
    for (h, w, kernel, stride) in [(7, 4, 3, 1), (8, 5, 3, 2), (6, 9, 5, 2), (2, 1, 5, 1)] {
        let conv = Depthwise {
            weight: rng::normal(&mut r, (kernel * kernel, 3), 1.0, &dev)?,
            bias: rng::normal(&mut r, 3, 1.0, &dev)?,
            kernel,
            stride,
        };
        let x = rng::normal(&mut r, (2, h, w, 3), 1.0, &dev)?;
        let got = conv.forward(&x)?;
        let want = conv.grouped(&x)?;
        assert_eq!(got.dims(), want.dims());
        close(&got, &values(&want)?)?;
    }
    Ok(())
}

#[test]
fn what_does_not_fit_together_is_named() -> Result<()> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path();
    assert!(refusal(path).contains("config.json"));
    write_vit(path)?;
    assert_eq!(refusal(path), "");

    let weights = path.join("model.safetensors");
    let name = "encoder.layer.1.output.dense.weight";
    let mut wrong = vit_tensors()?;
    wrong.insert(name.into(), tensor(name, &[8, 11])?);
    candle_core::safetensors::save(&wrong, &weights)?;
    let text = refusal(path);
    assert!(
        text.contains(name) && text.contains("[8, 11]") && text.contains("[8, 12]"),
        "{text}"
    );
    wrong.remove(name);
    candle_core::safetensors::save(&wrong, &weights)?;
    assert!(refusal(path).contains("missing"));
    write_vit(path)?;

    for (key, value, word) in [
        ("num_hidden_layers", json!(1), "num_hidden_layers"),
        ("num_hidden_layers", json!(3), "encoder.layer.2"),
        ("num_attention_heads", json!(3), "3 attention heads"),
        ("patch_size", json!(0), "patch_size 0"),
        ("patch_size", json!(2), "[8, 3, 2, 2]"),
        ("image_size", json!(1_000_000), "1000000"),
        ("hidden_act", json!("tanh"), "tanh"),
        ("model_type", json!("deit"), "clip_vision_model"),
        ("model_type", json!("bert"), "tf_efficientnet_lite0"),
    ] {
        let mut config = config("vit");
        config[key] = value;
        write(path, "config.json", &config);
        let text = refusal(path);
        assert!(text.contains(word), "{text}");
    }
    for (config, word) in [
        (json!({ "architecture": "resnet50" }), "resnet50"),
        (json!({ "architectures": ["ResNetModel"] }), "ResNetModel"),
        (
            json!({ "architecture": "tf_efficientnet_lite0" }),
            "bn1.running_var",
        ),
        (
            json!({ "architecture": "tf_efficientnet_lite0",
                "pretrained_cfg": { "interpolation": "lanczos" } }),
            "lanczos",
        ),
        (
            json!({ "architecture": "tf_efficientnet_lite0",
                "pretrained_cfg": { "crop_mode": "border" } }),
            "border",
        ),
        (
            json!({ "architecture": "tf_efficientnet_lite0",
                "pretrained_cfg": { "input_size": [3, 224, 200] } }),
            "200",
        ),
    ] {
        write(path, "config.json", &config);
        let text = refusal(path);
        assert!(text.contains(word), "{text}");
    }
    Ok(())
}
