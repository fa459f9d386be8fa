#!/usr/bin/env python3
"""Both sides in one run: `pushforward bench` and PyTorch, alternating, with PyTorch's SGEMM before, between and after.

Usage: python benches/peer.py [--runs 7] [--threads 2] [--only jvp64,forward64,wan,wanwide] [--json OUT.json]
Needs PyTorch (`./dev peer` installs it into target/peer) and a built `target/release/pushforward`.
Machines are noisy: read the ratios, not the milliseconds. GFLOP/s count 12 N^2 d per head for the JVP of attention, 4 N^2 d for its
forward, 14 N^2 d for forward and backward (2 products and 5); causal counts N(N+1)/2 pairs. PyTorch's side of the backward is the
fastest of its CPU kernels for the operation.
"""
import argparse
import json
import statistics
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benches"))
import torch_networks as networks


def median_seconds(f, runs, warm=1):
    for _ in range(warm):
        f()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def sgemm(runs=9):
    """GFLOP/s of PyTorch's f32 matmul, n = 2048."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / median_seconds(lambda: a @ b, runs) / 1e9


def ours(file, function, transform, dims, runs, threads):
    command = [str(ROOT / "target/release/pushforward"), "bench", str(ROOT / file), "--runs", str(runs), "--threads", str(threads), "--json", "--dim", dims]
    command += ["--fn", function] if function else []
    command += list(transform)
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def qkv(n, d):
    return [torch.randn(1, 8, n, d) for _ in range(3)]


def torch_jvp(n, d):
    x, t = qkv(n, d), qkv(n, d)

    def run():
        with sdpa_kernel([SDPBackend.MATH]), torch.no_grad():
            torch.func.jvp(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), tuple(x), tuple(t))

    return run


def torch_forward(n, d):
    x = qkv(n, d)

    def run():
        with torch.no_grad():
            F.scaled_dot_product_attention(*x)

    return run


def torch_backward(n, d, causal=False):
    x = [t.requires_grad_() for t in qkv(n, d)]
    seed = torch.randn(1, 8, n, d)

    def by(backend):
        def run():
            with sdpa_kernel([backend]):
                torch.autograd.grad(F.scaled_dot_product_attention(*x, is_causal=causal), x, seed)

        return run

    return min((by(b) for b in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)), key=lambda run: median_seconds(run, 1))


def attention_flops(n, d, per_pair, causal=False):
    pairs = n * (n + 1) / 2 if causal else n * n
    return 8 * per_pair * pairs * d


# name: (what, file, function, transforms, dims, flops, PyTorch's side or None, repetitions of that side)
CASES = {
    "jvp64": ("attention JVP, N 4096, d 64", "examples/attention.pf", None, ("--jvp", "q,k,v"), "B=1,H=8,I=4096,J=4096,D=64", attention_flops(4096, 64, 12), lambda: torch_jvp(4096, 64), 3),
    "jvp128": ("attention JVP, N 4096, d 128", "examples/attention.pf", None, ("--jvp", "q,k,v"), "B=1,H=8,I=4096,J=4096,D=128", attention_flops(4096, 128, 12), None, 0),
    "causal64": ("causal JVP, N 4096, d 64", "examples/attention_variants.pf", "causal", ("--jvp", "q,k,v"), "B=1,H=8,I=4096,J=4096,D=64,E=64", attention_flops(4096, 64, 12, True), None, 0),
    "forward64": ("attention forward, N 4096, d 64", "examples/attention.pf", None, (), "B=1,H=8,I=4096,J=4096,D=64", attention_flops(4096, 64, 4), lambda: torch_forward(4096, 64), 9),
    "vjp64": ("attention forward and backward, N 4096, d 64", "examples/attention.pf", None, ("--vjp", "q,k,v"), "B=1,H=8,I=4096,J=4096,D=64", attention_flops(4096, 64, 14), lambda: torch_backward(4096, 64), 7),
    "vjp128": ("attention forward and backward, N 4096, d 128", "examples/attention.pf", None, ("--vjp", "q,k,v"), "B=1,H=8,I=4096,J=4096,D=128", attention_flops(4096, 128, 14), lambda: torch_backward(4096, 128), 5),
    "vjpcausal64": ("causal forward and backward, N 4096, d 64", "examples/attention_variants.pf", "causal", ("--vjp", "q,k,v"), "B=1,H=8,I=4096,J=4096,D=64,E=64", attention_flops(4096, 64, 14, True), lambda: torch_backward(4096, 64, True), 7),
    "gelubackward": ("gelu of a linear layer and its gradients, 2048 x 1536 x 6144", "examples/gelu_linear.pf", None, ("--vjp", "x,w"), "M=2048,K=1536,N=6144", 3 * 2 * 2048 * 1536 * 6144, None, 0),
    "xent": ("JVP of cross-entropy of a linear layer, 2048 x 512 x 32768", "examples/cross_entropy.pf", None, ("--jvp", "x,w"), "M=2048,K=512,V=32768", 3 * 2 * 2048 * 512 * 32768, None, 0),
    "gelu": ("JVP of gelu of a linear layer, 2048 x 1536 x 6144", "examples/gelu_linear.pf", None, ("--jvp", "x,w"), "M=2048,K=1536,N=6144", 3 * 2 * 2048 * 1536 * 6144, None, 0),
    "norm": ("JVP of norm and modulation, 8192 x 1536", "examples/norm_modulate.pf", None, ("--jvp", "x"), "B=2,N=4096,D=1536", None, None, 0),
}

# The small Wan: width 384, feed-forward 2240, 6 layers, 8 x 16 x 16 = 2,048 tokens, a text of 512.
SMALL_WAN = dict(networks.WAN, num_attention_heads=3, attention_head_dim=128, in_channels=16, out_channels=16, text_dim=512, freq_dim=256, ffn_dim=2240, num_layers=6,
                 image_dim=None, added_kv_proj_dim=None, rope_max_seq_len=1024)


# One block at the widths of Wan2.1-1.3B, with the same tokens and text.
WIDE_WAN = dict(SMALL_WAN, num_attention_heads=12, ffn_dim=8960, num_layers=1)


def drawn(folder, config):
    """Weights and inputs of a Wan in `folder`: the weights, the arguments, their tangents, the cotangent."""
    folder.mkdir(parents=True, exist_ok=True)
    w = networks.draw(config, 0)
    (folder / "config.json").write_text(json.dumps(config))
    networks.save(folder / "diffusion_pytorch_model.safetensors", w, {"format": "pt"})
    case = dict(hidden_states=torch.randn(1, 16, 8, 32, 32), timestep=torch.tensor([500.0]), encoder_hidden_states=torch.randn(1, 512, 512))
    tangents = {"hidden_states.t": torch.randn(1, 16, 8, 32, 32), "timestep.t": torch.tensor([3.0])}
    cotangent = torch.randn(1, 16, 8, 32, 32)
    networks.save(folder / "in.safetensors", {**case, **tangents, "out.ct": cotangent}, {})
    return w, case, tangents, cotangent


def net(a, folder, *options):
    """Median seconds of `pushforward net` in `folder`, and what it wrote."""
    command = [str(ROOT / "target/release/pushforward"), "net", str(folder), "--inputs", str(folder / "in.safetensors"), "--outputs", str(folder / "out.safetensors"), "--runs", str(a.runs), "--json", *options]
    out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PUSHFORWARD_THREADS": str(a.threads)}).stdout)
    return out["seconds"], networks.load(folder / "out.safetensors")[0]


def flop_ratio(folder):
    """Operations of the JVP over those of the forward, as `net --explain` has them."""
    out = subprocess.run([str(ROOT / "target/release/pushforward"), "net", str(folder), "--explain", "--json", "--dim", "T=8,H=32,W=32,L=512"], check=True, capture_output=True, text=True)
    return json.loads(out.stdout)["sizes"][0]["flop_ratio"]


def tangent_cost(what, forward, jvp, flops):
    """Prints, and returns, how much dearer a JVP is than the forward, beside what its operations say."""
    print(f"{what} JVP over forward: {jvp / forward:.2f} of time, {flops:.2f} of operations: {jvp / forward / flops:.2f}", flush=True)
    return {"time_ratio": jvp / forward, "flop_ratio": flops}


def wide_block(a):
    """The cost of the tangent at the widths of Wan2.1-1.3B: one block, 2,048 tokens; forward and JVP alternate. No peer."""
    folder = ROOT / "target/peer_wan_wide"
    drawn(folder, WIDE_WAN)
    times = {"forward": [], "jvp": []}
    for _ in range(2):
        times["forward"].append(net(a, folder)[0])
        times["jvp"].append(net(a, folder, "--jvp", "hidden_states,timestep")[0])
    forward, jvp = (statistics.median(times[k]) for k in times)
    print(f"wan block of 1,536 channels, forward {forward * 1e3:.1f} ms, JVP {jvp * 1e3:.1f} ms", flush=True)
    return {"wan_wide_forward": {"seconds": forward}, "wan_wide_jvp": {"seconds": jvp}, "wan_wide_tangent_cost": tangent_cost("wan block of 1,536 channels", forward, jvp, flop_ratio(folder))}


def small_wan(a):
    """Forward, JVP along (latent, time) and gradients of all weights, ours and PyTorch's over the same network and numbers, alternating."""
    folder = ROOT / "target/peer_wan"
    w, case, tangents, cotangent = drawn(folder, SMALL_WAN)
    x = tuple(case.values())
    f = lambda *x: networks.wan(SMALL_WAN, w, *x)
    formula = networks.attend

    def forward():
        networks.attend = F.scaled_dot_product_attention
        with torch.no_grad():
            return f(*x)

    def jvp():
        networks.attend = formula
        with torch.no_grad():
            return torch.func.jvp(lambda latent, time: f(latent, time, x[2]), x[:2], (tangents["hidden_states.t"], tangents["timestep.t"]))

    def gradients():
        networks.attend = F.scaled_dot_product_attention
        leaves = [v.requires_grad_() for v in w.values()]
        g = torch.autograd.grad(f(*x), leaves, cotangent)
        [v.requires_grad_(False) for v in leaves]
        return dict(zip(w, g))

    off = lambda got, want: ((got - want).norm() / want.norm()).item()
    results = {}
    weights = ",".join(networks.shapes(SMALL_WAN))
    for name, peer, options in [("forward", forward, []), ("jvp", jvp, ["--jvp", "hidden_states,timestep"]), ("gradients", gradients, ["--vjp", weights])]:
        (first, got), theirs = net(a, folder, *options), median_seconds(peer, max(3, a.runs // 2))
        second, _ = net(a, folder, *options)
        want, seconds = peer(), statistics.median([first, second])
        error = {"forward": lambda: off(got["out"], want), "jvp": lambda: off(got["out.t"], want[1]), "gradients": lambda: max(off(got[k + ".ct"], v) for k, v in want.items())}[name]()
        results["wan_" + name] = {"seconds": seconds, "peer_seconds": theirs, "relative_difference": error}
        print(f"wan {name:<10}: {seconds * 1e3:8.1f} ms; PyTorch {theirs * 1e3:8.1f} ms, {theirs / seconds:.2f}x (they differ by {error:.1e})", flush=True)
    results["wan_tangent_cost"] = tangent_cost("wan", results["wan_forward"]["seconds"], results["wan_jvp"]["seconds"], flop_ratio(folder))
    return results


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=7)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--only", default=",".join([*CASES, "wan", "wanwide"]))
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    results = {}
    print(f"PyTorch {torch.__version__}, {a.threads} threads, medians of {a.runs}")
    for name in a.only.split(","):
        if name == "wan":
            results.update(small_wan(a))
            continue
        if name == "wanwide":
            results.update(wide_block(a))
            continue
        what, file, function, transforms, dims, flops, peer, peer_runs = CASES[name]
        gemm = [sgemm()]
        first = ours(file, function, transforms, dims, a.runs, a.threads)
        gemm.append(sgemm())
        theirs = median_seconds(peer(), peer_runs) if peer else None
        gemm.append(sgemm())
        second = ours(file, function, transforms, dims, a.runs, a.threads)
        gemm.append(sgemm())
        seconds = statistics.median([first["seconds"], second["seconds"]])
        r = {"what": what, "seconds": seconds, "peer_seconds": theirs, "sgemm_gflops": gemm, "generation_seconds": first["generation_seconds"], "peak_extra_bytes": first["peak_extra_bytes"]}
        line = f"{name:<10} {what}: {seconds * 1e3:8.1f} ms"
        if flops:
            r["gflops"] = flops / seconds / 1e9
            r["of_sgemm"] = r["gflops"] / statistics.median(gemm)
            line += f", {r['gflops']:6.1f} GFLOP/s = {100 * r['of_sgemm']:3.0f} % of SGEMM ({min(gemm):.0f}..{max(gemm):.0f})"
        else:
            copy = max(first["copy_bandwidth"], second["copy_bandwidth"])
            r["of_copy"] = first["bytes"] / seconds / copy
            line += f", {first['bytes'] / seconds / 1e9:5.1f} GB/s = {100 * r['of_copy']:3.0f} % of copy ({copy / 1e9:.1f})"
        if theirs:
            line += f"; PyTorch {theirs * 1e3:.1f} ms, {theirs / seconds:.2f}x"
        print(line, flush=True)
        results[name] = r
    if a.json:
        a.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
