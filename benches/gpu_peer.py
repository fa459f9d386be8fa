#!/usr/bin/env python3
"""PyTorch on the GPU beside ours, in the same call: `python3 benches/gpu_peer.py [RESULTS.json]`.

Forward of scaled dot-product attention by each backend, its backward, a large matrix product, `torch.func.jvp` over math attention, and where Triton is, the JVP
kernel of triton_peer.py; bf16, random
inputs, medians of single runs between events. RESULTS.json is what `pushforward-measure --out` wrote; then ratios follow.
GFLOPs: forward 4 N^2 d per head, backward 10 N^2 d, JVP 12 N^2 d.
"""
import json
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def seconds(f, runs=30):
    for _ in range(5):
        f()
    torch.cuda.synchronize()
    times = []
    for _ in range(runs):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        f()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b) * 1e-3)
    return statistics.median(times)


def report(rows, name, t, flops):
    rows[name] = {"seconds": t, "tflops": flops / t / 1e12}
    print(f"  {name}: {t * 1e3:.3f} ms, {flops / t / 1e12:.1f} TFLOP/s", flush=True)


def main():
    torch.manual_seed(0)
    print(f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}")
    rows = {}
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    report(rows, "matmul 8192", seconds(lambda: a @ b), 2 * 8192**3)
    for d in (64, 128, 256):
        for n in (1024, 2048, 4096, 8192, 16384):
            batch, heads = max(16384 // n, 1), 2048 // d
            x = [torch.randn(batch, heads, n, d, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
            t = [torch.randn_like(v) for v in x]
            g = torch.randn_like(x[0])
            pairs = batch * heads * d * n * n
            size = f"N={n} d={d}"
            for backend, name in ((SDPBackend.FLASH_ATTENTION, "flash"), (SDPBackend.CUDNN_ATTENTION, "cudnn")):
                try:
                    with sdpa_kernel([backend]):
                        with torch.no_grad():
                            report(rows, f"{name} forward {size}", seconds(lambda: F.scaled_dot_product_attention(*x)), 4 * pairs)
                        if n >= 8192:
                            y = F.scaled_dot_product_attention(*x)
                            report(rows, f"{name} backward {size}", seconds(lambda: torch.autograd.grad(y, x, g, retain_graph=True), 10), 10 * pairs)
                            del y
                except RuntimeError as e:
                    print(f"  {name} {size}: {str(e).splitlines()[0]}")
            if n <= 4096 and batch * heads * n * n * 2 * 8 < 40e9:
                try:
                    y = [v.detach() for v in x]
                    with sdpa_kernel([SDPBackend.MATH]), torch.no_grad():
                        f = lambda: torch.func.jvp(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), tuple(y), tuple(t))
                        report(rows, f"math jvp {size}", seconds(f, 5), 12 * pairs)
                except (RuntimeError, NotImplementedError) as e:
                    print(f"  math jvp {size}: {str(e).splitlines()[0]}")
            torch.cuda.empty_cache()
    try:
        import triton_peer
    except ImportError as e:
        print(f"  no Triton here ({e}): its kernel is not timed")
    else:
        print(f"Triton {triton_peer.triton.__version__}: JVP by a kernel written by hand (triton_peer.py), the best of its configurations")
        triton_peer.timed(seconds, report, rows)
    if len(sys.argv) > 1:
        with open(sys.argv[1]) as f:
            ours = json.load(f)
        ours["peers"] = rows
        with open(sys.argv[1], "w") as f:
            json.dump(ours, f, indent=1)


if __name__ == "__main__":
    main()
