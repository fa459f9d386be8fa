#!/usr/bin/env python3
"""PyTorch on the GPU beside ours, in the same call: `python3 benches/gpu_peer.py [RESULTS.json] [--seconds N]`.

Scaled dot-product attention by flash and cuDNN, forward and backward, plain and causal; `torch.func.jvp` over math attention; a large matrix product; and where Triton
is, the JVP kernel of triton_peer.py; bf16, random inputs, medians of single runs between events. RESULTS.json is what `pushforward-measure --out` wrote: what is timed is
written there after each case, and what it has already is not timed again. The ones that say most come first; none begins when the time is over.
GFLOPs: forward 4 N^2 d per head, backward 10 N^2 d, JVP 12 N^2 d; causal ones half, 4, 10 and 12 times d N (N + 1) / 2.
"""
import argparse
import json
import os
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

LENGTHS = (8192, 16384, 4096, 2048, 1024, 32768)
HEADS = (128, 64, 256)
# Bytes of scores that math attention may keep for a tangent: eight of N x N at once, in 16 bits and more.
SCORES = 40e9


def seconds(f, runs=30):
    """Median of one run, fewer of them where one takes long."""
    f()
    torch.cuda.synchronize()
    start = time.perf_counter()
    f()
    torch.cuda.synchronize()
    once = time.perf_counter() - start
    runs = max(5, min(runs, int(1.0 / max(once, 1e-6))))
    for _ in range(min(5, runs)):
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


class Results:
    """Rows by name, kept in a file after each."""

    def __init__(self, path, limit):
        self.path, self.end, self.left = path, time.monotonic() + limit, 0
        self.all = {}
        if path:
            with open(path) as f:
                self.all = json.load(f)
        self.rows = self.all.setdefault("peers", {})

    def __contains__(self, name):
        return name in self.rows

    def __setitem__(self, name, row):
        self.rows[name] = row
        self.write()

    def __getitem__(self, name):
        return self.rows[name]

    def write(self):
        if self.path:
            with open(self.path + ".part", "w") as f:
                json.dump(self.all, f, indent=1)
            os.replace(self.path + ".part", self.path)

    def time(self, name, f, flops, runs=30):
        """Times `f` if that is not known and there is time; what the device refuses is said."""
        if name in self:
            return
        if time.monotonic() > self.end:
            self.left += 1
            return
        try:
            report(self, name, seconds(f, runs), flops)
        except (RuntimeError, NotImplementedError) as e:
            print(f"  {name}: {str(e).splitlines()[0]}", flush=True)


def report(rows, name, t, flops):
    rows[name] = {"seconds": t, "tflops": flops / t / 1e12}
    print(f"  {name}: {t * 1e3:.3f} ms, {flops / t / 1e12:.1f} TFLOP/s", flush=True)


def attention(rows, n, d, causal):
    batch, heads = max(16384 // n, 1), 2048 // d
    pairs = batch * heads * d * (n * (n + 1) // 2 if causal else n * n)
    size = f"N={n} d={d}{' causal' if causal else ''}"
    names = [f"{who} {what} {size}" for who in ("flash", "cudnn") for what in ("forward", "backward")] + [f"math jvp {size}"]
    if all(name in rows for name in names) or time.monotonic() > rows.end:
        rows.left += sum(name not in rows for name in names)
        return
    x = [torch.randn(batch, heads, n, d, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    g = torch.randn_like(x[0])
    for backend, who in ((SDPBackend.FLASH_ATTENTION, "flash"), (SDPBackend.CUDNN_ATTENTION, "cudnn")):
        with sdpa_kernel([backend]):
            with torch.no_grad():
                rows.time(f"{who} forward {size}", lambda: F.scaled_dot_product_attention(*x, is_causal=causal), 4 * pairs)
            try:
                y = F.scaled_dot_product_attention(*x, is_causal=causal)
            except RuntimeError as e:
                print(f"  {who} {size}: {str(e).splitlines()[0]}", flush=True)
                continue
            rows.time(f"{who} backward {size}", lambda: torch.autograd.grad(y, x, g, retain_graph=True), 10 * pairs, 10)
            del y
    if batch * heads * n * n * 2 * 8 < SCORES:
        y, t = [v.detach() for v in x], [torch.randn_like(v) for v in x]
        with sdpa_kernel([SDPBackend.MATH]), torch.no_grad():
            one = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal)
            rows.time(f"math jvp {size}", lambda: torch.func.jvp(one, tuple(y), tuple(t)), 12 * pairs, 5)
    torch.cuda.empty_cache()


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("results", nargs="?", help="what pushforward-measure wrote; rows are added to it")
    p.add_argument("--seconds", type=float, default=1e9, help="begin no case behind this time")
    a = p.parse_args()
    torch.manual_seed(0)
    print(f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}")
    rows = Results(a.results, a.seconds)
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rows.time("matmul 8192", lambda: x @ y, 2 * 8192**3)
    del x, y
    for n in LENGTHS[:2]:
        for d in HEADS:
            attention(rows, n, d, False)
    # The kernel that is looked for in the first place: before lengths that say less.
    try:
        import triton_peer
    except ImportError as e:
        print(f"  no Triton here ({e}): its kernel is not timed")
    else:
        if all(f"triton jvp N={n} d={d}" in rows for n in LENGTHS for d in HEADS):
            pass
        elif time.monotonic() > rows.end:
            rows.left += 1
        else:
            print(f"Triton {triton_peer.triton.__version__}: JVP by a kernel written by hand (triton_peer.py), the best of its configurations")
            triton_peer.timed(seconds, report, rows, LENGTHS, lambda: time.monotonic() > rows.end)
    for n in LENGTHS:
        for d in HEADS:
            for causal in (False, True):
                attention(rows, n, d, causal)
    rows.write()
    if rows.left:
        print(f"{rows.left} cases of peers are left: the time of --seconds {a.seconds:.0f} is over; the same call goes on")


if __name__ == "__main__":
    main()
