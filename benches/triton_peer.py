#!/usr/bin/env python3
"""A hand-written JVP of attention in Triton beside ours.

`python3 benches/triton_peer.py [--runs 7] [--pushforward BINARY] [--bin FOLDER] [--json OUT.json]` needs Triton, but no GPU and no PyTorch: it compiles both kernels
for sm_90a, nothing cached, and prints how long that takes (medians, both sides in turns: whole processes, from start to end; for Triton also without its start and
imports) and what the machine code needs: registers, spills, shared memory, matrix instructions. FOLDER has `ptxas`, `cuobjdump` and `nvdisasm` for our side; without it, those that Triton carries serve both.

On a GPU `gpu_peer.py` calls `timed`, which checks the kernel and times it.

The kernel is online softmax (Dao, 2023) with the tangents of q, k and v beside it, written from the equations:
    s = q k' c, t = (q.t k' + q k.t') c, p = exp(s - max), o = p v / sum p, o.t = (p v.t + (p t) v) / sum p - (sum p t / sum p) o.
`merged`: p v.t and (p t) v share an accumulator, as in ours. Without it each has its own, as published kernels have it (rCM).
"""
import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import triton
import triton.language as tl

ROOT = Path(__file__).resolve().parent.parent

# Rows, keys a tile, warps, stages.
CONFIGS = [(64, 32, 4, 3), (64, 64, 4, 3), (128, 32, 8, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 2), (128, 32, 8, 2)]

# What is compiled for the comparison of times, by head size: tiles near to ours.
PEER = {64: (128, 128, 8, 2), 128: (128, 64, 8, 2), 256: (64, 32, 4, 3)}


@triton.jit
def attention_jvp(q_ptr, k_ptr, v_ptr, qt_ptr, kt_ptr, vt_ptr, o_ptr, ot_ptr, rows, keys, scale,
                  D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, MERGED: tl.constexpr, EVEN: tl.constexpr):
    head = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * M + tl.arange(0, M)
    d = tl.arange(0, D)
    j0 = tl.arange(0, N)
    own = head * rows * D + i[:, None] * D + d[None, :]
    there = i[:, None] < rows
    if EVEN:
        q, qt = tl.load(q_ptr + own), tl.load(qt_ptr + own)
    else:
        q, qt = tl.load(q_ptr + own, mask=there, other=0.0), tl.load(qt_ptr + own, mask=there, other=0.0)
    top = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    mean = tl.zeros([M], tl.float32)
    o = tl.zeros([M, D], tl.float32)
    a = tl.zeros([M, D], tl.float32)
    b = tl.zeros([M, D], tl.float32)
    for start in range(0, keys, N):
        j = start + j0
        at = head * keys * D + j[:, None] * D + d[None, :]
        if EVEN:
            k, kt = tl.load(k_ptr + at), tl.load(kt_ptr + at)
        else:
            k, kt = tl.load(k_ptr + at, mask=j[:, None] < keys, other=0.0), tl.load(kt_ptr + at, mask=j[:, None] < keys, other=0.0)
        s = tl.dot(q, tl.trans(k)) * (scale * 1.4426950408889634)
        t = tl.dot(q, tl.trans(kt))
        t = tl.dot(qt, tl.trans(k), t) * scale
        if not EVEN:
            s = tl.where(j[None, :] < keys, s, -float("inf"))
        new = tl.maximum(top, tl.max(s, 1))
        keep = tl.exp2(top - new)
        p = tl.exp2(s - new[:, None])
        pt = p * t
        total = total * keep + tl.sum(p, 1)
        mean = mean * keep + tl.sum(pt, 1)
        if EVEN:
            v, vt = tl.load(v_ptr + at), tl.load(vt_ptr + at)
        else:
            v, vt = tl.load(v_ptr + at, mask=j[:, None] < keys, other=0.0), tl.load(vt_ptr + at, mask=j[:, None] < keys, other=0.0)
        p = p.to(v.dtype)
        o = tl.dot(p, v, o * keep[:, None])
        a = tl.dot(p, vt, a * keep[:, None])
        if MERGED:
            a = tl.dot(pt.to(v.dtype), v, a)
        else:
            b = tl.dot(pt.to(v.dtype), v, b * keep[:, None])
        top = new
    o = o / total[:, None]
    ot = (a + b) / total[:, None] - (mean / total)[:, None] * o
    if EVEN:
        tl.store(o_ptr + own, o.to(o_ptr.dtype.element_ty))
        tl.store(ot_ptr + own, ot.to(ot_ptr.dtype.element_ty))
    else:
        tl.store(o_ptr + own, o.to(o_ptr.dtype.element_ty), mask=there)
        tl.store(ot_ptr + own, ot.to(ot_ptr.dtype.element_ty), mask=there)


def machine_code(d, config, merged, cache):
    """The kernel for sm_90a, bf16, whole tiles, pointers aligned, lengths multiples of 16; `cache` is an empty folder."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    os.environ["TRITON_CACHE_DIR"] = cache
    rows, keys, warps, stages = config
    names = ["q_ptr", "k_ptr", "v_ptr", "qt_ptr", "kt_ptr", "vt_ptr", "o_ptr", "ot_ptr"]
    signature = {**{n: "*bf16" for n in names}, "rows": "i32", "keys": "i32", "scale": "fp32", **{n: "constexpr" for n in ("D", "M", "N", "MERGED", "EVEN")}}
    constants = {"D": d, "M": rows, "N": keys, "MERGED": merged, "EVEN": True}
    attrs = {(i,): [["tt.divisibility", 16]] for i in range(10)}
    source = ASTSource(fn=attention_jvp, signature=signature, constexprs=constants, attrs=attrs)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages})


def figures(cubin, tools):
    """Registers, stack, shared memory and counts of instructions of the first kernel in a cubin."""
    usage = subprocess.run([tools / "cuobjdump", "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    code = subprocess.run([tools / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    number = lambda what: int(re.search(what + r":(\d+)", usage)[1])
    count = lambda op: len(re.findall(r"\b" + op + r"\b", code))
    return {"registers": number("REG"), "stack": number("STACK"), "shared_static": number("SHARED"), "stores_to_stack": count("STL"), "loads_from_stack": count("LDL"),
            "hgmma": count("HGMMA"), "hmma": count("HMMA"), "mufu": count("MUFU"), "instructions": len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/", code, re.M))}


def triton_tools():
    return Path(triton.__file__).parent / "backends/nvidia/bin"


def compare(pushforward, tools, runs, static):
    """Times from text to code in turns, then static figures."""
    env = dict(os.environ, CUDA_BIN=str(tools))
    version = lambda t: subprocess.run([t / "ptxas", "--version"], capture_output=True, text=True).stdout.strip().splitlines()[-1]
    out = {"triton": triton.__version__, "triton_ptxas": version(triton_tools()), "our_ptxas": version(tools), "generation": [], "static": []}
    print(f"Triton {triton.__version__} with ptxas {out['triton_ptxas']}; ours with {out['our_ptxas']}")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        none = folder / "none"
        none.mkdir()
        for d in (64, 128, 256):
            config = PEER[d]
            times = {"text to PTX": [], "text to cubin": [], "Triton, text to cubin": [], "of that without start and imports": []}
            # Of the processor: what other work on the machine does not change.
            cpu = {}
            for run in range(runs):
                spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
                for what, where in (("text to PTX", none), ("text to cubin", tools)):
                    to = folder / "ours"
                    shutil.rmtree(to, ignore_errors=True)
                    command = [pushforward, "compile", ROOT / "examples/attention.pf", "--jvp", "q,k,v", "--dtype", "bf16", "--dim", f"D={d}", "--target", "sm_90a", "-o", to]
                    here = dict(env, CUDA_BIN=str(where), PUSHFORWARD_CACHE=str(folder / f"cache{d}{run}{where.name}"), PATH="/usr/bin:/bin")
                    start, before = time.perf_counter(), spent()
                    subprocess.run(command, check=True, capture_output=True, env=here, cwd=folder)
                    times[what].append(time.perf_counter() - start)
                    cpu.setdefault(what, []).append(spent() - before)
                start, before = time.perf_counter(), spent()
                one = subprocess.run([sys.executable, __file__, "--one", str(d), "--cache", str(folder / f"triton{d}{run}")], check=True, capture_output=True, text=True)
                times["Triton, text to cubin"].append(time.perf_counter() - start)
                cpu.setdefault("Triton, text to cubin", []).append(spent() - before)
                times["of that without start and imports"].append(float(one.stdout))
            row = {"d": d, "triton_config": config, "runs": runs, **{k: statistics.median(v) for k, v in times.items()}}
            row["ratio"] = row["Triton, text to cubin"] / row["text to cubin"]
            row["processor"] = {k: statistics.median(v) for k, v in cpu.items()}
            row["ratio_in_process"] = row["of that without start and imports"] / row["text to cubin"]
            out["generation"].append(row)
            print(f"d {d}: " + ", ".join(f"{k} {row[k] * 1e3:.0f} ms" for k in times) + f", {row['ratio']:.2f}x, {row['ratio_in_process']:.2f}x; processor " + ", ".join(f"{k} {v * 1e3:.0f} ms" for k, v in row["processor"].items()))
            manifest = json.loads((folder / "ours/manifest.json").read_text())
            ours = next(iter(sorted((folder / "ours").glob("*.cubin"))), None)
            made = {"d": d, "kernel": "ours", **figures(ours, tools)}
            made["manifest"] = {k: v for k, v in manifest["kernels"][0].items() if k in ("block", "shared_bytes", "registers", "spill_bytes")}
            out["static"].append(made)
            print("  ours:", {k: v for k, v in made.items() if k not in ("d", "kernel")})
            for config in CONFIGS[:6] if static else []:
                for merged in (True, False):
                    start = time.perf_counter()
                    k = machine_code(d, config, merged, str(folder / f"static{d}{config}{merged}"))
                    seconds = time.perf_counter() - start
                    file = folder / "triton.cubin"
                    file.write_bytes(k.asm["cubin"])
                    made = {"d": d, "kernel": "Triton", "merged": merged, "config": config, "seconds": seconds, "shared": k.metadata.shared, **figures(file, tools)}
                    out["static"].append(made)
                    print(f"  Triton {config}{' merged' if merged else ''}:", {k: v for k, v in made.items() if k not in ("d", "kernel", "config", "merged")})
    return out


def timed(seconds, report, rows, lengths=(1024, 2048, 4096, 8192, 16384), over=lambda: False):
    """Checks the kernel against the equations in f64, then times the best of `CONFIGS` per head size and length, until the time is over; on a GPU."""
    import torch

    def call(x, o, ot, config, merged, even):
        b, h, n, d = x[0].shape
        m, keys, warps, stages = config
        attention_jvp[(triton.cdiv(n, m), b * h)](*x, o, ot, n, x[1].shape[2], d**-0.5, D=d, M=m, N=keys, MERGED=merged, EVEN=even, num_warps=warps, num_stages=stages)

    for d in (128, 64, 256):
        if over():
            rows.left += 1
            continue
        wide = lambda x: [v.double() for v in x]
        drawn = lambda b, h, n: [torch.randn(b, h, n, d, device="cuda", dtype=torch.bfloat16) for _ in range(6)]
        # Right, at a length that is no multiple of a tile.
        x = drawn(1, 2, 250)
        o, ot = torch.empty_like(x[0]), torch.empty_like(x[0])
        f = lambda q, k, v: torch.softmax(q @ k.transpose(-1, -2) * d**-0.5, -1) @ v
        want = torch.func.jvp(f, tuple(wide(x)[:3]), tuple(wide(x)[3:]))
        call(x, o, ot, (64, 32, 4, 1) if d == 256 else CONFIGS[0], True, False)
        for got, w in zip((o, ot), want):
            error = ((got.double() - w).norm() / w.norm()).item()
            assert error < 1e-2, f"the Triton kernel is wrong at d = {d}: {error}"

        def attempt(config, merged, n, runs):
            b, h = max(16384 // n, 1), 2048 // d
            x = drawn(b, h, n)
            o, ot = torch.empty_like(x[0]), torch.empty_like(x[0])
            try:
                return seconds(lambda: call(x, o, ot, config, merged, True), runs), config, merged
            except Exception as e:  # more shared memory than there is
                if "OutOfResources" not in type(e).__name__:
                    raise
                return float("inf"), config, merged

        # Which is best is asked at one length; accumulators apart only for the best, since each costs seconds to compile.
        merged = min(attempt(c, True, 8192, 5) for c in CONFIGS + [(64, 32, 4, 2), (64, 32, 4, 1), (128, 32, 8, 1)])
        _, config, together = min(merged, attempt(merged[1], False, 8192, 5))
        for n in lengths:
            best = attempt(config, together, n, 30)
            name = f"triton jvp N={n} d={d}"
            report(rows, name, best[0], 12 * max(16384 // n, 1) * (2048 // d) * d * n * n)
            rows[name]["config"] = [list(config), "merged" if together else "apart"]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--runs", type=int, default=7)
    p.add_argument("--pushforward", type=Path, default=ROOT / "target/release/pushforward")
    p.add_argument("--bin", type=Path, default=None)
    p.add_argument("--json", type=Path)
    p.add_argument("--no-static", action="store_true", help="times only")
    p.add_argument("--one", type=int, help=argparse.SUPPRESS)
    p.add_argument("--cache", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one:
        start = time.perf_counter()
        machine_code(a.one, PEER[a.one], True, a.cache)
        print(time.perf_counter() - start)
        return
    out = compare(a.pushforward.resolve(), (a.bin or triton_tools()).resolve(), a.runs, not a.no_static)
    if a.json:
        a.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
