"""The anchor: how long a small transformer, trained by the recipe that nanoGPT's README gives for a CPU, takes on this machine, and the
loss it reaches. `quality.py --anchor` gives the library as long.

    python benchmarks/nanogpt.py --text tinyshakespeare.txt [--seed 1] [--iterations 2000]

4 layers of 4 heads, 128 wide, 64 characters of context, batches of 12 random windows, no dropout, no biases, output weights tied to the
embedding; AdamW (weight decay 0.1 on matrices, betas 0.9 and 0.99), gradient norm clipped to 1, 100 steps of warm-up, then a cosine from
1e-3 to 1e-4. First 90 % of the text trains, the rest validates: the mean over 64-character windows that cover it. Prints the loss and the
seconds of the iterations alone: import, start and validation aren't in them. Written for this benchmark in plain PyTorch
(`pip install torch==2.13.0`), after nanoGPT's description; its own published figure is 1.88.
"""

import argparse
import math
import os
import time
from pathlib import Path

for variable in ('OPENBLAS_CORETYPE', 'OPENBLAS_L2_SIZE'):
    os.environ.pop(variable, None)

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12


def train(text, seed=1, iterations=2000):
    """(seconds of the iterations, validation loss in nats per character) on a string."""
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional as F
    torch.manual_seed(seed)

    class Block(nn.Module):
        """Attention to what came before, then two layers at each position, each added to what goes in."""

        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
            self.qkv, self.mixed = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
            self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = self.qkv(self.norms[0](x)).view(b, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.mixed(heads.transpose(1, 2).reshape(b, t, WIDTH))
            return x + self.narrow(F.gelu(self.wide(self.norms[1](x))))

    chars = sorted(set(text))
    codes = torch.from_numpy(np.searchsorted(chars, list(text)))
    learnt, heldout = codes[:int(0.9 * len(codes))], codes[int(0.9 * len(codes)):]
    embedding, places = nn.Embedding(len(chars), WIDTH), nn.Embedding(CONTEXT, WIDTH)
    blocks, last = nn.Sequential(*(Block() for _ in range(LAYERS))), nn.LayerNorm(WIDTH, bias=False)
    network = nn.ModuleList([embedding, places, blocks, last])
    for name, p in network.named_parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=0.02 / (math.sqrt(2 * LAYERS) if 'mixed' in name or 'narrow' in name else 1))
    groups = [{'params': [p for p in network.parameters() if (p.ndim == 2) == decays], 'weight_decay': 0.1 * decays}
              for decays in (True, False)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))

    def loss(windows):
        x, y = windows[:, :-1], windows[:, 1:]
        logits = F.linear(last(blocks(embedding(x) + places.weight[:x.shape[1]])), embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())

    before = time.monotonic()
    for i in range(iterations):
        way = min(max(i - 100, 0) / (iterations - 100), 1)
        for group in optimizer.param_groups:
            group['lr'] = 1e-3 * (i + 1) / 101 if i < 100 else 1e-4 + 9e-4 * (1 + math.cos(math.pi * way)) / 2
        starts = torch.randint(len(learnt) - CONTEXT, (BATCH, 1))
        optimizer.zero_grad()
        loss(learnt[starts + torch.arange(CONTEXT + 1)]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    seconds = time.monotonic() - before
    with torch.no_grad():
        windows = heldout[:-1].unfold(0, CONTEXT + 1, CONTEXT)
        losses = [loss(chunk).item() * len(chunk) for chunk in windows.split(256)]
    return seconds, sum(losses) / len(windows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--text', required=True, help='a text file')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--iterations', type=int, default=2000)
    args = parser.parse_args()
    seconds, loss = train(Path(args.text).read_text(encoding='utf-8'), args.seed, args.iterations)
    print(f'valid loss {loss:.4f}, {seconds:.1f} s for {args.iterations:,} iterations')


if __name__ == '__main__':
    main()
