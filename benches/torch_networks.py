#!/usr/bin/env python3
"""Wan2.1 and Cosmos-Predict2 as plain PyTorch functions of a dictionary of weights: the other side of benches/peer.py, and an independent
formula for variants of which tests/fixtures/models has no answers from diffusers.

Usage: python benches/torch_networks.py check tests/fixtures/models/wan_a        every case, in float64, against its stored answers
       python benches/torch_networks.py make tests/fixtures/models               writes the folders of VARIANTS: weights, cases, answers
"""
import json
import math
import struct
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16}


def load(path):
    """A safetensors file's tensors, and its metadata."""
    data = Path(path).read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    meta = header.pop("__metadata__", {})
    body = bytearray(data[8 + n :])
    read = lambda e: torch.frombuffer(body, dtype=DTYPES[e["dtype"]], count=math.prod(e["shape"]), offset=e["data_offsets"][0]).reshape(e["shape"]).clone()
    return {k: read(e) for k, e in header.items()}, meta


def save(path, tensors, meta):
    names = {v: k for k, v in DTYPES.items()}
    header, at, body = {"__metadata__": meta}, 0, b""
    for k in sorted(tensors):
        t = tensors[k].detach().contiguous()
        raw = t.numpy().tobytes()
        header[k] = {"dtype": names[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + len(raw)]}
        at, body = at + len(raw), body + raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + body)


def linear(w, key, x):
    return F.linear(x, w[key + ".weight"], w.get(key + ".bias"))


def layer_norm(x, eps, weight=None, bias=None):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def attend(q, k, v):
    """Softmax attention over [B,H,N,d], as its formula."""
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v


def sinusoid(t, size):
    w = torch.exp(-math.log(10000) * torch.arange(size // 2, dtype=t.dtype) / (size // 2))
    return torch.cat([torch.cos(t[..., None] * w), torch.sin(t[..., None] * w)], -1)


def angles(grid, d, theta, dtype, step=1.0):
    """[N, d/2]: time, height and width in turn, over tokens in row-major order."""
    side = 2 * (d // 6)
    sizes = [d - 2 * side, side, side]
    parts = []
    for axis, (n, length) in enumerate(zip(sizes, grid)):
        at = torch.arange(length, dtype=dtype) * (step if axis == 0 else 1.0)
        a = at[:, None] * theta[axis] ** (-2 * torch.arange(n // 2, dtype=dtype) / n)
        shape = [1, 1, 1, n // 2]
        shape[axis] = length
        parts.append(a.reshape(shape).expand(*grid, n // 2))
    return torch.cat(parts, -1).reshape(-1, d // 2)


def wan(c, w, x, t, ctx, image=None):
    p, (b, ch, T, H, W) = c["patch_size"], x.shape
    heads, d = c["num_attention_heads"], c["attention_head_dim"]
    grid, eps, dim = [T // p[0], H // p[1], W // p[2]], c["eps"], heads * d
    h = x.reshape(b, ch, grid[0], p[0], grid[1], p[1], grid[2], p[2]).permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, math.prod(grid), -1)
    h = F.linear(h, w["patch_embedding.weight"].reshape(dim, -1), w["patch_embedding.bias"])
    a = angles(grid, d, [10000.0] * 3, x.dtype)
    cos, sin = torch.cos(a), torch.sin(a)

    def turn(u):
        even, odd = u[..., 0::2], u[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    split = lambda u: u.reshape(b, -1, heads, d).transpose(1, 2)
    e = "condition_embedder."
    temb = linear(w, e + "time_embedder.linear_2", F.silu(linear(w, e + "time_embedder.linear_1", sinusoid(t, c["freq_dim"]))))
    rows = linear(w, e + "time_proj", F.silu(temb))
    rows = rows.reshape(*rows.shape[:-1], 6, dim)
    rows = rows[:, None] if rows.dim() == 3 else rows
    text = linear(w, e + "text_embedder.linear_2", F.gelu(linear(w, e + "text_embedder.linear_1", ctx), approximate="tanh"))
    if image is not None:
        k = e + "image_embedder."
        if k + "pos_embed" in w:
            image = image.reshape(-1, 2 * image.shape[1], image.shape[2]) + w[k + "pos_embed"]
        i = layer_norm(image, 1e-5, w[k + "norm1.weight"], w[k + "norm1.bias"])
        i = linear(w, k + "ff.net.2", F.gelu(linear(w, k + "ff.net.0.proj", i)))
        i = layer_norm(i, 1e-5, w[k + "norm2.weight"], w[k + "norm2.bias"])
        both = torch.cat([i, text], 1)
        cut = both.shape[1] - 512
        image, text = both[:, :cut], both[:, cut:]
    for n in range(c["num_layers"]):
        k = f"blocks.{n}."
        s1, c1, g1, s2, c2, g2 = (w[k + "scale_shift_table"] + rows).unbind(-2)
        z = layer_norm(h, eps) * (1 + c1) + s1
        q = turn(split(rms(linear(w, k + "attn1.to_q", z), w[k + "attn1.norm_q.weight"], eps)))
        key = turn(split(rms(linear(w, k + "attn1.to_k", z), w[k + "attn1.norm_k.weight"], eps)))
        o = attend(q, key, split(linear(w, k + "attn1.to_v", z)))
        h = h + g1 * linear(w, k + "attn1.to_out.0", o.transpose(1, 2).flatten(2))
        z = layer_norm(h, eps, w[k + "norm2.weight"], w[k + "norm2.bias"]) if c["cross_attn_norm"] else h
        q = split(rms(linear(w, k + "attn2.to_q", z), w[k + "attn2.norm_q.weight"], eps))
        key = split(rms(linear(w, k + "attn2.to_k", text), w[k + "attn2.norm_k.weight"], eps))
        o = attend(q, key, split(linear(w, k + "attn2.to_v", text)))
        if image is not None and image.shape[1]:
            key = split(rms(linear(w, k + "attn2.add_k_proj", image), w[k + "attn2.norm_added_k.weight"], eps))
            o = o + attend(q, key, split(linear(w, k + "attn2.add_v_proj", image)))
        h = h + linear(w, k + "attn2.to_out.0", o.transpose(1, 2).flatten(2))
        z = layer_norm(h, eps) * (1 + c2) + s2
        h = h + g2 * linear(w, k + "ffn.net.2", F.gelu(linear(w, k + "ffn.net.0.proj", z), approximate="tanh"))
    temb = temb[:, None] if temb.dim() == 2 else temb
    shift, scale = w["scale_shift_table"][0, 0] + temb, w["scale_shift_table"][0, 1] + temb
    y = linear(w, "proj_out", layer_norm(h, eps) * (1 + scale) + shift)
    return y.reshape(b, *grid, *p, -1).permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(b, -1, T, H, W)


def cosmos(c, w, x, t, ctx, condition_mask=None, padding_mask=None, fps=None, qk_eps=1e-5):
    p = c["patch_size"]
    heads, d = c["num_attention_heads"], c["attention_head_dim"]
    dim = heads * d
    b, _, T, H, W = x.shape
    if condition_mask is not None:
        x = torch.cat([x, condition_mask], 1)
    if c["concat_padding_mask"]:
        rows = torch.arange(H) * padding_mask.shape[2] // H
        columns = torch.arange(W) * padding_mask.shape[3] // W
        x = torch.cat([x, padding_mask[:, :, rows][..., columns][:, :, None].expand(b, 1, T, H, W)], 1)
    grid = [T // p[0], H // p[1], W // p[2]]
    h = x.reshape(b, x.shape[1], grid[0], p[0], grid[1], p[1], grid[2], p[2]).permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, math.prod(grid), -1)
    h = linear(w, "patch_embed.proj", h)
    side = 2 * (d // 6)
    sizes = [d - 2 * side, side, side]
    theta = [10000 * s ** (n / (n - 2)) for s, n in zip(c["rope_scale"], sizes)]
    a = angles(grid, d, theta, x.dtype, 24 / fps if fps else 1.0)
    cos, sin = torch.cos(a), torch.sin(a)

    def turn(u):
        left, right = u.chunk(2, -1)
        return torch.cat([left * cos - right * sin, left * sin + right * cos], -1)

    positions = 0
    if c["extra_pos_embed_type"] == "learnable":
        parts = [w[f"learnable_pos_embed.pos_emb_{n}"][:length] for n, length in zip("thw", grid)]
        e = parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None]
        e = e.reshape(1, -1, dim)
        positions = e / (1e-6 + torch.sqrt(e.pow(2).sum(-1, keepdim=True)) / math.sqrt(dim))
    wide = lambda u: u[:, :, None, None].expand(b, *grid, u.shape[-1]).flatten(1, 3) if t.dim() == 5 else u[:, None]
    s = sinusoid(t.reshape(b, T) if t.dim() == 5 else t, dim)
    temb = wide(linear(w, "time_embed.t_embedder.linear_2", F.silu(linear(w, "time_embed.t_embedder.linear_1", s))))
    e = wide(F.silu(rms(s, w["time_embed.norm.weight"], 1e-6)))
    if c["use_crossattn_projection"]:
        ctx = F.gelu(linear(w, "crossattn_proj.0", ctx))
    split = lambda u: u.reshape(b, -1, heads, d).transpose(1, 2)
    rows = lambda key, n: (linear(w, key + ".linear_2", linear(w, key + ".linear_1", e)) + temb[..., : n * dim]).chunk(n, -1)
    for n in range(c["num_layers"]):
        k = f"transformer_blocks.{n}."
        h = h + positions
        for norm, part in [("norm1", "attn1"), ("norm2", "attn2"), ("norm3", "ff")]:
            shift, scale, gate = rows(k + norm, 3)
            z = layer_norm(h, 1e-6) * (1 + scale) + shift
            if part == "ff":
                y = linear(w, k + "ff.net.2", F.gelu(linear(w, k + "ff.net.0.proj", z)))
            else:
                source = z if part == "attn1" else ctx
                q = rms(split(linear(w, k + part + ".to_q", z)), w[k + part + ".norm_q.weight"], qk_eps)
                key = rms(split(linear(w, k + part + ".to_k", source)), w[k + part + ".norm_k.weight"], qk_eps)
                if part == "attn1":
                    q, key = turn(q), turn(key)
                y = attend(q, key, split(linear(w, k + part + ".to_v", source))).transpose(1, 2).flatten(2)
                y = linear(w, k + part + ".to_out.0", y)
            h = h + gate * y
    shift, scale = rows("norm_out", 2)
    y = linear(w, "proj_out", layer_norm(h, 1e-6) * (1 + scale) + shift)
    return y.reshape(b, *grid, p[1], p[2], p[0], -1).permute(0, 7, 1, 6, 2, 4, 3, 5).reshape(b, -1, T, H, W)


ARGUMENTS = ["hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_image"]


def function(c, w, case, fps, qk_eps=1e-5):
    """The network as a function of the differentiable arguments that a case has, in their order."""
    if c["_class_name"] == "WanTransformer3DModel":
        return lambda *a: wan(c, w, *a)
    masks = {k: case[k] for k in ["condition_mask", "padding_mask"] if k in case}
    return lambda *a: cosmos(c, w, *a, **masks, fps=fps, qk_eps=qk_eps)


def answers(c, w, case, fps):
    """What the fixtures hold for a case's arguments, tangents and cotangent."""
    names = [n for n in ARGUMENTS if n in case]
    f = function(c, w, case, fps)
    x = tuple(case[n] for n in names)
    tangent = lambda along: tuple(case["tangent." + n] if n in along else torch.zeros_like(case[n]) for n in names)
    out = {}
    for field, along in [("jvp_xt", names[:2]), ("jvp_x", names[:1]), ("jvp_t", names[1:2]), ("jvp_ctx", names[2:])]:
        out["out"], out[field] = torch.func.jvp(f, x, tangent(along))
    y, pull = torch.func.vjp(f, *x)
    for n, g in zip(names, pull(case["cot.out"])):
        out["grad." + n] = g
    if c["_class_name"] != "WanTransformer3DModel":
        f = function(c, w, case, fps, 1e-6)
        out["eps1e-6.out"], out["eps1e-6.jvp_xt"] = torch.func.jvp(f, x, tangent(names[:2]))
    grads = torch.autograd.grad(function(c, {k: v.requires_grad_() for k, v in w.items()}, case, fps)(*x), list(w.values()), case["cot.out"], allow_unused=True)
    return out, {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(w.items(), grads)}


def check(folder):
    c = json.loads((folder / "config.json").read_text())
    w = {k: v.double() for k, v in load(folder / "diffusion_pytorch_model.safetensors")[0].items()}
    worst = 0.0
    for path in sorted(folder.glob("case_??.safetensors")):
        case, meta = load(path)
        case = {k: v.double() for k, v in case.items()}
        got, grads = answers(c, dict(w), case, json.loads(meta["params"]).get("fps"))
        file = path.with_suffix(".param_grads.safetensors")
        want = dict(case, **{"param." + k: v for k, v in load(file)[0].items()}) if file.exists() else case
        got.update({"param." + k: v for k, v in grads.items()})
        for k, v in got.items():
            if k in want:
                worst = max(worst, ((v - want[k]).norm() / want[k].norm().clamp_min(1e-300)).item())
    print(f"{folder}: largest relative error {worst:.1e}")


# Configurations that differ from the fixtures' in what their networks have, and the cases of each: shapes of latent, text and the rest.
WAN = dict(_class_name="WanTransformer3DModel", patch_size=[1, 2, 2], num_attention_heads=2, attention_head_dim=24, in_channels=6, out_channels=4, text_dim=20, freq_dim=32, ffn_dim=80,
           num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=1e-6, image_dim=28, added_kv_proj_dim=48, rope_max_seq_len=64, pos_embed_seq_len=None)
COSMOS = dict(_class_name="CosmosTransformer3DModel", in_channels=5, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, mlp_ratio=2.5, text_embed_dim=20, adaln_lora_dim=8,
              max_size=[8, 16, 20], patch_size=[1, 2, 2], rope_scale=[1.0, 3.0, 3.0], concat_padding_mask=True, extra_pos_embed_type=None, use_crossattn_projection=True,
              crossattn_proj_in_channels=28, encoder_hidden_states_channels=20)
VARIANTS = {
    # Image to video; a text of 512 tokens, a longer one, and one so short that the cut falls elsewhere.
    "wan_i2v": (WAN, [dict(b=2, latent=[3, 4, 6], text=512, image=5), dict(b=1, latent=[1, 4, 4], text=515, image=4), dict(b=1, latent=[2, 4, 6], text=9, image=6)]),
    # First and last frame: positions for the image's tokens, two images a sample; blocks without a norm before cross-attention; a time per token.
    "wan_flf2v": (dict(WAN, pos_embed_seq_len=10, cross_attn_norm=False), [dict(b=2, latent=[2, 4, 6], text=512, image=5)]),
    "wan_per_token": (dict(WAN, in_channels=4, image_dim=None, added_kv_proj_dim=None, patch_size=[2, 2, 2]), [dict(b=2, latent=[4, 4, 6], text=7, times="token")]),
    # Predict2.5: the text projected; a padding mask of another size.
    "cosmos_25": (COSMOS, [dict(b=2, latent=[3, 4, 6], text=7, condition=True, padding=[8, 12], times="frame", fps=16), dict(b=1, latent=[2, 6, 10], text=3, condition=True, padding=[2, 5])]),
    # The older learned positions; no padding mask.
    "cosmos_learned": (dict(COSMOS, in_channels=4, extra_pos_embed_type="learnable", use_crossattn_projection=False, concat_padding_mask=False), [dict(b=2, latent=[3, 4, 6], text=7, fps=30)]),
}


def shapes(c):
    """Every weight's shape."""
    dim, volume, s = c["num_attention_heads"] * c["attention_head_dim"], math.prod(c["patch_size"]), {}

    def layer(key, out, inner, bias=True):
        s[key + ".weight"] = [out, inner]
        if bias:
            s[key + ".bias"] = [out]

    def norm(key, n):
        s[key + ".weight"], s[key + ".bias"] = [n], [n]

    if c["_class_name"] == "WanTransformer3DModel":
        s["patch_embedding.weight"], s["patch_embedding.bias"], s["scale_shift_table"] = [dim, c["in_channels"], *c["patch_size"]], [dim], [1, 2, dim]
        e = "condition_embedder."
        layer(e + "time_embedder.linear_1", dim, c["freq_dim"]), layer(e + "time_embedder.linear_2", dim, dim), layer(e + "time_proj", 6 * dim, dim)
        layer(e + "text_embedder.linear_1", dim, c["text_dim"]), layer(e + "text_embedder.linear_2", dim, dim), layer("proj_out", volume * c["out_channels"], dim)
        if c["image_dim"]:
            i, n = e + "image_embedder.", c["image_dim"]
            norm(i + "norm1", n), layer(i + "ff.net.0.proj", n, n), layer(i + "ff.net.2", dim, n), norm(i + "norm2", dim)
            if c["pos_embed_seq_len"]:
                s[i + "pos_embed"] = [1, c["pos_embed_seq_len"], n]
        for b in range(c["num_layers"]):
            k = f"blocks.{b}."
            s[k + "scale_shift_table"] = [1, 6, dim]
            for a in ["attn1.", "attn2."]:
                for n in ["to_q", "to_k", "to_v", "to_out.0"]:
                    layer(k + a + n, dim, dim)
                s[k + a + "norm_q.weight"], s[k + a + "norm_k.weight"] = [dim], [dim]
            if c["added_kv_proj_dim"]:
                layer(k + "attn2.add_k_proj", dim, dim), layer(k + "attn2.add_v_proj", dim, dim)
                s[k + "attn2.norm_added_k.weight"] = [dim]
            if c["cross_attn_norm"]:
                norm(k + "norm2", dim)
            layer(k + "ffn.net.0.proj", c["ffn_dim"], dim), layer(k + "ffn.net.2", dim, c["ffn_dim"])
        return s
    plain = lambda key, out, inner: layer(key, out, inner, False)
    inner, rank, head = int(dim * c["mlp_ratio"]), c["adaln_lora_dim"], c["attention_head_dim"]
    plain("patch_embed.proj", dim, (c["in_channels"] + c["concat_padding_mask"]) * volume), plain("proj_out", volume * c["out_channels"], dim)
    plain("time_embed.t_embedder.linear_1", dim, dim), plain("time_embed.t_embedder.linear_2", 3 * dim, dim), plain("norm_out.linear_1", rank, dim), plain("norm_out.linear_2", 2 * dim, rank)
    s["time_embed.norm.weight"] = [dim]
    if c["use_crossattn_projection"]:
        layer("crossattn_proj.0", c["text_embed_dim"], c["crossattn_proj_in_channels"])
    if c["extra_pos_embed_type"] == "learnable":
        for n, length, patch in zip("thw", c["max_size"], c["patch_size"]):
            s["learnable_pos_embed.pos_emb_" + n] = [length // patch, dim]
    for b in range(c["num_layers"]):
        k = f"transformer_blocks.{b}."
        for n in ["norm1", "norm2", "norm3"]:
            plain(k + n + ".linear_1", rank, dim), plain(k + n + ".linear_2", 3 * dim, rank)
        for a, source in [("attn1.", dim), ("attn2.", c["text_embed_dim"])]:
            plain(k + a + "to_q", dim, dim), plain(k + a + "to_k", dim, source), plain(k + a + "to_v", dim, source), plain(k + a + "to_out.0", dim, dim)
            s[k + a + "norm_q.weight"], s[k + a + "norm_k.weight"] = [head], [head]
        plain(k + "ff.net.0.proj", inner, dim), plain(k + "ff.net.2", dim, inner)
    return s


def draw(c, seed):
    """Weights of moderate size, those of norms around one; f32 numbers."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for k, shape in shapes(c).items():
        x = torch.randn(shape, generator=g) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.2)
        out[k] = x + 1 if "norm" in k and k.endswith("weight") and len(shape) == 1 else x
    return out


def make(root):
    for name, (c, cases) in VARIANTS.items():
        folder, w = root / name, draw(c, len(name))
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(c, indent=2) + "\n")
        save(folder / "diffusion_pytorch_model.safetensors", w, {"format": "pt"})
        for i, s in enumerate(cases):
            g = torch.Generator().manual_seed(100 + i)
            b, latent = s["b"], s["latent"]
            image_net = c["_class_name"] == "WanTransformer3DModel"
            normal = lambda *shape: torch.randn(*shape, generator=g)
            channels = c["in_channels"] - ("condition" in s)
            text = c["text_dim"] if image_net else c["crossattn_proj_in_channels"] if c["use_crossattn_projection"] else c["text_embed_dim"]
            tokens = math.prod(n // p for n, p in zip(latent, c["patch_size"]))
            times = {"frame": [b, 1, latent[0], 1, 1], "token": [b, tokens]}.get(s.get("times"), [b])
            case = dict(hidden_states=normal(b, channels, *latent), timestep=torch.rand(times, generator=g) * (1000 if image_net else 1), encoder_hidden_states=normal(b, s["text"], text))
            if "image" in s:
                case["encoder_hidden_states_image"] = normal(b * (2 if c["pos_embed_seq_len"] else 1), s["image"], c["image_dim"])
            tangents = {"tangent." + k: normal(*v.shape) * (5 if image_net and k == "timestep" else 1) for k, v in case.items()}
            if "condition" in s:
                case["condition_mask"] = (normal(b, 1, *latent) > 0).float()
            if "padding" in s:
                case["padding_mask"] = (normal(1, 1, *s["padding"]) > 0).float()
            case.update(tangents)
            case["cot.out"] = normal(b, c["out_channels"], *latent)
            wide = {k: v.double() for k, v in case.items()}
            got, grads = answers(c, {k: v.double() for k, v in w.items()}, wide, s.get("fps"))
            meta = {"params": json.dumps(dict(model=name, case=i, fps=s.get("fps")))}
            save(folder / f"case_{i:02}.safetensors", dict(case, **got), meta)
            if i == 0:
                save(folder / f"case_{i:02}.param_grads.safetensors", grads, meta)
            print(folder / f"case_{i:02}.safetensors", {k: list(v.shape) for k, v in case.items() if "." not in k})


if __name__ == "__main__":
    torch.set_num_threads(2)
    if len(sys.argv) != 3 or sys.argv[1] not in ["check", "make"]:
        sys.exit(__doc__)
    (check if sys.argv[1] == "check" else make)(Path(sys.argv[2]))
