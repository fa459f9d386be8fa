#!/usr/bin/env python3
"""What a training exports, in diffusers: a folder of averaged weights is loaded by `from_pretrained` of its own class, without a missing or an unexpected key, and its
output and its tangent along sample and time are compared with `pushforward net` on the same folder.

Usage: target/peer/bin/python benches/diffusers_export.py [FOLDER…]
       Folders are `final/` of a run of clips or Cosmos. Without one, two trainings of three iterations are made (examples/distill) and their exports taken.
       Wants diffusers and accelerate (pip install diffusers accelerate); without them it says SKIPPED and exits with 77.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
try:
    import accelerate  # noqa: F401  (from_pretrained wants it)
    import diffusers
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as e:
    print(f"SKIPPED: {e}; nothing was compared (pip install torch diffusers accelerate)", file=sys.stderr)
    sys.exit(77)
from torch_networks import load, save  # noqa: E402

# What each class is asked: latent, text, time.
ASKED = {
    "WanTransformer3DModel": ((2, 1, 4, 10, 10), (2, 2, 14), [9.3, 2.5]),
    "CosmosTransformer3DModel": ((2, 1, 1, 8, 8), (2, 1, 10), [9.3, 2.5]),
}


def trained(pushforward, config, folder):
    """The export of a training of three iterations, enough for no weight to be at its start."""
    text = (ROOT / "examples/distill" / config).read_text()
    lines = ["iterations = 3" if l.startswith("iterations") else "batch = 4" if l.startswith("batch") else "rate_warm_up = 0" if l.startswith("rate_warm_up") else l for l in text.splitlines()]
    for name in ("wan", "cosmos"):
        lines = [l.replace(f'"{name}/', f'"{ROOT}/examples/distill/{name}/') for l in lines]
    file = folder / config
    file.write_text("\n".join(lines) + "\n")
    subprocess.run([pushforward, "teach", str(file), "--folder", str(folder / config.removesuffix(".toml"))], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return folder / config.removesuffix(".toml") / "final"


def compare(pushforward, folder, tmp):
    name = json.loads((folder / "config.json").read_text())["_class_name"]
    model, info = getattr(diffusers, name).from_pretrained(str(folder), output_loading_info=True)
    if any(info.values()):
        return f"{name}: {info}"
    model = model.double().eval().requires_grad_(False)
    shape, text, time = ASKED[name]
    r = torch.Generator().manual_seed(3)
    draw = lambda s: torch.randn(*s, generator=r).double()
    x, dx, context, t, dt = draw(shape), draw(shape), draw(text), torch.tensor(time).double(), torch.ones(len(time)).double()
    save(tmp / "in.safetensors", {"hidden_states": x, "hidden_states.t": dx, "timestep": t, "timestep.t": dt, "encoder_hidden_states": context}, {})
    # diffusers computes its sinusoids in f32, whatever the weights are in: agreement ends there.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out, tangent = torch.func.jvp(lambda x, t: model(hidden_states=x, timestep=t, encoder_hidden_states=context, return_dict=False)[0], (x, t), (dx, dt))
    worst = []
    for on in ("reference", "cpu"):
        subprocess.run([pushforward, "net", str(folder), "--jvp", "hidden_states,timestep", "--inputs", str(tmp / "in.safetensors"), "--outputs", str(tmp / "out.safetensors"), "--on", on],
                       check=True, stdout=subprocess.DEVNULL)
        ours, _ = load(tmp / "out.safetensors")
        gap = lambda a, b: float((a.double() - b).norm() / b.norm())
        worst.append((on, gap(ours["out"], out), gap(ours["out.t"], tangent)))
    for on, a, b in worst:
        print(f"{name} {diffusers.__version__} beside `net --on {on}`: output {a:.1e}, tangent {b:.1e} (relative, in norm), |out| {float(out.norm()):.2f}, |tangent| {float(tangent.norm()):.2f}")
    bad = [f"{name}, {on}: {a:.1e}, {b:.1e}" for on, a, b in worst if not max(a, b) < 1e-4]
    return "; ".join(bad)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", nargs="*", type=Path)
    p.add_argument("--pushforward", default=str(ROOT / "target/release/pushforward"))
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        folders = a.folders or [trained(a.pushforward, c, tmp) for c in ("clips-teacher.toml", "cosmos-teacher.toml")]
        bad = [b for f in folders if (b := compare(a.pushforward, f, tmp))]
    if bad:
        sys.exit("\n".join(bad))


if __name__ == "__main__":
    main()
