"""The numbers that `image.rs` beside this file expects, in float64 and without any of the crate.

    pip install numpy pillow && python3 oracle.py

Weights are a formula of a tensor's name and the flat index k of a value: with n the sum of the name's
bytes, 0.4 sin(0.61 k + 0.17 n), plus 1 in the gains of norms (one dimension, name ending in weight) and
0.5 plus its absolute value where the name ends in running_var.
Pictures are one too: (37 x + 91 y + 53 c + 11 x y) mod 256 at column x, row y, channel c.
"""

import math

import numpy as np
from PIL import Image


def picture(width, height):
    y, x, c = np.meshgrid(range(height), range(width), range(3), indexing="ij")
    return ((37 * x + 91 * y + 53 * c + 11 * x * y) % 256).astype(np.uint8)


def weight(name, *shape):
    k = np.arange(math.prod(shape), dtype=np.float64)
    values = 0.4 * np.sin(0.61 * k + 0.17 * sum(name.encode()))
    if name.endswith("running_var"):
        values = 0.5 + np.abs(values)
    elif name.endswith("weight") and len(shape) == 1:
        values = 1.0 + values
    return values.reshape(shape)


def show(what, values):
    text = ", ".join(f"{v:.9f}" if isinstance(v, float) else str(v) for v in np.ravel(values).tolist())
    print(f"{what}:\n[{text}]\n")


# -- preprocessing: Pillow itself -------------------------------------------------------------------


def fit(array, resized, size, stretch, resample):
    image = Image.fromarray(array)
    width, height = image.size
    short = min(width, height)
    to = (resized, resized) if stretch else (resized * width // short, resized * height // short)
    image = image.resize(to, resample)
    left, top = (to[0] - size) // 2, (to[1] - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
show("13 x 9, shorter side to 5, middle 3, bicubic", fit(picture(13, 9), 5, 3, False, BICUBIC))
show("3 x 4, shorter side to 6, middle 3, bicubic", fit(picture(3, 4), 6, 3, False, BICUBIC))
show("11 x 6, both to 3, bilinear", fit(picture(11, 6), 3, 3, True, BILINEAR))
large = fit(picture(301, 211), 64, 56, False, BICUBIC).astype(np.int64)
show("301 x 211, shorter to 64, middle 56, bicubic: sum of (i + 1) value mod 1000003", [
    int((large.ravel() * np.arange(1, large.size + 1)).sum() % 1000003)
])


# -- vision transformers: width 8, 2 heads, 2 blocks, 12 inside, 8 x 8 pixels in patches of 4 ----------


def norm(x, name, eps):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return x * weight(f"{name}.weight", 8) + weight(f"{name}.bias", 8)


def dense(x, name, n_in, n_out, bias=True):
    y = x @ weight(f"{name}.weight", n_out, n_in).T
    return y + weight(f"{name}.bias", n_out) if bias else y


def transformer(x, parts, activation, eps):
    for i in range(2):
        at = {k: f"{parts['layers']}.{i}.{v}" for k, v in parts["block"].items()}
        y = norm(x, at["before"], eps)
        q, k, v = (
            dense(y, at[p], 8, 8).reshape(-1, 2, 4).transpose(1, 0, 2) for p in ("q", "k", "v")
        )
        logits = q @ k.transpose(0, 2, 1) / 2.0
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        odds /= odds.sum(-1, keepdims=True)
        x = x + dense((odds @ v).transpose(1, 0, 2).reshape(-1, 8), at["o"], 8, 8)
        y = activation(dense(norm(x, at["after"], eps), at["up"], 8, 12))
        x = x + dense(y, at["down"], 12, 8)
    return x


def patches(mean, std, kernel):
    x = (picture(8, 8) / 255.0 - mean) / std
    rows = []
    for row in range(2):
        for column in range(2):
            part = x[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].transpose(2, 0, 1)
            rows.append((kernel * part).sum((1, 2, 3)))
    return np.array(rows)


MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
x = patches(MEAN, STD, weight("vision_model.embeddings.patch_embedding.weight", 8, 3, 4, 4))
x = np.vstack([weight("vision_model.embeddings.class_embedding", 8), x])
x = x + weight("vision_model.embeddings.position_embedding.weight", 5, 8)
x = norm(x, "vision_model.pre_layrnorm", 1e-5)
clip = {
    "layers": "vision_model.encoder.layers",
    "block": {
        "before": "layer_norm1",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
        "after": "layer_norm2",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    },
}
x = transformer(x, clip, lambda z: z / (1 + np.exp(-1.702 * z)), 1e-5)
show("CLIP, pooled", norm(x[:1], "vision_model.post_layernorm", 1e-5))
show("CLIP, last token", x[-1])

kernel = weight("embeddings.patch_embeddings.projection.weight", 8, 3, 4, 4)
x = patches(0.5, 0.5, kernel) + weight("embeddings.patch_embeddings.projection.bias", 8)
x = np.vstack([weight("embeddings.cls_token", 1, 1, 8)[0], x])
x = x + weight("embeddings.position_embeddings", 1, 5, 8)[0]
vit = {
    "layers": "encoder.layer",
    "block": {
        "before": "layernorm_before",
        "q": "attention.attention.query",
        "k": "attention.attention.key",
        "v": "attention.attention.value",
        "o": "attention.output.dense",
        "after": "layernorm_after",
        "up": "intermediate.dense",
        "down": "output.dense",
    },
}
gelu = np.vectorize(lambda z: 0.5 * z * (1 + math.erf(z / math.sqrt(2))))
x = norm(transformer(x, vit, gelu, 1e-12), "layernorm", 1e-12)
show("ViT, pooled", x[0])
show("ViT, last token", x[-1])


# -- EfficientNet-Lite: stem 4, head 6; a plain block of 4, two of 8 channels expanded twice, 5 x 5,
# -- the first with stride 2; sides 10 (even: padding is uneven) and 11 -------------------------------


def bn(x, name):
    get = [weight(f"{name}.{p}", x.shape[-1]) for p in ("weight", "bias", "running_mean", "running_var")]
    return (x - get[2]) / np.sqrt(get[3] + 1e-3) * get[0] + get[1]


def relu6(x):
    return np.clip(x, 0, 6)


def conv(x, kernel, stride):
    """`x` is [H, W, C], `kernel` [out, C, K, K]; output places are ceil(side / stride)."""
    side, k = x.shape[0], kernel.shape[-1]
    out = -(-side // stride)
    pad = max((out - 1) * stride + k - side, 0)
    x = np.pad(x, [(pad // 2, pad - pad // 2)] * 2 + [(0, 0)])
    y = np.zeros((out, out, kernel.shape[0]))
    for i in range(out):
        for j in range(out):
            part = x[i * stride : i * stride + k, j * stride : j * stride + k].transpose(2, 0, 1)
            y[i, j] = (kernel * part).sum((1, 2, 3))
    return y


def depthwise(x, kernel, stride):
    channels = [conv(x[:, :, c : c + 1], kernel[c : c + 1], stride) for c in range(x.shape[-1])]
    return np.concatenate(channels, -1)


def lite(side):
    x = (picture(side, side) - 127.0) / 128.0
    x = relu6(bn(conv(x, weight("conv_stem.weight", 4, 3, 3, 3), 2), "bn1"))
    b = "blocks.0.0"
    y = relu6(bn(depthwise(x, weight(f"{b}.conv_dw.weight", 4, 1, 3, 3), 1), f"{b}.bn1"))
    x = x + bn(conv(y, weight(f"{b}.conv_pw.weight", 4, 4, 1, 1), 1), f"{b}.bn2")
    for i in range(2):
        b, n = f"blocks.1.{i}", x.shape[-1]
        y = relu6(bn(conv(x, weight(f"{b}.conv_pw.weight", 2 * n, n, 1, 1), 1), f"{b}.bn1"))
        kernel = weight(f"{b}.conv_dw.weight", 2 * n, 1, 5, 5)
        y = relu6(bn(depthwise(y, kernel, 2 if i == 0 else 1), f"{b}.bn2"))
        y = bn(conv(y, weight(f"{b}.conv_pwl.weight", 8, 2 * n, 1, 1), 1), f"{b}.bn3")
        x = y if i == 0 else x + y
    x = relu6(bn(conv(x, weight("conv_head.weight", 6, 8, 1, 1), 1), "bn2"))
    show(f"EfficientNet-Lite, side {side}, pooled", x.mean((0, 1)))
    show(f"EfficientNet-Lite, side {side}, last place", x[-1, -1])


lite(10)
lite(11)
