#!/usr/bin/env python3
"""One iteration of rCM on the digits, beside the same iteration in PyTorch eager on the CPU, both in one run and in turn.

The network (218 thousand parameters), the batch, the losses and the optimizer are those of `trainer/examples/step_share.rs`: guided teacher, consistency in rectified
flow's terms with a tangent by forward mode, distribution matching on a rollout, AdamW without a first moment, power-function average. Of four iterations one is the
student's, with rollouts of 1 to 4 steps in turn, and three are the fake score's. PyTorch's part is written as one would: `torch.func.jvp`, `scaled_dot_product_attention`
where autograd alone is needed, its formula where forward mode needs it.

Usage: target/peer/bin/python benches/training.py [--batch 128] [--threads 2] [--rounds 3] [--out FILE.json]
       (first: cargo build --release -p pushforward-trainer --example step_share)
"""
import argparse
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent


class Block(nn.Module):
    def __init__(self, d, heads, wide):
        super().__init__()
        self.heads, self.mod = heads, nn.Linear(d, 6 * d)
        self.qkv, self.out, self.up, self.down = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, wide), nn.Linear(wide, d)

    def forward(self, h, c, forward_mode):
        norm = lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.mod(c)[:, None].chunk(6, -1)
        z = norm(h) * (1 + scale1) + shift1
        q, k, v = self.qkv(z).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        unit = lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        q, k = unit(q), unit(k)
        if forward_mode:
            o = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v
        else:
            o = F.scaled_dot_product_attention(q, k, v)
        h = h + gate1 * self.out(o.transpose(1, 2).flatten(2))
        z = norm(h) * (1 + scale2) + shift2
        return h + gate2 * self.down(F.gelu(self.up(z), approximate="tanh"))


class Dit(nn.Module):
    """As examples/distill/teacher/config.json says."""

    def __init__(self, d=64, heads=4, layers=3, wide=192, classes=10, waves=32):
        super().__init__()
        self.patch, self.place = nn.Linear(4, d), nn.Parameter(0.02 * torch.randn(16, d))
        self.time = nn.Sequential(nn.Linear(2 * waves, d), nn.SiLU(), nn.Linear(d, d))
        self.kind, self.blocks = nn.Embedding(classes + 1, d), nn.ModuleList(Block(d, heads, wide) for _ in range(layers))
        self.last, self.proj = nn.Linear(d, 2 * d), nn.Linear(d, 4)
        self.register_buffer("waves", torch.logspace(math.log10(0.5), 1, waves))

    def forward(self, x, u, label, forward_mode=False):
        b = x.shape[0]
        h = self.patch(x.reshape(b, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(b, 16, 4)) + self.place
        a = u[:, None] * self.waves
        c = F.silu(self.time(torch.cat([a.cos(), a.sin()], -1)) + self.kind(label))
        for block in self.blocks:
            h = block(h, c, forward_mode)
        shift, scale = self.last(c)[:, None].chunk(2, -1)
        y = self.proj(F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        return y.reshape(b, 4, 4, 2, 2).permute(0, 1, 3, 2, 4).reshape(b, 1, 8, 8)


class Rcm:
    def __init__(self, batch):
        torch.manual_seed(0)
        self.student, self.fake, self.teacher = Dit(), Dit(), Dit()
        for net in (self.fake, self.teacher):
            net.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.average = [p.detach().clone() for p in self.student.parameters()]
        make = lambda net: torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.0, 0.999), weight_decay=0.01)
        self.optimizers = make(self.student), make(self.fake)
        self.batch, self.x0 = batch, torch.randn(batch, 1, 8, 8)
        self.label, self.none = torch.arange(batch) % 10, torch.full((batch,), 10)

    def times(self, mean, deviation):
        return torch.sigmoid(mean + deviation * torch.randn(self.batch))

    def guided(self, x, u):
        with torch.no_grad():
            free, told = self.teacher(x, u, self.none), self.teacher(x, u, self.label)
            return free + 2.0 * (told - free)

    def rollout(self, steps):
        """The last step's sample and time; x̂₀ of the steps before needs no gradient."""
        wide = lambda u: u[:, None, None, None]
        x, u = torch.randn_like(self.x0), torch.ones(self.batch)
        with torch.no_grad():
            for _ in range(steps - 1):
                clean = x - wide(u) * self.student(x, u, self.label)
                u = torch.minimum(self.times(0.0, 1.6), u)
                x = (1 - wide(u)) * clean + wide(u) * torch.randn_like(x)
        return x, u

    def step(self, i):
        wide, rollout = lambda u: u[:, None, None, None], i // 4 % 4 + 1
        if i % 4 == 0:
            u, noise = self.times(0.0, 1.6), torch.randn_like(self.x0)
            x = (1 - wide(u)) * self.x0 + wide(u) * noise
            v_teacher = self.guided(x, u)
            with torch.no_grad():
                v, j = torch.func.jvp(lambda x, u: self.student(x, u, self.label, True), (x, u), (v_teacher, torch.ones_like(u)))
                g = -(v - v_teacher) - wide(u) * j
                g = g / (g.flatten(1).norm(dim=1)[:, None, None, None] + 0.1)
            loss = (self.student(x, u, self.label) - (v + g)).square().sum()
            x, u = self.rollout(rollout)
            clean = x - wide(u) * self.student(x, u, self.label)
            with torch.no_grad():
                t, noise = self.times(-1.0, 1.2), torch.randn_like(x)
                z = (1 - wide(t)) * clean + wide(t) * noise
                of_teacher, of_fake = z - wide(t) * self.guided(z, t), z - wide(t) * self.fake(z, t, self.label)
                weight = (clean - of_teacher).abs().flatten(1).mean(1).clamp_min(1e-5)[:, None, None, None]
                goal = clean - (of_fake - of_teacher) / weight
            self.learn(0, loss + 0.3 * (clean - goal).square().sum())
            with torch.no_grad():
                torch._foreach_lerp_(self.average, list(self.student.parameters()), 0.01)
        else:
            with torch.no_grad():
                x, u = self.rollout((i - i // 4 - 1) % 4 + 1)
                clean = x - wide(u) * self.student(x, u, self.label)
                t, noise = self.times(-1.0, 1.2), torch.randn_like(x)
                z = (1 - wide(t)) * clean + wide(t) * noise
            error = (self.fake(z, t, self.label) - (noise - clean)).square().flatten(1).sum(1)
            self.learn(1, (error / (1 - t).square().add(t.square())).sum())

    def learn(self, which, loss):
        self.optimizers[which].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[which].step()


def eager(rcm, rounds=8):
    """Milliseconds of the student's and of the critic's iterations: the same iterations as step_share's."""
    for i in range(4):
        rcm.step(i)
    said = {}
    for what, turns in (("student", [0]), ("critic", [1, 2, 3])):
        start = time.perf_counter()
        for r in range(1, rounds + 1):
            for t in turns:
                rcm.step(4 * r + t)
        said[what] = 1e3 * (time.perf_counter() - start) / (rounds * len(turns))
    return said


def ours(binary, batch, threads):
    out = subprocess.run([str(binary.resolve()), str(batch), str(threads)], capture_output=True, text=True, check=True).stdout
    found = {m[1]: [float(x) for x in m.groups()[1:]] for m in re.finditer(r"^(\w+): ([\d.]+) ms an iteration, ([\d.]+) ms in programs, ([\d.]+) ms in launches, ([\d.]+) %", out, re.M)}
    if set(found) != {"student", "critic"}:
        sys.exit(f"{binary} said something else:\n{out}")
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--binary", type=Path, default=ROOT / "target/release/examples/step_share")
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    rcm, rows = Rcm(a.batch), []
    if (n := sum(x.numel() for x in rcm.student.parameters())) // 1000 not in (218, 219):
        sys.exit(f"the network has {n} parameters")
    for _ in range(a.rounds):
        rows.append((ours(a.binary, a.batch, a.threads), eager(rcm)))
    median = lambda x: sorted(x)[len(x) // 2]
    result = {"batch": a.batch, "threads": a.threads, "torch": torch.__version__}
    print(f"one iteration of rCM, batch {a.batch}, {a.threads} threads, medians of {a.rounds} rounds in turn; PyTorch {torch.__version__} eager")
    for what in ("student", "critic"):
        mine, theirs, share = median([o[what][0] for o, _ in rows]), median([e[what] for _, e in rows]), median([o[what][3] for o, _ in rows])
        result[what] = {"milliseconds": mine, "eager_milliseconds": theirs, "outside_launches_percent": share}
        print(f"  {what:<8} {mine:7.2f} ms   eager {theirs:7.2f} ms   {theirs / mine:.2f}x   {share:.2f} % outside of launches")
    mine, theirs = (sum(result[w][k] * n for w, n in (("student", 1), ("critic", 3))) / 4 for k in ("milliseconds", "eager_milliseconds"))
    result["mean"] = {"milliseconds": mine, "eager_milliseconds": theirs, "times": theirs / mine}
    print(f"  {'mean':<8} {mine:7.2f} ms   eager {theirs:7.2f} ms   {theirs / mine:.2f}x   (one iteration in four is the student's)")
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
